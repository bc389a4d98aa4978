# SPDX-License-Identifier: Apache-2.0
"""The command line as such: help, errors, what it prints, how it starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import build
import pytest

from vgpu_runtime import __version__
from vgpu_runtime.cli import VERBS


def test_the_version_is_the_packages(vgpu: Any) -> None:
    assert vgpu("--version").stdout == f"vgpu {__version__}\n"
    assert f'version = "{__version__}"' in (build.ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(vgpu: Any, verb: str) -> None:
    done = vgpu(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: vgpu {verb} ")
    assert VERBS[verb] in vgpu("--help").stdout


@pytest.mark.parametrize("arguments", [[], ["run"], ["sim"]])
def test_help_teaches_by_examples(vgpu: Any, arguments: list[str]) -> None:
    text = vgpu(*arguments, "--help").stdout
    assert "Examples:" in text
    assert re.search(r"^ +vgpu run .*--memory", text, re.MULTILINE)


def test_without_a_verb_the_help_is_an_error(vgpu: Any) -> None:
    done = vgpu()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["run"], "PROGRAM"),
        (["run", "--nonsense", "true"], "--nonsense"),
        (["list", "extra"], "extra"),
        (["sim"], "no machine"),
        (["sim", "h9000"], "h9000"),
        (["sim", "/no/such.yaml"], "/no/such.yaml"),
        (["run", "--sim", "99xt4", "true"], "99xt4"),
    ],
)
def test_a_wrong_command_line_exits_2_with_a_hint_and_prints_nothing(
    vgpu: Any, arguments: list[str], named: str
) -> None:
    done = vgpu(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("vgpu: ")
    assert named in first
    assert rest[0].startswith("  hint: ")


def test_sim_prints_a_driver_directory_that_works(vgpu: Any) -> None:
    directory = vgpu("sim", "2xt4").stdout.strip()
    assert vgpu("sim", "2xt4").stdout.strip() == directory
    code = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetCount())"
    env = {**vgpu.environment, "LD_LIBRARY_PATH": directory}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout == b"2\n"


def test_sim_takes_a_machine_file(vgpu: Any, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("devices:\n  - model: t4\n    memory_total: 8GiB\n")
    done = vgpu("run", "--sim", tmp_path / "lab.yaml", "--", "printenv", "LD_LIBRARY_PATH")
    assert done.stdout.strip() == str(vgpu.state / "sim" / "lab"), done.stderr


def test_sim_lists_names_that_it_takes(vgpu: Any) -> None:
    names = vgpu("sim", "--list").stdout.split()
    assert {"h200", "t4"} <= set(names)
    for name in names:
        assert vgpu("sim", name).returncode == 0


def test_the_table_of_intercepts_is_the_one_that_the_library_exports(vgpu: Any) -> None:
    rows = json.loads(vgpu("intercepts", "--json").stdout)["intercepts"]
    assert [row["symbol"] for row in rows] == list(build.intercepted())
    assert {row["verb"] for row in rows} == {"refuse", "delay", "rewrite", "settle"}
    text = vgpu("intercepts").stdout
    assert [line.split()[1] for line in text.splitlines()] == [row["symbol"] for row in rows]


def modules_of(vgpu: Any, *arguments: str) -> set[str]:
    """The modules that a command has imported at its end."""
    start = (
        f"import sys; sys.path.insert(0, {str(build.ROOT)!r}); import atexit; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "from vgpu_runtime.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, *arguments], env=vgpu.environment, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


HEAVY = {"rich", "pynvml", "msgspec", "yaml", "psutil", "asyncio"}


def test_a_command_imports_only_what_it_needs(vgpu: Any) -> None:
    assert not HEAVY & modules_of(vgpu, "--help")
    assert not HEAVY & modules_of(vgpu, "intercepts")
    # `run` itself is gone at its end; what it imports is what its help does, and the driver's face.
    assert not HEAVY & modules_of(vgpu, "run", "--help")
    assert not (HEAVY - {"pynvml", "msgspec"}) & modules_of(vgpu, "list", "--json")


def test_python_m_is_the_command(vgpu: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vgpu_runtime", "--version"],
        cwd=build.ROOT,
        env={**os.environ, "VGPU_STATE_DIR": str(vgpu.state)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"vgpu {__version__}\n"
