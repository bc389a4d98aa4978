# SPDX-License-Identifier: Apache-2.0
"""Physical memory, pools and external memory that come as descriptors; memory of the host; multicast."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from sim.programs import ask, state
from sim.programs.peers import Peer, books, used
from tools.simulated import Make, Simulated

MIB = 2**20

PRELUDE = """
import socket
context()
lib, FD = raw(), cu.CUmemAllocationHandleType(1)
box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
box.bind(f"\\0vgpu-test-{os.getpid()}")
def send(pid, *descriptors):
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    out.connect(f"\\0vgpu-test-{pid}")
    socket.send_fds(out, [b"x"], list(descriptors))
    out.close()
def receive():
    return socket.recv_fds(box, 1, 8)[1]
def properties(shareable=True, location=1, number=0):
    p = cu.CUmemAllocationProp()
    p.type = cu.CUmemAllocationType(1)
    p.location.type, p.location.id = cu.CUmemLocationType(location), number
    if shareable:
        p.requestedHandleTypes = FD
    return p
def mapped(handle, size):
    address = ok(cu.cuMemAddressReserve(size, 0, 0, 0))
    ok(cu.cuMemMap(address, size, 0, handle, 0))
    access = cu.CUmemAccessDesc()
    access.location.type, access.location.id = cu.CUmemLocationType(1), 0
    access.flags = cu.CUmemAccess_flags(3)
    ok(cu.cuMemSetAccess(address, size, [access], 1))
    return int(address)
def read(pointer, size):
    back = bytearray(size)
    ok(cu.cuMemcpyDtoH(back, pointer, size))
    return bytes(back)
def free():
    return ok(cu.cuMemGetInfo())[0]
"""


def pair(machine: Simulated, stack: ExitStack) -> tuple[Peer, Peer]:
    return Peer(machine, PRELUDE, stack), Peer(machine, PRELUDE, stack)


def test_physical_memory_comes_by_descriptor_and_is_counted_once(h200: Simulated, stack: ExitStack) -> None:
    giver, taker = pair(h200, stack)
    giver.do(f"""
h = ok(cu.cuMemCreate(32 * MIB, properties(), 0))
a = mapped(h, 32 * MIB)
data = os.urandom(4096)
ok(cu.cuMemcpyHtoD(a + 5 * MIB, data, 4096))
fd = ok(cu.cuMemExportToShareableHandle(h, FD, 0))
send({taker.process.pid}, fd)
os.close(fd)
answer(0)""")
    seen = taker.do("""
(fd,) = receive()
h = ok(cu.cuMemImportFromShareableHandle(fd, FD))
again = ok(cu.cuMemImportFromShareableHandle(fd, FD))
os.close(fd)
b = mapped(h, 32 * MIB)
p = ok(cu.cuMemGetAllocationPropertiesFromHandle(h))
ok(cu.cuMemsetD8(b, 9, 4096))
answer([read(b + 5 * MIB, 4096).hex(), int(h) != int(again), int(p.location.type), int(p.requestedHandleTypes),
        int(ok(cu.cuMemRetainAllocationHandle(b + 100))) == int(h)])""")
    assert seen == [giver.do("answer(data.hex())"), True, 1, 1, True]
    assert giver.do("answer(read(a, 4096) == b'\\x09' * 4096)")
    assert used(h200) == 32 * MIB
    giver.kill()
    assert used(h200) == 32 * MIB
    assert taker.do("answer(read(b + 5 * MIB, 8).hex())") == seen[0][:16]
    # Two imports and one retained: three releases, and the mapping is left.
    assert taker.do("answer([rc(cu.cuMemRelease(x)) for x in (h, h, again)] + [rc(cu.cuMemRelease(h))])") == [
        0,
        0,
        0,
        1,
    ]
    assert used(h200) == 32 * MIB
    taker.do("ok(cu.cuMemUnmap(b, 32 * MIB))\nanswer(0)")
    assert used(h200) == 0
    assert books(h200)[0] == books(h200)[1]


@pytest.mark.parametrize("how", ["release", "end", "kill"])
def test_an_open_descriptor_keeps_memory_that_nobody_holds(h200: Simulated, stack: ExitStack, how: str) -> None:
    giver, taker = pair(h200, stack)
    giver.do(f"""
h = ok(cu.cuMemCreate(16 * MIB, properties(), 0))
a = mapped(h, 16 * MIB)
ok(cu.cuMemsetD8(a, 0x41, 16 * MIB))
fd = ok(cu.cuMemExportToShareableHandle(h, FD, 0))
send({taker.process.pid}, fd)
os.close(fd)
answer(0)""")
    if how == "release":
        giver.do("ok(cu.cuMemUnmap(a, 16 * MIB))\nok(cu.cuMemRelease(h))\nanswer(0)")
    else:
        giver.end() if how == "end" else giver.kill()
    # It is in nobody's hands now, only in a message under way.
    assert used(h200) == 16 * MIB
    assert state(h200).devices[0].memory_unowned == 16 * MIB
    seen = taker.do("""
(fd,) = receive()
h = ok(cu.cuMemImportFromShareableHandle(fd, FD))
b = mapped(h, 16 * MIB)
answer(read(b + 15 * MIB, MIB) == b"A" * MIB)""")
    assert seen
    assert state(h200).devices[0].memory_unowned == 0
    taker.do("ok(cu.cuMemUnmap(b, 16 * MIB))\nok(cu.cuMemRelease(h))\nanswer(0)")
    assert used(h200) == 16 * MIB  # its own copy of the descriptor is open still
    taker.do("os.close(fd)\nanswer(0)")
    assert used(h200) == 0
    assert books(h200) == (sum(x.memory for x in state(h200).devices[0].shares),) * 2


def test_a_descriptor_lost_with_its_process_loses_no_memory(h200: Simulated, stack: ExitStack) -> None:
    giver = Peer(h200, PRELUDE, stack)
    giver.do(
        "h = ok(cu.cuMemCreate(16 * MIB, properties(), 0))\nok(cu.cuMemExportToShareableHandle(h, FD, 0))\nanswer(0)"
    )
    giver.kill()
    assert used(h200) == 0


CHILD = """
from cuda_prelude import *
context()
h = ok(cu.cuMemImportFromShareableHandle(int(sys.argv[1]), cu.CUmemAllocationHandleType(1)))
answer([int(ok(cu.cuMemGetAllocationPropertiesFromHandle(h)).type), ok(cu.cuMemGetInfo())[0]])
"""


def test_a_child_that_inherits_a_descriptor_imports_it(h200: Simulated) -> None:
    body = f"""
import subprocess
h = ok(cu.cuMemCreate(2 * MIB, properties(), 0))
fd = ok(cu.cuMemExportToShareableHandle(h, FD, 0))
done = subprocess.run([sys.executable, "-c", {CHILD!r}, str(fd)], pass_fds=[fd], capture_output=True, text=True)
print(done.stdout.strip() or json.dumps(done.stderr))
"""
    total = state(h200).devices[0].identity.memory_total - state(h200).devices[0].identity.memory_reserved
    assert ask(h200, PRELUDE + body) == [1, total - 2 * state(h200).knobs.context_overhead - 2 * MIB]


def test_wrong_descriptors_and_kinds_are_refused(h200: Simulated, stack: ExitStack) -> None:
    peer = Peer(h200, PRELUDE, stack)
    assert peer.do("""
plain = ok(cu.cuMemCreate(2 * MIB, properties(False), 0))
other = properties()
other.requestedHandleTypes = cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_FABRIC
answer([rc(cu.cuMemExportToShareableHandle(plain, FD, 0)), rc(cu.cuMemCreate(2 * MIB, other, 0)),
        rc(cu.cuMemImportFromShareableHandle(0, FD)), rc(cu.cuMemImportFromShareableHandle(999, FD)),
        rc(cu.cuMemImportFromShareableHandle(0, cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_FABRIC))])""") == [
        1, 801, 1, 1, 801]  # fmt: skip


def test_memory_on_the_host_takes_none_of_the_device(h200: Simulated, stack: ExitStack) -> None:
    giver, taker = pair(h200, stack)
    codes = giver.do(f"""
before = free()
made = [ok(cu.cuMemCreate(64 * MIB, properties(False, kind), 0)) for kind in (2, 3, 4)]
shared = ok(cu.cuMemCreate(64 * MIB, properties(True, 3), 0))
a = mapped(shared, 64 * MIB)
ok(cu.cuMemsetD8(a, 5, 64 * MIB))
send({taker.process.pid}, ok(cu.cuMemExportToShareableHandle(shared, FD, 0)))
pool = cu.CUmemPoolProps()
pool.allocType, pool.location.type = cu.CUmemAllocationType(1), cu.CUmemLocationType(3)
pool = ok(cu.cuMemPoolCreate(pool))
p = ok(cu.cuMemAllocFromPoolAsync(64 * MIB, pool, 0))
ok(cu.cuMemsetD8(p, 1, 64 * MIB))
kind = int(ok(cu.cuPointerGetAttribute(cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p)))
answer([before - free(), kind, rc(cu.cuMemCreate(2 * MIB, properties(False, 0), 0)),
        rc(cu.cuDeviceSetMemPool(0, pool)), rc(cu.cuMemFreeAsync(p, 0)), rc(cu.cuMemPoolDestroy(pool))])""")
    assert codes == [0, 1, 1, 1, 0, 0]
    assert (
        taker.do(
            "h = ok(cu.cuMemImportFromShareableHandle(receive()[0], FD))\nanswer(read(mapped(h, 64 * MIB), 4).hex())"
        )
        == "05" * 4
    )
    assert used(h200) == 0


POOLS = (
    PRELUDE
    + """
class Data(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 64)]
def export(pointer):
    d = Data()
    return ok((lib.cuMemPoolExportPointer(ctypes.byref(d), ctypes.c_uint64(int(pointer))), bytes(d).hex()))
def bring(pool, text):
    p = ctypes.c_uint64()
    d = Data.from_buffer_copy(bytes.fromhex(text))
    return lib.cuMemPoolImportPointer(ctypes.byref(p), ctypes.c_void_p(int(pool)), ctypes.byref(d)), p.value
def shareable():
    p = cu.CUmemPoolProps()
    p.allocType, p.handleTypes = cu.CUmemAllocationType(1), FD
    p.location.type, p.location.id = cu.CUmemLocationType(1), 0
    return ok(cu.cuMemPoolCreate(p))
A = cu.CUmemPool_attribute
def reserved(pool):
    return int(ok(cu.cuMemPoolGetAttribute(pool, A.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)))
"""
)


@pytest.mark.parametrize("size", [1000, 6 * MIB])
def test_allocations_of_a_pool_are_seen_by_who_imports_the_pool(h200: Simulated, stack: ExitStack, size: int) -> None:
    giver, taker = Peer(h200, POOLS, stack), Peer(h200, POOLS, stack)
    taken = 2 * MIB if size == 1000 else 12 * MIB
    text = giver.do(f"""
pool = shareable()
first, p = (ok(cu.cuMemAllocFromPoolAsync({size}, pool, 0)) for _ in range(2))
ok(cu.cuMemsetD8(first, 1, {size}))
ok(cu.cuMemsetD8(p, 0x42, {size}))
send({taker.process.pid}, ok(cu.cuMemPoolExportToShareableHandle(pool, FD, 0)))
answer([export(p), reserved(pool)])""")
    assert text[1] == taken
    seen = taker.do(f"""
pool = ok(cu.cuMemPoolImportFromShareableHandle(receive()[0], FD, 0))
other = shareable()
q = ok(bring(pool, {text[0]!r}))
answer([read(q, {size}) == b"B" * {size},
        rc(cu.cuMemAllocFromPoolAsync(64, pool, 0)), rc(cu.cuDeviceSetMemPool(0, pool)),
        rc(bring(other, {text[0]!r})), rc(bring(pool, "00" * 64)), reserved(pool)])""")
    assert seen == [True, 1, 1, 1, 1, 0]
    taker.do(f"ok(cu.cuMemsetD8(q, 7, {size}))\nanswer(0)")
    assert giver.do(f"answer(read(p, {size}) == b'\\x07' * {size} and read(first, {size}) == b'\\x01' * {size})")
    assert used(h200) == taken
    giver.do("ok(cu.cuMemFreeAsync(p, 0))\nok(cu.cuCtxSynchronize())\nok(cu.cuMemPoolTrimTo(pool, 0))\nanswer(0)")
    assert used(h200) == taken  # the importer has it
    assert taker.do("answer([rc(cu.cuMemFreeAsync(q, 0)), rc(cu.cuMemFree(q))])") == [0, 1]
    assert used(h200) == (2 * MIB if size == 1000 else 6 * MIB)
    giver.do("ok(cu.cuMemFreeAsync(first, 0))\nok(cu.cuCtxSynchronize())\nanswer(0)")
    assert used(h200) == 0


def test_memory_of_a_pool_that_is_used_again_reads_zero(h200: Simulated, stack: ExitStack) -> None:
    peer = Peer(h200, POOLS, stack)
    assert peer.do("""
pool, seen, places = shareable(), [], set()
ok(cu.cuMemPoolSetAttribute(pool, A.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, cu.cuuint64_t(2**40)))
keep = ok(cu.cuMemAllocFromPoolAsync(512, pool, 0))
for size in (4096, 4096, 4 * MIB, 4 * MIB):
    p = ok(cu.cuMemAllocFromPoolAsync(size, pool, 0))
    places.add(int(p))
    seen.append(read(p, size) == bytes(size))
    ok(cu.cuMemsetD8(p, 3, size))
    ok(cu.cuMemFreeAsync(p, 0))
answer([seen, len(places)])""") == [[True] * 4, 2]


def test_a_pool_that_cannot_be_exported_is_not(h200: Simulated, stack: ExitStack) -> None:
    peer = Peer(h200, POOLS, stack)
    assert peer.do("""
pool = ok(cu.cuDeviceGetDefaultMemPool(0))
p, d = ok(cu.cuMemAllocAsync(64, 0)), Data()
managed = cu.CUmemPoolProps()
managed.allocType = cu.CUmemAllocationType(2)
answer([rc(cu.cuMemPoolExportToShareableHandle(pool, FD, 0)), rc(cu.cuMemPoolCreate(managed)),
        lib.cuMemPoolExportPointer(ctypes.byref(d), ctypes.c_uint64(int(p)))])""") == [1, 801, 1]


def test_the_pool_of_a_location_is_the_pool_of_its_device(h200: Simulated, stack: ExitStack) -> None:
    peer = Peer(h200, POOLS, stack)
    assert peer.do("""
def at(kind, number=0):
    l = cu.CUmemLocation()
    l.type, l.id = cu.CUmemLocationType(kind), number
    return l
P, M = cu.CUmemAllocationType(1), cu.CUmemAllocationType(2)
mine, default = shareable(), ok(cu.cuDeviceGetDefaultMemPool(0))
same = int(ok(cu.cuMemGetDefaultMemPool(at(1), P))) == int(default)
ok(cu.cuMemSetMemPool(at(1), P, mine))
used_now = int(ok(cu.cuMemGetMemPool(at(1), P))) == int(mine) == int(ok(cu.cuDeviceGetMemPool(0)))
host = ok(cu.cuMemGetMemPool(at(3), P))
answer([same, used_now, int(host) not in (int(mine), int(default)), rc(cu.cuMemSetMemPool(at(3), P, mine)),
        rc(cu.cuMemGetMemPool(at(1), M)), rc(cu.cuMemGetMemPool(at(1, 9), P)), rc(cu.cuMemGetMemPool(at(0), P))])
""") == [True, True, True, 1, 801, 101, 1]


EXTERNAL = (
    PRELUDE
    + """
def bring(fd, size, kind=1):
    d = cu.CUDA_EXTERNAL_MEMORY_HANDLE_DESC()
    d.type, d.size = cu.CUexternalMemoryHandleType(kind), size
    d.handle.fd = fd
    return cu.cuImportExternalMemory(d)
def buffer(memory, offset, size):
    d = cu.CUDA_EXTERNAL_MEMORY_BUFFER_DESC()
    d.offset, d.size = offset, size
    return cu.cuExternalMemoryGetMappedBuffer(memory, d)
def foreign(size):
    fd = os.memfd_create("graphics")
    os.ftruncate(fd, size)
    return fd
"""
)


def test_external_memory_is_on_the_device_from_import_to_the_last_of_its_mappings(
    h200: Simulated, stack: ExitStack
) -> None:
    peer = Peer(h200, EXTERNAL, stack)
    assert peer.do("""
fd, before = foreign(5 * MIB), free()
watch = os.dup(fd)
memory = ok(bring(fd, 5 * MIB))
taken = before - free()
a, b = ok(buffer(memory, 0, 5 * MIB)), ok(buffer(memory, 4 * MIB + 100, 1000))
os.pwrite(watch, b"pixels", 4 * MIB + 100)
seen = read(b, 6)
ok(cu.cuMemcpyHtoD(int(a) + 77, b"texels", 6))
wide = rc(cu.cuMemsetD8(int(b), 0, 1001))
mapped = before - free()
ok(cu.cuDestroyExternalMemory(memory))
twice = rc(cu.cuDestroyExternalMemory(memory))
ok(cu.cuMemFree(a))
late = before - free()
answer([taken, seen.decode(), os.pread(watch, 6, 77).decode(), wide, mapped, twice, late, rc(cu.cuMemFree(b)),
        before - free(), rc(buffer(memory, 0, 1))])""") == [
        6 * MIB, "pixels", "texels", 1, 6 * MIB, 400, 6 * MIB, 0, 0, 400]  # fmt: skip


def test_external_memory_holds_mipmapped_arrays(h200: Simulated, stack: ExitStack) -> None:
    peer = Peer(h200, EXTERNAL, stack)
    assert peer.do("""
before, memory = free(), ok(bring(foreign(4 * MIB), 4 * MIB))
d = cu.CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC()
d.offset, d.numLevels = MIB, 3
d.arrayDesc.Width, d.arrayDesc.Height, d.arrayDesc.NumChannels = 512, 512, 4
d.arrayDesc.Format = cu.CUarray_format.CU_AD_FORMAT_UNSIGNED_INT8
mipmap = ok(cu.cuExternalMemoryGetMappedMipmappedArray(memory, d))
level = ok(cu.cuMipmappedArrayGetLevel(mipmap, 1))
ok(cu.cuMemcpyHtoA(level, 4, b"texels", 6))
seen = read(int(ok(buffer(memory, 2 * MIB, 100))) + 4, 6)     # level 0 takes one MiB
d.offset = 4 * MIB - 100
small = rc(cu.cuExternalMemoryGetMappedMipmappedArray(memory, d))
ok(cu.cuDestroyExternalMemory(memory))
held = before - free()
ok(cu.cuMipmappedArrayDestroy(mipmap))
answer([seen.decode(), small, held])""") == ["texels", 1, 4 * MIB]
    peer.kill()
    assert used(h200) == 0


def test_external_memory_that_two_processes_import_is_counted_once(h200: Simulated, stack: ExitStack) -> None:
    first, second = Peer(h200, EXTERNAL, stack), Peer(h200, EXTERNAL, stack)
    first.do(f"fd = foreign(8 * MIB)\nsend({second.process.pid}, fd)\nm = ok(bring(fd, 8 * MIB))\nanswer(0)")
    second.do(
        "m = ok(bring(receive()[0], 8 * MIB))\np = ok(buffer(m, 0, 8 * MIB))\nok(cu.cuMemsetD8(p, 1, 9))\nanswer(0)"
    )
    assert used(h200) == 8 * MIB
    first.kill()
    assert used(h200) == 8 * MIB
    second.do("ok(cu.cuDestroyExternalMemory(m))\nok(cu.cuMemFree(p))\nanswer(0)")
    assert used(h200) == 0


def test_memory_of_cuda_imported_as_external_is_not_counted_again(h200: Simulated, stack: ExitStack) -> None:
    giver, taker = Peer(h200, EXTERNAL, stack), Peer(h200, EXTERNAL, stack)
    giver.do(f"""
h = ok(cu.cuMemCreate(4 * MIB, properties(), 0))
ok(cu.cuMemsetD8(mapped(h, 4 * MIB), 0x2A, 4 * MIB))
send({taker.process.pid}, ok(cu.cuMemExportToShareableHandle(h, FD, 0)))
answer(0)""")
    assert taker.do("m = ok(bring(receive()[0], 4 * MIB))\nanswer(read(ok(buffer(m, MIB, 8)), 8).decode())") == "*" * 8
    assert used(h200) == 4 * MIB
    giver.kill()
    assert used(h200) == 4 * MIB


def test_external_memory_counts_against_the_capacity_and_its_codes(make_machine: Make, stack: ExitStack) -> None:
    peer = Peer(make_machine("t4"), EXTERNAL, stack)
    assert peer.do("""
fd = foreign(20 * GIB)
answer([rc(bring(fd, 20 * GIB)), rc(bring(fd, 21 * GIB)), rc(bring(-1, MIB)), rc(bring(fd, 0)), rc(bring(fd, MIB, 9)),
        os.fstat(fd).st_size == 20 * GIB])""") == [2, 1, 1, 1, 801, True]


MULTICAST = (
    PRELUDE
    + """
def team(devices, size=8 * MIB, shareable=False):
    p = cu.CUmulticastObjectProp()
    p.numDevices, p.size, p.handleTypes = devices, size, int(shareable)
    return cu.cuMulticastCreate(p)
def here(number, size=8 * MIB, shareable=False):
    return ok(cu.cuMemCreate(size, properties(shareable, 1, number), 0))
def room(device):
    ok(cu.cuCtxSetCurrent(ok(cu.cuDevicePrimaryCtxRetain(device))))
    left = free()
    ok(cu.cuCtxSetCurrent(ok(cu.cuDevicePrimaryCtxRetain(0))))
    return left
"""
)


def test_a_multicast_object_has_no_memory_and_keeps_what_is_bound(make_machine: Make, stack: ExitStack) -> None:
    peer = Peer(make_machine("2xh200"), MULTICAST, stack)
    both, first = [8 * MIB, 8 * MIB], [8 * MIB, 0]
    assert peer.do("""
before = room(0), room(1)
def taken():
    return [b - room(i) for i, b in enumerate(before)]
mc = ok(team(2))
M = [here(0), here(1)]
alone = [taken(), rc(cu.cuMulticastBindMem(mc, 0, M[0], 0, 8 * MIB, 0))]
ok(cu.cuMulticastAddDevice(mc, 0))
early = rc(cu.cuMulticastBindMem(mc, 0, M[0], 0, 8 * MIB, 0))
ok(cu.cuMulticastAddDevice(mc, 1))
full = rc(cu.cuMulticastAddDevice(mc, 1))
ok(cu.cuMulticastBindMem(mc, 0, M[0], 0, 8 * MIB, 0))
address = mapped(M[1], 8 * MIB)
ok(cu.cuMulticastBindAddr(mc, 4 * MIB, address + 2 * MIB, 4 * MIB, 0))
overlap = rc(cu.cuMulticastBindMem(mc, 4 * MIB, M[0], 0, 4 * MIB, 0))
beyond = rc(cu.cuMulticastBindMem(mc, 6 * MIB, M[1], 0, 4 * MIB, 0))
ok(cu.cuMemUnmap(address, 8 * MIB))
[ok(cu.cuMemRelease(m)) for m in M]
bound = taken()
ok(cu.cuMulticastUnbind(mc, 1, 4 * MIB, 4 * MIB))
unbound = taken()
view = mapped(mc, 8 * MIB)
copied = rc(cu.cuMemsetD8(view, 1, 8))
ok(cu.cuMemRelease(mc))
still = taken()
ok(cu.cuMemUnmap(view, 8 * MIB))
answer([alone, early, full, overlap, beyond, bound, unbound, copied, still, taken(),
        rc(cu.cuMulticastUnbind(mc, 0, 0, 8 * MIB))])
""") == [
        [both, 101], 101, 1, 1, 1, both, first, 1, first, [0, 0], 1]  # fmt: skip


def test_a_team_of_two_processes(make_machine: Make, stack: ExitStack) -> None:
    machine = make_machine("2xh200")
    first, second = Peer(machine, MULTICAST, stack), Peer(machine, MULTICAST, stack)
    assert (
        first.do(f"""
mc, plain = ok(team(2, shareable=True)), here(0)
ok(cu.cuMulticastAddDevice(mc, 0))
send({second.process.pid}, ok(cu.cuMemExportToShareableHandle(mc, FD, 0)))
answer(rc(cu.cuMulticastAddDevice(mc, 0)))""")
        == 1
    )
    second.do(
        "mc = ok(cu.cuMemImportFromShareableHandle(receive()[0], FD))\nok(cu.cuMulticastAddDevice(mc, 1))\nanswer(0)"
    )
    assert first.do("""
m = here(0, 8 * MIB, True)
codes = [rc(cu.cuMulticastBindMem(mc, 0, x, 0, 8 * MIB, 0)) for x in (plain, m)]
ok(cu.cuMemRelease(m))
answer(codes)""") == [1, 0]
    assert second.do("m = here(1, 8 * MIB, True)\nanswer(rc(cu.cuMulticastBindMem(mc, 0, m, 0, 8 * MIB, 0)))") == 0
    assert used(machine) == 16 * MIB  # plain memory, and what is bound
    second.kill()
    assert used(machine) == 16 * MIB
    assert first.do("before = free()\nok(cu.cuMemRelease(mc))\nanswer(free() - before)") == 8 * MIB


def test_neighbouring_mappings_are_unmapped_by_one_call(h200: Simulated, stack: ExitStack) -> None:
    peer = Peer(h200, PRELUDE, stack)
    assert peer.do("""
before = free()
base = int(ok(cu.cuMemAddressReserve(16 * MIB, 0, 0, 0)))
for i in range(8):
    h = ok(cu.cuMemCreate(2 * MIB, properties(i % 2 == 0), 0))
    ok(cu.cuMemMap(base + i * 2 * MIB, 2 * MIB, 0, h, 0))
    ok(cu.cuMemRelease(h))
held, cut = before - free(), rc(cu.cuMemUnmap(base + MIB, 4 * MIB))
ok(cu.cuMemUnmap(base + 2 * MIB, 10 * MIB))
answer([held // MIB, cut, (before - free()) // MIB, rc(cu.cuMemUnmap(base, 16 * MIB)),
        rc(cu.cuMemAddressFree(base, 16 * MIB))])
""") == [16, 1, 6, 1, 1]


@pytest.mark.parametrize(("machine", "multicast"), [("t4", 0), ("h200", 1)])
def test_a_device_says_what_of_this_it_can(make_machine: Make, machine: str, multicast: int) -> None:
    names = (
        "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED",
        "SPARSE_CUDA_ARRAY_SUPPORTED",
        "MEMPOOL_SUPPORTED_HANDLE_TYPES",
        "DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED",
        "IPC_EVENT_SUPPORTED",
        "HOST_NUMA_MEMORY_POOLS_SUPPORTED",
        "HANDLE_TYPE_FABRIC_SUPPORTED",
        "MULTICAST_SUPPORTED",
    )
    body = f"""
    ok(cu.cuInit(0))
    answer([ok(cu.cuDeviceGetAttribute(getattr(cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{{name}}"), 0))
            for name in {names!r}])
    """
    assert ask(make_machine(machine), body) == [1] * 6 + [0, multicast]


def test_pointers_tell_how_they_can_be_shared(h200: Simulated, stack: ExitStack) -> None:
    peer = Peer(h200, POOLS, stack)
    assert peer.do("""
T = cu.CUpointer_attribute
P = [ok(cu.cuMemAlloc(4096)), ok(cu.cuMemAllocAsync(4096, 0)), ok(cu.cuMemAllocFromPoolAsync(4096, shareable(), 0)),
     mapped(ok(cu.cuMemCreate(2 * MIB, properties(True), 0)), 2 * MIB),
     mapped(ok(cu.cuMemCreate(2 * MIB, properties(False), 0)), 2 * MIB), ok(cu.cuMemAllocManaged(4096, 1))]
answer([[int(ok(cu.cuPointerGetAttribute(a, p))) for p in P] for a in
        (T.CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, T.CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES)])""") == [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
    ]
