# SPDX-License-Identifier: Apache-2.0
"""A process that is interrupted after any instruction of an operation on the shared files, by single steps."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import build
import pytest

PROGRAM = Path(__file__).parent / "programs" / "kill_ledger.c"
TOOLS = Path(__file__).parents[1]

Interrupt = Callable[..., subprocess.CompletedProcess[str]]

# Operation, mode (see kill_ledger.c), and at how many moments it can be interrupted at the least.
MOMENTS = [
    ("charge", "each", 40),
    ("refused", "each", 30),
    ("refund", "each", 20),
    ("seated-charge", "each", 35),
    ("seated-refund", "each", 15),
    ("take", "each", 120),
    ("sweep", "each", 120),
    ("write", "each", 40),
    ("charge", "state", 5),
    ("refused", "state", 3),
    ("refund", "state", 5),
    ("seated-charge", "state", 5),
    ("seated-refund", "state", 5),
    ("take", "state", 12),
    ("sweep", "state", 12),
    ("write", "state", 10),
    ("charge", "pair", 50),
    ("refund", "pair", 50),
    ("sweep", "pair", 100),
    ("charge", "stop", 5),
    ("refused", "stop", 3),
    ("refund", "stop", 5),
    ("seated-charge", "stop", 5),
    ("seated-refund", "stop", 5),
    ("take", "stop", 12),
    ("sweep", "stop", 12),
    ("write", "stop", 10),
    ("charge", "exec", 5),
    ("refused", "exec", 3),
    ("refund", "exec", 5),
    ("seated-charge", "exec", 5),
    ("seated-refund", "exec", 5),
    ("take", "exec", 12),
    ("sweep", "exec", 12),
    ("write", "exec", 10),
]


@pytest.fixture(scope="module")
def interrupt(tmp_path_factory: pytest.TempPathFactory) -> Interrupt:
    """Run the program on the contract's own files; its ledger has 6 rows, as each instruction costs time."""
    folder = tmp_path_factory.mktemp("small")
    for file in (*build.NATIVE.glob("*.c"), *build.NATIVE.glob("*.h")):
        shutil.copy(file, folder)
    contract = (folder / "abi.h").read_text()
    rows = "#define VGPU_MAX_PROCESSES "
    assert contract.count(f"{rows}512\n") == 1
    (folder / "abi.h").write_text(contract.replace(f"{rows}512\n", f"{rows}6\n"))
    flags = [flag for flag in build.FLAGS if flag not in ("-fPIC", f"-I{build.NATIVE}")]
    sources = [folder / source.name for source in build.DECISIONS]
    made = folder / "kill_ledger"
    build.run([*build.compiler(), *flags, f"-I{folder}", f"-I{TOOLS}", str(PROGRAM), *map(str, sources),
               "-o", str(made), "-Wl,-z,now"])  # fmt: skip

    def run(operation: str, mode: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([made, operation, mode], capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.mark.parametrize(("operation", "mode", "least"), MOMENTS)
def test_no_interruption_whenever_it_comes_loses_or_invents_a_byte(
    interrupt: Interrupt, operation: str, mode: str, least: int
) -> None:
    done = interrupt(operation, mode)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= least, "it was not interrupted where it had to be"


@pytest.mark.parametrize(
    ("operation", "mode"),
    [("careless-charge", "stop"), ("careless-refund", "pair")],
)
def test_accounts_that_are_kept_in_the_wrong_order_are_found_out(
    interrupt: Interrupt, operation: str, mode: str
) -> None:
    """The same interruptions of two operations that lower first what they must lower last, or say nothing of it."""
    done = interrupt(operation, mode)
    assert done.returncode == 1
    assert "less is charged than the living hold" in done.stderr
