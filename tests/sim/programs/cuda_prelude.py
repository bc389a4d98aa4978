# SPDX-License-Identifier: Apache-2.0
"""What the small CUDA programs of the tests have in common."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

from cuda.bindings import driver as cu

GIB = 2**30
MIB = 2**20

__all__ = ["GIB", "MIB", "answer", "context", "ctypes", "cu", "function", "json", "key", "launch", "line", "ok", "os",
           "raw", "rc", "sys", "time"]  # fmt: skip


def answer(value: Any) -> None:
    """Tell the test."""
    print(json.dumps(value), flush=True)


def line() -> str:
    """Wait for the test."""
    return sys.stdin.readline().strip()


def rc(result: tuple[Any, ...]) -> int:
    """Return the code of a driver call."""
    return int(result[0])


def ok(result: tuple[Any, ...]) -> Any:
    """Return what a driver call that must succeed has given."""
    if rc(result):
        raise SystemExit(f"driver call failed with {result[0]!r}")
    return result[1] if len(result) == 2 else result[1:]


def context(device: int = 0) -> Any:
    """Start the driver and make a device's primary context current."""
    ok(cu.cuInit(0))
    made = ok(cu.cuDevicePrimaryCtxRetain(device))
    ok(cu.cuCtxSetCurrent(made))
    return made


def function(name: str) -> Any:
    """Return a kernel by its name."""
    module = ok(cu.cuModuleLoadData(b"an image"))
    return ok(cu.cuModuleGetFunction(module, name.encode()))


def launch(kernel: Any, stream: Any = 0, arguments: Any = 0) -> int:
    """Launch one small block."""
    return rc(cu.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, arguments, 0))


def raw() -> ctypes.CDLL:
    """Return the driver without bindings."""
    return ctypes.CDLL("libcuda.so.1")


def key(handle: Any) -> int:
    """Return a handle as a number."""
    return int(handle)
