# SPDX-License-Identifier: Apache-2.0
"""Device time of the simulated GPU: durations, events, queues, and time slices.

Where a share is judged, it is by the machine's own account of device time served, never by a clock on the
wall: the machine that runs the tests may be slow, the simulated one is exact.
"""

from __future__ import annotations

import subprocess
import time

import pytest
from sim.programs import ask, served, start, state
from tools.simulated import Make, Simulated

LOOP = """
context()
kernel = function(sys.argv[1])
answer("ready")
line()
while True:
    assert launch(kernel) == 0
"""


def compete(machine: Simulated, kernels: list[str], seconds: float = 0.8, **environment: list[str]) -> list[float]:
    """Have one process for each kernel launch it all the time; return what part of the time each was served.

    It is taken between two moments at which all have work queued.
    """
    settings = [dict(zip(environment, values, strict=True)) for values in zip(*environment.values(), strict=True)]
    racers = [
        start(machine, LOOP, kernel, **setting)
        for kernel, setting in zip(kernels, settings or [{}] * len(kernels), strict=True)
    ]
    for racer in racers:
        told(racer)
    for racer in racers:
        tell(racer)
    while not all(served(machine, racer.pid) for racer in racers):
        time.sleep(0.01)
    began, before = time.monotonic(), [served(machine, racer.pid) for racer in racers]
    time.sleep(seconds)
    after, ended = [served(machine, racer.pid) for racer in racers], time.monotonic()
    for racer in racers:
        stop(racer)
    return [(late - early) / (ended - began) for early, late in zip(before, after, strict=True)]


def stop(program: subprocess.Popen[str]) -> None:
    program.kill()
    program.communicate()


def told(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line, f"the program ended with {program.wait()}"
    return line


def tell(program: subprocess.Popen[str]) -> None:
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()


# ---- durations and events ----


def elapsed_of(machine: Simulated, work: str, **environment: str) -> float:
    """Return the milliseconds between an event before and one after some work, behind a long kernel."""
    body = f"""
    context()
    blocker, from_, to = function("blocker_100ms"), ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0))
    import numpy
    arguments = numpy.zeros(1, dtype=numpy.uint64)
    big = ok(cu.cuMemAlloc(8 * MIB))
    ok(cu.cuMemsetD8(big, 1, 8 * MIB))   # now it is really there
    launch(blocker)
    ok(cu.cuEventRecord(from_, 0))
    {work}
    ok(cu.cuEventRecord(to, 0))
    ok(cu.cuEventSynchronize(to))
    answer(ok(cu.cuEventElapsedTime(from_, to)))
    """
    return float(ask(machine, body, **environment))


@pytest.mark.parametrize(
    ("work", "milliseconds"),
    [
        ("launch(function('tick_250us'))", 0.25),
        ("launch(function('tick_3ms'))", 3.0),
        ("launch(function('tick_700ns'))", 0.0007),
        ("[launch(function('tick_100us')) for _ in range(10)]", 1.0),
        ("launch(function('anything'))", 0.01),
        ("ok(cu.cuMemsetD8(big, 2, 8 * MIB))", 0.002 + 8 * 2**20 / 25e9 * 1e3),
        ("ok(cu.cuMemcpyDtoDAsync(big, int(big) + 4 * MIB, 4 * MIB, 0))", 0.002 + 4 * 2**20 / 25e9 * 1e3),
        ("arguments[0] = 1234567; p = (ctypes.c_void_p * 1)(arguments.ctypes.data);"
         " launch(function('vgpu_spin'), 0, ctypes.addressof(p))", 1.234567),
    ],
)  # fmt: skip
def test_work_takes_its_time_to_the_nanosecond(h200: Simulated, work: str, milliseconds: float) -> None:
    assert elapsed_of(h200, work) == pytest.approx(milliseconds, rel=1e-6)


def test_the_environment_sets_the_time_of_kernels_that_have_none(h200: Simulated) -> None:
    assert elapsed_of(h200, "launch(function('any'))", VGPU_SIM_KERNEL_NS="5000000") == pytest.approx(5)


def test_a_kernel_of_the_list_does_its_work_in_stream_order(h200: Simulated) -> None:
    body = """
    import numpy
    context()
    x = numpy.arange(1000, dtype=numpy.uint32)
    device = ok(cu.cuMemAlloc(x.nbytes))
    ok(cu.cuMemcpyHtoD(device, x.ctypes.data, x.nbytes))
    kernel, stream = function("vgpu_axpb"), ok(cu.cuStreamCreate(1))
    for a, b in ((2, 1), (3, 7)):
        arguments = ((int(device), a, b, 1000), (ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32))
        ok(cu.cuLaunchKernel(kernel, 8, 1, 1, 128, 1, 1, 0, stream, arguments, 0))
    y = numpy.empty_like(x)
    ok(cu.cuMemcpyDtoHAsync(y.ctypes.data, device, y.nbytes, stream))
    ok(cu.cuStreamSynchronize(stream))
    answer(bool((y == 3 * (2 * x + 1) + 7).all()))
    """
    assert ask(h200, body) is True


def test_events_become_ready_when_the_device_gets_there(h200: Simulated) -> None:
    body = """
    context()
    one, two, plain = (ok(cu.cuEventCreate(flags)) for flags in (0, 0, 2))
    unrecorded = [rc(cu.cuEventQuery(one)), rc(cu.cuEventSynchronize(one)), rc(cu.cuEventElapsedTime(one, two))]
    ok(cu.cuEventRecord(one, 0))
    launch(function("tick_200ms"))
    ok(cu.cuEventRecord(two, 0))
    ok(cu.cuEventRecord(plain, 0))
    began = time.monotonic()
    early = [rc(cu.cuEventQuery(one)), rc(cu.cuEventQuery(two)), rc(cu.cuEventElapsedTime(one, two)),
             rc(cu.cuStreamQuery(0)), rc(cu.cuEventElapsedTime(one, plain))]
    ok(cu.cuEventSynchronize(two))
    waited = time.monotonic() - began
    late = [rc(cu.cuEventQuery(two)), rc(cu.cuEventQuery(plain)), rc(cu.cuStreamQuery(0)),
            rc(cu.cuEventElapsedTime(one, plain))]
    answer([unrecorded, early, late, waited > 0.15, round(ok(cu.cuEventElapsedTime(two, one)))])
    """
    assert ask(h200, body) == [[0, 0, 400], [0, 600, 600, 600, 400], [0, 0, 0, 400], True, -200]


def test_an_event_recorded_again_forgets_the_first_time(h200: Simulated) -> None:
    body = """
    context()
    start, event = ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0))
    launch(function("tick_50ms"))
    ok(cu.cuEventRecord(start, 0))
    launch(function("tick_10ms"))
    ok(cu.cuEventRecord(event, 0))
    launch(function("tick_20ms"))
    ok(cu.cuEventRecord(event, 0))
    ok(cu.cuEventSynchronize(event))
    answer(round(ok(cu.cuEventElapsedTime(start, event)), 3))
    """
    assert ask(h200, body) == 30.0


def test_events_in_many_streams_have_the_times_of_their_streams(h200: Simulated) -> None:
    body = """
    context()
    start, done = ok(cu.cuEventCreate(0)), [ok(cu.cuEventCreate(0)) for _ in range(3)]
    streams = [ok(cu.cuStreamCreate(1)) for _ in range(3)]
    launch(function("tick_100ms"), streams[0])
    ok(cu.cuEventRecord(start, streams[0]))
    [launch(function(f"tick_{i + 1}ms"), s) for i, s in enumerate(streams)]
    [ok(cu.cuEventRecord(e, s)) for e, s in reversed(list(zip(done, streams)))]
    ok(cu.cuCtxSynchronize())
    answer([round(ok(cu.cuEventElapsedTime(start, e)), 4) for e in done])
    """
    assert ask(h200, body) == [1.0, 3.0, 6.0]


def test_a_value_written_by_a_stream_is_seen_when_the_stream_gets_there(h200: Simulated) -> None:
    body = """
    context()
    host = ok(cu.cuMemHostAlloc(4096, 0))
    cell = ctypes.c_uint32.from_address(int(host))
    launch(function("tick_100ms"))
    ok(cu.cuStreamWriteValue32(0, int(host), 42, 0))
    early = cell.value
    ok(cu.cuStreamSynchronize(0))
    answer([early, cell.value])
    """
    assert ask(h200, body) == [0, 42]


def test_host_functions_run_in_their_place(h200: Simulated) -> None:
    body = """
    context()
    seen, host = [], ok(cu.cuMemHostAlloc(4096, 0))
    cell, device = ctypes.c_uint32.from_address(int(host)), ok(cu.cuMemAlloc(4096))
    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def callback(_):
        seen.append(time.monotonic() - began)
        cell.value = 7
    began = time.monotonic()
    launch(function("tick_60ms"))
    ok(cu.cuLaunchHostFunc(0, ctypes.cast(callback, ctypes.c_void_p).value, 0))
    ok(cu.cuMemcpyHtoDAsync(device, int(host), 4, 0))
    back = bytearray(4)
    ok(cu.cuMemcpyDtoH(back, device, 4))
    answer([seen[0] > 0.05, back[0]])
    """
    assert ask(h200, body) == [True, 7]


def test_what_is_behind_a_host_function_waits_for_it_but_its_caller_does_not(h200: Simulated) -> None:
    body = """
    import threading
    context()
    released, stream, other = threading.Event(), ok(cu.cuStreamCreate(1)), ok(cu.cuStreamCreate(1))
    before, after, again = (ok(cu.cuEventCreate(0)) for _ in range(3))
    host = ok(cu.cuMemHostAlloc(4096, 0))
    cell, device = ctypes.c_uint32.from_address(int(host)), ok(cu.cuMemAlloc(4096))
    pooled = ok(cu.cuMemAllocAsync(3 * MIB, stream))
    hold = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: released.wait())
    ok(cu.cuStreamBeginCapture(other, cu.CUstreamCaptureMode(2)))
    launch(function("tick_5ms"), other)
    executable = ok(cu.cuGraphInstantiate(ok(cu.cuStreamEndCapture(other)), 0))
    ok(cu.cuLaunchHostFunc(stream, ctypes.cast(hold, ctypes.c_void_p).value, 0))
    ok(cu.cuEventRecord(before, stream))
    [launch(function("tick_1ms"), stream) for _ in range(20)]
    ok(cu.cuGraphLaunch(executable, stream))
    ok(cu.cuMemcpyHtoDAsync(device, int(host), 4, stream))
    ok(cu.cuMemFreeAsync(pooled, stream))
    ok(cu.cuStreamWriteValue32(stream, int(host) + 4, 99, 0))
    ok(cu.cuEventRecord(again, stream))
    ok(cu.cuEventRecord(again, other))       # its place in the first stream is forgotten
    ok(cu.cuEventRecord(after, stream))
    time.sleep(0.5)
    held = [rc(cu.cuEventQuery(before)), rc(cu.cuStreamQuery(stream)), rc(cu.cuEventElapsedTime(before, after)),
            rc(cu.cuEventSynchronize(again)), rc(cu.cuStreamSynchronize(other)), cell.value]
    cell.value = 7
    released.set()
    ok(cu.cuStreamSynchronize(stream))
    back = bytearray(4)
    ok(cu.cuMemcpyDtoH(back, device, 4))
    elapsed = ok(cu.cuEventElapsedTime(before, after))
    answer([held, 25 <= elapsed < 400, back[0], ctypes.c_uint32.from_address(int(host) + 4).value,
            rc(cu.cuMemFreeAsync(pooled, stream)), rc(cu.cuEventQuery(after))])
    """
    assert ask(h200, body) == [[600, 600, 600, 0, 0, 0], True, 7, 99, 1, 0]


def test_a_stream_destroyed_behind_a_host_function_still_does_its_work(h200: Simulated) -> None:
    body = """
    import threading
    context()
    released, stream, event = threading.Event(), ok(cu.cuStreamCreate(1)), ok(cu.cuEventCreate(0))
    hold = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: released.wait())
    ok(cu.cuLaunchHostFunc(stream, ctypes.cast(hold, ctypes.c_void_p).value, 0))
    launch(function("tick_3ms"), stream)
    ok(cu.cuEventRecord(event, stream))
    ok(cu.cuStreamDestroy(stream))
    codes = [launch(function("a"), stream), rc(cu.cuStreamDestroy(stream)), rc(cu.cuEventQuery(event))]
    released.set()
    answer([codes, rc(cu.cuEventSynchronize(event)), rc(cu.cuCtxSynchronize())])
    """
    assert ask(h200, body) == [[400, 400, 600], 0, 0]
    assert state(h200).devices[0].timeline.busy_ns == 3_000_000


def test_a_full_queue_blocks_the_next_launch(make_machine: Make) -> None:
    machine = make_machine("name: shallow\ndevices: [{model: t4}]\nknobs: {queue_depth: 16}\n")
    body = """
    context()
    kernel, other = function("tick_200ms"), ok(cu.cuStreamCreate(1))
    took = []
    began = time.monotonic()
    for _ in range(18):
        launch(kernel)
        took.append(time.monotonic() - began)
    launch(kernel, other)
    other_took = time.monotonic() - began - took[17]
    answer([took[15] < 0.2, took[16] >= 0.2, took[17] >= 0.4, other_took < 0.2])
    """
    assert ask(machine, body) == [True, True, True, True]


# ---- time slices ----


def test_one_process_alone_gets_everything(h200: Simulated) -> None:
    (alone,) = compete(h200, ["tick_100us"])
    image = state(h200)
    share = next(image.devices[0].shares[slot] for slot in range(4) if image.devices[0].shares[slot].served_ns)
    assert alone >= 0.95
    assert share.launches >= share.served_ns / 100_000


@pytest.mark.parametrize("kernels", [["a_100us", "b_100us"], ["a_20us", "b_5ms"], ["a_3ms", "b_200us", "c_1ms"]])
def test_processes_with_work_share_alike_whatever_their_kernels(h200: Simulated, kernels: list[str]) -> None:
    times = compete(h200, kernels)
    assert max(times) - min(times) < 0.05 * sum(times)
    assert sum(times) > 0.95


def test_weights_lengthen_the_slices_of_a_process(h200: Simulated) -> None:
    heavy, light = compete(h200, ["a_500us", "b_500us"], VGPU_SIM_WEIGHT=["150", "50"])
    assert heavy / light == pytest.approx(3, rel=0.1)


def test_processor_sharing_divides_without_slices(make_machine: Make) -> None:
    machine = make_machine("name: fluid\ndevices: [{model: t4}]\nknobs: {sharing: processor-sharing}\n")
    times = compete(machine, ["a_100us", "b_5ms"])
    assert max(times) - min(times) < 0.05 * sum(times)
    assert state(machine).devices[0].timeline.switches == 0


def test_switching_costs_device_time_when_the_machine_says_so(make_machine: Make) -> None:
    machine = make_machine("name: costly\ndevices: [{model: t4}]\nknobs: {switch_ns: 500000}\n")
    times = compete(machine, ["a_100us", "b_100us"])
    timeline = state(machine).devices[0].timeline
    assert timeline.switches > 100
    assert sum(times) < 0.9  # 2 ms of work for each 2.5 ms


def test_a_kernel_among_others_takes_longer_by_their_slices(h200: Simulated) -> None:
    body = """
    context()
    start, end = ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0))
    ok(cu.cuEventRecord(start, 0))
    launch(function("tick_40ms"))
    ok(cu.cuEventRecord(end, 0))
    ok(cu.cuEventSynchronize(end))
    answer(ok(cu.cuEventElapsedTime(start, end)))
    """
    with start(h200, LOOP, "other_500us") as other:
        told(other)
        tell(other)
        while not served(h200, other.pid):
            pass
        among_others = float(ask(h200, body))
        other.kill()
    assert among_others == pytest.approx(80, abs=8)
    assert float(ask(h200, body)) == pytest.approx(40, abs=2)


def test_the_machine_keeps_an_account_of_who_was_served_when(h200: Simulated) -> None:
    compete(h200, ["a_1ms", "b_1ms"], seconds=0.3)
    timeline = state(h200).devices[0].timeline
    segments = [timeline.segments[i] for i in range(min(timeline.segment_count, len(timeline.segments)))]
    assert sum(segment.length_ns for segment in segments) == timeline.busy_ns
    ends = [segment.start_ns + segment.length_ns for segment in segments]
    assert all(end <= later.start_ns for end, later in zip(ends, segments[1:], strict=False))


def test_null_mode_takes_no_device_time(make_machine: Make) -> None:
    machine = make_machine("name: null\ndevices: [{model: t4}]\nknobs: {null_mode: true}\n")
    body = """
    context()
    kernel, event = function("tick_500ms"), ok(cu.cuEventCreate(0))
    [launch(kernel) for _ in range(2000)]
    ok(cu.cuEventRecord(event, 0))
    ok(cu.cuCtxSynchronize())
    answer([rc(cu.cuEventQuery(event)), rc(cu.cuMemFree(ok(cu.cuMemAlloc(4096))))])
    """
    assert ask(machine, body) == [0, 0]
    assert state(machine).devices[0].timeline.busy_ns == 0
