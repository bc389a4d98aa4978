# SPDX-License-Identifier: Apache-2.0
"""`vgpu` as a user has it: a command, run as a process of its own, with a state directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build
import pytest

# A CUDA program in the words of ctypes: it says what it sees, does what its arguments say, and prints JSON.
#   BYTES (of the device)  host:BYTES (of the host, page-locked)  hold (until stdin ends)
CUDA = """
import ctypes, json, os, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *args):
    return getattr(cuda, name)(*args)
assert call("cuInit", 0) == 0
device, context = ctypes.c_int(), ctypes.c_void_p()
assert call("cuDeviceGet", ctypes.byref(device), 0) == 0
assert call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device) == 0
assert call("cuCtxSetCurrent", context) == 0
answers = []
for word in sys.argv[1:]:
    if word == "hold":
        print(json.dumps(answers), flush=True)
        sys.stdin.read()
    elif word.startswith("host:"):
        pointer = ctypes.c_void_p()
        answers.append(call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(int(word[5:]))))
    else:
        pointer = ctypes.c_uint64()
        answers.append(call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(int(word))))
free, total = ctypes.c_size_t(), ctypes.c_size_t()
assert call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)) == 0
print(json.dumps({"answers": answers, "free": free.value, "total": total.value, "pid": os.getpid()}), flush=True)
"""


@dataclass
class Vgpu:
    """Runs `vgpu` commands that share a state directory."""

    state: Path
    package: Path = build.ROOT
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What the commands are given: nothing of another tenant, machine or state."""
        ours = {"LD_PRELOAD", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"}
        kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("VGPU_")}
        return {**kept, "VGPU_STATE_DIR": str(self.state)}

    def command(self, *arguments: object) -> list[str]:
        """A `vgpu` command line."""
        # The interpreter's own environment and path are as a user's: the package is found through its place.
        start = (
            f"import sys; sys.path.insert(0, {str(self.package)!r}); "
            "from vgpu_runtime.cli import main; sys.exit(main())"
        )
        return [sys.executable, "-c", start, *map(str, arguments)]

    def __call__(
        self, *arguments: object, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command to its end."""
        given = {"capture_output": True, "text": True, "timeout": 60, "check": False} | options
        return subprocess.run(self.command(*arguments), env=self.environment | (env or {}), **given)

    def start(self, *arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command with pipes; it is ended at the end of the test."""
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.environment | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def run(self, *options: object, program: Sequence[object], sim: str = "h200") -> subprocess.CompletedProcess[Any]:
        """`vgpu run` on a simulated machine."""
        return self("run", "--sim", sim, *options, "--", *program)

    def cuda(self, *options: object, do: Sequence[object] = (), sim: str = "h200") -> dict[str, Any]:
        """What the CUDA program says under `vgpu run`."""
        done = self.run(*options, program=[sys.executable, "-c", CUDA, *do], sim=sim)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert isinstance(said, dict)
        return said

    def hold(self, *options: object, do: Sequence[object] = (), sim: str = "h200") -> subprocess.Popen[str]:
        """A CUDA program under `vgpu run` that has done that and now waits for its stdin to end."""
        process = self.start("run", "--sim", sim, *options, "--", sys.executable, "-c", CUDA, *do, "hold")
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        assert all(answer == 0 for answer in json.loads(line)), line
        return process

    def tenants(self) -> list[dict[str, Any]]:
        """What `vgpu list --json` says."""
        done = self("list", "--json")
        assert done.returncode == 0, done.stderr
        tenants = json.loads(done.stdout)["tenants"]
        assert isinstance(tenants, list)
        return tenants


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process and give back its pipes."""
    process.kill()
    process.communicate()


@pytest.fixture
def vgpu(tmp_path: Path) -> Iterator[Vgpu]:
    commands = Vgpu(tmp_path / "state")
    yield commands
    for process in commands.running:
        end(process)
