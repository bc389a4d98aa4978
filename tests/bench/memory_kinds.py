# SPDX-License-Identifier: Apache-2.0
"""
Allocates on request, for `accuracy`: a line "KIND BYTES COUNT" on stdin is answered by a line of JSON when there are so
many blocks of so many bytes (the driver's first code that is not 0, and what the tenant is charged), a line "free" by
another when they are gone. It says the same of itself once at its start, when it has a context and nothing else.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "shim"), str(ROOT / "tests" / "shim" / "programs")]

import client  # noqa: E402
import vgpu_shim  # noqa: E402
from client import cuda  # noqa: E402

BLOCK = 2 << 20
Undo = Callable[[], Any]
Made = tuple[int, Undo]


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", Location),
                ("windows", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8))  # fmt: skip


class Array(ctypes.Structure):
    """CUDA_ARRAY_DESCRIPTOR."""

    _fields_ = (("width", ctypes.c_size_t), ("height", ctypes.c_size_t), ("format", ctypes.c_int),
                ("channels", ctypes.c_uint))  # fmt: skip


def linear(amount: int) -> Made:
    code, made = client.alloc(amount)
    return code, lambda: cuda.cuMemFree_v2(made)


def pitched(amount: int) -> Made:
    made, pitch, width = client.pointer(), ctypes.c_size_t(), min(amount, 65536)
    code = cuda.cuMemAllocPitch_v2(ctypes.byref(made), ctypes.byref(pitch), client.size(width),
                                   client.size(amount // width), 4)  # fmt: skip
    return code, lambda: cuda.cuMemFree_v2(made)


def managed(amount: int) -> Made:
    """Written to by the device, which is when its pages come there."""
    code, made = client.alloc_managed(amount)
    if not code:
        code = cuda.cuMemsetD8_v2(made, ctypes.c_ubyte(7), client.size(amount)) or cuda.cuCtxSynchronize()
    return code, lambda: cuda.cuMemFree_v2(made)


def pool(amount: int) -> Made:
    code, made = client.alloc_async(amount)
    return code or cuda.cuCtxSynchronize(), lambda: cuda.cuMemFreeAsync(made, None)


def block(amount: int) -> Made:
    """Physical memory, of which there is no less than a block."""
    handle, how = ctypes.c_uint64(), Properties(type=1, location=Location(1, 0))
    amount = (amount + BLOCK - 1) // BLOCK * BLOCK
    code = cuda.cuMemCreate(ctypes.byref(handle), client.size(amount), ctypes.byref(how), ctypes.c_uint64(0))
    return code, lambda: cuda.cuMemRelease(handle)


def array(amount: int) -> Made:
    """Two dimensions of 32-bit numbers."""
    width = min(amount // 4, 16384)
    handle, what = ctypes.c_void_p(), Array(width, max(1, amount // 4 // width), 0x20, 1)
    return cuda.cuArrayCreate_v2(ctypes.byref(handle), ctypes.byref(what)), lambda: cuda.cuArrayDestroy(handle)


KINDS = {one.__name__: one for one in (linear, pitched, managed, pool, block, array)}


def say(code: int) -> None:
    slices = vgpu_shim.slices()
    facts = {"code": code, "charged": slices[0].memory_used if slices else None, "free": client.info()[0]}
    print(json.dumps(facts), flush=True)


def main() -> int:
    client.up()
    say(0)
    held: list[Undo] = []
    for line in sys.stdin:
        kind, *numbers = line.split()
        code = 0
        if kind == "free":
            for undo in held:
                code = code or undo()
            held.clear()
            code = code or cuda.cuCtxSynchronize()
        else:
            amount, count = map(int, numbers)
            for _ in range(count):
                code, undo = KINDS[kind](amount)
                if code:
                    break
                held.append(undo)
        say(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
