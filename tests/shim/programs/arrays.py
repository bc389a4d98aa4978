# SPDX-License-Identifier: Apache-2.0
"""Arrays for test programs: how they are asked for, and what is mapped into sparse ones."""

from __future__ import annotations

import ctypes

from client import cuda

LAYERED, CUBEMAP, SPARSE, DEFERRED = 0x01, 0x04, 0x40, 0x80
UINT8, FLOAT, NV12 = 0x01, 0x20, 0xB0


class Array2D(ctypes.Structure):
    """CUDA_ARRAY_DESCRIPTOR."""

    _fields_ = (
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("format", ctypes.c_uint),
        ("channels", ctypes.c_uint),
    )


class Array3D(ctypes.Structure):
    """CUDA_ARRAY3D_DESCRIPTOR."""

    _fields_ = (
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
        ("format", ctypes.c_uint),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


class OldArray2D(ctypes.Structure):
    """CUDA_ARRAY_DESCRIPTOR_v1."""

    _fields_ = tuple((name, ctypes.c_uint) for name in ("width", "height", "format", "channels"))


class OldArray3D(ctypes.Structure):
    """CUDA_ARRAY3D_DESCRIPTOR_v1."""

    _fields_ = tuple((name, ctypes.c_uint) for name in ("width", "height", "depth", "format", "channels", "flags"))


def array_2d(
    width: int, height: int, kind: int, channels: int, function: str = "cuArrayCreate_v2"
) -> tuple[int, ctypes.c_void_p]:
    made = ctypes.c_void_p()
    struct = Array2D if function.endswith("_v2") else OldArray2D
    of = struct(width, height, kind, channels)
    return getattr(cuda, function)(ctypes.byref(made), ctypes.byref(of)), made


def array_3d(
    width: int, height: int, depth: int, kind: int, channels: int, flags: int = 0, function: str = "cuArray3DCreate_v2"
) -> tuple[int, ctypes.c_void_p]:
    made = ctypes.c_void_p()
    struct = Array3D if function.endswith("_v2") else OldArray3D
    of = struct(width, height, depth, kind, channels, flags)
    return getattr(cuda, function)(ctypes.byref(made), ctypes.byref(of)), made


def mipmap(
    width: int, height: int, depth: int, kind: int, channels: int, flags: int, levels: int
) -> tuple[int, ctypes.c_void_p]:
    made, of = ctypes.c_void_p(), Array3D(width, height, depth, kind, channels, flags)
    return cuda.cuMipmappedArrayCreate(ctypes.byref(made), ctypes.byref(of), levels), made


# ---- into sparse arrays ---------------------------------------------------------------------------------


class Level(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint) for name in ("level", "layer", "x", "y", "z", "width", "height", "depth"))


class Tail(ctypes.Structure):
    _fields_ = (("layer", ctypes.c_uint), ("offset", ctypes.c_uint64), ("size", ctypes.c_uint64))


class Part(ctypes.Union):
    _fields_ = (("level", Level), ("tail", Tail))


class Map(ctypes.Structure):
    """CUarrayMapInfo."""

    _fields_ = (
        ("resource_kind", ctypes.c_uint),
        ("resource", ctypes.c_void_p),
        ("part_kind", ctypes.c_uint),
        ("part", Part),
        ("operation", ctypes.c_uint),
        ("handle_kind", ctypes.c_uint),
        ("handle", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("devices", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 2),
    )


TILE = 65536


def of_handle(handle: ctypes.c_uint64 | None) -> dict[str, int]:
    return {"operation": 1, "handle": handle.value, "devices": 1} if handle else {"operation": 2, "devices": 1}


def tiles(array: ctypes.c_void_p, handle: ctypes.c_uint64 | None, x: int, count: int) -> Map:
    """Tiles of the first row of an array of bytes; without a handle, nothing in their place."""
    part = Part(level=Level(x=256 * x, width=256 * count, height=256, depth=1))
    return Map(resource=array, part=part, offset=TILE * x if handle else 0, **of_handle(handle))


def tail(array: ctypes.c_void_p, handle: ctypes.c_uint64 | None, amount: int, rubbish: int = 0) -> Map:
    """The small levels of a mipmapped array; what lies behind the description of the part is rubbish."""
    part = Part(level=Level(depth=rubbish, height=rubbish))
    part.tail = Tail(size=amount)
    return Map(resource_kind=1, resource=array, part_kind=1, part=part, **of_handle(handle))


def put(function: str, *infos: Map) -> int:
    code: int = getattr(cuda, function)((Map * len(infos))(*infos), len(infos), None)
    return code
