# SPDX-License-Identifier: Apache-2.0
"""
The tier that only a real GPU can judge: programs with NVIDIA's runtime library, and what NVML says of them.

Here nothing is granted beside the quota: what contexts and modules take is within it, as for a user. Every test is
marked `gpu`, so all of it is left out without ``--driver=gpu``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools.tenants import GIB, MIB, Driver, Tenant, create, real
from tools.watch import Watch, watching

PROGRAMS = Path(__file__).parent / "programs"
LONGEST_S = 180
"""A program that hangs is ended, and its test fails, with time left for the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def card() -> Driver:
    """This machine's driver; nothing is added to what a tenant is granted."""
    return dataclasses.replace(real(), context_memory=0)


@pytest.fixture
def quota(card: Driver) -> int:
    """Room for a framework and some GiB beside it, far below what the card has."""
    return min(16 * GIB, card.devices[0].memory // 4) // (64 * MIB) * (64 * MIB)


@pytest.fixture
def make_tenant(card: Driver, tmp_path: Path) -> Callable[[int], Tenant]:
    """Make a tenant with a memory quota."""
    return lambda memory: create(tmp_path / "state", card, memory, None, (0,))


@pytest.fixture
def bare(card: Driver) -> Tenant:
    """The card without us: what a limit is compared with."""
    return Tenant(card, preload="")


def need(card: Driver, module: str, package: str) -> str:
    """Skip unless a framework is installed and can use the card; its version."""
    if not importlib.util.find_spec(module):
        pytest.skip(f"{package} is not installed: nothing to be judged by it")
    probe = {
        "torch": "import torch; torch.zeros(1, device='cuda'); print(torch.__version__)",
        "cupy": "import cupy; cupy.zeros(1); print(cupy.__version__)",
    }[module]
    done = Tenant(card, preload="").attempt(sys.executable, "-c", probe)
    if done.returncode:
        pytest.skip(f"{package} cannot use this card without us: {done.stderr.strip().splitlines()[-1][:200]}")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def torch_version(card: Driver) -> str:
    return need(card, "torch", "PyTorch")


@pytest.fixture(scope="session")
def cupy_version(card: Driver) -> str:
    return need(card, "cupy", "CuPy")


@dataclass
class Program:
    """A program of ``programs/``, running; it speaks JSON lines."""

    process: subprocess.Popen[str]
    errors: Path

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise AssertionError(f"it ended with {self.process.wait()}:\n{self.errors.read_text()[-3000:]}")

    def tell(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """It ends by itself, well, and without a word from us."""
        status = self.process.wait(120)
        said = self.errors.read_text()
        assert status == 0, f"it ended with {status}:\n{said[-3000:]}"
        assert "vgpu:" not in said, said


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program in a tenant, or bare; it ends with the test at the latest."""
    with ExitStack() as stack:

        def begin(tenant: Tenant, file: str, *arguments: object, **environment: str) -> Program:
            errors = tmp_path / f"errors-{len(list(tmp_path.glob('errors-*')))}"
            stderr = stack.enter_context(errors.open("w"))
            command = [sys.executable, str(PROGRAMS / file), *map(str, arguments)]
            process = subprocess.Popen(command, env=tenant.environment(**environment), text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            deadline = threading.Timer(LONGEST_S, process.kill)
            deadline.start()
            stack.callback(deadline.cancel)
            return Program(process, errors)

        yield begin


@pytest.fixture
def watch(card: Driver) -> Iterator[Watch]:
    """From outside of any tenant, until the test ends: NVML's own figure for the programs that it is told to follow."""
    with watching(card.environment()) as seen:
        yield seen
