# SPDX-License-Identifier: Apache-2.0
"""Rewrite, NVML's half: a tenant finds its own devices with its own sizes, whichever way it asks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tools.nvml import NO_PERMISSION, NOT_FOUND, ask
from tools.tenants import GIB, MIB, Driver, Tenant, intercepts

Make = Callable[..., Tenant]
MakeMachine = Callable[[str], Driver]


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
    bare = ask(Tenant(four, preload=""), "nvml_up(); answer(nvml_info(nvml_handle(3))['total'])")
    assert ask(tenant, script) == [four.devices[3].uuid, 1, bare]


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
    """NVML counts more than CUDA: the driver keeps the difference for itself."""
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
    almost = machine.devices[0].memory - 1
    assert ask(make_tenant(almost, on=machine), script) == [almost] * 4
    assert machine.devices[0].memory == native[0], "a node gives what programs can have"


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
