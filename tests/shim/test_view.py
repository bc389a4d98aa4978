# SPDX-License-Identifier: Apache-2.0
"""Rewrite: a tenant is told of its slice, by CUDA and by NVML alike."""

from __future__ import annotations

import time
from collections.abc import Callable

from tools.nvml import ask
from tools.tenants import Driver, Tenant

Make = Callable[..., Tenant]


MEMORY = """
from client import *
up()
before, total = info()
device = ctypes.c_size_t()
check(cuda.cuDeviceTotalMem_v2(ctypes.byref(device), 0))
code, made = alloc({amount})
handle = nvml_up()
answer([code, total, device.value, before - info()[0], info()[0], nvml_info(handle), nvml_info2(handle)])
"""


def test_all_ways_to_ask_for_memory_agree_on_the_slice(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    code, total, device, charged, free, first, second = ask(tenant, MEMORY.format(amount=quota // 4))
    assert (code, total, device, charged) == (0, tenant.memory, tenant.memory, quota // 4)
    assert free == quota - quota // 4
    assert first == {"total": total, "free": free, "used": total - free}
    assert second == {"total": total, "reserved": 0, "free": free, "used": total - free}


def test_without_us_the_device_is_shown(bare: Tenant, driver: Driver, quota: int) -> None:
    _, total, device, _, _, first, _ = ask(bare, MEMORY.format(amount=quota // 4))
    assert total == device > quota
    assert total == driver.devices[0].memory <= first["total"], "what programs can have"


def test_a_slice_without_a_limit_shows_the_device(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = """
    from client import *
    up()
    device = ctypes.c_size_t()
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(device), 0))
    handle = nvml_up()
    answer([info()[1], device.value, nvml_info(handle)["total"], nvml_info2(handle)])
    """
    ours, theirs = ask(make_tenant(), script), ask(bare, script)
    assert ours[:3] == theirs[:3]
    assert ours[3]["reserved"] == theirs[3]["reserved"]


def test_memory_of_all_processes_of_the_tenant_counts(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota, processes=2)
    hold = tenant.start(*tenant.script(f"from client import *\nup()\nanswer(alloc({quota // 2})[0])\nsys.stdin.read()"))
    assert hold.stdout is not None
    assert hold.stdout.readline() == "0\n"
    script = "from client import *\nup()\nanswer([info()[0], nvml_info(nvml_up())['used']])"
    contexts = tenant.memory - quota
    assert ask(tenant, script) == [quota - quota // 2, contexts + quota // 2]
    hold.kill()
    hold.wait()
    time.sleep(0.15)
    assert ask(tenant, script) == [quota + contexts // 2, contexts // 2]


def test_free_memory_is_never_more_than_the_device_has(
    make_machine: Callable[[str], Driver], make_tenant: Make
) -> None:
    """Somebody outside of all tenants has filled the device."""
    machine = make_machine("t4")
    whole = machine.devices[0].memory
    outside = Tenant(machine, preload="")
    tenant = make_tenant(whole // 2, on=machine)
    fill = outside.start(
        *outside.script(f"from client import *\nup()\nanswer(alloc(info()[0] - {whole // 8})[0])\nsys.stdin.read()")
    )
    try:
        assert fill.stdout is not None
        assert fill.stdout.readline() == "0\n"
        script = (
            "from client import *\nup()\nhandle = nvml_up()\nanswer([info(), nvml_info(handle), nvml_info2(handle)])"
        )
        (free, total), first, second = ask(tenant, script)
    finally:
        outside.stop()
    assert free <= whole // 8
    assert total == first["total"] == second["total"] == whole // 2
    assert first["free"] == second["free"] == free
    assert first["used"] == second["used"] + second["reserved"] == total - free
    assert second["used"] == 0


def test_outputs_that_are_left_out_stay_out(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = """
    from client import *
    up()
    available, total = ctypes.c_size_t(1), ctypes.c_size_t(1)
    codes = [cuda.cuMemGetInfo_v2(ctypes.byref(available), None), cuda.cuMemGetInfo_v2(None, ctypes.byref(total)),
             cuda.cuMemGetInfo_v2(None, None)]
    answer([codes, available.value, total.value])
    """
    tenant = make_tenant(quota)
    codes, free, total = tenant.ask(script)
    assert codes == bare.ask(script)[0]
    if not codes[0]:
        assert free == quota
    if not codes[1]:
        assert total == tenant.memory


def test_a_limit_lowered_below_usage_shows_no_free_memory_and_refuses(make_tenant: Make, quota: int) -> None:
    """The grant changes while the program runs: seen at the next call."""
    tenant = make_tenant(quota)
    script = f"""
    from client import *
    up()
    code, made = alloc({quota // 2})
    answer(code)
    sys.stdin.readline()
    answer([info(), alloc(1)[0], free(made), info(), alloc({quota // 4})[0], alloc(1)[0]])
    """
    process = tenant.start(*tenant.script(script))
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    quarter, total = quota // 4, tenant.memory - quota + quota // 4
    tenant.change(0, memory=total)
    said, _ = process.communicate("\n", timeout=60)
    assert said == f"[[0, {total}], 2, 0, [{quarter}, {total}], 0, 2]\n"


def test_bad_arguments_get_nvmls_codes(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = """
    handle = nvml_up()
    answer([nvml.nvmlDeviceGetMemoryInfo(handle, None), nvml.nvmlDeviceGetMemoryInfo_v2(handle, None),
            nvml.nvmlDeviceGetMemoryInfo_v2(handle, ctypes.byref(Memory2(version=3))),
            nvml.nvmlDeviceGetMemoryInfo(ctypes.c_void_p(0), ctypes.byref(Memory()))])
    """
    assert ask(make_tenant(quota), script) == ask(bare, script)


# ---- devices -----------------------------------------------------------------------------------------------


def test_each_device_shows_its_own_slice(make_machine: Callable[[str], Driver], make_tenant: Make) -> None:
    """Device 1 is granted. CUDA's order is turned round; NVML shows device 1 alone, whatever CUDA's order is."""
    machine = make_machine("2xh200")
    quota = 3 * 2**30
    tenant = make_tenant(quota, devices=[1], on=machine)
    script = """
    from client import *
    def total(ordinal):
        value = ctypes.c_size_t()
        check(cuda.cuDeviceTotalMem_v2(ctypes.byref(value), ordinal))
        return value.value
    up(1)
    answer([total(0), total(1), info()[1], nvml_info(nvml_up(0))["total"],
            nvml.nvmlDeviceGetHandleByIndex_v2(1, ctypes.byref(ctypes.c_void_p()))])
    """
    first, second, current, nvml_first, nvml_second = ask(tenant, script, CUDA_VISIBLE_DEVICES="1,0")
    assert (first, nvml_first, nvml_second) == (quota, quota, 2)
    assert second == current > quota
