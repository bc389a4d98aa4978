# SPDX-License-Identifier: Apache-2.0
"""Rewrite, NVML's half, on drivers and cards that the simulated one is not: ``programs/odd_nvml.c``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import vgpu_shim
from tools.nvml import COMPUTE, NOT_FOUND, ONLY_THE_DRIVERS, ask, hold
from tools.tenants import GIB, MIB, PROGRAMS, Driver, Tenant, compile_c, create

Make = Callable[..., Tenant]
MakeMachine = Callable[[str], Driver]


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
