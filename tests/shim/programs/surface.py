# SPDX-License-Identifier: Apache-2.0
"""The driver's memory functions beyond `client.py`: each returns the driver's code and what it made."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import judge
from client import cuda, for_modules, info, size

DEVICE_LOCATION, HOST_LOCATION = 1, 2
RELEASE_THRESHOLD, RESERVED, USED = 4, 5, 7
GRAPH_USED, GRAPH_RESERVED = 0, 2
AUTO_FREE_ON_LAUNCH, UPLOAD = 1, 2
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NOT_READY = 600


def handle() -> ctypes.c_void_p:
    return ctypes.c_void_p()


def address(value: int = 0) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


def charged(quota: int) -> int:
    """Bytes that the tenant is charged on the current device, as the program is told; but for contexts and modules.

    What a context takes is granted beside the quota; tests/tools/tenants.py says how much that is.
    """
    free, total = info()
    context = int(os.environ.get("VGPU_TEST_CONTEXT", "0"))
    assert (total - quota) % context == 0 if context else total == quota, f"the device is shown with {total} bytes"
    return total - free - sum(for_modules) - (context * contexts(context) if context else 0)


def contexts(least: int) -> int:
    """Processes of the tenant that are charged so much on its first device, so that they have a context."""
    ledger = judge.ledger()
    held = (sum(lane.memory[0] for lane in lanes) % 2**64 for lanes in ledger.lanes)
    return sum(row.owner != 0 and one >= least for row, one in zip(ledger.rows, held, strict=True))


def stream(flags: int = 0) -> ctypes.c_void_p:
    made = handle()
    assert cuda.cuStreamCreate(ctypes.byref(made), flags) == 0
    return made


def event(on: Any = None) -> ctypes.c_void_p:
    """An event, recorded on a stream."""
    made = handle()
    assert cuda.cuEventCreate(ctypes.byref(made), 0) == 0
    assert cuda.cuEventRecord(made, on) == 0
    return made


# ---- stream-ordered memory ----------------------------------------------------------------------------


class PoolProps(ctypes.Structure):
    _fields_ = [
        ("alloc_type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("security", ctypes.c_void_p),
        ("max_size", ctypes.c_size_t),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 54),
    ]


def on_stream(amount: int, on: Any = None, ptsz: bool = False) -> tuple[int, ctypes.c_uint64]:
    made = address()
    function = cuda.cuMemAllocAsync_ptsz if ptsz else cuda.cuMemAllocAsync
    return function(ctypes.byref(made), size(amount), on), made


def from_pool(amount: int, pool: Any, on: Any = None, ptsz: bool = False) -> tuple[int, ctypes.c_uint64]:
    made = address()
    function = cuda.cuMemAllocFromPoolAsync_ptsz if ptsz else cuda.cuMemAllocFromPoolAsync
    return function(ctypes.byref(made), size(amount), pool, on), made


def free_on(made: ctypes.c_uint64, on: Any = None, ptsz: bool = False) -> int:
    code: int = (cuda.cuMemFreeAsync_ptsz if ptsz else cuda.cuMemFreeAsync)(made, on)
    return code


def make_pool(device: int = 0, location: int = DEVICE_LOCATION) -> tuple[int, ctypes.c_void_p]:
    made, props = handle(), PoolProps(alloc_type=1, location_type=location, location_id=device)
    return cuda.cuMemPoolCreate(ctypes.byref(made), ctypes.byref(props)), made


def default_pool(device: int = 0) -> ctypes.c_void_p:
    made = handle()
    assert cuda.cuDeviceGetDefaultMemPool(ctypes.byref(made), device) == 0
    return made


def current_pool(device: int = 0) -> ctypes.c_void_p:
    made = handle()
    assert cuda.cuDeviceGetMemPool(ctypes.byref(made), device) == 0
    return made


def pool_says(attribute: int, pool: Any = None) -> int:
    value = ctypes.c_uint64()
    code = cuda.cuMemPoolGetAttribute(pool or default_pool(), attribute, ctypes.byref(value))
    assert code == 0, f"the driver returned {code}"
    return value.value


def keep(amount: int, pool: Any = None) -> int:
    """Set the release threshold."""
    value = ctypes.c_uint64(amount)
    code: int = cuda.cuMemPoolSetAttribute(pool or default_pool(), RELEASE_THRESHOLD, ctypes.byref(value))
    return code


def trim(amount: int = 0, pool: Any = None) -> int:
    code: int = cuda.cuMemPoolTrimTo(pool or default_pool(), size(amount))
    return code


# ---- physical memory ------------------------------------------------------------------------------------


class AllocationProp(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("metadata", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


def create(amount: int, device: int = 0) -> tuple[int, ctypes.c_uint64]:
    made, props = address(), AllocationProp(type=1, location_type=DEVICE_LOCATION, location_id=device)
    return cuda.cuMemCreate(ctypes.byref(made), size(amount), ctypes.byref(props), ctypes.c_uint64(0)), made


def release(made: ctypes.c_uint64) -> int:
    code: int = cuda.cuMemRelease(made)
    return code


def reserve(amount: int) -> ctypes.c_uint64:
    at = address()
    assert cuda.cuMemAddressReserve(ctypes.byref(at), size(amount), size(0), address(), ctypes.c_uint64(0)) == 0
    return at


def map_at(at: ctypes.c_uint64, amount: int, block: ctypes.c_uint64) -> int:
    code: int = cuda.cuMemMap(at, size(amount), size(0), block, ctypes.c_uint64(0))
    return code


def unmap(at: ctypes.c_uint64, amount: int) -> int:
    code: int = cuda.cuMemUnmap(at, size(amount))
    return code


def retain(at: ctypes.c_uint64) -> tuple[int, ctypes.c_uint64]:
    made = address()
    return cuda.cuMemRetainAllocationHandle(ctypes.byref(made), at), made


# ---- arrays -----------------------------------------------------------------------------------------------


class ArrayDescriptor(ctypes.Structure):
    _fields_ = [
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    ]


def plane(amount: int) -> ArrayDescriptor:
    """Rows of 512 KiB, each 32768 elements of four floats."""
    return ArrayDescriptor(1 << 15, amount >> 19, 0, 0x20, 4, 0)


def array(amount: int) -> tuple[int, ctypes.c_void_p]:
    made, of = handle(), plane(amount)
    return cuda.cuArray3DCreate_v2(ctypes.byref(made), ctypes.byref(of)), made


def mipmap(amount: int) -> tuple[int, ctypes.c_void_p]:
    """One level."""
    made, of = handle(), plane(amount)
    return cuda.cuMipmappedArrayCreate(ctypes.byref(made), ctypes.byref(of), 1), made


# ---- graphs -----------------------------------------------------------------------------------------------


class NodeParams(ctypes.Structure):
    """Of an allocation node."""

    _fields_ = [
        ("props", PoolProps),
        ("access", ctypes.c_void_p),
        ("access_count", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
        ("pointer", ctypes.c_uint64),
    ]


class AnyNodeParams(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
        ("alloc", NodeParams),
        ("rest", ctypes.c_ubyte * (232 + 8 - ctypes.sizeof(NodeParams))),
    ]


def alloc_params(amount: int, device: int = 0) -> NodeParams:
    return NodeParams(PoolProps(alloc_type=1, location_type=DEVICE_LOCATION, location_id=device), bytes=amount)


def _after(nodes: list[ctypes.c_void_p]) -> tuple[Any, ctypes.c_size_t]:
    """What the next node of a chain depends on."""
    return ((ctypes.c_void_p * 1)(nodes[-1]) if nodes else None), size(1 if nodes else 0)


def add_alloc(graph: Any, nodes: list[Any], amount: int, device: int = 0) -> ctypes.c_uint64:
    """By the function for this type of node."""
    node, of = handle(), alloc_params(amount, device)
    assert cuda.cuGraphAddMemAllocNode(ctypes.byref(node), graph, *_after(nodes), ctypes.byref(of)) == 0
    nodes.append(node)
    return address(of.pointer)


def add_alloc_any(graph: Any, nodes: list[Any], amount: int, device: int = 0) -> ctypes.c_uint64:
    """By the function for all types of node."""
    node, of = handle(), AnyNodeParams(type=10, alloc=alloc_params(amount, device))
    assert cuda.cuGraphAddNode(ctypes.byref(node), graph, *_after(nodes), ctypes.byref(of)) == 0
    nodes.append(node)
    return address(of.alloc.pointer)


def add_free(graph: Any, nodes: list[Any], made: ctypes.c_uint64) -> None:
    node = handle()
    assert cuda.cuGraphAddMemFreeNode(ctypes.byref(node), graph, *_after(nodes), made) == 0
    nodes.append(node)


def graph_of(*sizes: int, free: bool = True, add: Any = add_alloc) -> tuple[ctypes.c_void_p, list[ctypes.c_uint64]]:
    """A chain of allocations, each freed before the next, or never."""
    graph, nodes, made = handle(), [], []
    assert cuda.cuGraphCreate(ctypes.byref(graph), 0) == 0
    for amount in sizes:
        made.append(add(graph, nodes, amount))
        if free:
            add_free(graph, nodes, made[-1])
    return graph, made


def capture_of(*sizes: int, free: bool = True, mode: int = GLOBAL) -> tuple[ctypes.c_void_p, list[ctypes.c_uint64]]:
    """The same, captured."""
    on, graph, made = stream(1), handle(), []
    assert cuda.cuStreamBeginCapture_v2(on, mode) == 0
    for amount in sizes:
        code, pointer = on_stream(amount, on)
        assert code == 0, f"the driver returned {code}"
        made.append(pointer)
        if free:
            assert free_on(pointer, on) == 0
    assert cuda.cuStreamEndCapture(on, ctypes.byref(graph)) == 0
    return graph, made


class InstantiateParams(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("node", ctypes.c_void_p),
        ("result", ctypes.c_uint),
    ]


def instantiate(graph: Any, flags: int = 0) -> tuple[int, ctypes.c_void_p]:
    made = handle()
    return cuda.cuGraphInstantiateWithFlags(ctypes.byref(made), graph, ctypes.c_uint64(flags)), made


def instantiate_with(graph: Any, flags: int, on: Any = None, ptsz: bool = False) -> tuple[int, ctypes.c_void_p]:
    made, of = handle(), InstantiateParams(flags, on)
    function = cuda.cuGraphInstantiateWithParams_ptsz if ptsz else cuda.cuGraphInstantiateWithParams
    return function(ctypes.byref(made), graph, ctypes.byref(of)), made


def run(executable: Any, on: Any = None, ptsz: bool = False) -> int:
    code: int = (cuda.cuGraphLaunch_ptsz if ptsz else cuda.cuGraphLaunch)(executable, on)
    return code


def upload(executable: Any, on: Any = None, ptsz: bool = False) -> int:
    code: int = (cuda.cuGraphUpload_ptsz if ptsz else cuda.cuGraphUpload)(executable, on)
    return code


def graphs_say(attribute: int, device: int = 0) -> int:
    value = ctypes.c_uint64()
    assert cuda.cuDeviceGetGraphMemAttribute(device, attribute, ctypes.byref(value)) == 0
    return value.value
