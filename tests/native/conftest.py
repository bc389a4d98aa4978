# SPDX-License-Identifier: Apache-2.0
"""The contract's own functions, called through cffi as the node's side calls them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import build
import pytest

from vgpu_runtime._native._abi import ffi

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Contract:
    """`ffi` and `lib` of abi.h, with the few things that every test here needs."""

    ffi: Any
    lib: Any

    def grant(self, name: str, quotas: Sequence[dict[str, Any]], kind: int | None = None) -> Any:
        """A grant in memory; each quota is the fields to set, on the device of 16 times `device`."""
        grant = self.ffi.new("struct vgpu_grant *")
        grant.magic = self.lib.VGPU_GRANT_MAGIC
        grant.abi = self.lib.VGPU_ABI
        grant.size = self.ffi.sizeof("struct vgpu_grant")
        grant.tenant = name.encode()
        grant.kind = self.lib.VGPU_KIND_PROCESS if kind is None else kind
        grant.slice_count = len(quotas)
        for number, fields in enumerate(quotas):
            self.fill(grant.slices[number], **fields)
        return grant

    def fill(
        self,
        quota: Any,
        *,
        device: int = 1,
        device_memory: int = 1000,
        memory: int = 1000,
        cores: int = 100,
        policy: int | None = None,
    ) -> None:
        """Set the fields of one quota."""
        self.ffi.buffer(quota.device)[:] = bytes([device]) * self.lib.VGPU_UUID_SIZE
        quota.device_memory = device_memory
        quota.memory = memory
        quota.cores = cores
        quota.policy = self.lib.VGPU_POLICY_NONE if policy is None else policy


@pytest.fixture(scope="session")
def abi() -> Contract:
    return Contract(ffi, ffi.dlopen(str(build.OUTPUT / "libvgpu_abi.so")))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile one of our C programs together with the contract's own files; its path."""
    folder = tmp_path_factory.mktemp("programs")

    def compile_program(name: str) -> Path:
        made = folder / name
        if not made.exists():
            sources = [PROGRAMS / f"{name}.c", *build.DECISIONS]
            flags = [flag for flag in build.FLAGS if flag != "-fPIC"]
            build.run([*build.compiler(), *flags, *map(str, sources), "-o", str(made), "-lpthread"])
        return made

    return compile_program


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start processes that only live; all are ended at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        # Its first line of output says that exec is over.
        process = subprocess.Popen(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
