# SPDX-License-Identifier: Apache-2.0
"""Memory of the simulated GPU: capacity, rounding, lifetimes, and the data in it."""

from __future__ import annotations

import pytest
from sim.programs import ask, start, state
from tools.simulated import Make, Simulated

MIB = 2**20
GIB = 2**30


def capacity(machine: Simulated, device: int = 0) -> int:
    identity = state(machine).devices[device].identity
    return int(identity.memory_total - identity.memory_reserved)


def test_a_device_holds_exactly_its_capacity(h200: Simulated) -> None:
    overhead = state(h200).knobs.context_overhead
    room = (capacity(h200) - overhead) // (2 * MIB) * (2 * MIB)
    body = f"""
    context()
    whole = ok(cu.cuMemAlloc({room}))
    refused = rc(cu.cuMemAlloc(2 * MIB))
    free = ok(cu.cuMemGetInfo())[0]
    ok(cu.cuMemFree(whole))
    answer([rc(cu.cuMemAlloc({room} + 2 * MIB)), refused, free, rc(cu.cuMemAlloc({room}))])
    """
    assert ask(h200, body) == [2, 2, capacity(h200) - overhead - room, 0]


@pytest.mark.parametrize(("asked", "held"), [(1, 2), (MIB, 2), (MIB + 1, 2), (2 * MIB + 1, 4), (101 * MIB, 102)])
def test_requests_take_whole_blocks(h200: Simulated, asked: int, held: int) -> None:
    body = f"""
    context()
    before = ok(cu.cuMemGetInfo())[0]
    pointer = ok(cu.cuMemAlloc({asked}))
    during = ok(cu.cuMemGetInfo())[0]
    ok(cu.cuMemFree(pointer))
    answer([(before - during) // MIB, before - ok(cu.cuMemGetInfo())[0]])
    """
    assert ask(h200, body) == [held, 0]


def test_small_requests_share_blocks(h200: Simulated) -> None:
    body = """
    context()
    before = ok(cu.cuMemGetInfo())[0]
    pointers = [int(ok(cu.cuMemAlloc(1 + i % 512))) for i in range(4096)]
    full = before - ok(cu.cuMemGetInfo())[0]
    distinct = len(set(pointers)) == 4096 and all(p % 512 == 0 for p in pointers)
    extra = ok(cu.cuMemAlloc(1))
    more = before - ok(cu.cuMemGetInfo())[0]
    for p in pointers[::2] + pointers[1::2] + [extra]:
        ok(cu.cuMemFree(p))
    answer([full // MIB, distinct, more // MIB, before - ok(cu.cuMemGetInfo())[0]])
    """
    assert ask(h200, body) == [2, True, 4, 0]


def test_bad_requests_get_the_drivers_codes(h200: Simulated) -> None:
    body = """
    context()
    lib, p, n = raw(), ctypes.c_uint64(), ctypes.c_size_t()
    alloc = ok(cu.cuMemAlloc(8 * MIB))
    host = (ctypes.c_char * 64)()
    A = ctypes.c_uint64
    answer([lib.cuMemAlloc_v2(None, A(1)), lib.cuMemAlloc_v2(ctypes.byref(p), A(0)),
            lib.cuMemAlloc_v2(ctypes.byref(p), A(2**64 - 1)), lib.cuMemFree_v2(A(0x1234)),
            lib.cuMemFree_v2(A(int(alloc) + 512)), lib.cuMemFree_v2(A(ctypes.addressof(host))),
            rc(cu.cuMemFree(alloc)), rc(cu.cuMemFree(alloc)), lib.cuMemFree_v2(A(0)),
            lib.cuMemGetInfo_v2(None, ctypes.byref(n)), lib.cuMemAllocManaged(ctypes.byref(p), A(1), 3),
            lib.cuMemAllocPitch_v2(ctypes.byref(p), ctypes.byref(n), A(4), A(4), 3)])
    """
    assert ask(h200, body) == [1, 1, 2, 1, 1, 1, 0, 1, 0, 1, 1, 1]


def test_fresh_memory_reads_zero_also_when_it_was_used_before(h200: Simulated) -> None:
    body = """
    context()
    seen = []
    for size in (4096, 3 * MIB):
        for _ in range(3):
            pointer = ok(cu.cuMemAlloc(size))
            host = bytearray(b"x" * size)
            ok(cu.cuMemcpyDtoH(host, pointer, size))
            seen.append(host == bytes(size))
            ok(cu.cuMemsetD8(pointer, 0xAB, size))
            ok(cu.cuMemFree(pointer))
        keep = ok(cu.cuMemAlloc(512))
    answer(seen)
    """
    assert ask(h200, body) == [True] * 6


def test_copies_and_fills_move_real_data(h200: Simulated) -> None:
    body = """
    context()
    data = os.urandom(1 << 20)
    a, b = ok(cu.cuMemAlloc(1 << 20)), ok(cu.cuMemAlloc(1 << 20))
    stream = ok(cu.cuStreamCreate(1))
    ok(cu.cuMemcpyHtoD(a, data, len(data)))
    ok(cu.cuMemcpyDtoDAsync(b, a, len(data), stream))
    ok(cu.cuMemsetD32Async(b, 0x01020304, 4, stream))
    ok(cu.cuMemsetD2D8(int(b) + 1024, 256, 7, 3, 2))
    back = bytearray(len(data))
    ok(cu.cuMemcpyDtoHAsync(back, b, len(data), stream))
    ok(cu.cuStreamSynchronize(stream))
    expected = bytearray(data)
    expected[:16] = bytes([4, 3, 2, 1]) * 4
    expected[1024:1027] = expected[1280:1283] = b"\\7\\7\\7"
    box = cu.CUDA_MEMCPY2D()
    box.srcMemoryType = box.dstMemoryType = cu.CUmemorytype.CU_MEMORYTYPE_DEVICE
    box.srcDevice, box.srcPitch, box.dstDevice, box.dstPitch = a, 1024, b, 64
    box.WidthInBytes, box.Height = 64, 16
    ok(cu.cuMemcpy2D(box))
    packed = bytearray(1024)
    ok(cu.cuMemcpyDtoH(packed, b, 1024))
    answer([back == expected, packed == b"".join(data[i * 1024:i * 1024 + 64] for i in range(16)),
            rc(cu.cuMemcpyHtoD(a, data, (1 << 20) + 1)), rc(cu.cuMemcpyDtoD(b, 4096, 4)),
            rc(cu.cuMemsetD8(int(a) - 1, 0, 1))])
    """
    assert ask(h200, body) == [True, True, 1, 1, 1]


def test_pointers_tell_what_they_are(h200: Simulated) -> None:
    body = """
    mine = context()
    T = cu.CUpointer_attribute
    device, host = ok(cu.cuMemAlloc(5000)), ok(cu.cuMemHostAlloc(4096, 0))
    managed = ok(cu.cuMemAllocManaged(4096, 1))
    def of(p, attribute): return int(ok(cu.cuPointerGetAttribute(attribute, int(p))))
    kinds = [of(p, T.CU_POINTER_ATTRIBUTE_MEMORY_TYPE) for p in (device, host, managed)]
    is_managed = [bool(of(p, T.CU_POINTER_ATTRIBUTE_IS_MANAGED)) for p in (device, managed)]
    base, size = ok(cu.cuMemGetAddressRange(int(device) + 600))
    unknown = (ctypes.c_char * 8)()
    answer([kinds, is_managed, int(base) == int(device), size, rc(cu.cuMemGetAddressRange(4096)),
            rc(cu.cuPointerGetAttribute(T.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, ctypes.addressof(unknown))),
            rc(cu.cuMemFreeHost(int(host))), rc(cu.cuMemFree(managed))])
    """
    assert ask(h200, body) == [[2, 1, 2], [False, True], True, 5120, 500, 1, 0, 0]


def test_managed_memory_may_exceed_the_device(make_machine: Make) -> None:
    body = """
    context()
    total = ok(cu.cuDeviceTotalMem(0))
    pointer = ok(cu.cuMemAllocManaged(2 * total, 1))
    ok(cu.cuMemsetD8(int(pointer) + 2 * total - 4, 1, 4))
    answer(total - ok(cu.cuMemGetInfo())[0])
    """
    machine = make_machine("t4")
    assert ask(machine, body) == state(machine).knobs.context_overhead


def test_processes_share_one_capacity(h200: Simulated) -> None:
    hold = """
    context()
    answer(rc(cu.cuMemAlloc(79 * GIB)))
    line()
    """
    with start(h200, hold) as first, start(h200, hold) as second:
        assert first.stdout is not None
        assert second.stdout is not None
        assert sorted([int(first.stdout.readline()), int(second.stdout.readline())]) == [0, 2]
        first.communicate("\n")
        second.communicate("\n")
    assert state(h200).devices[0].memory_used == 0


def test_racing_processes_never_get_more_than_there_is(make_machine: Make) -> None:
    machine = make_machine("name: small\ndevices: [{model: t4, memory_total: 2GiB, memory_reserved: 256MiB}]\n")
    race = """
    import threading
    mine = context()
    answer("ready")
    line()
    got = []
    def grab():
        ok(cu.cuCtxSetCurrent(mine))
        while not rc(r := cu.cuMemAlloc(2 * MIB)):
            got.append(r[1])
    threads = [threading.Thread(target=grab) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    answer(len(got))
    line()
    """
    racers = [start(machine, race) for _ in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    blocks = [int(racer.stdout.readline()) for racer in racers if racer.stdout]
    overhead = state(machine).knobs.context_overhead
    assert sum(blocks) == (capacity(machine) - 3 * overhead) // (2 * MIB)
    for racer in racers:
        racer.communicate("\n")


def test_pools_keep_what_is_freed_until_a_synchronisation(h200: Simulated) -> None:
    body = """
    context()
    pool = ok(cu.cuDeviceGetDefaultMemPool(0))
    A = cu.CUmemPool_attribute
    def reserved(): return int(ok(cu.cuMemPoolGetAttribute(pool, A.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT))) // MIB
    def used(): return int(ok(cu.cuMemPoolGetAttribute(pool, A.CU_MEMPOOL_ATTR_USED_MEM_CURRENT))) // MIB
    stream = ok(cu.cuStreamCreate(1))
    def cycle():
        pointer = ok(cu.cuMemAllocAsync(64 * MIB, stream))
        during = [reserved(), used()]
        ok(cu.cuMemFreeAsync(pointer, stream))
        freed = [reserved(), used()]
        ok(cu.cuStreamSynchronize(stream))
        return [during, freed, [reserved(), used()]]
    first = cycle()
    ok(cu.cuMemPoolSetAttribute(pool, A.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, cu.cuuint64_t(GIB)))
    second = cycle()
    ok(cu.cuMemPoolTrimTo(pool, 0))
    answer([first, second, reserved()])
    """
    assert ask(h200, body) == [[[64, 64], [64, 0], [0, 0]], [[64, 64], [64, 0], [64, 0]], 0]


def test_idle_pool_memory_goes_to_who_needs_it(make_machine: Make) -> None:
    body = """
    context()
    free = ok(cu.cuMemGetInfo())[0] // (2 * MIB) * 2 * MIB
    pool, A = ok(cu.cuDeviceGetDefaultMemPool(0)), cu.CUmemPool_attribute
    ok(cu.cuMemPoolSetAttribute(pool, A.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, cu.cuuint64_t(2**62)))
    ok(cu.cuMemFreeAsync(ok(cu.cuMemAllocAsync(free, 0)), 0))
    ok(cu.cuCtxSynchronize())
    kept = ok(cu.cuMemGetInfo())[0] < 2 * MIB
    answer([kept, rc(cu.cuMemAlloc(free))])
    """
    assert ask(make_machine("t4"), body) == [True, 0]


def test_physical_memory_goes_when_its_last_handle_or_mapping_does(h200: Simulated) -> None:
    body = """
    context()
    def free(): return ok(cu.cuMemGetInfo())[0]
    p = cu.CUmemAllocationProp()
    p.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    p.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    p.location.id = 0
    size = 64 * MIB
    assert ok(cu.cuMemGetAllocationGranularity(p, cu.CUmemAllocationGranularity_flags(0))) == 2 * MIB
    before = free()
    address = ok(cu.cuMemAddressReserve(2 * size, 0, 0, 0))
    after_reserve = before - free()
    handle = ok(cu.cuMemCreate(size, p, 0))
    created = before - free()
    ok(cu.cuMemMap(address, size, 0, handle, 0))
    ok(cu.cuMemMap(int(address) + size, size, 0, handle, 0))
    ok(cu.cuMemRelease(handle))
    released = before - free()
    denied = rc(cu.cuMemsetD8(address, 1, 8))
    access = cu.CUmemAccessDesc()
    access.location, access.flags = p.location, cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    ok(cu.cuMemSetAccess(address, 2 * size, [access], 1))
    ok(cu.cuMemsetD8(address, 0x5A, size))
    seen = bytearray(16)
    ok(cu.cuMemcpyDtoH(seen, int(address) + size, 16))   # the same memory, mapped twice
    part = rc(cu.cuMemUnmap(address, 2 * MIB))
    ok(cu.cuMemUnmap(address, size))
    one_left = before - free()
    busy = rc(cu.cuMemAddressFree(address, 2 * size))
    ok(cu.cuMemUnmap(int(address) + size, size))
    ok(cu.cuMemAddressFree(address, 2 * size))
    answer([after_reserve, created // MIB, released // MIB, denied, bytes(seen) == b"\\x5a" * 16, part,
            one_left // MIB, busy, before - free(), rc(cu.cuMemRelease(handle))])
    """
    assert ask(h200, body) == [0, 64, 64, 1, True, 1, 64, 1, 0, 1]


def test_physical_memory_needs_no_context_and_counts_against_the_capacity(make_machine: Make) -> None:
    body = """
    ok(cu.cuInit(0))
    p = cu.CUmemAllocationProp()
    p.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    p.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    p.location.id = 0
    made = []
    while not rc(r := cu.cuMemCreate(20 * MIB, p, 0)):
        made.append(r[1])
    total = ok(cu.cuDeviceTotalMem(0)) // (20 * MIB)
    [ok(cu.cuMemRelease(h)) for h in made]
    answer([len(made) - total, r[0].value])
    """
    assert ask(make_machine("t4"), body) == [0, 2]


def test_a_destroyed_pool_keeps_its_memory_until_its_last_allocation_goes(h200: Simulated) -> None:
    body = """
    context()
    before, P = ok(cu.cuMemGetInfo())[0], cu.CUmemPoolProps()
    P.allocType = cu.CUmemAllocationType(1)
    P.location.type, P.location.id = cu.CUmemLocationType(1), 0
    pool, A = ok(cu.cuMemPoolCreate(P)), cu.CUmemPool_attribute
    a, b = (ok(cu.cuMemAllocFromPoolAsync(20 * MIB, pool, 0)) for _ in range(2))
    names = ("USED_MEM_CURRENT", "USED_MEM_HIGH", "RESERVED_MEM_CURRENT", "RESERVED_MEM_HIGH")
    def ask():
        return [int(ok(cu.cuMemPoolGetAttribute(pool, getattr(A, f"CU_MEMPOOL_ATTR_{n}")))) // MIB for n in names]
    seen = [ask()]
    ok(cu.cuMemFreeAsync(a, 0))
    seen.append(ask())
    ok(cu.cuStreamSynchronize(0))
    seen.append(ask())
    ok(cu.cuMemPoolDestroy(pool))
    refused = rc(cu.cuMemAllocFromPoolAsync(MIB, pool, 0))
    held = (before - ok(cu.cuMemGetInfo())[0]) // MIB
    ok(cu.cuMemsetD8(b, 1, 20 * MIB))
    ok(cu.cuMemFreeAsync(b, 0))
    answer([seen, refused, held, before - ok(cu.cuMemGetInfo())[0], rc(cu.cuMemPoolDestroy(pool))])
    """
    steps = [[40, 40, 40, 40], [20, 40, 40, 40], [20, 40, 20, 40]]
    assert ask(h200, body) == [steps, 1, 20, 0, 1]
