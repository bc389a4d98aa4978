# SPDX-License-Identifier: Apache-2.0
"""Rewrite, NVML's lists: a tenant finds its own processes, in lists and in samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.nvml import COMPUTE, NOT_FOUND, ONLY_THE_DRIVERS, VERSION_MISMATCH, ask, hold, script
from tools.tenants import GIB, MIB, Driver, Tenant

Make = Callable[..., Tenant]
MakeMachine = Callable[[str], Driver]


# ---- process lists ------------------------------------------------------------------------------------------


def test_the_table_has_all_nine_lists() -> None:
    assert (len(COMPUTE), len(ONLY_THE_DRIVERS)) == (3, 6)


def detail(mode: int) -> str:
    """The piece of a script that asks for the list that holds them all."""
    return f"nvml_detail(nvml_up(), {mode})"


@pytest.mark.parametrize("call", [*(f"nvml_processes(nvml_up(), {name!r})" for name in COMPUTE), detail(0)])
def test_the_process_list_is_the_tenants_own(make_tenant: Make, bare: Tenant, quota: int, call: str) -> None:
    tenant = make_tenant(quota)
    held = {hold(tenant, 16 * MIB): 16 * MIB, hold(tenant, 32 * MIB): 32 * MIB}
    outside = hold(bare, 48 * MIB)
    code, count, found = ask(tenant, f"answer({call})")
    assert (code, count) == (0, 2)
    assert {pid for pid, _ in found} == set(held)
    for pid, memory in found:
        assert held[pid] <= memory < quota
    if bare.driver.machine:  # a real one may show its processes to root alone
        assert {pid for pid, _ in ask(bare, f"answer({call})")[2]} == {*held, outside}


PROTOCOL = """
from client import *
handle, said = nvml_up(), []
def count(capacity, array):
    number = ctypes.c_uint(capacity)
    code = nvml.{name}(handle, ctypes.byref(number), array)
    return [code, number.value]
def ask():
    said.append([count(0, None), count(8, (entry_of({name!r}) * 8)()), count(0, (entry_of({name!r}) * 8)())])
ask()
up()
check(alloc(1 << 20)[0])
ask()
bad = [nvml.{name}(handle, None, None), count(4, None)[0],
       nvml.{name}(ctypes.c_void_p(0), ctypes.byref(ctypes.c_uint(0)), None)]
nvml.nvmlShutdown()
answer([said, bad, count(0, None)[0]])
"""


@pytest.mark.parametrize("name", COMPUTE)
def test_the_two_call_protocol_counts_what_is_shown(make_tenant: Make, bare: Tenant, quota: int, name: str) -> None:
    hold(bare, MIB)
    said, bad, after = ask(make_tenant(quota), PROTOCOL.format(name=name))
    assert said == [[[0, 0], [0, 0], [0, 0]], [[7, 1], [0, 1], [7, 1]]]
    theirs = ask(bare, PROTOCOL.format(name=name))
    assert (bad, after) == (theirs[1], theirs[2])
    if bare.driver.machine:
        assert theirs[0] == [[[7, 1], [0, 1], [7, 1]], [[7, 2], [0, 2], [7, 2]]]


def test_the_detail_list_counts_what_is_shown_and_has_one_version(make_tenant: Make, bare: Tenant, quota: int) -> None:
    hold(bare, MIB)
    script = """
    from client import *
    up()
    check(alloc(1 << 20)[0])
    handle = nvml_up()
    answer([nvml_detail(handle, 0, 0)[:2], nvml_detail(handle, 0, 1)[:2], nvml_detail(handle, 0, 64)[:2],
            nvml_detail(handle, 0, version=0x02000018)[0], nvml_detail(handle, 9)[0],
            nvml.nvmlDeviceGetRunningProcessDetailList(handle, None), nvml_detail(None, 0, version=3)[0]])
    """
    counts = ask(make_tenant(quota), script)
    theirs = ask(bare, script)
    assert counts[:3] == [[7, 1], [0, 1], [0, 1]]
    assert counts[3:] == theirs[3:] == [VERSION_MISMATCH, 2, 2, 2]
    if bare.driver.machine:
        assert theirs[:3] == [[7, 2], [7, 2], [0, 2]]


def test_the_dead_are_not_listed(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    hold(tenant, 1024)
    tenant.running[-1].kill()
    tenant.running[-1].wait()
    assert ask(tenant, f"answer(nvml_processes(nvml_up(), {COMPUTE[2]!r}))") == [0, 0, []]


def test_pids_are_those_of_the_programs_own_namespace(make_tenant: Make, quota: int) -> None:
    """One program of the tenant here, and two in a namespace in which they are numbers 1 and 2 or so."""
    tenant = make_tenant(quota)
    unshare = ("unshare", "--pid", "--fork", "--mount-proc")
    if tenant.attempt(*unshare, "true").returncode:
        pytest.skip("needs a pid namespace: run as root")
    here = hold(tenant, 16 * MIB)
    inner = tenant.script(f"from client import *\nup()\nanswer(alloc({48 * MIB})[0])\nsys.stdin.read()")
    asked = f"""
    import subprocess
    from client import *
    up()
    code, made = alloc(32 << 20)
    child = subprocess.Popen({inner!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = child.stdout.readline()
    found = [nvml_processes(nvml_up(), name)[2] for name in {COMPUTE!r}] + [nvml_detail(nvml_handle(), 0)[2]]
    child.communicate("")
    answer([os.getpid(), child.pid, found])
    """
    own, child, found = json.loads(tenant.run(*unshare, *script(tenant, asked)))
    assert own < child < 10 < here
    for entries in found:
        assert sorted(pid for pid, _ in entries) == [own, child]
    for name in COMPUTE:
        assert [pid for pid, _ in ask(tenant, f"answer(nvml_processes(nvml_up(), {name!r}))")[2]] == [here]


def test_a_driver_that_counts_processes_otherwise_does_not_change_the_pids(
    make_machine: MakeMachine, make_tenant: Make
) -> None:
    machine = make_machine("name: other\ndevices:\n  - model: h200\nknobs:\n  pid_offset: 1000000\n")
    tenant, outside = make_tenant(GIB, on=machine), Tenant(machine, preload="")
    own = hold(tenant, MIB)
    for name in COMPUTE:
        script = f"answer(nvml_processes(nvml_up(), {name!r}))"
        assert [pid for pid, _ in ask(tenant, script)[2]] == [own]
        assert [pid for pid, _ in ask(outside, script)[2]] == [own + 1_000_000]


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags"])
def test_nvml_that_calls_itself_through_us_still_answers(make_tenant: Make, quota: int, function: str) -> None:
    """The library is loaded by the program, so its own symbols bind to our exports."""
    script = f"""
    assert nvml.{function}(0) == 0
    handle = nvml_handle()
    total = nvml_info(handle)["total"]
    answer([total, nvml.nvmlShutdown(), nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(Memory()))])
    """
    tenant = make_tenant(quota)
    assert ask(tenant, script) == [tenant.memory, 0, 1]


# ---- utilisation of processes ---------------------------------------------------------------------------------


@pytest.fixture
def quick(make_machine: MakeMachine) -> Driver:
    """A machine that takes samples often."""
    return make_machine("name: quick\ndevices:\n  - model: h200\nknobs:\n  sample_ns: 20000000\n")


SEEN = "answer([{name}(nvml_up()), {name}(nvml_handle(), 0)[:2], {name}(nvml_handle(), 1)[:2]])"


TOOLS = Path(__file__).parents[1] / "tools"


def keep_busy(tenant: Tenant) -> int:
    """Have a program use the device until the test ends; its pid."""
    process = tenant.start(sys.executable, str(TOOLS / "gpu_user.py"), "--busy=20", f"--memory={MIB}")
    assert process.stdout is not None
    assert "pid" in process.stdout.readline()
    return process.pid


@pytest.mark.parametrize("name", ["nvml_samples", "nvml_samples_info"])
def test_only_the_tenants_processes_have_samples(quick: Driver, make_tenant: Make, name: str) -> None:
    tenant, idle, outside = make_tenant(GIB, on=quick), make_tenant(GIB, on=quick), Tenant(quick, preload="")
    try:
        own, other = keep_busy(tenant), keep_busy(outside)
        # A sample ends at its time: until both are seen from outside, there is nothing to be judged.
        until = f"""
        handle, deadline = nvml_up(), time.monotonic() + 60
        while set({name}(handle)[2]) != {{{own}, {other}}} and time.monotonic() < deadline:
            time.sleep(0.02)
        answer([sorted({name}(handle)[2]), {name}(handle, 0)[:2], {name}(handle, 1)[:2]])
        """
        assert ask(outside, until) == [sorted([own, other]), [7, 2], [7, 2]]
        assert ask(tenant, SEEN.format(name=name)) == [[0, 1, [own]], [7, 1], [0, 1]]
        nothing = [code for code, *_ in ask(idle, SEEN.format(name=name))]
        assert nothing == [NOT_FOUND] * 3
    finally:
        outside.stop()


def test_samples_of_an_unknown_version_are_refused(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = """
    handle = nvml_up()
    answer([nvml_samples_info(handle, version=0x02000018)[0], nvml_samples_info(handle)[0],
            nvml_samples_info(None, version=7)[0], nvml.nvmlDeviceGetProcessesUtilizationInfo(handle, None),
            nvml.nvmlDeviceGetProcessUtilization(handle, None, None, ctypes.c_ulonglong(0))])
    """
    assert ask(make_tenant(quota), script) == ask(bare, script) == [VERSION_MISMATCH, NOT_FOUND, 2, 2, 2]
