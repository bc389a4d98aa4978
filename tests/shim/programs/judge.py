# SPDX-License-Identifier: Apache-2.0
"""
The books of a tenant and of the simulated machine, for a program that runs in them.

What the shim has charged is read from the ledger's file, and what the device has really given from the
machine's, so neither is what the driver tells the program.
"""

from __future__ import annotations

import functools
import mmap
import os
from pathlib import Path
from typing import Any


@functools.cache
def _mapped(path: Path, struct: str, module: str) -> Any:
    ffi = __import__(f"vgpu_runtime._native.{module}", fromlist=["ffi"]).ffi
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return ffi.from_buffer(f"struct {struct} *", view)


def ledger() -> Any:
    """The tenant's `struct vgpu_ledger`."""
    return _mapped(Path(os.environ["VGPU_TENANT"]) / "ledger", "vgpu_ledger", "_abi")


def machine() -> Any:
    """The simulated `struct sim_machine`."""
    directory = os.environ["LD_LIBRARY_PATH"].partition(":")[0]
    return _mapped(Path(directory) / "machine", "sim_machine", "_machine")


def charged(slice_index: int = 0) -> int:
    """Bytes of device memory that all processes of the tenant are charged."""
    return int(ledger().slices[slice_index].memory_used)


def spilled(slice_index: int = 0) -> int:
    return int(ledger().slices[slice_index].memory_spilled)


def refused(slice_index: int = 0) -> int:
    return int(ledger().slices[slice_index].refusals)


def host() -> int:
    """Bytes of page-locked memory that the tenant is charged."""
    return int(ledger().host_used)


def taken(device: int = 0) -> int:
    """Bytes of a device in use, by its own count, by whomever; devices as NVML counts them."""
    return int(machine().devices[device].memory_used)


def held(device: int = 0) -> int:
    """Bytes of a device that this process has, contexts included."""
    shared = machine()
    for slot in range(len(shared.processes)):
        if shared.processes[slot].pid == os.getpid() and shared.processes[slot].state == 1:
            return int(shared.devices[device].shares[slot].memory)
    return 0


# Before there are threads: cffi finds out about a structure when it is first looked into, and not for two at once.
if "VGPU_TENANT" in os.environ:
    charged(), spilled(), host()
if (Path(os.environ["LD_LIBRARY_PATH"].partition(":")[0]) / "machine").exists():
    taken(), held()
