# SPDX-License-Identifier: Apache-2.0
"""Start, lookup, contexts, modules, launches, waiting and graphs: see rows.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.shim.rows import DEVICE, HOLD, check, cuda, declarations, entry, hold, new, null, up, used

SPIN = Path(__file__).parents[2] / "vgpu_runtime" / "demo" / "spin.ptx"

# ---- start and lookup -----------------------------------------------------------------------------------------


@entry("gates", "cuInit", why="it takes nothing; it fails for a tenant whose files cannot be used")
def init(symbol: str) -> Any:
    return cuda.cuInit(0)


@entry("shows", "cuGetProcAddress", "cuGetProcAddress_v2")
def resolve(symbol: str) -> Any:
    """Whether it hands out what dlsym finds, which the other tests say is ours; and the driver's own otherwise."""
    ffi, found = declarations(), new("void **")
    more = [null()] if symbol.endswith("_v2") else []
    check(getattr(cuda, symbol)(b"cuMemAlloc", found, 3020, 0, *more))
    return [found[0] == ffi.cast("void *", cuda.cuMemAlloc_v2), cuda.owner("cuMemAlloc_v2")]


# ---- contexts ---------------------------------------------------------------------------------------------------


@entry("refuses", "cuCtxCreate", "cuCtxCreate_v2", alone=True)
def create(symbol: str) -> Any:
    check(cuda.cuInit(0))
    return getattr(cuda, symbol)(new("CUcontext *"), 0, DEVICE)


@entry("refuses", "cuCtxCreate_v3", alone=True)
def create_with_affinity(symbol: str) -> Any:
    check(cuda.cuInit(0))
    return cuda.cuCtxCreate_v3(new("CUcontext *"), null(), 0, 0, DEVICE)


@entry("refuses", "cuCtxCreate_v4", alone=True)
def create_with_parameters(symbol: str) -> Any:
    check(cuda.cuInit(0))
    return cuda.cuCtxCreate_v4(new("CUcontext *"), null(), 0, DEVICE)


@entry("refuses", "cuDevicePrimaryCtxRetain", alone=True)
def retain(symbol: str) -> Any:
    check(cuda.cuInit(0))
    return cuda.cuDevicePrimaryCtxRetain(new("CUcontext *"), DEVICE)


@entry("answers", "cuGLCtxCreate", "cuGLCtxCreate_v2", why="the machine shows nothing on a screen")
def create_for_opengl(symbol: str) -> Any:
    check(cuda.cuInit(0))
    return getattr(cuda, symbol)(new("CUcontext *"), 0, DEVICE)


@entry("answers", "cuGreenCtxCreate", why="the machine has no green contexts")
def create_green(symbol: str) -> Any:
    check(cuda.cuInit(0))
    return cuda.cuGreenCtxCreate(new("CUgreenCtx *"), null(), DEVICE, 1)


@entry("answers", "cuGreenCtxDestroy", why="the machine has no green contexts")
def destroy_green(symbol: str) -> Any:
    up()
    return cuda.cuGreenCtxDestroy(null())


@entry("settles", "cuCtxDestroy", "cuCtxDestroy_v2", "cuCtxDetach")
def end_of_a_context(symbol: str) -> Any:
    first, context = up(), new("CUcontext *")
    start = used()
    check(cuda.cuCtxCreate_v2(context, 0, DEVICE))
    hold()
    before = used() - start
    check(getattr(cuda, symbol)(context[0]))
    check(cuda.cuCtxSetCurrent(first))
    return [before, used() - start]


PRIMARY = ("cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxRelease_v2", "cuDevicePrimaryCtxReset",
           "cuDevicePrimaryCtxReset_v2")  # fmt: skip


@entry("settles", *PRIMARY)
def end_of_the_primary_context(symbol: str) -> Any:
    first, context = up(), new("CUcontext *")
    start = used()
    check(cuda.cuDevicePrimaryCtxRetain(context, DEVICE))
    check(cuda.cuCtxSetCurrent(context[0]))
    hold()
    before = used() - start
    check(getattr(cuda, symbol)(DEVICE))
    check(cuda.cuCtxSetCurrent(first))
    return [before, used() - start]


@entry("refuses", "cuCtxSetLimit")
def limit(symbol: str) -> Any:
    """More room for what kernels allocate."""
    up()
    return cuda.cuCtxSetLimit(2, 2 * HOLD)


# ---- modules ------------------------------------------------------------------------------------------------------


def image() -> Any:
    return new("char[]", SPIN.read_bytes())


def path() -> Any:
    return new("char[]", str(SPIN).encode())


def load(symbol: str, module: Any) -> int:
    name = symbol.removeprefix("cuModuleLoad")
    if name == "":
        return int(cuda.cuModuleLoad(module, path()))
    if name == "DataEx":
        return int(cuda.cuModuleLoadDataEx(module, image(), 0, null(), null()))
    return int(getattr(cuda, symbol)(module, image()))


@entry("refuses", "cuModuleLoad", "cuModuleLoadData", "cuModuleLoadDataEx", "cuModuleLoadFatBinary")
def load_module(symbol: str) -> Any:
    up()
    return load(symbol, new("CUmodule *"))


@entry("settles", "cuModuleUnload")
def unload_module(symbol: str) -> Any:
    up()
    start, module = used(), new("CUmodule *")
    check(load("cuModuleLoadData", module))
    before = used() - start
    check(cuda.cuModuleUnload(module[0]))
    return [before, used() - start]


def load_library(symbol: str, library: Any) -> int:
    source = image() if symbol.endswith("Data") else path()
    return int(getattr(cuda, symbol)(library, source, null(), null(), 0, null(), null(), 0))


@entry("refuses", "cuLibraryLoadData", "cuLibraryLoadFromFile")
def load_a_library(symbol: str) -> Any:
    up()
    return load_library(symbol, new("CUlibrary *"))


@entry("settles", "cuLibraryUnload")
def unload_a_library(symbol: str) -> Any:
    up()
    start, library = used(), new("CUlibrary *")
    check(load_library("cuLibraryLoadData", library))
    before = used() - start
    check(cuda.cuLibraryUnload(library[0]))
    return [before, used() - start]


# ---- launches -----------------------------------------------------------------------------------------------------


def kernel() -> Any:
    module, function = new("CUmodule *"), new("CUfunction *")
    check(cuda.cuModuleLoadData(module, image()))
    check(cuda.cuModuleGetFunction(function, module[0], b"vgpu_spin"))
    return function[0]


def arguments() -> tuple[Any, Any]:
    """Ten microseconds, and what keeps them."""
    ns = new("uint64_t *", 10_000)
    return new("void *[]", [declarations().cast("void *", ns)]), ns


@entry("delays", "cuLaunchKernel", "cuLaunchKernel_ptsz")
def launch(symbol: str) -> Any:
    up()
    packed, kept = arguments()
    code = getattr(cuda, symbol)(kernel(), 1, 1, 1, 1, 1, 1, 0, null(), packed, null())
    return code if kept else None


@entry("delays", "cuLaunchCooperativeKernel", "cuLaunchCooperativeKernel_ptsz")
def launch_together(symbol: str) -> Any:
    up()
    packed, kept = arguments()
    code = getattr(cuda, symbol)(kernel(), 1, 1, 1, 1, 1, 1, 0, null(), packed)
    return code if kept else None


@entry("delays", "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz")
def launch_with_a_configuration(symbol: str) -> Any:
    up()
    packed, kept = arguments()
    how = new("CUlaunchConfig *", [1, 1, 1, 1, 1, 1, 0, null(), null(), 0])
    code = getattr(cuda, symbol)(how, kernel(), packed, null())
    return code if kept else None


# ---- waiting ------------------------------------------------------------------------------------------------------


def wait(symbol: str) -> int:
    name = symbol.removesuffix("_ptsz")
    if name.startswith("cuStream"):
        return int(getattr(cuda, symbol)(null()))
    if name.startswith("cuCtx"):
        return int(getattr(cuda, symbol)(*([null()] if name.endswith("_v2") else [])))
    event = new("CUevent *")
    check(cuda.cuEventCreate(event, 0))
    check(cuda.cuEventRecord(event[0], null()))
    return int(getattr(cuda, symbol)(event[0]))


WAITS = ("cuStreamSynchronize", "cuStreamSynchronize_ptsz", "cuCtxSynchronize", "cuCtxSynchronize_v2")


@entry("settles", *WAITS)
def pools_let_go(symbol: str) -> Any:
    """What was freed in stream order and kept for later goes when the program waits."""
    up()
    start, pointer = used(), new("CUdeviceptr *")
    check(cuda.cuMemAllocAsync(pointer, HOLD, null()))
    before = used() - start
    check(cuda.cuMemFreeAsync(pointer[0], null()))
    check(wait(symbol))
    return [before, used() - start]


@entry(
    "answers",
    "cuStreamQuery",
    "cuStreamQuery_ptsz",
    "cuEventQuery",
    "cuEventSynchronize",
    why="whether a pool lets go then is the driver's choice",
)
def ask(symbol: str) -> Any:
    up()
    check(cuda.cuCtxSynchronize())
    return wait(symbol)


# ---- graphs -------------------------------------------------------------------------------------------------------


def graph(is_freed: bool = True) -> tuple[Any, Any]:
    """A graph that allocates HOLD bytes, and frees them unless told not to; and what it allocates."""
    made, taken, given = new("CUgraph *"), new("CUgraphNode *"), new("CUgraphNode *")
    what = new("CUDA_MEM_ALLOC_NODE_PARAMS *")
    what.poolProps.allocType = 1
    what.poolProps.location.type = 1
    what.poolProps.location.id = DEVICE
    what.bytesize = HOLD
    check(cuda.cuGraphCreate(made, 0))
    check(cuda.cuGraphAddMemAllocNode(taken, made[0], null(), 0, what))
    if is_freed:
        check(cuda.cuGraphAddMemFreeNode(given, made[0], taken, 1, what.dptr))
    return made[0], what.dptr


def instance(of: Any) -> Any:
    exec_ = new("CUgraphExec *")
    check(cuda.cuGraphInstantiateWithFlags(exec_, of, 0))
    return exec_[0]


AT_LAUNCH = "a graph's memory comes with its launch"


@entry("answers", "cuGraphInstantiate", "cuGraphInstantiate_v2", why=AT_LAUNCH)
def instantiate(symbol: str) -> Any:
    up()
    return getattr(cuda, symbol)(new("CUgraphExec *"), graph()[0], null(), null(), 0)


@entry("answers", "cuGraphInstantiateWithFlags", why=AT_LAUNCH)
def instantiate_with_flags(symbol: str) -> Any:
    up()
    return cuda.cuGraphInstantiateWithFlags(new("CUgraphExec *"), graph()[0], 0)


@entry("answers", "cuGraphInstantiateWithParams", "cuGraphInstantiateWithParams_ptsz", why=AT_LAUNCH)
def instantiate_with_parameters(symbol: str) -> Any:
    up()
    how = new("CUDA_GRAPH_INSTANTIATE_PARAMS *")
    return [getattr(cuda, symbol)(new("CUgraphExec *"), graph()[0], how), how.result_out]


@entry(
    "refuses",
    "cuGraphLaunch",
    "cuGraphLaunch_ptsz",
    "cuGraphUpload",
    "cuGraphUpload_ptsz",
    why="what a graph allocates comes with these; that its kernels are delayed is tested elsewhere",
)
def launch_a_graph(symbol: str) -> Any:
    up()
    return getattr(cuda, symbol)(instance(graph()[0]), null())


@entry("answers", "cuGraphExecDestroy", why="the memory stays with the device until it is trimmed")
def end_of_an_instance(symbol: str) -> Any:
    up()
    exec_ = instance(graph()[0])
    check(cuda.cuGraphLaunch(exec_, null()))
    check(cuda.cuCtxSynchronize())
    return cuda.cuGraphExecDestroy(exec_)


@entry("answers", "cuGraphDestroy", why="a graph itself has no memory")
def end_of_a_graph(symbol: str) -> Any:
    up()
    return cuda.cuGraphDestroy(graph()[0])


@entry("settles", "cuDeviceGraphMemTrim")
def trim_graph_memory(symbol: str) -> Any:
    up()
    start = used()
    made, pointer = graph(is_freed=False)
    check(cuda.cuGraphLaunch(instance(made), null()))
    check(cuda.cuCtxSynchronize())
    before = used() - start
    check(cuda.cuMemFree_v2(pointer))
    check(cuda.cuDeviceGraphMemTrim(DEVICE))
    return [before, used() - start]
