# SPDX-License-Identifier: Apache-2.0
"""Linear memory, memory of the host, pools: see rows.py."""

from __future__ import annotations

from typing import Any

from tests.shim.rows import DEVICE, HOLD, MIB, check, cuda, declarations, entry, hold, new, null, twins, up, used

ROW = 65536
TO_FILE = 1
"""CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR."""


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
