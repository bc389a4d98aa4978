# SPDX-License-Identifier: Apache-2.0
"""The programs that only a real GPU can judge: that they are what their tests start, and take what they are told."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

GPU = Path(__file__).parents[1] / "gpu"
FILES = ("torch_programs", "cupy_programs")
STARTED = {"torch_programs": "test_torch.py", "cupy_programs": "test_cupy.py"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, GPU / "programs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_programs_of_the_tests_are_those_that_there_are() -> None:
    text = (GPU / "test_torch.py").read_text()
    assert set(re.findall(r'FILE, "(\w+)"', text)) == set(load("torch_programs").PROGRAMS)
    assert set(re.findall(r'"(\w+\.py)"', text + (GPU / "test_cupy.py").read_text())) == {f"{one}.py" for one in FILES}


@pytest.mark.parametrize("name", FILES)
def test_the_options_that_the_tests_give_are_known(name: str) -> None:
    given = set(re.findall(r'"(--\w+)=|f"(--\w+)=', (GPU / STARTED[name]).read_text()))
    module = load(name)
    choice = next(iter(getattr(module, "PROGRAMS", None) or module.POOLS))
    known = vars(module.parser().parse_args([choice]))
    assert {one or other for one, other in given} <= {f"--{word}" for word in known}
    assert given


@pytest.mark.parametrize("name", FILES)
def test_without_its_framework_a_program_says_what_is_missing(name: str, tmp_path: Path) -> None:
    module = load(name)
    framework = name.partition("_")[0]
    (tmp_path / f"{framework}.py").write_text(f"raise ModuleNotFoundError('there is no {framework} here')\n")
    choice = next(iter(getattr(module, "PROGRAMS", None) or module.POOLS))
    command = [sys.executable, str(GPU / "programs" / f"{name}.py"), choice]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"there is no {framework} here" in done.stderr


class OutOfMemory(Exception):
    """As a framework raises it."""


def framework(room: int) -> SimpleNamespace:
    """Both frameworks' functions for an allocation, with room for so many bytes."""
    taken = 0

    def empty(size: int, **how: object) -> int:
        nonlocal taken
        if taken + size > room:
            raise OutOfMemory("CUDA out of memory")
        taken += size
        return size

    errors = SimpleNamespace(OutOfMemoryError=OutOfMemory)
    cuda = SimpleNamespace(OutOfMemoryError=OutOfMemory, memory=errors,
                           runtime=SimpleNamespace(CUDARuntimeError=OutOfMemory))  # fmt: skip
    return SimpleNamespace(empty=empty, uint8=None, cuda=cuda)


@pytest.mark.parametrize("name", FILES)
def test_they_take_chunks_until_told_or_refused(name: str) -> None:
    take = load(name).take
    assert take(framework(10), 3, 7) == ([3, 3], "")
    held, error = take(framework(10), 3, 100)
    assert held == [3, 3, 3]
    assert "CUDA out of memory" in error
