# SPDX-License-Identifier: Apache-2.0
"""
Programs that use the simulated CUDA driver, for the tests beside them.

Each runs in a process of its own. Most are a few lines of Python after ``cuda_prelude``, which meets the
driver as users do: through NVIDIA's own bindings, or by ctypes where those would not let a mistake through.
"""

from __future__ import annotations

import functools
import mmap
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import build
from tools.simulated import Simulated

from vgpu_runtime import machines

FOLDER = Path(__file__).resolve().parent


def script(body: str) -> str:
    """Return a whole program from its interesting lines."""
    return "from cuda_prelude import *\n" + textwrap.dedent(body)


def ask(machine: Simulated, body: str, **environment: str) -> Any:
    """Run a program on the machine; return what it gives to ``answer()``."""
    return machine.ask(script(body), PYTHONPATH=str(FOLDER), **environment)


def start(
    machine: Simulated, body: str, *arguments: object, inside: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start a program on the machine, with pipes to and from it; ``inside`` are words to put before the command."""
    return subprocess.Popen(
        [*inside, sys.executable, "-c", script(body), *map(str, arguments)],
        env=machine.environment(PYTHONPATH=str(FOLDER), **environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def state(machine: Simulated) -> Any:
    """Return the machine's shared file as the C side sees it, alive."""
    return _view(machine.machine.file)


@functools.cache
def _view(file: Path) -> Any:
    ffi = machines._ffi()
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return ffi.from_buffer("struct sim_machine *", mapped)


def served(machine: Simulated, pid: int, device: int = 0) -> float:
    """Return the seconds of device time that a process was ever given."""
    image = state(machine)
    slots = [slot for slot in range(len(image.processes)) if image.processes[slot].pid == pid]
    return float(sum(image.devices[device].shares[slot].served_ns for slot in slots)) / 1e9


def compiled(folder: Path, name: str, *parts: Path) -> Path:
    """Compile one of the C programs of this folder, with other sources or libraries."""
    program = folder / Path(name).stem
    command = [*build.compiler(), "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{build.NATIVE}", f"-I{build.SIM}", str(FOLDER / name), *map(str, parts)]
    subprocess.run([*command, "-o", str(program), "-lpthread", "-ldl", "-lrt"], check=True)
    return program
