# SPDX-License-Identifier: Apache-2.0
"""The contract's C under sanitizers: hostile and torn files, and many threads at once."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import build
import pytest

HERE = Path(__file__).parent
FUZZ = (HERE / "fuzz.c", HERE / "fuzz_main.c")

SANITIZERS = {
    "address,undefined": {"ASAN_OPTIONS": "abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "thread": {"TSAN_OPTIONS": "halt_on_error=1"},
}


def instrument(target: Path, sanitizer: str, sources: Sequence[Path]) -> Path:
    """Compile with a sanitizer; skips where there is none."""
    probe = target.with_suffix(".c")
    probe.write_text("int main(void) { return 0; }\n")
    command = ["gcc", f"-fsanitize={sanitizer}", str(probe), "-o", str(target)]
    if not shutil.which("gcc") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs gcc with its sanitizers: apt-get install gcc")
    build.run(["gcc", "-std=gnu11", "-O1", "-g", "-w", "-fno-strict-aliasing", f"-fsanitize={sanitizer}",
               "-fno-sanitize-recover=all", f"-I{build.NATIVE}", *map(str, sources), "-o", str(target), "-lpthread",
               ])  # fmt: skip
    return target


def attempt(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], cwd=program.parent, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip


def test_hostile_and_torn_files_crash_nobody_and_stop_nobody(tmp_path: Path) -> None:
    fuzz = instrument(tmp_path / "fuzz", "address,undefined", [*FUZZ, *build.DECISIONS])
    done = attempt(fuzz, "40000", "1", **SANITIZERS["address,undefined"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "40000\n"


# Checks that somebody might leave out.
OMISSIONS = {
    "how many slices there are": ("grant.c", "grant->slice_count > VGPU_MAX_SLICES", "0"),
    "where a name ends": ("grant.c", "!memchr(grant->tenant, 0, sizeof(grant->tenant))", "0"),
    "which cores there can be": ("grant.c", "return cores > 100 ? 100 : cores ? cores : 1;", "return cores;"),
    "what a writer that died has kept": ("grant.c", "!is_in_range(&grant->before)", "0"),
    "a slice that is no slice": ("grant.c", "grant->changing < VGPU_MAX_SLICES", "1"),
}


@pytest.mark.parametrize("omission", OMISSIONS)
def test_a_check_that_is_left_out_is_found_out(tmp_path: Path, omission: str) -> None:
    name, check, without = OMISSIONS[omission]
    text = (build.NATIVE / name).read_text()
    assert text.count(check) == 1
    (tmp_path / name).write_text(text.replace(check, without))
    others = [source for source in build.DECISIONS if source.name != name]
    fuzz = instrument(tmp_path / "fuzz", "address,undefined", [*FUZZ, tmp_path / name, *others])
    done = attempt(fuzz, "40000", "1", **SANITIZERS["address,undefined"])
    assert done.returncode != 0
    seed = (tmp_path / "crash").read_text().rstrip("\0")
    assert attempt(fuzz, "1", seed, **SANITIZERS["address,undefined"]).returncode != 0, "its seed is not kept"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_on_one_ledger_and_one_grant(tmp_path: Path, sanitizer: str) -> None:
    sources = [HERE / "programs" / "rounds.c", *build.DECISIONS]
    done = attempt(instrument(tmp_path / "rounds", sanitizer, sources), "8", "1000", **SANITIZERS[sanitizer])
    assert (done.returncode, done.stderr) == (0, "")


def test_an_access_that_is_not_atomic_is_found_out(tmp_path: Path) -> None:
    text = (build.NATIVE / "grant.c").read_text()
    copy = re.compile(r"__atomic_store_n\(&target\[i\], __atomic_load_n\(&source\[i\], .*?\);", re.S)
    assert len(copy.findall(text)) == 1
    (tmp_path / "grant.c").write_text(copy.sub("target[i] = source[i];", text))
    others = [source for source in build.DECISIONS if source.name != "grant.c"]
    sources = [HERE / "programs" / "rounds.c", tmp_path / "grant.c", *others]
    done = attempt(instrument(tmp_path / "rounds", "thread", sources), "8", "1000", **SANITIZERS["thread"])
    assert done.returncode != 0
    assert "data race" in done.stderr
