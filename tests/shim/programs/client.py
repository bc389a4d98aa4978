# SPDX-License-Identifier: Apache-2.0
"""A small face of the driver for test programs: ctypes, as many real clients use it."""

from __future__ import annotations

import ctypes
from pathlib import Path

cuda = ctypes.CDLL("libcuda.so.1")
OUT_OF_MEMORY = 2
for_modules: list[int] = []
"""Bytes that each module has taken, as the program is told."""


def size(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)


def pointer() -> ctypes.c_uint64:
    return ctypes.c_uint64()


def up(ordinal: int = 0) -> ctypes.c_void_p:
    """Initialise the driver and make a context of a device current."""
    context = ctypes.c_void_p()
    check(cuda.cuInit(0))
    check(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, ordinal))
    return context


def check(code: int) -> None:
    assert code == 0, f"the driver returned {code}"


def alloc(amount: int) -> tuple[int, ctypes.c_uint64]:
    """What cuMemAlloc_v2 returns, and the pointer."""
    made = pointer()
    return cuda.cuMemAlloc_v2(ctypes.byref(made), size(amount)), made


def alloc_managed(amount: int) -> tuple[int, ctypes.c_uint64]:
    made = pointer()
    return cuda.cuMemAllocManaged(ctypes.byref(made), size(amount), 1), made


def alloc_async(amount: int) -> tuple[int, ctypes.c_uint64]:
    made = pointer()
    return cuda.cuMemAllocAsync(ctypes.byref(made), size(amount), None), made


def alloc_async_ptsz(amount: int) -> tuple[int, ctypes.c_uint64]:
    made = pointer()
    return cuda.cuMemAllocAsync_ptsz(ctypes.byref(made), size(amount), None), made


def alloc_pitch(amount: int) -> tuple[int, ctypes.c_uint64]:
    """Rows of 64 KiB."""
    made, pitch = pointer(), ctypes.c_size_t()
    code = cuda.cuMemAllocPitch_v2(ctypes.byref(made), ctypes.byref(pitch), size(65536), size(amount // 65536), 4)
    return code, made


def free(made: ctypes.c_uint64) -> int:
    code: int = cuda.cuMemFree_v2(made)
    return code


def info() -> tuple[int, int]:
    """Free and total bytes of the current device, as cuMemGetInfo_v2 says."""
    available, total = ctypes.c_size_t(), ctypes.c_size_t()
    check(cuda.cuMemGetInfo_v2(ctypes.byref(available), ctypes.byref(total)))
    return available.value, total.value


# ---- physical memory apart from addresses ---------------------------------------------------------

DEVICE, HOST, HOST_NUMA, HOST_NUMA_CURRENT = 1, 2, 3, 4
PIECE = 2 << 20


class Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", ctypes.c_int),
        ("id", ctypes.c_int),
        ("win32", ctypes.c_void_p),
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


def properties(place: int = 0, location: int = DEVICE, handles: int = 0, usage: int = 0) -> Properties:
    return Properties(kind=1, handles=handles, location=location, id=place, usage=usage)


def create(amount: int, of: Properties | None = None) -> tuple[int, ctypes.c_uint64]:
    """What cuMemCreate returns, and the handle."""
    handle = ctypes.c_uint64()
    return cuda.cuMemCreate(ctypes.byref(handle), size(amount), ctypes.byref(of or properties()), 0), handle


def release(handle: ctypes.c_uint64) -> int:
    code: int = cuda.cuMemRelease(handle)
    return code


def reserve(amount: int) -> int:
    """Addresses."""
    made = pointer()
    check(cuda.cuMemAddressReserve(ctypes.byref(made), size(amount), size(0), ctypes.c_uint64(0), 0))
    return made.value


def map_at(address: int, amount: int, handle: ctypes.c_uint64) -> int:
    code: int = cuda.cuMemMap(ctypes.c_uint64(address), size(amount), size(0), handle, 0)
    return code


def unmap(address: int, amount: int) -> int:
    code: int = cuda.cuMemUnmap(ctypes.c_uint64(address), size(amount))
    return code


def retain(address: int) -> tuple[int, ctypes.c_uint64]:
    handle = ctypes.c_uint64()
    return cuda.cuMemRetainAllocationHandle(ctypes.byref(handle), ctypes.c_void_p(address)), handle


def spin_function() -> ctypes.c_void_p:
    """The kernel that lasts as many nanoseconds as its argument says."""
    module, function, before = ctypes.c_void_p(), ctypes.c_void_p(), info()[0]
    check(cuda.cuModuleLoadData(ctypes.byref(module), SPIN))
    for_modules.append(max(before - info()[0], 0))
    check(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"vgpu_spin"))
    return function


def launch(function: ctypes.c_void_p, ns: int, stream: ctypes.c_void_p | None = None, grid: int = 1) -> int:
    argument = ctypes.c_uint64(ns)
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    code: int = cuda.cuLaunchKernel(function, grid, 1, 1, 1, 1, 1, 0, stream, arguments, None)
    return code


SPIN = (Path(__file__).parents[3] / "vgpu_runtime" / "demo" / "spin.ptx").read_bytes()
