# SPDX-License-Identifier: Apache-2.0
"""
A simulated machine, and programs that run on it.

Every program is a process of its own: that is how clients meet a driver, and a process can only ever load
one driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgpu_runtime import machines

MIB = 2**20

# NVML's codes, as its header numbers them.
UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED = 1, 2, 3
NOT_FOUND, INSUFFICIENT_SIZE, DRIVER_NOT_LOADED, TIMEOUT, VERSION_MISMATCH = 6, 7, 9, 10, 25

GPU_USER = Path(__file__).with_name("gpu_user.py")

PREAMBLE = """
import ctypes, json, os, sys, time
def answer(value):
    print(json.dumps(value))
"""


NVML = """
lib = ctypes.CDLL("libnvidia-ml.so.1")
number, device = ctypes.c_uint(), ctypes.c_void_p()
def open_device(index=0):
    assert lib.nvmlInit_v2() == 0
    assert lib.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
    return device
"""
"""For a piece of Python that calls NVML by its bare functions."""


def program(script: str) -> str:
    """Return a piece of Python with what every piece may use."""
    return PREAMBLE + textwrap.dedent(script)


@dataclass(frozen=True)
class Running:
    """A program that uses the simulated GPU at this moment."""

    process: subprocess.Popen[str]
    said: dict[str, Any]
    """What it printed when it was ready."""

    @property
    def pid(self) -> int:
        return self.process.pid


@dataclass(frozen=True)
class Simulated:
    """A machine, with what tests do on it."""

    machine: machines.Machine

    @property
    def directory(self) -> Path:
        return self.machine.directory

    def environment(self, **more: str) -> dict[str, str]:
        return {**self.machine.environment(os.environ), "NO_COLOR": "1", "LC_ALL": "C.UTF-8", **more}

    def attempt(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever that is."""
        words = [str(word) for word in command]
        environment = self.environment(**more)
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def run(self, *command: str | Path, **more: str) -> str:
        """Run a program to its end; return what it prints. Anything on stderr is a failure."""
        done = self.attempt(*command, **more)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert done.stderr == "", done.stderr
        return done.stdout

    def ask(self, script: str, **more: str) -> Any:
        """Run a piece of Python on the machine; return what it gives to ``answer()``."""
        return json.loads(self.run(sys.executable, "-c", program(script), **more))

    @contextmanager
    def user(self, *, device: int = 0, memory: int = 0, busy: int = 0) -> Iterator[Running]:
        """Have a process use a device while the context lasts: bytes held, percent of the time busy."""
        command = [sys.executable, str(GPU_USER), f"--device={device}", f"--memory={memory}", f"--busy={busy}"]
        with subprocess.Popen(
            command, env=self.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, f"gpu_user ended with {process.wait(10)}"
                yield Running(process, json.loads(line))
            finally:
                if process.poll() is None:
                    assert process.stdin is not None
                    process.stdin.close()
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        process.kill()


Make = Callable[[str], Simulated]
"""Makes a machine from a preset's name or from the text of a machine file: the fixture make_machine."""
