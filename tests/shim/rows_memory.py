# SPDX-License-Identifier: Apache-2.0
"""Memory of every kind: see rows.py."""

from __future__ import annotations

import os
from typing import Any

from tests.shim.rows import DEVICE, HOLD, MIB, check, cuda, declarations, entry, hold, new, null, up, used

ROW = 65536
SIDE = 4096
"""A square of so many floats is HOLD bytes."""

TO_FILE = 1
"""CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR."""


def twins(*symbols: str) -> list[str]:
    """Functions and those for a default stream per thread."""
    return [name for symbol in symbols for name in (symbol, f"{symbol}_ptsz")]


# ---- linear memory ----------------------------------------------------------------------------------------------


@entry("refuses", "cuMemAlloc_v2")
def alloc(symbol: str) -> Any:
    up()
    return cuda.cuMemAlloc_v2(new("CUdeviceptr *"), HOLD)


@entry("refuses", "cuMemAlloc")
def alloc_32(symbol: str) -> Any:
    up()
    return cuda.cuMemAlloc(new("CUdeviceptr_v1 *"), HOLD)


@entry("refuses", "cuMemAllocPitch_v2")
def alloc_pitch(symbol: str) -> Any:
    up()
    return cuda.cuMemAllocPitch_v2(new("CUdeviceptr *"), new("size_t *"), ROW, HOLD // ROW, 4)


@entry("refuses", "cuMemAllocPitch")
def alloc_pitch_32(symbol: str) -> Any:
    up()
    return cuda.cuMemAllocPitch(new("CUdeviceptr_v1 *"), new("unsigned int *"), ROW, HOLD // ROW, 4)


@entry("refuses", "cuMemAllocManaged")
def alloc_managed(symbol: str) -> Any:
    up()
    return cuda.cuMemAllocManaged(new("CUdeviceptr *"), HOLD, 1)


@entry("settles", "cuMemFree_v2")
def free(symbol: str) -> Any:
    up()
    start, pointer = used(), hold()
    before = used() - start
    check(cuda.cuMemFree_v2(pointer))
    return [before, used() - start]


@entry("settles", "cuMemFree")
def free_32(symbol: str) -> Any:
    up()
    start, pointer = used(), new("CUdeviceptr_v1 *")
    check(cuda.cuMemAlloc(pointer, HOLD))
    before = used() - start
    check(cuda.cuMemFree(pointer[0]))
    return [before, used() - start]


@entry("shows", "cuMemGetInfo", "cuMemGetInfo_v2")
def info(symbol: str) -> Any:
    up()
    kind = "size_t *" if symbol.endswith("_v2") else "unsigned int *"
    available, total = new(kind), new(kind)
    check(getattr(cuda, symbol)(available, total))
    return total[0]


@entry("shows", "cuDeviceTotalMem", "cuDeviceTotalMem_v2")
def total(symbol: str) -> Any:
    check(cuda.cuInit(0))
    bytes_ = new("size_t *" if symbol.endswith("_v2") else "unsigned int *")
    check(getattr(cuda, symbol)(bytes_, DEVICE))
    return bytes_[0]


# ---- memory of the host -----------------------------------------------------------------------------------------

HOST = "memory of the host is limited only where the grant says so"


@entry("answers", "cuMemAllocHost", "cuMemAllocHost_v2", why=HOST)
def alloc_host(symbol: str) -> Any:
    up()
    pointer = new("void **")
    return [getattr(cuda, symbol)(pointer, MIB), cuda.cuMemFreeHost(pointer[0])]


@entry("answers", "cuMemHostAlloc", "cuMemFreeHost", why=HOST)
def host_alloc(symbol: str) -> Any:
    up()
    pointer = new("void **")
    return [cuda.cuMemHostAlloc(pointer, MIB, 0), cuda.cuMemFreeHost(pointer[0]), cuda.cuMemFreeHost(null())]


@entry("answers", "cuMemHostRegister", "cuMemHostRegister_v2", "cuMemHostUnregister", why=HOST)
def host_register(symbol: str) -> Any:
    up()
    register = cuda.cuMemHostRegister if symbol == "cuMemHostRegister" else cuda.cuMemHostRegister_v2
    pages = new("char[]", 3 * 4096)
    aligned = declarations().cast("char *", int(declarations().cast("uintptr_t", pages)) // 4096 * 4096 + 4096)
    return [register(aligned, 4096, 0), cuda.cuMemHostUnregister(aligned), cuda.cuMemHostUnregister(aligned)]


# ---- stream-ordered memory and pools ----------------------------------------------------------------------------


def pool(keeps: int = 0) -> Any:
    """A pool of the device that keeps so many bytes when it is idle."""
    made, how = new("CUmemoryPool *"), new("CUmemPoolProps *")
    how.allocType, how.location.type, how.location.id = 1, 1, DEVICE
    check(cuda.cuMemPoolCreate(made, how))
    check(cuda.cuMemPoolSetAttribute(made[0], 4, new("uint64_t *", keeps)))
    return made[0]


def use_and_free(symbol: str, *which: Any) -> int:
    """Allocate in stream order, free, wait; the device's use in between, above the start."""
    start, pointer = used(), new("CUdeviceptr *")
    check(getattr(cuda, symbol)(pointer, HOLD, *which, null()))
    between = used() - start
    check(cuda.cuMemFreeAsync(pointer[0], null()))
    check(cuda.cuStreamSynchronize(null()))
    return between


@entry("refuses", *twins("cuMemAllocAsync"))
def alloc_async(symbol: str) -> Any:
    up()
    return getattr(cuda, symbol)(new("CUdeviceptr *"), HOLD, null())


@entry("refuses", *twins("cuMemAllocFromPoolAsync"))
def alloc_from_pool(symbol: str) -> Any:
    up()
    return getattr(cuda, symbol)(new("CUdeviceptr *"), HOLD, pool(), null())


@entry("settles", *twins("cuMemFreeAsync"))
def free_async(symbol: str) -> Any:
    up()
    start, pointer = used(), new("CUdeviceptr *")
    check(cuda.cuMemAllocAsync(pointer, HOLD, null()))
    before = used() - start
    check(getattr(cuda, symbol)(pointer[0], null()))
    check(cuda.cuStreamSynchronize(null()))
    return [before, used() - start]


@entry("settles", "cuMemPoolCreate")
def make_pool(symbol: str) -> Any:
    up()
    start = used()
    return [use_and_free("cuMemAllocFromPoolAsync", pool()), used() - start]


@entry("settles", "cuMemPoolDestroy")
def end_of_a_pool(symbol: str) -> Any:
    up()
    start, made = used(), pool(keeps=2**40)
    use_and_free("cuMemAllocFromPoolAsync", made)
    before = used() - start
    check(cuda.cuMemPoolDestroy(made))
    return [before, used() - start]


@entry("settles", "cuMemPoolTrimTo")
def trim(symbol: str) -> Any:
    up()
    start, made = used(), pool(keeps=2**40)
    use_and_free("cuMemAllocFromPoolAsync", made)
    before = used() - start
    check(cuda.cuMemPoolTrimTo(made, 0))
    return [before, used() - start]


@entry("settles", "cuMemPoolSetAttribute")
def keep_nothing(symbol: str) -> Any:
    up()
    start, made = used(), pool(keeps=2**40)
    use_and_free("cuMemAllocFromPoolAsync", made)
    before = used() - start
    check(cuda.cuMemPoolSetAttribute(made, 4, new("uint64_t *", 0)))
    check(cuda.cuCtxSynchronize())
    return [before, used() - start]


@entry("settles", "cuDeviceSetMemPool")
def pool_of_a_device(symbol: str) -> Any:
    up()
    start, made = used(), pool(keeps=2**40)
    check(cuda.cuDeviceSetMemPool(DEVICE, made))
    use_and_free("cuMemAllocAsync")
    before = used() - start
    check(cuda.cuMemPoolTrimTo(made, 0))
    return [before, used() - start]


@entry("settles", "cuMemSetMemPool")
def pool_of_a_location(symbol: str) -> Any:
    up()
    start, made, where = used(), pool(keeps=2**40), new("CUmemLocation *")
    where.type, where.id = 1, DEVICE
    check(cuda.cuMemSetMemPool(where, 1, made))
    use_and_free("cuMemAllocAsync")
    before = used() - start
    check(cuda.cuMemPoolTrimTo(made, 0))
    return [before, used() - start]


@entry("answers", "cuMemPoolImportFromShareableHandle", why="the exporter is charged")
def import_a_pool(symbol: str) -> Any:
    up()
    no_file = declarations().cast("void *", -1)
    return cuda.cuMemPoolImportFromShareableHandle(new("CUmemoryPool *"), no_file, TO_FILE, 0)


# ---- physical memory and addresses, apart -----------------------------------------------------------------------


def physical(shared: bool = False) -> Any:
    """The code, and a handle of HOLD bytes."""
    handle, how = new("CUmemGenericAllocationHandle *"), new("CUmemAllocationProp *")
    how.type, how.location.type, how.location.id = 1, 1, DEVICE
    how.requestedHandleTypes = TO_FILE if shared else 0
    return cuda.cuMemCreate(handle, HOLD, how, 0), handle


def made(shared: bool = False) -> int:
    code, handle = physical(shared)
    check(code)
    return int(handle[0])


def mapped(handle: int) -> int:
    """Map at addresses of our own; where."""
    where = new("CUdeviceptr *")
    check(cuda.cuMemAddressReserve(where, HOLD, 0, 0, 0))
    check(cuda.cuMemMap(where[0], HOLD, 0, handle, 0))
    return int(where[0])


@entry("refuses", "cuMemCreate")
def create(symbol: str) -> Any:
    up()
    return physical()[0]


@entry("settles", "cuMemRelease")
def release(symbol: str) -> Any:
    up()
    start, handle = used(), made()
    before = used() - start
    check(cuda.cuMemRelease(handle))
    return [before, used() - start]


@entry("settles", "cuMemMap", "cuMemUnmap")
def unmap(symbol: str) -> Any:
    """A mapping holds what no handle holds any more."""
    up()
    start, handle = used(), made()
    where = mapped(handle)
    check(cuda.cuMemRelease(handle))
    before = used() - start
    check(cuda.cuMemUnmap(where, HOLD))
    return [before, used() - start]


@entry("settles", "cuMemRetainAllocationHandle")
def retain(symbol: str) -> Any:
    """A second hold on a handle outlives the first, and the mapping."""
    up()
    start, handle, again = used(), made(), new("CUmemGenericAllocationHandle *")
    where = mapped(handle)
    check(cuda.cuMemRetainAllocationHandle(again, declarations().cast("void *", where)))
    check(cuda.cuMemRelease(handle))
    check(cuda.cuMemUnmap(where, HOLD))
    before = used() - start
    check(cuda.cuMemRelease(again[0]))
    return [before, used() - start]


@entry("answers", "cuMemExportToShareableHandle", why="it takes and gives nothing; what is exported may stay longer")
def export(symbol: str) -> Any:
    up()
    file = new("int *", -1)
    code = cuda.cuMemExportToShareableHandle(file, made(shared=True), TO_FILE, 0)
    return [code, file[0] >= 0]


@entry("answers", "cuMemImportFromShareableHandle", why="the exporter is charged")
def import_(symbol: str) -> Any:
    up()
    file, handle = new("int *", -1), new("CUmemGenericAllocationHandle *")
    if cuda.cuMemExportToShareableHandle(file, made(shared=True), TO_FILE, 0):
        file[0] = os.open("/dev/null", os.O_RDWR)
    named = declarations().cast("void *", file[0])
    code = cuda.cuMemImportFromShareableHandle(handle, named, TO_FILE)
    return [code, cuda.cuMemRelease(handle[0]) if not code else None]


@entry("answers", *twins("cuMemMapArrayAsync"), why="with nothing to map")
def map_array(symbol: str) -> Any:
    up()
    return getattr(cuda, symbol)(null(), 0, null())


def multicast() -> Any:
    """The code, and an object that memory of several devices can be bound to."""
    handle, how = new("CUmemGenericAllocationHandle *"), new("CUmulticastObjectProp *")
    how.numDevices, how.size = 1, HOLD
    return cuda.cuMulticastCreate(handle, how), handle


NO_MEMORY = "a multicast object has no memory of its own"


@entry("answers", "cuMulticastCreate", why=NO_MEMORY)
def make_multicast(symbol: str) -> Any:
    up()
    return multicast()[0]


@entry("answers", "cuMulticastBindMem", "cuMulticastBindMem_v2", why=NO_MEMORY)
def bind(symbol: str) -> Any:
    up()
    device = [DEVICE] if symbol.endswith("_v2") else []
    return getattr(cuda, symbol)(multicast()[1][0], *device, 0, made(), 0, HOLD, 0)


@entry("answers", "cuMulticastBindAddr", "cuMulticastBindAddr_v2", why=NO_MEMORY)
def bind_address(symbol: str) -> Any:
    up()
    device = [DEVICE] if symbol.endswith("_v2") else []
    return getattr(cuda, symbol)(multicast()[1][0], *device, 0, mapped(made()), HOLD, 0)


@entry("answers", "cuMulticastUnbind", why=NO_MEMORY)
def unbind(symbol: str) -> Any:
    up()
    return cuda.cuMulticastUnbind(multicast()[1][0], DEVICE, 0, HOLD)


# ---- arrays -----------------------------------------------------------------------------------------------------


def make_array(symbol: str) -> Any:
    """The code, and an array of HOLD bytes."""
    version = "" if symbol.endswith("_v2") else "_v1"
    array = new("CUarray *")
    if symbol.startswith("cuArray3D"):
        what = new(f"CUDA_ARRAY3D_DESCRIPTOR{version} *", {"Width": SIDE, "Height": SIDE})
    else:
        what = new(f"CUDA_ARRAY_DESCRIPTOR{version} *", {"Width": SIDE, "Height": SIDE})
    what.Format, what.NumChannels = 0x20, 1
    return getattr(cuda, symbol)(array, what), array


@entry("refuses", "cuArrayCreate", "cuArrayCreate_v2", "cuArray3DCreate", "cuArray3DCreate_v2")
def array(symbol: str) -> Any:
    up()
    return make_array(symbol)[0]


@entry("settles", "cuArrayDestroy")
def end_of_an_array(symbol: str) -> Any:
    up()
    start = used()
    code, made_array = make_array("cuArrayCreate_v2")
    check(code)
    before = used() - start
    check(cuda.cuArrayDestroy(made_array[0]))
    return [before, used() - start]


def make_mipmap() -> Any:
    mipmap = new("CUmipmappedArray *")
    what = new("CUDA_ARRAY3D_DESCRIPTOR *", {"Width": SIDE, "Height": SIDE})
    what.Format, what.NumChannels = 0x20, 1
    return cuda.cuMipmappedArrayCreate(mipmap, what, 3), mipmap


@entry("refuses", "cuMipmappedArrayCreate")
def mipmap(symbol: str) -> Any:
    up()
    return make_mipmap()[0]


@entry("settles", "cuMipmappedArrayDestroy")
def end_of_a_mipmap(symbol: str) -> Any:
    up()
    start = used()
    code, made_mipmap = make_mipmap()
    check(code)
    before = used() - start
    check(cuda.cuMipmappedArrayDestroy(made_mipmap[0]))
    return [before, used() - start]


# ---- memory of other processes and other drivers ----------------------------------------------------------------


@entry("answers", "cuIpcOpenMemHandle", "cuIpcOpenMemHandle_v2", why="the exporter is charged")
def open_shared(symbol: str) -> Any:
    up()
    handle = new("CUipcMemHandle *")
    return getattr(cuda, symbol)(new("CUdeviceptr *"), handle[0], 1)


@entry("answers", "cuIpcCloseMemHandle", why="the exporter is charged")
def close_shared(symbol: str) -> Any:
    up()
    return [cuda.cuIpcCloseMemHandle(0), cuda.cuIpcCloseMemHandle(hold())]


def bring() -> Any:
    """The code, and memory of HOLD bytes that something else than CUDA has made."""
    file = os.memfd_create("rows")
    os.ftruncate(file, HOLD)
    memory, what = new("CUexternalMemory *"), new("CUDA_EXTERNAL_MEMORY_HANDLE_DESC *")
    what.type, what.handle.fd, what.size = 1, file, HOLD
    return cuda.cuImportExternalMemory(memory, what), memory


@entry("refuses", "cuImportExternalMemory")
def external(symbol: str) -> Any:
    up()
    return bring()[0]


@entry("settles", "cuDestroyExternalMemory")
def end_of_external(symbol: str) -> Any:
    up()
    start = used()
    code, memory = bring()
    check(code)
    before = used() - start
    check(cuda.cuDestroyExternalMemory(memory[0]))
    return [before, used() - start]
