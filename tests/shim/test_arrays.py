# SPDX-License-Identifier: Apache-2.0
"""Refuse: arrays are charged the bytes of their elements, from their making to their end or their context's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY = 2
BLOCK = 2 * MIB


def charge(size: int) -> int:
    """What is charged for so many bytes: the driver's blocks, but for small ones, which share a block."""
    return size if size <= BLOCK // 2 else -(-size // BLOCK) * BLOCK


LAYERED, CUBEMAP, SPARSE, DEFERRED = 0x01, 0x04, 0x40, 0x80


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """The simulated GPU in any case: its books are read here."""
    return make_machine("h200")


@dataclass(frozen=True)
class Format:
    """What one sample takes in each plane: (texels across, texels down, bytes)."""

    number: int
    channels: int
    planes: tuple[tuple[int, int, int], ...]

    def bytes(self, width: int, height: int, depth: int) -> int:
        return sum(-(-width // across) * -(-height // down) * depth * size for across, down, size in self.planes)


def plain(number: int, size: int) -> list[Format]:
    """Channels of a size, side by side."""
    return [Format(number, channels, ((1, 1, size * channels),)) for channels in (1, 2, 4)]


def packed(number: int, channels: int, size: int, side: int = 1) -> Format:
    """Squares of texels of a size."""
    return Format(number, channels, ((side, side, size),))


# Sizes as NVIDIA's documentation of CUarray_format has them; numbers as in its headers.
FORMATS = [
    *plain(0x01, 1), *plain(0x08, 1), *plain(0x02, 2), *plain(0x09, 2), *plain(0x10, 2),
    *plain(0x03, 4), *plain(0x0A, 4), *plain(0x20, 4),
    packed(0x50, 4, 4),
    *(packed(number, 4, 8, side=4) for number in (0x91, 0x92, 0x97, 0x98)),
    *(packed(number, 4, 16, side=4) for number in (0x93, 0x94, 0x95, 0x96, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E)),
    Format(0xB0, 3, ((1, 1, 1), (2, 2, 2))),
    Format(0x9F, 3, ((1, 1, 2), (2, 2, 4))), Format(0xA1, 3, ((1, 1, 2), (2, 2, 4))),
    Format(0xA2, 3, ((1, 1, 1), (2, 1, 2))),
    Format(0xA3, 3, ((1, 1, 2), (2, 1, 4))), Format(0xA4, 3, ((1, 1, 2), (2, 1, 4))),
    packed(0xA5, 3, 2), packed(0xA6, 3, 4), packed(0xA7, 3, 4), packed(0xA8, 4, 4), packed(0xA9, 4, 4),
    packed(0xB1, 4, 8),
    Format(0xB2, 3, ((1, 1, 1),) * 3), Format(0xB3, 3, ((1, 1, 2),) * 3),
    Format(0xB4, 3, ((1, 1, 1), (1, 1, 2))), Format(0xB5, 3, ((1, 1, 2), (1, 1, 4))),
    packed(0xC0, 1, 1), packed(0xC1, 2, 2), packed(0xC2, 4, 4), packed(0xC3, 1, 2), packed(0xC4, 2, 4),
    packed(0xC5, 4, 8), packed(0xC6, 1, 1), packed(0xC7, 2, 2), packed(0xC8, 4, 4), packed(0xC9, 1, 2),
    packed(0xCA, 2, 4), packed(0xCB, 4, 8),
]  # fmt: skip

SHAPES = {
    "a line": (100_001, 0, 0, 0),
    "lines": (4099, 0, 300, LAYERED),
    "a plane": (1025, 1027, 0, 0),
    "planes": (513, 511, 7, LAYERED),
    "a box": (129, 127, 65, 0),
    "a cube": (333, 333, 6, CUBEMAP),
    "cubes": (333, 333, 12, CUBEMAP | LAYERED),
}


def extents(shape: tuple[int, int, int, int]) -> tuple[int, int, int]:
    width, height, depth, _ = shape
    return width, max(height, 1), max(depth, 1)


def has_rows(one: Format) -> bool:
    """Squares and planes need a height."""
    return one.planes[0][1] > 1 or len(one.planes) > 1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_format_is_charged_the_bytes_of_its_elements(
    make_tenant: Make, quota: int, shape: tuple[int, int, int, int]
) -> None:
    asked = [one for one in FORMATS if shape[1] or not has_rows(one)]
    script = f"""
    from client import *
    from arrays import *
    import judge
    up()
    width, height, depth, flags = {shape}
    said = []
    for number, channels in {[(one.number, one.channels) for one in asked]}:
        code, made = array_3d(width, height, depth, number, channels, flags)
        said.append([code, judge.charged(), judge.held(), cuda.cuArrayDestroy(made), judge.charged(), judge.held()])
    answer(said)
    """
    sizes = [one.bytes(*extents(shape)) for one in asked]
    expected = [[0, charge(size), -(-size // BLOCK) * BLOCK, 0, 0, 0] for size in sizes]
    said = make_tenant(quota).ask(script)
    assert dict(zip([(hex(one.number), one.channels) for one in asked], said, strict=True)) == dict(
        zip([(hex(one.number), one.channels) for one in asked], expected, strict=True)
    )


def levels_bytes(one: Format, shape: tuple[int, int, int, int], levels: int) -> int:
    width, height, depth = extents(shape)
    total = 0
    for level in range(levels):
        layers = depth if shape[3] & (LAYERED | CUBEMAP) else max(depth >> level, 1)
        total += one.bytes(max(width >> level, 1), max(height >> level, 1), layers)
        if max(width, height, 1 if shape[3] else depth) >> level == 1:
            break
    return total


@pytest.mark.parametrize("levels", [0, 1, 2, 5, 99])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_levels_of_a_mipmap_are_charged(
    make_tenant: Make, quota: int, shape: tuple[int, int, int, int], levels: int
) -> None:
    asked = [Format(0x20, 4, ((1, 1, 16),)), *plain(0x01, 1)[:1], *([packed(0x91, 4, 8, side=4)] if shape[1] else [])]
    script = f"""
    from client import *
    from arrays import *
    import judge
    up()
    width, height, depth, flags = {shape}
    said = []
    for number, channels in {[(one.number, one.channels) for one in asked]}:
        code, made = mipmap(width, height, depth, number, channels, flags, {levels})
        charged, held = judge.charged(), judge.held()
        said.append([code, charged, 0 <= held - charged < {BLOCK} + 512 * 18, cuda.cuMipmappedArrayDestroy(made),
                     judge.charged(), judge.held()])
    answer(said)
    """
    expected = [[0, charge(levels_bytes(one, shape, max(levels, 1))), True, 0, 0, 0] for one in asked]
    assert make_tenant(quota).ask(script) == expected


CREATIONS = {
    "cuArrayCreate": "array_2d(1000, 1000, UINT8, 1, 'cuArrayCreate')",
    "cuArrayCreate_v2": "array_2d(1000, 1000, UINT8, 1, 'cuArrayCreate_v2')",
    "cuArray3DCreate": "array_3d(100, 100, 100, UINT8, 1, 0, 'cuArray3DCreate')",
    "cuArray3DCreate_v2": "array_3d(100, 100, 100, UINT8, 1, 0, 'cuArray3DCreate_v2')",
    "cuMipmappedArrayCreate": "mipmap(1000, 1000, 0, UINT8, 1, 0, 1)",
}


@pytest.mark.parametrize("function", CREATIONS)
def test_an_array_of_bytes_is_charged_bytes_not_bits(make_tenant: Make, bare: Tenant, function: str) -> None:
    """A million elements of a byte fit a quota of a million bytes, of which eight times as many would not be left;
    and not one more."""
    destroy = "cuMipmappedArrayDestroy" if function.startswith("cuMip") else "cuArrayDestroy"
    script = f"""
    from client import *
    from arrays import *
    up()
    first, one = {CREATIONS[function]}
    second, two = {CREATIONS[function]}
    if not second:
        check(cuda.{destroy}(two))
    answer([first, alloc(1)[0], second, cuda.{destroy}(one), {CREATIONS[function]}[0]])
    """
    tenant = make_tenant(1_000_000)
    assert tenant.ask(script) == [0, OUT_OF_MEMORY, OUT_OF_MEMORY, 0, 0]
    assert bare.ask(script) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("flag", [SPARSE, DEFERRED], ids=["sparse", "deferred"])
def test_an_array_without_memory_of_its_own_is_not_charged(make_tenant: Make, quota: int, flag: int) -> None:
    script = f"""
    from client import *
    from arrays import *
    import judge
    up()
    code, made = array_3d(65536, 65536, 0, FLOAT, 4, {flag})
    levels, more = mipmap(65536, 65536, 0, FLOAT, 4, {flag}, 99)
    answer([code, levels, judge.charged(), judge.held(), cuda.cuArrayDestroy(made), cuda.cuMipmappedArrayDestroy(more)])
    """
    assert make_tenant(quota).ask(script) == [0] * 6


def test_a_context_that_ends_takes_its_arrays_along(make_tenant: Make, quota: int) -> None:
    script = """
    from client import *
    from arrays import *
    import judge
    other, context = up(), up()
    check(array_3d(1024, 1024, 0, FLOAT, 4)[0])
    check(mipmap(1024, 1024, 0, FLOAT, 4, 0, 3)[0])
    check(cuda.cuCtxSetCurrent(other))
    code, kept = array_2d(1000, 1000, UINT8, 1)
    before = judge.charged()
    check(cuda.cuCtxDestroy_v2(context))
    said = [before > 32 << 20, judge.charged()]
    answer([*said, cuda.cuArrayDestroy(kept), judge.charged(), judge.held()])
    """
    assert make_tenant(quota).ask(script) == [True, 1_000_000, 0, 0, 0]


def test_descriptions_that_make_no_sense_get_the_drivers_codes(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = """
    from client import *
    from arrays import *
    made, null, wild = ctypes.c_void_p(), None, ctypes.c_void_p(0x1230)
    of = Array3D(64, 64, 0, UINT8, 1, 0)
    def ask():
        return [
            cuda.cuArrayCreate_v2(null, ctypes.byref(of)), cuda.cuArrayCreate_v2(ctypes.byref(made), null),
            cuda.cuArray3DCreate_v2(null, ctypes.byref(of)), cuda.cuArray3DCreate_v2(ctypes.byref(made), null),
            cuda.cuMipmappedArrayCreate(null, ctypes.byref(of), 1),
            cuda.cuMipmappedArrayCreate(ctypes.byref(made), null, 1),
            array_2d(0, 64, UINT8, 1)[0], array_2d(64, 64, UINT8, 0)[0], array_2d(64, 64, UINT8, 3)[0],
            array_2d(64, 64, UINT8, 5)[0], array_2d(64, 64, UINT8, 2**31)[0], array_2d(64, 64, 0x77, 1)[0],
            array_2d(64, 64, 0, 1)[0], array_3d(64, 0, 64, UINT8, 1)[0], array_3d(64, 64, 5, UINT8, 1, CUBEMAP)[0],
            array_3d(64, 32, 6, UINT8, 1, CUBEMAP)[0], array_3d(64, 64, 0, UINT8, 1, LAYERED)[0],
            array_3d(64, 64, 0, UINT8, 1, 0x8000)[0], array_3d(64, 64, 0, UINT8, 1, SPARSE | DEFERRED)[0],
            array_3d(2**62, 2**62, 2**62, FLOAT, 4)[0], mipmap(0, 0, 0, UINT8, 1, 0, 3)[0],
            cuda.cuArrayDestroy(null), cuda.cuArrayDestroy(wild), cuda.cuMipmappedArrayDestroy(null),
            cuda.cuMipmappedArrayDestroy(wild), cuda.cuDestroyExternalMemory(wild)]
    said = [ask()]
    check(cuda.cuInit(0))
    said.append(ask())
    up()
    said.append(ask())
    code, array = array_3d(64, 64, 0, UINT8, 1)
    answer([*said, code, cuda.cuArrayDestroy(array), cuda.cuArrayDestroy(array)])
    """
    tenant = make_tenant(quota)
    ours, theirs = tenant.ask(script), bare.ask(script)
    assert ours == theirs
    assert 0 not in ours[2]
    assert tenant.usage()[0].memory_used == 0


def test_an_array_is_of_the_current_contexts_device(make_machine: Callable[[str], Driver], make_tenant: Make) -> None:
    tenant = make_tenant(16 * MIB, devices=[0, 1], on=make_machine("2xh200"))
    script = """
    from client import *
    from arrays import *
    import judge
    first, second = up(0), up(1)
    check(array_2d(1000, 1000, UINT8, 1)[0])
    said = [judge.charged(0), judge.charged(1)]
    check(cuda.cuCtxSetCurrent(first))
    check(array_2d(1000, 2000, UINT8, 1)[0])
    answer([*said, judge.charged(0), judge.charged(1)])
    """
    assert tenant.ask(script) == [0, 1_000_000, charge(2_000_000), 1_000_000]
