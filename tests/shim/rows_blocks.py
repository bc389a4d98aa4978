# SPDX-License-Identifier: Apache-2.0
"""Physical memory apart from its addresses, arrays, memory of others: see rows.py."""

from __future__ import annotations

import os
from typing import Any

from tests.shim.rows import DEVICE, HOLD, check, cuda, declarations, entry, hold, new, null, twins, up, used

SIDE = 4096
"""A square of so many floats is HOLD bytes."""

TO_FILE = 1
"""CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR."""

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
    """The code, and an object that memory of one device can be bound to."""
    handle, how = new("CUmemGenericAllocationHandle *"), new("CUmulticastObjectProp *")
    how.numDevices, how.size = 1, HOLD
    return cuda.cuMulticastCreate(handle, how), handle


@entry("answers", "cuMulticastCreate", why="a multicast object has no memory of its own")
def make_multicast(symbol: str) -> Any:
    up()
    return multicast()[0]


@entry("settles", "cuMulticastBindMem", "cuMulticastBindMem_v2", "cuMulticastUnbind")
def bind(symbol: str) -> Any:
    """A binding holds what no handle holds any more."""
    up()
    start, handle, (code, group) = used(), made(), multicast()
    check(code)
    check(cuda.cuMulticastAddDevice(group[0], DEVICE))
    if symbol.endswith("_v2"):
        check(cuda.cuMulticastBindMem_v2(group[0], DEVICE, 0, handle, 0, HOLD, 0))
    else:
        check(cuda.cuMulticastBindMem(group[0], 0, handle, 0, HOLD, 0))
    check(cuda.cuMemRelease(handle))
    before = used() - start
    check(cuda.cuMulticastUnbind(group[0], DEVICE, 0, HOLD))
    return [before, used() - start]


@entry("settles", "cuMulticastBindAddr", "cuMulticastBindAddr_v2")
def bind_address(symbol: str) -> Any:
    """What is bound by its address stays when it is mapped nowhere any more."""
    up()
    start, handle, (code, group) = used(), made(), multicast()
    check(code)
    check(cuda.cuMulticastAddDevice(group[0], DEVICE))
    where = mapped(handle)
    device = [DEVICE] if symbol.endswith("_v2") else []
    check(getattr(cuda, symbol)(group[0], *device, 0, where, HOLD, 0))
    check(cuda.cuMemRelease(handle))
    check(cuda.cuMemUnmap(where, HOLD))
    before = used() - start
    check(cuda.cuMulticastUnbind(group[0], DEVICE, 0, HOLD))
    return [before, used() - start]


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
