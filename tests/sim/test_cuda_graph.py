# SPDX-License-Identifier: Apache-2.0
"""Stream capture and graphs of the simulated CUDA driver."""

from __future__ import annotations

import textwrap

import pytest
from sim.programs import ask, state
from tools.simulated import Simulated

GLOBAL, THREAD_LOCAL, RELAXED = range(3)


def test_a_captured_graph_does_its_work_and_takes_its_time_at_each_launch(h200: Simulated) -> None:
    body = """
    import numpy
    context()
    stream, other = ok(cu.cuStreamCreate(1)), ok(cu.cuStreamCreate(1))
    x = numpy.ones(256, dtype=numpy.uint32)
    device, copy = ok(cu.cuMemAlloc(x.nbytes)), ok(cu.cuMemAlloc(x.nbytes))
    axpb, tick = function("vgpu_axpb"), function("tick_2ms")
    fork, join = ok(cu.cuEventCreate(2)), ok(cu.cuEventCreate(2))
    def twice(n):
        arguments = ((int(device), 2, 1, n), (ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32))
        ok(cu.cuLaunchKernel(axpb, 1, 1, 1, 256, 1, 1, 0, stream, arguments, 0))
    ok(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode(0)))
    twice(256)
    ok(cu.cuEventRecord(fork, stream))
    ok(cu.cuStreamWaitEvent(other, fork, 0))
    [launch(tick, other) for _ in range(3)]
    ok(cu.cuEventRecord(join, other))
    ok(cu.cuMemcpyDtoDAsync(copy, device, x.nbytes, stream))
    ok(cu.cuMemsetD8Async(device, 0, 4, stream))
    ok(cu.cuStreamWaitEvent(stream, join, 0))
    graph = ok(cu.cuStreamEndCapture(stream))
    ok(cu.cuMemcpyHtoD(device, x.ctypes.data, x.nbytes))   # nothing of it has been done yet
    executable = ok(cu.cuGraphInstantiate(graph, 0))
    ok(cu.cuGraphDestroy(graph))
    start, end, y = ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0)), numpy.zeros_like(x)
    launch(function("tick_100ms"), stream)
    ok(cu.cuEventRecord(start, stream))
    for _ in range(3):
        ok(cu.cuGraphLaunch(executable, stream))
    ok(cu.cuEventRecord(end, stream))
    ok(cu.cuStreamSynchronize(stream))
    ok(cu.cuMemcpyDtoH(y.ctypes.data, copy, y.nbytes))
    answer([y[:2].tolist(), ok(cu.cuEventElapsedTime(start, end))])
    """
    values, milliseconds = ask(h200, body)
    assert values == [1, 15]  # 2x + 1 three times, the first element cleared before the last
    one = 3 * 2 + 0.01 + 2 * 0.002 + (1024 + 4) / 25e9 * 1e3
    assert milliseconds == pytest.approx(3 * one, rel=1e-4)
    launches = sum(state(h200).devices[0].shares[slot].launches for slot in range(4))
    assert launches == 1 + 3 * 4


def test_a_graph_made_by_hand_can_be_changed_and_updated(h200: Simulated) -> None:
    body = """
    made = context()
    stream, start, end = ok(cu.cuStreamCreate(1)), ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0))
    def parameters(name):
        p = cu.CUDA_KERNEL_NODE_PARAMS()
        p.func, p.gridDimX, p.gridDimY, p.gridDimZ = function(name), 1, 1, 1
        p.blockDimX, p.blockDimY, p.blockDimZ = 32, 1, 1
        return p
    def build(*names):
        graph, nodes = ok(cu.cuGraphCreate(0)), []
        for name in names:
            nodes.append(ok(cu.cuGraphAddKernelNode(graph, nodes[-1:], len(nodes[-1:]), parameters(name))))
        return graph, nodes
    def time_of(executable):
        launch(function("tick_50ms"), stream)
        ok(cu.cuEventRecord(start, stream))
        ok(cu.cuGraphLaunch(executable, stream))
        ok(cu.cuEventRecord(end, stream))
        ok(cu.cuEventSynchronize(end))
        return round(ok(cu.cuEventElapsedTime(start, end)), 3)
    graph, nodes = build("a_1ms", "b_2ms")
    executable = ok(cu.cuGraphInstantiate(graph, 0))
    times = [time_of(executable)]
    ok(cu.cuGraphExecKernelNodeSetParams(executable, nodes[0], parameters("c_4ms")))
    times.append(time_of(executable))
    ok(cu.cuGraphNodeSetEnabled(executable, nodes[1], 0))
    times.append(time_of(executable))
    fresh, _ = build("d_7ms", "e_8ms")
    result = rc(cu.cuGraphExecUpdate(executable, fresh))
    times.append(time_of(executable))
    longer, _ = build("a_1ms", "a_1ms", "a_1ms")
    counts = [ok(cu.cuGraphGetNodes(longer))[1], ok(cu.cuGraphGetRootNodes(longer))[1]]
    answer([times, result, rc(cu.cuGraphExecUpdate(executable, longer)), counts])
    """
    assert ask(h200, body) == [[3, 6, 4, 15], 0, 910, [3, 1]]


STOCK = """
context()
def held(): return (before - ok(cu.cuMemGetInfo())[0]) // MIB
def stock():
    kinds = cu.CUgraphMem_attribute
    return [int(ok(cu.cuDeviceGetGraphMemAttribute(0, kind))) // MIB for kind in
            (kinds.CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, kinds.CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT)]
def capture(*sizes, free=True):
    # One after the other, each freed before the next, or never.
    ok(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode(0)))
    for size in sizes:
        made.append(ok(cu.cuMemAllocAsync(size * MIB, stream)))
        ok(cu.cuMemsetD8Async(made[-1], 9, 64, stream))
        if free:
            ok(cu.cuMemFreeAsync(made[-1], stream))
    graph = ok(cu.cuStreamEndCapture(stream))
    return graph, ok(cu.cuGraphInstantiate(graph, 0))
before, stream, made = ok(cu.cuMemGetInfo())[0], ok(cu.cuStreamCreate(1)), []
"""


def test_memory_of_a_graph_is_held_from_its_launch_until_it_is_trimmed(h200: Simulated) -> None:
    body = """
    graph, executable = capture(64, free=False)
    pointer, steps = made[0], [held()]
    ok(cu.cuGraphLaunch(executable, stream))
    back = bytearray(64)
    ok(cu.cuMemcpyDtoH(back, pointer, 64))
    again = rc(cu.cuGraphLaunch(executable, stream))
    ok(cu.cuDeviceGraphMemTrim(0))
    steps.append(held())
    ok(cu.cuMemFreeAsync(pointer, stream))
    ok(cu.cuStreamSynchronize(stream))
    steps.append(held())
    ok(cu.cuGraphLaunch(executable, stream))
    steps.append(held())
    ok(cu.cuMemFree(pointer))
    ok(cu.cuGraphExecDestroy(executable))
    ok(cu.cuGraphDestroy(graph))
    steps.append(held())
    ok(cu.cuDeviceGraphMemTrim(0))
    answer([steps, again, bytes(back) == b"\\x09" * 64, held()])
    """
    assert ask(h200, STOCK + textwrap.dedent(body)) == [[0, 64, 64, 64, 64], 1, True, 0]


def test_graphs_share_memory_and_say_how_much(h200: Simulated) -> None:
    body = """
    (_, first), (other, second) = capture(32, 64, 32), capture(48)
    said = [stock()]
    ok(cu.cuGraphUpload(first, stream))
    said.append(stock())
    ok(cu.cuGraphLaunch(first, stream))
    ok(cu.cuGraphLaunch(second, stream))
    said.append([*stock(), held()])
    launch(function("tick_50ms"), stream)
    ok(cu.cuGraphLaunch(second, stream))
    ok(cu.cuDeviceGraphMemTrim(0))
    said.append(stock())
    ok(cu.cuStreamSynchronize(stream))
    ok(cu.cuDeviceGraphMemTrim(0))
    said.append([*stock(), held()])
    answer(said)
    """
    # Trimming does not take what work under way may use.
    assert ask(h200, STOCK + textwrap.dedent(body)) == [[0, 0], [64, 64], [64, 64, 64], [64, 64], [0, 0, 0]]


def test_the_end_of_the_last_context_takes_the_memory_of_graphs_too(h200: Simulated) -> None:
    body = """
    graph, executable = capture(64, free=False)
    ok(cu.cuGraphLaunch(executable, stream))
    said = [stock()]
    ok(cu.cuDevicePrimaryCtxReset(0))
    said.append(stock())
    context()
    answer([*said, held()])
    """
    assert ask(h200, STOCK + textwrap.dedent(body)) == [[64, 64], [0, 0], 0]


def codes_while_capturing(machine: Simulated, mode: int, calls: str, before: str = "") -> list[int]:
    """Return the codes of some calls made while a stream captures, then that of the end of the capture."""
    body = f"""
    context()
    stream, event, pointer = ok(cu.cuStreamCreate(FLAGS)), ok(cu.cuEventCreate(0)), ok(cu.cuMemAlloc(4096))
    recorded, kernel = ok(cu.cuEventCreate(0)), function("a")
    {before}
    ok(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode({mode})))
    codes = [{calls}]
    answer([*codes, rc(cu.cuStreamEndCapture(stream))])
    """.replace("FLAGS", "0" if "legacy" in before else "1")
    return list(ask(machine, body))


@pytest.mark.parametrize(
    ("mode", "calls", "expected"),
    [
        (GLOBAL, "launch(kernel, stream)", [0, 0]),
        (GLOBAL, "rc(cu.cuMemAlloc(1)), launch(kernel, stream)", [900, 901, 901]),
        (GLOBAL, "rc(cu.cuEventQuery(event))", [900, 901]),
        (GLOBAL, "rc(cu.cuModuleLoadData(b'image'))", [900, 901]),
        (THREAD_LOCAL, "rc(cu.cuMemAlloc(1))", [900, 901]),
        (RELAXED, "rc(cu.cuMemAlloc(1)), rc(cu.cuEventQuery(event))", [0, 0, 0]),
        (RELAXED, "rc(cu.cuStreamSynchronize(stream))", [900, 901]),
        (RELAXED, "rc(cu.cuStreamQuery(stream))", [900, 901]),
        (GLOBAL, "rc(cu.cuEventRecord(event, stream)), rc(cu.cuEventElapsedTime(event, event))", [0, 907, 0]),
        (RELAXED, "rc(cu.cuEventRecord(event, stream)), rc(cu.cuEventQuery(event))", [0, 907, 0]),
        (GLOBAL, "rc(cu.cuStreamWaitEvent(stream, recorded, 0))", [905, 901]),
        (GLOBAL, "rc(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode(0)))", [401, 0]),
        (GLOBAL, "int(ok(cu.cuStreamIsCapturing(stream)))", [1, 0]),
        (GLOBAL, "int(ok(cu.cuStreamGetCaptureInfo(stream))[0])", [1, 0]),
        (GLOBAL, "rc(cu.cuMemAllocAsync(8, stream)), rc(cu.cuMemcpyDtoDAsync(pointer, pointer, 8, stream))", [0, 0, 0]),
    ],
)  # fmt: skip
def test_a_capture_takes_what_it_can_and_ends_at_what_it_cannot(
    h200: Simulated, mode: int, calls: str, expected: list[int]
) -> None:
    assert codes_while_capturing(h200, mode, calls) == expected


def test_the_null_stream_ends_the_capture_of_a_stream_that_waits_for_it(h200: Simulated) -> None:
    calls = "rc(cu.cuStreamIsCapturing(0)), launch(kernel, 0)"
    assert codes_while_capturing(h200, RELAXED, calls, before="'legacy'") == [906, 906, 901]
    assert codes_while_capturing(h200, RELAXED, calls) == [0, 0, 0]


def test_a_thread_that_says_it_is_relaxed_may_do_anything(h200: Simulated) -> None:
    calls = """(lambda old: [int(old), rc(cu.cuMemAlloc(1)), rc(cu.cuEventQuery(event)),
            int(ok(cu.cuThreadExchangeStreamCaptureMode(old)))])(
            ok(cu.cuThreadExchangeStreamCaptureMode(cu.CUstreamCaptureMode(2))))"""
    assert codes_while_capturing(h200, GLOBAL, calls) == [[0, 0, 0, 2], 0]


def test_another_threads_unsafe_call_ends_a_global_capture_only(h200: Simulated) -> None:
    body = """
    import threading
    mine, found = context(), []
    for mode in (0, 1, 2):
        stream = ok(cu.cuStreamCreate(1))
        ok(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode(mode)))
        def other():
            ok(cu.cuCtxSetCurrent(mine))
            found.append(rc(cu.cuMemAlloc(1)))
            found.append(rc(cu.cuStreamEndCapture(stream)) if mode < 2 else 908)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        found.append(rc(cu.cuStreamEndCapture(stream)))
    answer(found)
    """
    assert ask(h200, body) == [900, 908, 901, 0, 908, 0, 0, 908, 0]


def test_a_stream_that_was_not_joined_spoils_the_capture(h200: Simulated) -> None:
    body = """
    context()
    one, two, event = ok(cu.cuStreamCreate(1)), ok(cu.cuStreamCreate(1)), ok(cu.cuEventCreate(2))
    kernel = function("a")
    ok(cu.cuStreamBeginCapture(one, cu.CUstreamCaptureMode(0)))
    ok(cu.cuEventRecord(event, one))
    ok(cu.cuStreamWaitEvent(two, event, 0))
    launch(kernel, two)
    unmatched = rc(cu.cuStreamEndCapture(two))
    unjoined = rc(cu.cuStreamEndCapture(one))
    answer([unmatched, unjoined, launch(kernel, two), rc(cu.cuStreamSynchronize(two)),
            rc(cu.cuStreamEndCapture(one)), rc(cu.cuStreamBeginCapture(0, cu.CUstreamCaptureMode(0)))])
    """
    assert ask(h200, body) == [903, 904, 0, 0, 401, 900]


def test_a_user_object_is_destroyed_when_nobody_needs_it(h200: Simulated) -> None:
    body = """
    context()
    gone = []
    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def destroy(_): gone.append(1)
    lib, user, graph = raw(), ctypes.c_void_p(), ok(cu.cuGraphCreate(0))
    codes = [lib.cuUserObjectCreate(ctypes.byref(user), None, destroy, 1, 1),
             lib.cuGraphRetainUserObject(ctypes.c_void_p(int(graph)), user, 1, 1)]
    executable = ok(cu.cuGraphInstantiate(graph, 0))
    ok(cu.cuGraphDestroy(graph))
    kept = not gone
    ok(cu.cuGraphExecDestroy(executable))
    deadline = time.monotonic() + 5
    while not gone and time.monotonic() < deadline:
        time.sleep(0.001)
    answer([codes, kept, gone])
    """
    assert ask(h200, body) == [[0, 0], True, [1]]
