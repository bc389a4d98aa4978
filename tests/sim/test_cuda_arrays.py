# SPDX-License-Identifier: Apache-2.0
"""Arrays of the simulated GPU: what they take, what they hold, and when they give it back."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest
from sim.programs import ask, start
from tools.simulated import Simulated

MIB = 2**20

PRELUDE = """
F, S, R = cu.CUarray_format, {"LAYERED": 1, "CUBEMAP": 4, "SPARSE": 0x40, "DEFERRED": 0x80}, 2 * MIB
def free(): return ok(cu.cuMemGetInfo())[0]
def box(width, height, depth=0, format="UNSIGNED_INT8", channels=1, flags=0):
    d = cu.CUDA_ARRAY3D_DESCRIPTOR()
    d.Width, d.Height, d.Depth, d.NumChannels, d.Flags = width, height, depth, channels, flags
    d.Format = getattr(F, "CU_AD_FORMAT_" + format)
    return d
def pool_memory(size):
    p = cu.CUmemAllocationProp()
    p.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    p.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    p.location.id = 0
    p.allocFlags.usage = 1
    return ok(cu.cuMemCreate(size, p, 0))
"""


def arrays(machine: Simulated, body: str) -> Any:
    return ask(machine, PRELUDE + textwrap.dedent(body))


HALF_MIBS = {
    # What an image of 1024 x 1024 takes, in half MiB: element sizes as the driver's documentation has them.
    ("UNSIGNED_INT8", 1): 2,
    ("SIGNED_INT8", 4): 8,
    ("UNSIGNED_INT16", 2): 8,
    ("HALF", 1): 4,
    ("HALF", 4): 16,
    ("SIGNED_INT32", 1): 8,
    ("FLOAT", 1): 8,
    ("FLOAT", 4): 32,
    ("UNORM_INT8X1", 1): 2,
    ("UNORM_INT8X2", 2): 4,
    ("SNORM_INT8X4", 4): 8,
    ("UNORM_INT16X1", 1): 4,
    ("SNORM_INT16X2", 2): 8,
    ("UNORM_INT16X4", 4): 16,
    ("BC1_UNORM", 4): 1,
    ("BC2_UNORM_SRGB", 4): 2,
    ("BC3_UNORM", 4): 2,
    ("BC4_SNORM", 1): 1,
    ("BC5_UNORM", 2): 2,
    ("BC6H_UF16", 3): 2,
    ("BC7_UNORM_SRGB", 4): 2,
    ("NV12", 3): 3,
    ("P010", 3): 6,
    ("P016", 3): 6,
    ("NV16", 3): 4,
    ("P210", 3): 8,
    ("YUY2", 3): 4,
    ("Y216", 3): 8,
    ("AYUV", 4): 8,
    ("Y416", 4): 16,
    ("Y444_PLANAR8", 3): 6,
    ("Y444_PLANAR10", 3): 12,
    ("YUV444_8bit_SemiPlanar", 3): 6,
    ("UNORM_INT_101010_2", 4): 8,
}


def test_an_array_takes_the_bytes_of_its_elements_by_format_and_channels(h200: Simulated) -> None:
    body = f"""
    context()
    seen, before = [], free()
    for format, channels in {list(HALF_MIBS)!r}:
        flat = ok(cu.cuArray3DCreate(box(1024, 1024, 64, format, channels, S["LAYERED"])))
        taken = before - free()
        ok(cu.cuArrayDestroy(flat))
        seen.append([format, channels, taken / (64 * MIB / 2), before - free()])
    answer(seen)
    """
    assert arrays(h200, body) == [[*key, size, 0] for key, size in HALF_MIBS.items()]


@pytest.mark.parametrize(
    ("extent", "flags", "elements"),
    [
        ((131072, 0, 0), "", 131072),
        ((131072, 0, 32), "LAYERED", 131072 * 32),
        ((2048, 1024, 0), "", 2048 * 1024),
        ((2048, 1024, 5), "LAYERED", 2048 * 1024 * 5),
        ((256, 256, 256), "", 256**3),
        ((1024, 1024, 6), "CUBEMAP", 6 * 1024 * 1024),
        ((1024, 1024, 12), "CUBEMAP LAYERED", 12 * 1024 * 1024),
    ],
)
def test_height_or_depth_of_zero_counts_as_one_and_layers_are_counted(
    h200: Simulated, extent: tuple[int, int, int], flags: str, elements: int
) -> None:
    body = f"""
    context()
    before = free()
    ok(cu.cuArray3DCreate(box(*{extent}, "FLOAT", 4, sum(S[f] for f in {flags.split()!r}))))
    answer((before - free()) // R)
    """
    assert arrays(h200, body) == -(-elements * 16 // (2 * MIB))


def test_small_arrays_share_a_block(h200: Simulated) -> None:
    body = """
    context()
    before = free()
    made = [ok(cu.cuArray3DCreate(box(64, 64, 0, "FLOAT", 1))) for _ in range(100)]
    taken = before - free()
    [ok(cu.cuArrayDestroy(a)) for a in made]
    answer([taken // MIB, before - free()])
    """
    assert arrays(h200, body) == [2, 0]


@pytest.mark.parametrize(
    "description",
    [
        "box(0, 4)",
        "box(4, 0, 4)",  # a box without height
        "box(4, 4, 0, flags=1)",  # layers, but none
        "box(4, 8, 6, flags=4)",  # a cube with edges of two lengths
        "box(4, 4, 5, flags=4)",
        "box(4, 4, 9, flags=5)",
        "box(4, 4, 0, channels=3)",
        "box(4, 4, 0, channels=0)",
        "box(4, 0, 0, 'BC1_UNORM', 4)",
        "box(4, 0, 0, flags=0x40)",  # a sparse line
        "box(4, 4, 0, flags=0xC0)",  # sparse and deferred
        "box(4, 4, 0, flags=0x200)",
        "box(1 << 20, 4)",
    ],
)
def test_impossible_arrays_are_refused_and_take_nothing(h200: Simulated, description: str) -> None:
    body = f"""
    context()
    before = free()
    answer([rc(cu.cuArray3DCreate({description})), before - free()])
    """
    assert arrays(h200, body) == [1, 0]


def test_arrays_fill_the_device_and_no_more(h200: Simulated) -> None:
    body = """
    context()
    made = []
    while not rc(r := cu.cuArray3DCreate(box(32768, 32768, 2, "FLOAT", 1, S["LAYERED"]))):
        made.append(r[1])
    left = free()
    [ok(cu.cuArrayDestroy(a)) for a in made]
    answer([r[0].value, left < 8 * GIB, len(made), rc(cu.cuArrayDestroy(made[0]))])
    """
    code, full, count, again = arrays(h200, body)
    assert (code, full, again) == (2, True, 400)
    assert count == 17  # of 8 GiB each


def test_data_comes_back_from_an_array_as_it_went_in(h200: Simulated) -> None:
    body = """
    context()
    T = cu.CUmemorytype
    data, back = os.urandom(64 * 8 * 3), bytearray(64 * 8 * 3)
    array = ok(cu.cuArray3DCreate(box(16, 8, 3, "FLOAT")))
    c = cu.CUDA_MEMCPY3D()
    c.srcMemoryType, c.srcHost, c.srcPitch, c.srcHeight = T.CU_MEMORYTYPE_HOST, data, 64, 8
    c.dstMemoryType, c.dstArray = T.CU_MEMORYTYPE_ARRAY, array
    c.WidthInBytes, c.Height, c.Depth = 64, 8, 3
    ok(cu.cuMemcpy3D(c))
    # A part of it, to device memory with a pitch of its own, and from there to the host.
    device = ok(cu.cuMemAlloc(4096))
    p = cu.CUDA_MEMCPY2D()
    p.srcMemoryType, p.srcArray, p.srcXInBytes, p.srcY = T.CU_MEMORYTYPE_ARRAY, array, 8, 2
    p.dstMemoryType, p.dstDevice, p.dstPitch = T.CU_MEMORYTYPE_DEVICE, device, 256
    p.WidthInBytes, p.Height = 16, 4
    ok(cu.cuMemcpy2D(p))
    rows = bytearray(4 * 256)
    ok(cu.cuMemcpyDtoH(rows, device, len(rows)))
    part = all(rows[y * 256:y * 256 + 16] == data[64 * (2 + y) + 8:64 * (2 + y) + 24] for y in range(4))
    c.srcMemoryType, c.srcArray, c.dstMemoryType, c.dstHost = c.dstMemoryType, array, T.CU_MEMORYTYPE_HOST, back
    c.dstPitch, c.dstHeight = 64, 8
    stream = ok(cu.cuStreamCreate(1))
    ok(cu.cuMemcpy3DAsync(c, stream))
    ok(cu.cuStreamSynchronize(stream))
    p.Height = 7
    too_far = rc(cu.cuMemcpy2D(p))
    ok(cu.cuArrayDestroy(array))
    answer([part, back == data, too_far, rc(cu.cuMemcpy3D(c))])
    """
    assert arrays(h200, body) == [True, True, 1, 400]


def test_lines_move_between_host_device_and_arrays(h200: Simulated) -> None:
    body = """
    context()
    data, back = os.urandom(4096), bytearray(4096)
    a, b = ok(cu.cuArray3DCreate(box(4096, 0))), ok(cu.cuArray3DCreate(box(1024, 0, 0, "FLOAT")))
    device = ok(cu.cuMemAlloc(4096))
    ok(cu.cuMemcpyHtoA(a, 0, data, 4096))
    ok(cu.cuMemcpyAtoA(b, 96, a, 32, 1000))
    ok(cu.cuMemcpyAtoD(device, b, 96, 1000))
    ok(cu.cuMemcpyDtoA(a, 2000, device, 1000))
    ok(cu.cuMemcpyAtoHAsync(back, a, 0, 4096, 0))
    ok(cu.cuMemcpyHtoAAsync(b, 0, data, 16, 0))
    small = bytearray(16)
    ok(cu.cuMemcpyAtoH(small, b, 0, 16))
    answer([back == data[:2000] + data[32:1032] + data[3000:], small == data[:16],
            rc(cu.cuMemcpyHtoA(a, 1, data, 4096)), rc(cu.cuMemcpyAtoH(small, 0, 0, 4))])
    """
    assert arrays(h200, body) == [True, True, 1, 400]


def test_a_plane_of_video_is_an_array_within_the_array(h200: Simulated) -> None:
    body = """
    context()
    T = cu.CUmemorytype
    video = ok(cu.cuArray3DCreate(box(64, 32, 0, "NV12", 3)))
    luma, chroma = ok(cu.cuArrayGetPlane(video, 0)), ok(cu.cuArrayGetPlane(video, 1))
    shapes = [(d.Width, d.Height, d.NumChannels, int(d.Format)) for d in
              (ok(cu.cuArray3DGetDescriptor(x)) for x in (luma, chroma))]
    parts = [os.urandom(64 * 32), os.urandom(64 * 16)]
    seen = []
    for move in (True, False):
        for array, data, rows in ((luma, parts[0], 32), (chroma, parts[1], 16)):
            back = bytearray(len(data))
            c = cu.CUDA_MEMCPY2D()
            c.WidthInBytes, c.Height = 64, rows
            if move:
                c.srcMemoryType, c.srcHost, c.srcPitch = T.CU_MEMORYTYPE_HOST, data, 64
                c.dstMemoryType, c.dstArray = T.CU_MEMORYTYPE_ARRAY, array
            else:
                c.dstMemoryType, c.dstHost, c.dstPitch = T.CU_MEMORYTYPE_HOST, back, 64
                c.srcMemoryType, c.srcArray = T.CU_MEMORYTYPE_ARRAY, array
            ok(cu.cuMemcpy2D(c))
            seen.append(move or back == data)
    answer([shapes, all(seen), rc(cu.cuArrayGetPlane(video, 2)), rc(cu.cuArrayGetPlane(luma, 0)),
            rc(cu.cuArrayDestroy(chroma)), rc(cu.cuArrayDestroy(video)), rc(cu.cuArrayGetPlane(luma, 0))])
    """
    assert arrays(h200, body) == [[[64, 32, 1, 1], [32, 16, 2, 1]], True, 1, 1, 400, 0, 400]


def test_a_mipmapped_array_takes_the_sum_of_its_levels(h200: Simulated) -> None:
    body = """
    context()
    before = free()
    mipmap = ok(cu.cuMipmappedArrayCreate(box(4096, 1024, 0, "FLOAT", 4), 99))
    taken = before - free()
    levels, i = [], 0
    while not rc(r := cu.cuMipmappedArrayGetLevel(mipmap, i)):
        d = ok(cu.cuArray3DGetDescriptor(r[1]))
        levels.append((d.Width, d.Height))
        i += 1
    part = rc(cu.cuArrayDestroy(ok(cu.cuMipmappedArrayGetLevel(mipmap, 0))))
    data, back = os.urandom(16 * 4), bytearray(16 * 4)
    deep = ok(cu.cuMipmappedArrayGetLevel(mipmap, 10))      # 4 x 1
    ok(cu.cuMemcpyHtoA(deep, 0, data, 64))
    ok(cu.cuMemcpyAtoH(back, deep, 0, 64))
    ok(cu.cuMipmappedArrayDestroy(mipmap))
    answer([taken, levels, r[0].value, part, back == data, before - free(), rc(cu.cuMipmappedArrayDestroy(mipmap)),
            rc(cu.cuMemcpyAtoH(back, deep, 0, 64))])
    """
    levels = [[max(4096 >> i, 1), max(1024 >> i, 1)] for i in range(13)]
    size = -(-sum(-(-w * h * 16 // 512) * 512 for w, h in levels) // (2 * MIB)) * 2 * MIB
    assert arrays(h200, body) == [size, levels, 1, 400, True, 0, 400, 400]


@pytest.mark.parametrize(("flag", "levels"), [("SPARSE", 1), ("DEFERRED", 1), ("SPARSE", 8), ("DEFERRED", 8)])
def test_an_array_without_memory_takes_none_and_holds_what_it_is_given(h200: Simulated, flag: str, levels: int) -> None:
    body = f"""
    context()
    A, M, before, sparse = cu.CUarrayMapInfo(), {levels} > 1, free(), {flag!r} == "SPARSE"
    d = box(2048, 2048, 0, "FLOAT", 1, S[{flag!r}])
    made = ok(cu.cuMipmappedArrayCreate(d, {levels}) if M else cu.cuArray3DCreate(d))
    created = before - free()
    tell = cu.cuMipmappedArrayGetMemoryRequirements if M else cu.cuArrayGetMemoryRequirements
    need = rc(tell(made, 0))
    tell = cu.cuMipmappedArrayGetSparseProperties if M else cu.cuArrayGetSparseProperties
    tile = tell(made)
    tile = [tile[1].tileExtent.width, tile[1].tileExtent.height, tile[1].tileExtent.depth] if not rc(tile) else None
    memory = pool_memory(32 * MIB)
    held = before - free()
    A.resourceType = int(M)
    if M:
        A.resource.mipmap = made
    else:
        A.resource.array = made
    A.subresource.sparseLevel.extentWidth = A.subresource.sparseLevel.extentHeight = 2048
    A.subresource.sparseLevel.extentDepth = 1
    A.memOperationType, A.deviceBitMask = cu.CUmemOperationType(1), 1
    A.memHandle.memHandle = memory
    mapped = rc(cu.cuMemMapArrayAsync([A], 1, 0))
    ok(cu.cuMemRelease(memory))
    ok(cu.cuCtxSynchronize())
    released = before - free()
    # One tile more from elsewhere; the first memory stays for all the others.
    if sparse:
        other = pool_memory(2 * MIB)
        A.memHandle.memHandle = other
        A.subresource.sparseLevel.extentWidth = A.subresource.sparseLevel.extentHeight = 128
        ok(cu.cuMemMapArrayAsync([A], 1, 0))
        ok(cu.cuMemRelease(other))
        both = before - free()
        A.subresource.sparseLevel.extentWidth = A.subresource.sparseLevel.extentHeight = 2048
    else:
        both = released + 2 * MIB
    A.memOperationType, A.memHandle.memHandle = cu.CUmemOperationType(2), 0
    ok(cu.cuMemMapArrayAsync([A], 1, 0))
    answer([created, need, tile, held // MIB, mapped, released // MIB, both // MIB, before - free(),
            rc(cu.cuMipmappedArrayDestroy(made) if M else cu.cuArrayDestroy(made))])
    """
    sparse = flag == "SPARSE"
    assert arrays(h200, body) == [0, int(sparse), [128, 128, 1] if sparse else None, 32, 0, 32, 34, 0, 0]


def test_memory_behind_a_sparse_array_goes_with_the_array(h200: Simulated) -> None:
    body = """
    context()
    before = free()
    made = ok(cu.cuArray3DCreate(box(256, 256, 4, "UNSIGNED_INT8", 1, S["SPARSE"] | S["LAYERED"])))
    memory, plain = pool_memory(2 * MIB), ok(cu.cuMemAlloc(2 * MIB))
    A = cu.CUarrayMapInfo()
    A.resource.array = made
    A.subresource.sparseLevel.layer = 3
    A.subresource.sparseLevel.extentWidth = A.subresource.sparseLevel.extentHeight = 256
    A.subresource.sparseLevel.extentDepth = 1
    A.memOperationType, A.deviceBitMask, A.memHandle.memHandle = cu.CUmemOperationType(1), 1, memory
    A.subresource.sparseLevel.offsetX = 100
    ragged = rc(cu.cuMemMapArrayAsync([A], 1, 0))
    A.subresource.sparseLevel.offsetX, A.subresource.sparseLevel.layer = 0, 4
    absent = rc(cu.cuMemMapArrayAsync([A], 1, 0))
    A.subresource.sparseLevel.layer, A.offset = 3, 2 * MIB
    beyond = rc(cu.cuMemMapArrayAsync([A], 1, 0))
    A.offset = 0
    ok(cu.cuMemMapArrayAsync([A], 1, 0))
    ok(cu.cuMemFree(plain))
    ok(cu.cuMemRelease(memory))
    held = before - free()
    ok(cu.cuArrayDestroy(made))
    answer([ragged, absent, beyond, held, before - free()])
    """
    assert arrays(h200, body) == [1, 1, 1, 2 * MIB, 0]


def test_arrays_end_with_their_context(h200: Simulated) -> None:
    body = """
    context()
    before = free()
    other = ok(cu.cuCtxCreate(None, 0, 0))
    array = ok(cu.cuArray3DCreate(box(4096, 4096, 0, "FLOAT", 4)))
    mipmap = ok(cu.cuMipmappedArrayCreate(box(1024, 1024, 0, "NV12", 3), 1))
    plane = ok(cu.cuArrayGetPlane(ok(cu.cuMipmappedArrayGetLevel(mipmap, 0)), 1))
    taken = before - free()
    ok(cu.cuCtxDestroy(other))
    ok(cu.cuCtxSetCurrent(context()))
    answer([taken // MIB, before - free(), [rc(cu.cuArrayDestroy(x)) for x in (array, plane)]])
    """
    assert arrays(h200, body) == [258, 0, [400, 400]]


def test_the_arrays_of_a_killed_process_are_gone(h200: Simulated) -> None:
    body = PRELUDE + "context()\nok(cu.cuArray3DCreate(box(32768, 32768, 16, 'FLOAT', 1, 1)))\nanswer(0)\nline()"
    victim = start(h200, body)
    assert victim.stdout is not None
    assert json.loads(victim.stdout.readline()) == 0
    room = "context()\nanswer(rc(cu.cuMemAlloc(100 * GIB)))"
    assert ask(h200, room) == 2
    victim.kill()
    victim.communicate()
    assert ask(h200, room) == 0


def test_the_32_bit_functions_make_and_describe_the_same_arrays(h200: Simulated) -> None:
    body = """
    context()
    lib, before, handle = raw(), free(), ctypes.c_void_p()
    flat = (ctypes.c_uint * 4)(2048, 1024, 0x20, 4)             # width, height, FLOAT, channels
    deep = (ctypes.c_uint * 6)(512, 512, 8, 0x01, 1, 0)
    codes = [lib.cuArrayCreate(ctypes.byref(handle), flat)]
    flat_taken, back = before - free(), (ctypes.c_uint * 6)()
    codes.append(lib.cuArrayGetDescriptor(back, handle))
    seen = list(back)[:4] == list(flat)
    codes.append(lib.cuArrayDestroy(handle))
    codes.append(lib.cuArray3DCreate(ctypes.byref(handle), deep))
    codes.append(lib.cuArray3DGetDescriptor(back, handle))
    answer([codes, flat_taken // MIB, seen, list(back) == list(deep), (before - free()) // MIB])
    """
    assert arrays(h200, body) == [[0] * 5, 32, True, True, 2]
