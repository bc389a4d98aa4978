# SPDX-License-Identifier: Apache-2.0
"""Rewrite, NVML's half: a tenant finds its own devices and processes, whichever way it asks."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import vgpu_shim
from tools import nvidia_smi
from tools.tenants import GIB, MIB, PROGRAMS, Driver, Tenant, compile_c, create, intercepts

Make = Callable[..., Tenant]
MakeMachine = Callable[[str], Driver]

NO_PERMISSION, NOT_FOUND, VERSION_MISMATCH = 4, 6, 25


def ask(tenant: Tenant, script: str, **more: str) -> object:
    """Run a script that may use the face of NVML."""
    return tenant.ask("from nvml_client import *\n" + textwrap.dedent(script), **more)


def hold(tenant: Tenant, amount: int, ordinal: int = 0) -> int:
    """Have a program hold memory of a device until the test ends; its pid."""
    process = tenant.start(
        *tenant.script(f"from client import *\nup({ordinal})\nanswer(alloc({amount})[0])\nsys.stdin.read()")
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    return process.pid


# ---- which devices there are ---------------------------------------------------------------------------


@pytest.fixture
def four(make_machine: MakeMachine) -> Driver:
    """A machine of four devices."""
    return make_machine("4xh200")


@pytest.fixture
def two_of_four(four: Driver, make_tenant: Make) -> Tenant:
    """The tenant of the third device and the first, granted in this order."""
    return make_tenant(GIB, devices=[2, 0], on=four)


BY_NUMBER = """
assert nvml.nvmlInit_v2() == 0
counts = []
for name in ("nvmlDeviceGetCount", "nvmlDeviceGetCount_v2"):
    count = ctypes.c_uint()
    counts.append([getattr(nvml, name)(ctypes.byref(count)), count.value])
found = []
for name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByIndex_v2"):
    for index in (0, 1, 2, 3, 4, 2**32 - 1):
        device, back = ctypes.c_void_p(), ctypes.c_uint(77)
        code = getattr(nvml, name)(ctypes.c_uint(index), ctypes.byref(device))
        found.append([code, nvml_uuid(device) if not code else device.value,
                      nvml.nvmlDeviceGetIndex(device, ctypes.byref(back)) or back.value])
answer([counts, found])
"""


def test_the_tenants_devices_are_numbered_in_nvmls_order(two_of_four: Tenant, four: Driver) -> None:
    counts, found = ask(two_of_four, BY_NUMBER)
    first, _, third, _ = (device.uuid for device in four.devices)
    assert counts == [[0, 2]] * 2
    assert found == [[0, first, 0], [0, third, 1], *[[2, None, 2]] * 4] * 2
    counts, found = ask(Tenant(four, preload=""), BY_NUMBER)
    assert counts == [[0, 4]] * 2
    assert found == [*[[0, device.uuid, i] for i, device in enumerate(four.devices)], *[[2, None, 2]] * 2] * 2


BY_NAME = {
    "nvmlDeviceGetHandleByUUID": "identity['uuid'].encode()",
    "nvmlDeviceGetHandleBySerial": "identity['serial'].encode()",
    "nvmlDeviceGetHandleByPciBusId": "identity['pci'].encode()",
    "nvmlDeviceGetHandleByPciBusId_v2": "identity['pci'].encode()",
    "nvmlDeviceGetHandleByUUIDV": "ctypes.byref(UUID(0x01000034, 1, UUIDValue(text=identity['uuid'].encode())))",
    "nvmlDeviceGetHandleByUUIDV in bytes": "ctypes.byref(UUID(0x01000034, 2, UUIDValue(bytes="
    "(ctypes.c_ubyte * 16)(*bytes.fromhex(identity['uuid'][4:].replace('-', ''))))))",
}


@pytest.mark.parametrize("way", BY_NAME)
def test_a_device_of_others_is_not_found_by_name(two_of_four: Tenant, four: Driver, way: str) -> None:
    identities = ask(
        Tenant(four, preload=""),
        """
        import pynvml
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(4)]
        answer([{"uuid": pynvml.nvmlDeviceGetUUID(one), "serial": pynvml.nvmlDeviceGetSerial(one),
                 "pci": pynvml.nvmlDeviceGetPciInfo(one).busId} for one in handles])
        """,
    )
    script = f"""
    assert nvml.nvmlInit_v2() == 0
    def find(identity, out):
        return nvml.{way.split()[0]}({BY_NAME[way]}, out)
    said = []
    for identity in {identities!r}:
        device = ctypes.c_void_p(77)
        code = find(identity, ctypes.byref(device))
        said.append([code, device.value if code else nvml_uuid(device)])
    said += [find(identity, None), nvml.{way.split()[0]}(None, ctypes.byref(device))]
    identity = {{"uuid": "GPU-00000000-0000-0000-0000-000000000000", "serial": "none", "pci": "0:99:0.0"}}
    said.append(find(identity, ctypes.byref(device)))
    nvml.nvmlShutdown()
    said.append(find({identities[0]!r}, ctypes.byref(device)))
    answer(said)
    """
    wrong = [2, 2, NOT_FOUND, 1]
    uuids = [device.uuid for device in four.devices]
    assert ask(two_of_four, script) == [
        [0, uuids[0]], [NOT_FOUND, 77], [0, uuids[2]], [NOT_FOUND, 77], *wrong
    ]  # fmt: skip
    assert ask(Tenant(four, preload=""), script) == [*([0, uuid] for uuid in uuids), *wrong]


NEIGHBOURS = """
assert nvml.nvmlInit_v2() == 0
own = nvml_handle(0)
def ask(capacity, *which):
    array, count = (ctypes.c_void_p * 8)(), ctypes.c_uint(capacity)
    name = "nvmlDeviceGetTopologyNearestGpus" if len(which) == 2 else "nvmlSystemGetTopologyGpuSet"
    code = getattr(nvml, name)(*which, ctypes.byref(count), array if capacity else None)
    given = [nvml_uuid(ctypes.c_void_p(one)) for one in array if one]
    return [code, count.value, given]
answer([[ask(capacity, *which) for capacity in (0, 1, 2, 8)] for which in ((own, NODE), (0,))]
       + [nvml.nvmlSystemGetTopologyGpuSet(0, None, None),
          nvml.nvmlDeviceGetTopologyNearestGpus(None, NODE, ctypes.byref(ctypes.c_uint()), None)])
"""


def test_only_the_tenants_devices_are_neighbours(two_of_four: Tenant, four: Driver) -> None:
    def told(uuids: list[str]) -> list[list[object]]:
        count = len(uuids)
        return [[0, count, []], [0, 1, uuids[:1]], [0, min(2, count), uuids[:2]], [0, count, uuids]]

    uuids = [device.uuid for device in four.devices]
    assert ask(two_of_four, NEIGHBOURS) == [told([uuids[2]]), told([uuids[0], uuids[2]]), 2, 2]
    assert ask(Tenant(four, preload=""), NEIGHBOURS) == [told(uuids[1:]), told(uuids), 2, 2]


def test_before_its_beginning_and_after_its_end_nvml_answers_with_its_own_codes(
    two_of_four: Tenant, four: Driver
) -> None:
    """Every row but those that begin and end it; some look at their arguments first."""
    names = [row.symbol for row in intercepts() if row.library == "NVML" and "Init" not in row.symbol]
    script = f"""
    def everything(device):
        room = ctypes.create_string_buffer(4096)
        out = ctypes.byref(room)
        calls = {{
            "nvmlDeviceGetCount": (out,), "nvmlDeviceGetCount_v2": (out,),
            "nvmlDeviceGetHandleByIndex": (0, out), "nvmlDeviceGetHandleByIndex_v2": (0, out),
            "nvmlSystemGetTopologyGpuSet": (0, out, None),
            "nvmlDeviceGetTopologyNearestGpus": (device, NODE, out, None),
            "nvmlDeviceGetProcessUtilization": (device, None, out, ctypes.c_ulonglong(0)),
            "nvmlDeviceGetMigDeviceHandleByIndex": (device, 0, out),
            "nvmlDeviceGetRunningProcessDetailList": (device, ctypes.byref(DetailList(0x01000018))),
            "nvmlDeviceGetProcessesUtilizationInfo": (device, ctypes.byref(InfoList(0x01000018))),
            "nvmlDeviceGetMemoryInfo_v2": (device, ctypes.byref(Memory2(0x02000028))),
        }}
        by_name = [(name, (b"", out)) for name in {names!r} if "HandleBy" in name]
        by_device = [(name, (device, out, out)) for name in {names!r}]
        calls = dict(by_device) | dict(by_name) | calls
        return [[name, getattr(nvml, name)(*calls[name])] for name in {names!r}]
    before = everything(None)
    device = nvml_up()
    within = everything(ctypes.c_void_p(77)) # a handle of nobody's
    nvml.nvmlShutdown()
    after = everything(device)
    answer([before, within, after])
    """
    ours = ask(two_of_four, script)
    assert ours == ask(Tenant(four, preload=""), script)
    assert {code for _, code in ours[0] + ours[2]} == {1}


@pytest.mark.parametrize("symbol", [row.symbol for row in intercepts() if row.library == "NVML"])
def test_a_tenant_whose_grant_is_unreadable_is_refused_by_every_row(make_tenant: Make, symbol: str) -> None:
    tenant = make_tenant(GIB)
    assert tenant.directory is not None
    (tenant.directory / "grant").write_bytes(b"torn")
    done = tenant.attempt(*tenant.script(f"from nvml_client import *\nanswer(nvml.{symbol}(None, None, None, None))\n"))
    assert (done.returncode, done.stdout) == (0, f"{NO_PERMISSION}\n")
    assert done.stderr.count("\n") == 1


def test_a_device_without_a_memory_limit_is_still_the_only_one(four: Driver, make_tenant: Make) -> None:
    tenant = make_tenant(None, 50, devices=[3], on=four)
    script = "answer([nvml_uuid(nvml_up()), nvml_count(), nvml_info(nvml_handle())['total']])"
    assert ask(tenant, script) == [four.devices[3].uuid, 1, four.devices[3].memory]


def test_a_child_of_fork_finds_the_devices_again(two_of_four: Tenant) -> None:
    script = """
    handle = nvml_up(1)
    expected = [nvml_count(), nvml_info(handle), nvml_uuid(handle)]
    child = os.fork()
    if not child:
        nvml.nvmlInit_v2()
        os._exit([nvml_count(), nvml_info(nvml_handle(1)), nvml_uuid(nvml_handle(1))] != expected)
    answer([os.waitpid(child, 0)[1], expected[0]])
    """
    assert ask(two_of_four, script) == [0, 2]


def test_threads_see_their_slice_while_others_begin_and_end_nvml(two_of_four: Tenant) -> None:
    script = f"""
    import threading
    nvml.nvmlInit_v2()
    handle, wrong, rounds = nvml_handle(1), [], []
    def turn():
        for _ in range(1500):
            nvml.nvmlInit_v2()
            nvml.nvmlShutdown()
    def look():
        for _ in range(1500):
            seen = nvml_count(), nvml_info(handle)["total"], nvml_handle(1).value
            if seen != (2, {GIB}, handle.value):
                wrong.append(seen)
        rounds.append(1)
    threads = [threading.Thread(target=one) for one in (turn, turn, look, look, look, look)]
    for one in threads: one.start()
    for one in threads: one.join()
    answer([wrong, len(rounds)])
    """
    assert ask(two_of_four, script) == [[], 4]


# ---- memory ------------------------------------------------------------------------------------------------


def test_a_slice_as_large_as_its_device_is_one_number_too(make_machine: MakeMachine, make_tenant: Make) -> None:
    """Between what CUDA counts and what NVML counts: the driver keeps the difference for itself."""
    machine = make_machine("h200")
    script = """
    from client import *
    device = ctypes.c_size_t()
    up()
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(device), 0))
    handle = nvml_up()
    answer([device.value, info()[1], nvml_info(handle)["total"], nvml_info2(handle)["total"]])
    """
    native = ask(Tenant(machine, preload=""), script)
    assert native[0] == native[1] < native[2] == native[3]
    between = (native[1] + native[3]) // 2
    assert ask(make_tenant(between, on=machine), script) == [native[0]] * 4


WINDOW = "answer([nvml_window(nvml_up()), nvml_info(nvml_handle())])"


def test_the_window_to_memory_is_no_larger_than_the_slice(make_machine: MakeMachine, make_tenant: Make) -> None:
    machine = make_machine("2xh200")
    bare, _ = ask(Tenant(machine, preload=""), WINDOW)
    quota = bare["total"] // 8
    assert bare["total"] == bare["free"] + bare["used"]
    window, memory = ask(make_tenant(quota, devices=[1], on=machine), WINDOW)
    assert window == {"total": quota, "free": quota, "used": 0}
    assert memory["total"] == quota
    assert ask(make_tenant(on=machine), WINDOW)[0] == bare
    small = make_machine("devices:\n  - model: a10\n    bar1_total: 256MiB\n")
    assert ask(make_tenant(GIB, on=small), WINDOW)[0]["total"] == 256 * MIB


# ---- one number, for several devices ------------------------------------------------------------------------

ORDERS = {
    "all": (None, [0, 1, 2]),
    "turned round": ("2,1,0", [2, 1, 0]),
    "a subset": ("1", [1]),
    "another subset": ("2,0", [2, 0]),
    "a UUID": ("{1}", [1]),
    "UUIDs": ("{2},{0}", [2, 0]),
    "a prefix of a UUID": ("{2:.12}", [2]),
    "cut at the first that is none": ("1,7,0", [1]),
}

EVERY_DEVICE = """
from client import *
import uuid
check(cuda.cuInit(0))
count, seen = ctypes.c_int(), []
check(cuda.cuDeviceGetCount(ctypes.byref(count)))
by_uuid = {}
nvml.nvmlInit_v2()
for index in range(nvml_count()):
    handle = nvml_handle(index)
    by_uuid[nvml_uuid(handle)] = handle
for ordinal in range(count.value):
    name, total, context = (ctypes.c_ubyte * 16)(), ctypes.c_size_t(), ctypes.c_void_p()
    check(cuda.cuDeviceGetUuid_v2(name, ordinal))
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(total), ordinal))
    handle = by_uuid["GPU-" + str(uuid.UUID(bytes=bytes(name)))]
    check(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, ordinal))
    free_before, total_before = info()
    refused = alloc(free_before + 1)[0]
    made, held = alloc(free_before // 2)
    first, second, (free_after, _) = nvml_info(handle), nvml_info2(handle), info()
    rest = alloc(free_after + 1)[0]
    check(free(held))
    seen.append([list(by_uuid).index("GPU-" + str(uuid.UUID(bytes=bytes(name)))), total.value, total_before, refused,
                 made, rest, first, second, free_after])
answer(seen)
"""


@pytest.mark.parametrize("order", ORDERS)
def test_all_numbers_of_each_device_are_one_in_any_order(
    make_machine: MakeMachine, make_tenant: Make, order: str
) -> None:
    machine = make_machine("3xh200")
    tenant = make_tenant(2 * GIB, devices=[0, 1, 2], on=machine)
    for index in range(3):
        tenant.change(index, memory=(index + 2) * GIB)
    visible, expected = ORDERS[order]
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible.format(*(one.uuid for one in machine.devices))}
    seen = ask(tenant, EVERY_DEVICE, **more)
    assert [one[0] for one in seen] == expected
    for number, total, total_before, refused, made, rest, first, second, free in seen:
        quota = (number + 2) * GIB
        assert (total, total_before, refused, made, rest) == (quota, quota, 2, 0, 2)
        assert first == {"total": quota, "free": free, "used": quota - free}
        assert second == {"total": quota, "reserved": 0, "free": free, "used": quota - free}


# ---- process lists ------------------------------------------------------------------------------------------

COMPUTE = [row.symbol for row in intercepts() if "GetComputeRunningProcesses" in row.symbol]
ONLY_THE_DRIVERS = [
    row.symbol for row in intercepts() if "RunningProcesses" in row.symbol and row.symbol not in COMPUTE
]


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
    script = f"""
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
    own, child, found = json.loads(
        tenant.run(*unshare, *tenant.script("from nvml_client import *\n" + textwrap.dedent(script)))
    )
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
    assert ask(make_tenant(quota), script) == [quota, 0, 1]


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


# ---- drivers and cards that the simulated one is not -------------------------------------------------------------

INSTANCES = [f"MIG-{number:08d}-1111-2222-3333-444444444444" for number in range(3)]


@pytest.fixture(scope="module")
def odd_libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Compile the NVML of ``programs/odd_nvml.c``, with its longer entries or without."""
    folder = tmp_path_factory.mktemp("odd")

    def get(long_entries: bool) -> Path:
        made = folder / ("long" if long_entries else "plain")
        if not made.exists():
            made.mkdir()
            compile_c(made / "libnvidia-ml.so.1", PROGRAMS / "odd_nvml.c",
                      flags=["-O1", "-fPIC", "-shared", *(["-DLONG_ENTRIES"] if long_entries else [])],
                      link=["-Wl,-soname,libnvidia-ml.so.1"])  # fmt: skip
        return made

    return get


OddTenant = Callable[..., Tenant]


@pytest.fixture
def odd(make_machine: MakeMachine, odd_libraries: Callable[[bool], Path], tmp_path: Path) -> OddTenant:
    """Make a tenant, or a bare place, on a simulated pair of devices under another NVML."""
    pair = make_machine("2xh200")

    def make(memory: int = 0, devices: tuple[int, ...] = (0,), *, long_entries: bool = False) -> Tenant:
        folder = odd_libraries(long_entries)

        class Odd(Driver):
            def environment(self, **more: str) -> dict[str, str]:
                base = Driver.environment(self, **more)
                return {**base, "LD_LIBRARY_PATH": f"{folder}:{base['LD_LIBRARY_PATH']}",
                        "ODD_DEVICES": ",".join(one.uuid for one in pair.devices)}  # fmt: skip

        driver = Odd(pair.devices, pair.machine)
        if not memory:
            return Tenant(driver, preload="")
        return create(tmp_path / "state", driver, memory, None, devices)

    return make


DRIVERS_LIST = """
from client import *
up()
check(alloc(5 << 20)[0])
own = nvml_processes(nvml_up(), "nvmlDeviceGetComputeRunningProcesses")[2]
os.environ["ODD_PIDS"] = f"1,{os.getpid()},2"
answer([os.getpid(), own[0][1] if own else 0, %s])
"""


@pytest.mark.parametrize("name", ONLY_THE_DRIVERS)
def test_who_draws_or_uses_the_server_is_the_drivers_list_without_the_others(odd: OddTenant, name: str) -> None:
    call = f"[nvml_processes(nvml_handle(), {name!r}, capacity) for capacity in (64, 1, 0)]"
    pid, held, (roomy, tight, none) = ask(odd(GIB), DRIVERS_LIST % call)
    assert held >= 5 * MIB
    assert roomy == tight == [0, 1, [[pid, held]]]
    assert none == [7, 1, []]
    pid, _, (roomy, tight, none) = ask(odd(), DRIVERS_LIST % call)
    assert roomy == [0, 3, [[one, 7 * MIB] for one in (1, pid, 2)]]
    assert tight == none == [7, 3, []]


@pytest.mark.parametrize("mode", [1, 2], ids=["graphics", "the server"])
def test_the_detail_list_filters_the_drivers_lists_too(odd: OddTenant, mode: int) -> None:
    call = f"[nvml_detail(nvml_handle(), {mode}, capacity) for capacity in (64, 1, 0)]"
    pid, held, (roomy, tight, none) = ask(odd(GIB), DRIVERS_LIST % call)
    assert roomy == tight == [0, 1, [[pid, held]]]
    assert none == [7, 1, []]
    assert ask(odd(), DRIVERS_LIST % call)[2][0][1] == 3


@pytest.mark.parametrize("kind", ["Compute", "Graphics", "MPSCompute"])
def test_longer_entries_are_told_by_the_names_that_the_driver_has(odd: OddTenant, kind: str) -> None:
    """Two entries of our own, so that the second is found where a client looks for it."""
    tenant = odd(GIB, long_entries=True)
    other = hold(tenant, 3 * MIB)
    name = f"nvmlDeviceGet{kind}RunningProcesses_v3"
    script = f"""
    from client import *
    up()
    check(alloc(5 << 20)[0])
    os.environ["ODD_PIDS"] = f"1,{other},2,{{os.getpid()}}"
    said = nvml_processes(nvml_up(), {name!r}, entry=Detail)
    answer([os.getpid(), hasattr(nvml, "nvmlDeviceGetRunningProcessDetailList"), said])
    """
    try:
        pid, has_detail, (code, count, found) = ask(tenant, script)
    finally:
        tenant.stop()
    assert not has_detail
    assert (code, count, {one for one, _ in found}) == (0, 2, {pid, other})


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags"])
def test_a_handle_that_means_another_device_after_a_new_beginning_shows_that_one(odd: OddTenant, function: str) -> None:
    tenant = odd(GIB, (0, 1))
    tenant.change(1, memory=2 * GIB)
    script = f"""
    said = []
    for _ in range(4):
        nvml.{function}(0)
        said.append([[nvml_handle(i).value % 2, nvml_uuid(nvml_handle(i)), nvml_info(nvml_handle(i))["total"]]
                     for i in range(nvml_count())])
        nvml.nvmlShutdown()
    answer(said)
    """
    said = ask(tenant, script)
    expected = [[one.uuid, (i + 1) * GIB] for i, one in enumerate(tenant.driver.devices)]
    assert [[one[1:] for one in turn] for turn in said] == [expected] * 4
    assert said[0][0][0] != said[1][0][0], "the driver has not changed its handles"


def test_the_driver_is_not_asked_for_a_uuid_at_every_call(odd: OddTenant) -> None:
    script = """
    handle = nvml_up()
    before = nvml.odd_uuids_asked()
    for _ in range(100):
        assert nvml_info(handle)["total"] == 1 << 30
        assert nvml_count() == 1
    answer(nvml.odd_uuids_asked() - before)
    """
    assert ask(odd(GIB), script) == 0


def test_the_handle_of_a_hidden_device_lists_nobody(odd: OddTenant) -> None:
    """Some private way may lead to it; what others do there is still not shown."""
    script = f"""
    from client import *
    up()
    check(alloc(5 << 20)[0])
    nvml_up()
    nvml.odd_handle.restype = ctypes.c_void_p
    hidden = ctypes.c_void_p(nvml.odd_handle(1))
    os.environ["ODD_PIDS"] = "1,2"
    answer([nvml_processes(hidden, name) for name in {COMPUTE + ONLY_THE_DRIVERS!r}])
    """
    assert ask(odd(GIB), script) == [[0, 0, []]] * 9
    assert ask(odd(), script) == [[0, 2, [[1, 7 * MIB], [2, 7 * MIB]]]] * 9


OF_MIG = """
nvml.nvmlInit_v2()
devices = [nvml_handle(i) for i in range(nvml_count())]
def instance(index):
    found = ctypes.c_void_p(77)
    code = nvml.nvmlDeviceGetMigDeviceHandleByIndex(devices[-1], index, ctypes.byref(found))
    return [code, nvml_uuid(found) if not code else found.value]
def by_uuid(uuid):
    found = ctypes.c_void_p()
    return nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(found))
names = os.environ["ODD_INSTANCES"].split(",")
own = ctypes.c_void_p()
nvml.nvmlDeviceGetHandleByUUID(names[1].encode(), ctypes.byref(own))
back = ctypes.c_uint()
nvml.nvmlDeviceGetIndex(own, ctypes.byref(back))
answer([[nvml_uuid(one) for one in devices], [instance(i) for i in range(5)], [by_uuid(one) for one in names],
        nvml_info(own)["total"], back.value,
        nvml.nvmlDeviceGetMigDeviceHandleByIndex(devices[-1], 99, ctypes.byref(own)),
        nvml.nvmlDeviceGetMigDeviceHandleByIndex(devices[-1], 0, None)])
"""


def test_the_tenant_of_an_instance_sees_its_device_and_no_other_instance(odd: OddTenant, tmp_path: Path) -> None:
    """The instance is granted by its own UUID; the other device and the other instances are somebody else's."""
    place = odd()
    granted = vgpu_shim.Slice(INSTANCES[1], 16 * GIB, GIB, None, "none")
    tenant = Tenant(place.driver, vgpu_shim.create_tenant(tmp_path / "state", "of-an-instance", "process", [granted]))
    more = {"ODD_INSTANCES": ",".join(INSTANCES)}
    uuids = [one.uuid for one in place.driver.devices]
    free, hidden, wrong = [NOT_FOUND, 77], [NOT_FOUND, 77], [2, 2]
    assert ask(tenant, OF_MIG, **more) == [
        uuids[1:], [hidden, [0, INSTANCES[1]], hidden, free, free], [NOT_FOUND, 0, NOT_FOUND], GIB, 1, *wrong
    ]  # fmt: skip
    assert ask(place, OF_MIG, **more) == [
        uuids, [*([0, one] for one in INSTANCES), free, free], [0, 0, 0], 64 * GIB, 1, *wrong
    ]  # fmt: skip


def test_a_tenant_of_a_device_and_of_an_instance_on_another_sees_both(odd: OddTenant, tmp_path: Path) -> None:
    place = odd()
    slices = [
        vgpu_shim.Slice(INSTANCES[0], 16 * GIB, 2 * GIB, None, "none"),
        vgpu_shim.Slice(INSTANCES[1], 16 * GIB, GIB, None, "none"),
        vgpu_shim.Slice(place.driver.devices[0].uuid, 64 * GIB, 3 * GIB, None, "none"),
    ]
    tenant = Tenant(place.driver, vgpu_shim.create_tenant(tmp_path / "state", "of-both", "process", slices))
    devices, instances, by_uuid, total, *_ = ask(tenant, OF_MIG, ODD_INSTANCES=",".join(INSTANCES))
    assert devices == [one.uuid for one in place.driver.devices]
    assert [code for code, _ in instances[:3]] == by_uuid == [0, 0, NOT_FOUND]
    assert total == GIB


# ---- unmodified clients ----------------------------------------------------------------------------------------


@pytest.fixture
def shared(make_machine: MakeMachine, make_tenant: Make) -> Iterator[tuple[Tenant, int, Tenant, int]]:
    """The tenant of the second of two devices with a program, and another program outside, on the same device."""
    machine = make_machine("2xh200")
    tenant, outside = make_tenant(10 * GIB, devices=[1], on=machine), Tenant(machine, preload="")
    try:
        yield tenant, hold(tenant, 512 * MIB, 1), outside, hold(outside, 768 * MIB, 1)
    finally:
        outside.stop()


Shared = tuple[Tenant, int, Tenant, int]


def client(name: str) -> Path:
    """The program that a Python package installs."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed in this environment (extra `clients`)")
    return path


def gpustat(tenant: Tenant) -> list[tuple[str, int, int, list[int]]]:
    """Device, MiB in all, MiB used and pids, as gpustat has them."""
    said = json.loads(tenant.run(client("gpustat"), "--json"))["gpus"]
    return [
        (one["uuid"], one["memory.total"], one["memory.used"], [row["pid"] for row in one["processes"]]) for one in said
    ]


def test_gpustat_shows_the_tenants_device_and_process(shared: Shared) -> None:
    tenant, own, outside, other = shared
    first, second = (one.uuid for one in tenant.driver.devices)
    ((device, total, used, pids),) = gpustat(tenant)
    assert (device, total, pids) == (second, 10 * 1024, [own])
    assert 512 <= used < 768
    whole = gpustat(outside)
    assert [row[0] for row in whole] == [first, second]
    assert sorted(whole[1][3]) == sorted([own, other])


def nvitop(tenant: Tenant, *pids: int) -> tuple[int, bool, list[bool]]:
    """How many devices nvitop shows, whether one is of the slice's size, and which of the processes it lists."""
    text = tenant.run(client("nvitop"), "-1", COLUMNS="120", LINES="60")
    return text.count(" 00000000:"), "/ 10240MiB" in text, [f" {pid} C " in text for pid in pids]


def test_nvitop_shows_the_tenants_device_and_process(shared: Shared) -> None:
    tenant, own, outside, other = shared
    assert nvitop(tenant, own, other) == (1, True, [True, False])
    assert nvitop(outside, own, other) == (2, False, [True, True])


def test_nvidia_ml_py_finds_the_tenants_device_alone(shared: Shared) -> None:
    tenant, own, outside, _ = shared
    script = """
    import pynvml as n
    n.nvmlInit()
    devices = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
    lists = [n.nvmlDeviceGetComputeRunningProcesses, n.nvmlDeviceGetGraphicsRunningProcesses,
             n.nvmlDeviceGetMPSComputeRunningProcesses]
    last = devices[-1]
    bar1 = n.nvmlDeviceGetBAR1MemoryInfo(last)
    answer([[n.nvmlDeviceGetUUID(one) for one in devices], [n.nvmlDeviceGetIndex(one) for one in devices],
            len(n.nvmlSystemGetTopologyGpuSet(0)), [[one.pid for one in list(last)] for list in lists],
            n.nvmlDeviceGetMemoryInfo(last).total, bar1.bar1Total])
    """
    uuids = [one.uuid for one in tenant.driver.devices]
    assert tenant.ask(script) == [uuids[1:], [0], 1, [[own], [], []], 10 * GIB, 10 * GIB]
    assert outside.ask(script)[:3] == [uuids, [0, 1], 2]


def test_nvidia_smi_shows_the_tenants_device(shared: Shared) -> None:
    tenant, _, outside, _ = shared
    try:
        smi = nvidia_smi.find(nvidia_smi.default_cache())
    except (nvidia_smi.Unavailable, OSError) as reason:
        pytest.skip(f"no nvidia-smi: {reason}")
    first, second = (one.uuid for one in tenant.driver.devices)
    query = (smi, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
    assert tenant.run(smi, "-L") == f"GPU 0: NVIDIA H200 (UUID: {second})\n"
    assert tenant.run(*query) == f"0, {second}, 10240\n"
    assert "MiB / 10240MiB |" in tenant.run(smi)
    assert [row.split(", ")[1] for row in outside.run(*query).splitlines()] == [first, second]
    hidden = tenant.attempt(smi, "-i", first, "--query-gpu=name", "--format=csv,noheader")
    assert "H200" not in hidden.stdout
    assert "H200" in outside.run(smi, "-i", first, "--query-gpu=name", "--format=csv,noheader")
