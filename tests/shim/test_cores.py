# SPDX-License-Identifier: Apache-2.0
"""Delay: a slice gets its percentage of device time, whatever the kernels look like."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import vgpu_shim
from tools.tenants import GIB, ROOT, Driver, Tenant, served_ns

SHIM = ROOT / "shim"

# How long a piece of work was held back, by the tenant's own account.
THROTTLED = f"""
sys.path.insert(0, {str(SHIM)!r})
import vgpu_shim
def throttled_ms(work):
    before = vgpu_shim.slices()[0].throttled_ns
    work()
    return (vgpu_shim.slices()[0].throttled_ns - before) / 1e6
"""

Make = Callable[..., Tenant]
Program = Callable[[str], Path]

Spinning = subprocess.Popen[str]

US, MS = 1_000, 1_000_000


def start_all(tenants: Sequence[Tenant], spin: Path, how: str, seconds: int, *lengths: int) -> list[Spinning]:
    """Have tenants launch kernels of these lengths, and wait until all have settled."""
    running = [tenant.start(spin, how, str(seconds), *map(str, lengths)) for tenant in tenants]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
    return running


def start(tenant: Tenant, spin: Path, how: str, seconds: int, *lengths: int) -> Spinning:
    return start_all([tenant], spin, how, seconds, *lengths)[0]


def measured(process: Spinning) -> float:
    """Part of the device's time that its kernels took."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    busy, elapsed = (
        sum(column) for column in zip(*(map(int, line.split()) for line in said.splitlines()), strict=True)
    )
    return busy / elapsed


def share(tenant: Tenant, spin: Path, how: str, *lengths: int, seconds: int = 2) -> float:
    return measured(start(tenant, spin, how, seconds, *lengths))


@pytest.mark.parametrize("length", [20 * US, 200 * US, 2 * MS, 20 * MS])
def test_a_lone_tenant_gets_its_quota(make_tenant: Make, program: Program, length: int) -> None:
    assert share(make_tenant(cores=25), program("spin"), "kernel", length) == pytest.approx(0.25, abs=0.02)


def test_without_us_the_same_program_takes_the_whole_device(bare: Tenant, program: Program) -> None:
    assert share(bare, program("spin"), "kernel", 200 * US, seconds=1) > 0.9


@pytest.mark.parametrize("how", ["ex", "cooperative", "ptsz", "sync-kernel"])
def test_every_way_to_launch_is_limited(make_tenant: Make, program: Program, how: str) -> None:
    assert share(make_tenant(cores=40), program("spin"), how, MS, seconds=1) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("cores", [1, 75, 99])
def test_small_and_large_quotas_hold(make_tenant: Make, program: Program, cores: int) -> None:
    found = share(make_tenant(cores=cores), program("spin"), "kernel", 500 * US, seconds=2)
    assert found == pytest.approx(cores / 100, abs=0.02)


@pytest.mark.parametrize("length", [50 * US, 2 * MS])
def test_two_tenants_on_one_device_get_their_quotas(make_tenant: Make, program: Program, length: int) -> None:
    quarter, half = make_tenant(cores=25), make_tenant(cores=50)
    running = start_all([quarter, half], program("spin"), "kernel", 3, length)
    machine, before, begin = quarter.driver.machine, [], time.monotonic_ns()
    if machine:
        before = [served_ns(machine, process.pid) for process in running]
        begin = time.monotonic_ns()
        time.sleep(2)
        elapsed = time.monotonic_ns() - begin
        judged = [(served_ns(machine, one.pid) - was) / elapsed for one, was in zip(running, before, strict=True)]
        assert judged == pytest.approx([0.25, 0.5], abs=0.05)
    assert [measured(process) for process in running] == pytest.approx([0.25, 0.5], abs=0.05)


def test_processes_of_one_tenant_share_its_quota(make_tenant: Make, program: Program) -> None:
    tenant = make_tenant(cores=40)
    running = start_all([tenant, tenant], program("spin"), "kernel", 2, 200 * US)
    assert sum(measured(process) for process in running) == pytest.approx(0.4, abs=0.05)


def test_threads_of_one_process_share_its_quota(make_tenant: Make) -> None:
    script = """
    import threading
    from client import *
    context = up()
    function = spin_function()
    counts = [0] * 4
    def work(number):
        check(cuda.cuCtxSetCurrent(context))
        while time.monotonic() < end:
            check(launch(function, 500_000))
            counts[number] += 1
    def turn(seconds):
        global end
        end, begin = time.monotonic() + seconds, time.monotonic()
        counts[:] = [0] * 4
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for one in threads: one.start()
        for one in threads: one.join()
        check(cuda.cuCtxSynchronize())
        return sum(counts) * 500e-6 / (time.monotonic() - begin)
    turn(1)
    answer(turn(2))
    """
    assert make_tenant(cores=30).ask(script) == pytest.approx(0.3, abs=0.04)


# ---- learning ---------------------------------------------------------------------------------------------

RUN_AHEAD = """
from client import *
up()
function, length = spin_function(), 20_000_000
begin, count = time.monotonic(), 0
while time.monotonic() - begin < 1:
    check(launch(function, length))
    count += 1
answer(count * length / 1e9)
"""


def test_an_unknown_function_does_not_run_away(make_tenant: Make, bare: Tenant) -> None:
    """Its quota of the second, the burst, and a few launches before anything is known."""
    assert make_tenant(cores=10).ask(RUN_AHEAD) <= 0.1 + 0.02 + 5 * 0.02
    assert bare.ask(RUN_AHEAD) > 0.9


def test_a_function_that_becomes_slower_pays_for_it_and_does_not_run_away(make_tenant: Make) -> None:
    """From 20 us to 2 ms, with the same grid: the device could take seconds of work before it shows."""
    script = """
    from client import *
    up()
    function = spin_function()
    def turn(length, seconds):
        begin, times = time.monotonic(), []
        while time.monotonic() - begin < seconds:
            check(launch(function, length))
            times.append(time.monotonic() - begin)
        check(cuda.cuCtxSynchronize())
        return [sum(at < 1 for at in times) * length / 1e9, len(times) * length / 1e9 / (time.monotonic() - begin)]
    turn(20_000, 1)
    answer(turn(2_000_000, 4))
    """
    ahead, found = make_tenant(cores=25).ask(script)
    assert ahead < 1.2
    assert found == pytest.approx(0.25, abs=0.05)


def test_work_that_cannot_be_measured_yet_is_not_waited_for_without_end(make_tenant: Make) -> None:
    """What a stream waits for may be something that the program does only after further launches."""
    script = f"""
from client import *
{THROTTLED}
up()
function = spin_function()
def some():
    for _ in range(20):
        check(launch(function, 1000))
check(launch(function, 2_000_000_000, grid=64))
behind = throttled_ms(some)
check(cuda.cuCtxSynchronize())
answer([behind, throttled_ms(some)])
"""
    behind, after = make_tenant(cores=99).ask(script)
    assert 100 <= behind < 1000
    assert after < 200, "what had been guessed was not given back"


def test_where_nothing_can_be_measured_launches_are_guessed_and_it_is_said_once(
    make_tenant: Make, make_driver: Callable[..., Driver]
) -> None:
    driver = make_driver(
        "eventless_driver", vgpu_shim.Device("GPU-" + "-".join("1" * n for n in (8, 4, 4, 4, 12)), "", GIB)
    )
    script = f"""
{THROTTLED}
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
def some():
    for _ in range(4000):
        assert cuda.cuLaunchKernel(ctypes.c_void_p(1), 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
answer(throttled_ms(some))
"""
    tenant = make_tenant(cores=50, on=driver)
    done = tenant.attempt(*tenant.script(script))
    assert done.returncode == 0, done.stderr
    # 4,000 guesses of 20 us at half speed, less the burst: 120 ms.
    assert 60 <= float(done.stdout) < 1000
    assert done.stderr.count("\n") == 1
    assert "makes no events" in done.stderr


# ---- limits that are none, and that change -------------------------------------------------------------------


@pytest.mark.parametrize("cores", [None, 100])
def test_without_a_limit_nothing_is_metered(make_tenant: Make, program: Program, cores: int | None) -> None:
    tenant = make_tenant(cores=cores)
    assert share(tenant, program("spin"), "kernel", 200 * US, seconds=1) > 0.9
    (used,) = tenant.usage()
    assert (used.launches, used.throttled_ns) == (0, 0)


def test_a_changed_limit_is_felt_at_once(make_tenant: Make, program: Program) -> None:
    tenant = make_tenant(cores=10)
    process = start(tenant, program("spin"), "sync-kernel", 5, 5 * MS)
    assert process.stdout is not None
    busy, elapsed = map(int, process.stdout.readline().split())
    assert busy / elapsed == pytest.approx(0.1, abs=0.02)
    tenant.change(0, cores=80)
    process.stdout.readline()
    busy, elapsed = map(int, process.stdout.readline().split())
    assert busy / elapsed == pytest.approx(0.8, abs=0.05)
    tenant.change(0, policy=3)
    process.stdout.readline()
    busy, elapsed = map(int, process.stdout.readline().split())
    assert busy / elapsed > 0.9


def test_a_borrowed_limit_ends_by_itself(make_tenant: Make, program: Program) -> None:
    tenant = make_tenant(cores=20)
    tenant.change(0, cores_limit=100, limit_end_ns=time.monotonic_ns() + 2_500_000_000)
    process = start(tenant, program("spin"), "sync-kernel", 4, MS)
    said, _ = process.communicate(timeout=60)
    shares = [int(busy) / int(elapsed) for busy, elapsed in map(str.split, said.splitlines())]
    assert shares[0] > 0.8
    assert shares[3] == pytest.approx(0.2, abs=0.03)


# ---- what must not be disturbed --------------------------------------------------------------------------------


def test_what_was_used_is_counted(make_tenant: Make) -> None:
    script = """
    from client import *
    up()
    function = spin_function()
    for _ in range(100):
        check(launch(function, 2_000_000))
    check(cuda.cuCtxSynchronize())
    check(launch(function, 2_000_000))
    """
    tenant = make_tenant(cores=50)
    tenant.run(*tenant.script(script))
    (used,) = tenant.usage()
    assert used.launches == 101
    assert used.device_time_ns == pytest.approx(202 * MS, rel=0.1)
    assert used.throttled_ns > 100 * MS


def test_launches_that_fail_get_the_drivers_codes_and_cost_nothing(make_tenant: Make, bare: Tenant) -> None:
    script = """
    from client import *
    def attempts(function):
        argument = ctypes.c_uint64(1000)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        return [cuda.cuLaunchKernel(None, 1, 1, 1, 1, 1, 1, 0, None, None, None),
                cuda.cuLaunchKernel(function, 0, 1, 1, 1, 1, 1, 0, None, arguments, None),
                cuda.cuLaunchKernel(function, 1, 1, 1, 1 << 20, 1, 1, 0, None, arguments, None),
                cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 1 << 30, None, arguments, None),
                cuda.cuLaunchKernelEx(None, function, arguments, None),
                cuda.cuLaunchKernelEx_ptsz(None, None, None, None),
                cuda.cuLaunchCooperativeKernel(None, 1, 1, 1, 1, 1, 1, 0, None, None)]
    said = [attempts(None)]
    check(cuda.cuInit(0))
    said.append(attempts(None))
    up()
    said.append(attempts(spin_function()))
    answer(said)
    """
    tenant = make_tenant(cores=25)
    found = tenant.ask(script)
    assert found == bare.ask(script)
    assert all(code for codes in found for code in codes[:3])
    (used,) = tenant.usage()
    assert (used.launches, used.throttled_ns) == (0, 0)


CAPTURE = """
from client import *
{throttled}
up()
function, stream, graph, status = spin_function(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
check(cuda.cuStreamCreate(ctypes.byref(stream), {flags}))
for _ in range({known}):
    check(launch(function, 50_000_000, stream))
check(cuda.cuStreamSynchronize(stream))
time.sleep({known} * 0.3)
check(cuda.cuStreamBeginCapture_v2(stream, {mode}))
codes = []
captured = throttled_ms(lambda: codes.extend(launch(function, 50_000_000, stream) for _ in range(200)))
check(cuda.cuStreamIsCapturing(stream, ctypes.byref(status)))
codes.append(cuda.cuStreamEndCapture(stream, ctypes.byref(graph)))
nodes = ctypes.c_size_t()
check(cuda.cuGraphGetNodes(graph, None, ctypes.byref(nodes)))
after = throttled_ms(lambda: check(launch(function, 1000, stream)))
answer([sorted(set(codes)), status.value, nodes.value, captured, after])
"""


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["global", "thread-local", "relaxed"])
@pytest.mark.parametrize("known", [0, 2], ids=["unknown", "known"])
def test_a_captured_launch_is_neither_delayed_nor_marked_nor_charged(make_tenant: Make, mode: int, known: int) -> None:
    script = CAPTURE.format(throttled=THROTTLED, flags=1, mode=mode, known=known)
    codes, status, nodes, captured, after = make_tenant(cores=25).ask(script)
    assert (codes, status, nodes) == ([0], 1, 200)
    assert captured == 0
    assert after < 1000, "what was captured was charged"


def test_launches_beside_a_capture_do_not_disturb_it(make_tenant: Make, bare: Tenant) -> None:
    """Markers are read while another stream captures in global mode, and a blocking stream shuts the legacy one."""
    script = """
    from client import *
    up()
    function, graph, streams = spin_function(), ctypes.c_void_p(), [ctypes.c_void_p() for _ in range(2)]
    for one in streams:
        check(cuda.cuStreamCreate(ctypes.byref(one), 1))
    for _ in range(50):
        check(launch(function, 1_000_000, streams[0]))
    check(cuda.cuStreamBeginCapture_v2(streams[1], 0))
    codes = []
    for _ in range(50):
        codes += [launch(function, 1_000_000, streams[0]), launch(function, 1_000_000, streams[1])]
    codes.append(cuda.cuStreamEndCapture(streams[1], ctypes.byref(graph)))
    blocking = ctypes.c_void_p()
    check(cuda.cuStreamCreate(ctypes.byref(blocking), 0))
    check(cuda.cuStreamBeginCapture_v2(blocking, 1))
    codes += [launch(function, 1000, None), launch(function, 1000, blocking),
              cuda.cuStreamEndCapture(blocking, ctypes.byref(graph))]
    answer(codes)
    """
    assert make_tenant(cores=50).ask(script) == bare.ask(script)


def test_launches_go_on_after_their_context_has_ended(make_tenant: Make) -> None:
    """Events of an ended context must not be touched; its successor has its own."""
    script = """
    from client import *
    said = []
    for _ in range(5):
        context = up()
        function = spin_function()
        said += [launch(function, 1_000_000) for _ in range(20)]
        said.append(cuda.cuCtxDestroy_v2(context))
    answer(sorted(set(said)))
    """
    assert make_tenant(cores=50).ask(script) == [0]


def test_launches_on_a_device_that_is_not_granted_pass(
    make_machine: Callable[[str], object], make_tenant: Make
) -> None:
    tenant = make_tenant(cores=5, devices=[1], on=make_machine("2xh200"))
    script = """
    from client import *
    up(0)
    function = spin_function()
    begin = time.monotonic()
    for _ in range(100):
        check(launch(function, 5_000_000))
    check(cuda.cuCtxSynchronize())
    free_ns = time.monotonic() - begin
    up(1)
    function = spin_function()
    begin = time.monotonic()
    for _ in range(20):
        check(launch(function, 5_000_000))
    check(cuda.cuCtxSynchronize())
    answer([free_ns, time.monotonic() - begin])
    """
    unlimited, limited = tenant.ask(script)
    assert unlimited < 1
    assert limited > 1
