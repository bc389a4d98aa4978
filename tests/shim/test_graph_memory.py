# SPDX-License-Identifier: Apache-2.0
"""Refuse: memory that graphs allocate is charged when they run, by what the driver has in stock for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tools.conversation import Conversation
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY, INVALID_VALUE = 2, 1

MAKERS = {
    "cuGraphAddMemAllocNode": "lambda *sizes, free=True: graph_of(*sizes, free=free)",
    "cuGraphAddNode": "lambda *sizes, free=True: graph_of(*sizes, free=free, add=add_alloc_any)",
    "captured": "lambda *sizes, free=True: capture_of(*sizes, free=free)",
}
EVERY_MAKER = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


def begin(quota: int, maker: str = MAKERS["captured"]) -> str:
    """Preamble of a script in a tenant; a part of the quota is in whole blocks."""
    return f"""
from client import *
from surface import *
quota, make = {quota}, {maker}
def part(tenths):
    return quota * tenths // 10 // (2 << 20) * (2 << 20)
def stock():
    return [charged(quota), graphs_say(GRAPH_RESERVED)]
context = up()
on = stream(1)
LONG = lambda: check(launch(spin_function(), 10_000_000_000, on))
"""


@EVERY_MAKER
def test_a_graph_is_charged_at_its_launch_and_until_it_is_trimmed(make_tenant: Make, quota: int, maker: str) -> None:
    body = """
graph, _ = make(part(6))
code, made = instantiate(graph)
said = [code, stock()]
for _ in range(20):
    check(run(made, on))
said += [stock() == [part(6)] * 2, cuda.cuGraphExecDestroy(made), cuda.cuStreamSynchronize(on)]
said += [stock() == [part(6)] * 2, cuda.cuDeviceGraphMemTrim(0), stock()]
answer([*said, alloc(quota)[0]])
"""
    assert make_tenant(quota).ask(begin(quota, maker) + body) == [0, [0, 0], True, 0, 0, True, 0, [0, 0], 0]


@EVERY_MAKER
def test_a_graph_that_never_fits_is_not_made_and_one_that_does_not_fit_now_is_not_launched(
    make_tenant: Make, bare: Tenant, quota: int, maker: str
) -> None:
    body = """
said = []
large, _ = make(part(8), part(8), free=False)
code, made = instantiate(large)
said.append(code)
if not code:
    said.append(run(made, on))
fitting, _ = make(part(8), free=False)
code, made = instantiate(fitting)
other = alloc(part(5))[1]
said += [code, run(made, on), graphs_say(GRAPH_RESERVED) > quota, free(other), run(made, on)]
answer(said)
"""
    tenant = make_tenant(quota)
    assert tenant.ask(begin(quota, maker) + body) == [2, 0, 2, False, 0, 0]
    assert bare.ask(begin(quota, maker) + body) == [0, 0, 0, 0, True, 0, INVALID_VALUE]
    assert tenant.usage()[0].refusals == 2


INSTANTIATIONS = {
    "cuGraphInstantiate": "cuda.cuGraphInstantiate(ctypes.byref(made), graph, None, None, size(0))",
    "cuGraphInstantiate_v2": "cuda.cuGraphInstantiate_v2(ctypes.byref(made), graph, None, None, size(0))",
    "cuGraphInstantiateWithFlags": "cuda.cuGraphInstantiateWithFlags(ctypes.byref(made), graph, ctypes.c_uint64(0))",
    "cuGraphInstantiateWithParams": (
        "cuda.cuGraphInstantiateWithParams(ctypes.byref(made), graph, ctypes.byref(InstantiateParams(0)))"
    ),
    "cuGraphInstantiateWithParams_ptsz": (
        "cuda.cuGraphInstantiateWithParams_ptsz(ctypes.byref(made), graph, ctypes.byref(InstantiateParams(0)))"
    ),
}


@pytest.mark.parametrize("call", INSTANTIATIONS.values(), ids=INSTANTIATIONS)
def test_every_way_to_instantiate_counts_what_the_graph_allocates(make_tenant: Make, quota: int, call: str) -> None:
    body = f"""
made, said = handle(), []
for tenths in (12, 6):
    graph, _ = make(part(tenths))
    said.append({call})
said += [alloc(part(5))[0], run(made, on)]
answer(said)
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [OUT_OF_MEMORY, 0, 0, OUT_OF_MEMORY]


LAUNCHES = {
    "cuGraphLaunch": "run(made, on)",
    "cuGraphLaunch_ptsz": "run(made, on, True)",
    "cuGraphLaunch on the null stream": "run(made)",
    "cuGraphLaunch_ptsz on the thread's stream": "run(made, None, True)",
    "cuGraphUpload": "upload(made, on)",
    "cuGraphUpload_ptsz": "upload(made, on, True)",
}


@pytest.mark.parametrize("call", LAUNCHES.values(), ids=LAUNCHES)
def test_every_way_to_launch_is_refused_or_charged(make_tenant: Make, quota: int, call: str) -> None:
    body = f"""
code, made = instantiate(make(part(6))[0])
other = alloc(part(5))[1]
said = [code, {call}, graphs_say(GRAPH_RESERVED), free(other), {call}, {call}, {call}]
answer([*said, stock() == [part(6)] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, OUT_OF_MEMORY, 0, 0, 0, 0, 0, True]


@pytest.mark.parametrize("ptsz", [False, True])
def test_a_graph_that_is_uploaded_as_it_is_made_is_charged_then(make_tenant: Make, quota: int, ptsz: bool) -> None:
    body = f"""
graph = make(part(6))[0]
other = alloc(part(5))[1]
refused = instantiate_with(graph, UPLOAD, on, {ptsz})[0]
check(free(other))
code, made = instantiate_with(graph, UPLOAD, on, {ptsz})
answer([refused, code, stock() == [part(6)] * 2, run(made, on), stock() == [part(6)] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [OUT_OF_MEMORY, 0, True, 0, True]


def test_what_a_graph_uses_again_is_not_counted_twice(make_tenant: Make, quota: int) -> None:
    body = """
code, made = instantiate(make(*[part(3)] * 8)[0])
codes = [run(made, on) for _ in range(5)]
answer([code, codes, stock() == [part(3)] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, [0] * 5, True]


def test_graphs_that_follow_one_another_on_a_stream_share_memory(make_tenant: Make, quota: int) -> None:
    """Also while the first is at work, when nothing can be trimmed."""
    body = """
first, second = instantiate(make(part(6))[0])[1], instantiate(make(part(7))[0])[1]
LONG()
codes = {run(one, on) for _ in range(10) for one in (first, second)}
check(cuda.cuDeviceGraphMemTrim(0))
answer([sorted(codes), cuda.cuStreamQuery(on), stock() == [part(7)] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [[0], 600, True]


def test_graphs_that_hold_their_memory_do_not_share_it(make_tenant: Make, quota: int) -> None:
    body = """
first, second = (instantiate(make(part(6), free=False)[0])[1] for _ in range(2))
answer([run(first, on), run(second, on), graphs_say(GRAPH_RESERVED) == part(6), stock() == [part(6)] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, OUT_OF_MEMORY, True, True]


def test_memory_that_gave_way_is_charged_again_at_the_next_launch(make_tenant: Make, quota: int) -> None:
    body = """
made = instantiate(make(part(6))[0])[1]
said = [run(made, on), cuda.cuStreamSynchronize(on)]
code, other = alloc(part(7))
said += [code, graphs_say(GRAPH_RESERVED), run(made, on), free(other), run(made, on)]
answer([*said, stock() == [part(6)] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, 0, 0, 0, OUT_OF_MEMORY, 0, 0, True]


FREES = {
    "cuMemFree": "free(pointers[0])",
    "cuMemFreeAsync": "free_on(pointers[0], on)",
    "cuMemFreeAsync_ptsz": "free_on(pointers[0], on, True)",
    "a free node": "run(freeing, on)",
}


@pytest.mark.parametrize("call", FREES.values(), ids=FREES)
def test_graph_memory_freed_in_any_way_goes_back_when_it_is_trimmed(make_tenant: Make, quota: int, call: str) -> None:
    body = f"""
graph, pointers = make(part(6), free=False)
made = instantiate(graph)[1]
other = handle()
check(cuda.cuGraphCreate(ctypes.byref(other), 0))
add_free(other, [], pointers[0])
freeing = instantiate(other)[1]
said = []
for _ in range(3):
    said += [run(made, on), run(made, on), {call}, stock() == [part(6)] * 2]
check(cuda.cuDeviceGraphMemTrim(0))
answer([said, stock(), alloc(quota)[0]])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [[0, INVALID_VALUE, 0, True] * 3, [0, 0], 0]


def test_a_graph_that_frees_at_its_next_launch_needs_its_memory_once(make_tenant: Make, quota: int) -> None:
    body = """
made = instantiate(make(part(6), free=False)[0], AUTO_FREE_ON_LAUNCH)[1]
codes = [run(made, on) for _ in range(5)]
small = instantiate(make(part(1), free=False)[0], AUTO_FREE_ON_LAUNCH)[1]
codes += [run(one, on) for _ in range(3) for one in (small, made)]
answer([codes, stock() == [part(6) + part(1)] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [[0] * 11, True]


def test_a_graph_within_a_graph_counts(make_tenant: Make, quota: int) -> None:
    body = """
parent, nodes, said = handle(), [], []
check(cuda.cuGraphCreate(ctypes.byref(parent), 0))
add_alloc(parent, nodes, part(6))
said.append(cuda.cuGraphAddChildGraphNode(ctypes.byref(handle()), parent, None, size(0), make(part(6), free=False)[0]))
answer([*said, instantiate(parent)[0]])
"""
    said = make_tenant(quota).ask(begin(quota) + body)
    assert said in ([0, OUT_OF_MEMORY], [801, 0]), "a driver without such graphs makes the parent alone"


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["global", "thread-local", "relaxed"])
def test_captures_are_not_disturbed(make_tenant: Make, bare: Tenant, quota: int, mode: int) -> None:
    """Neither that of memory itself, nor another that is under way when memory is asked for at the edge."""
    body = f"""
check(keep(2**64 - 1))
check(free_on(on_stream(part(6))[1])), check(cuda.cuCtxSynchronize())
graph_before = instantiate(make(part(1))[0])[1]
check(run(graph_before, stream(1)))
function, capturing, said = spin_function(), stream(1), []
check(cuda.cuStreamBeginCapture_v2(capturing, {mode}))
code, pointer = on_stream(part(2), capturing)
said.append(code)
other = on_stream(part(7), on)
said += [other[0], free_on(other[1], on), run(graph_before, on), upload(graph_before, on)]
said += [launch(function, 1000, capturing), free_on(pointer, capturing), free_on(pointer, capturing)]
status = ctypes.c_int()
said += [cuda.cuStreamIsCapturing(capturing, ctypes.byref(status)), status.value]
graph = handle()
said.append(cuda.cuStreamEndCapture(capturing, ctypes.byref(graph)))
answer([*said, instantiate(graph)[0]])
"""
    tenant = make_tenant(quota)
    ours = tenant.ask(begin(quota) + body)
    assert ours == bare.ask(begin(quota) + body)
    assert ours[:4] == [0, 0, 0, 0]
    assert tenant.usage()[0].refusals == 0


def test_calls_that_make_no_sense_get_the_drivers_codes(make_tenant: Make, bare: Tenant, quota: int) -> None:
    body = """
graph, _ = make(part(1))
code, made = instantiate(graph)
made_none, nothing = ctypes.byref(handle()), ctypes.c_void_p(64)
said = [code, run(made, on), run(None), run(nothing), upload(None), upload(nothing), run(made, nothing)]
said += [upload(made, nothing), instantiate(None)[0], instantiate(nothing)[0], instantiate(graph, 1 << 40)[0]]
said += [cuda.cuGraphInstantiateWithFlags(None, graph, ctypes.c_uint64(0)), instantiate_with(graph, 1 << 40)[0]]
said += [cuda.cuGraphInstantiateWithParams(made_none, graph, None), cuda.cuGraphExecDestroy(None)]
said += [cuda.cuGraphExecDestroy(nothing), cuda.cuGraphExecDestroy(made), cuda.cuGraphExecDestroy(made)]
answer([*said, run(made, on), cuda.cuDeviceGraphMemTrim(99), cuda.cuDeviceGraphMemTrim(-1)])
"""
    ours = make_tenant(quota).ask(begin(quota) + body)
    assert ours == bare.ask(begin(quota) + body)


def test_a_graph_of_ten_thousand_nodes_is_added_up(make_tenant: Make, quota: int) -> None:
    body = """
code, made = instantiate(make(*[2 << 20] * 5000)[0])
answer([code, run(made, on), stock() == [2 << 20] * 2])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, 0, True]


def test_graphs_draw_on_the_quota_of_each_device(make_machine: Callable[[str], Driver], make_tenant: Make) -> None:
    quota = 64 * MIB
    machine = make_machine("2xh200")
    body = """
second = up(1)
check(cuda.cuCtxSetCurrent(context))
graph, nodes = handle(), []
check(cuda.cuGraphCreate(ctypes.byref(graph), 0))
add_alloc(graph, nodes, 40 << 20, 0), add_alloc(graph, nodes, 48 << 20, 1)
made = instantiate(graph)[1]
said = [run(made, on), charged(quota), graphs_say(GRAPH_RESERVED, 1), alloc(32 << 20)[0]]
check(cuda.cuCtxSetCurrent(second))
answer([*said, charged(quota), alloc(32 << 20)[0], alloc(16 << 20)[0]])
"""
    tenant = make_tenant(quota, devices=[0, 1], on=machine)
    expected = [0, 40 * MIB, 48 * MIB, 2, 48 * MIB, 2, 0]
    assert tenant.ask(begin(quota) + body) == expected
    hidden = """
up(1)
graph, nodes = handle(), []
check(cuda.cuGraphCreate(ctypes.byref(graph), 0))
add_alloc(graph, nodes, 2 << 20, 1)
answer(instantiate(graph)[0])
"""
    assert make_tenant(quota, devices=[0], on=machine).ask(begin(quota) + hidden) == OUT_OF_MEMORY


def test_graph_memory_goes_with_the_devices_context(make_tenant: Make, quota: int) -> None:
    body = """
check(cuda.cuCtxDestroy_v2(context))
primary = handle()
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(primary), 0)), check(cuda.cuCtxSetCurrent(primary))
on = stream(1)
said = [run(instantiate(make(part(6), free=False)[0])[1], on), stock() == [part(6)] * 2]
check(cuda.cuDevicePrimaryCtxReset_v2(0))
context = up()
answer([*said, stock(), alloc(quota)[0]])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, True, [0, 0], 0]


def test_a_killed_process_leaves_its_graphs_memory_to_the_others(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota, processes=2)
    doomed, survivor = Conversation(tenant), Conversation(tenant)
    doomed(begin(quota) + "check(run(instantiate(make(part(6), free=False)[0])[1], on))")
    survivor("up()")
    assert survivor(f"answer(alloc({quota // 2})[0])") == OUT_OF_MEMORY
    doomed.kill()
    survivor(f"while alloc({quota})[0]:\n    time.sleep(0.001)")
    assert survivor(f"answer(charged({quota}))") == quota
