# SPDX-License-Identifier: Apache-2.0
"""Several devices: each its own quota, whatever CUDA calls it, and memory is of the device that it is on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import vgpu_shim
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY = 2

QUOTAS = (16 * MIB, 32 * MIB, 64 * MIB)
"""Of three devices; a fourth is not granted."""

EACH = """
from client import *
import judge
check(cuda.cuInit(0))
count = ctypes.c_int()
check(cuda.cuDeviceGetCount(ctypes.byref(count)))
contexts = [up(ordinal) for ordinal in range(count.value)]
def total(ordinal):
    amount = ctypes.c_size_t()
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(amount), ordinal))
    return amount.value
def on(ordinal):
    check(cuda.cuCtxSetCurrent(contexts[ordinal]))
"""


@pytest.fixture
def four(make_machine: Callable[[str], Driver]) -> Driver:
    return make_machine("4xh200")


@pytest.fixture
def tenant(make_tenant: Make, four: Driver) -> Tenant:
    """A tenant of three of four devices, each with its own quota."""
    made = make_tenant(QUOTAS[0], devices=[0, 1, 2], on=four)
    for index, memory in enumerate(QUOTAS):
        made.change(index, memory=memory)
    return made


def uuids(driver: Driver) -> list[str]:
    return [device.uuid for device in driver.devices]


def prefixes(driver: Driver) -> list[str]:
    """The shortest that tell the devices apart."""
    whole = uuids(driver)
    return [
        next(one[:length] for length in range(5, 41) if sum(other.startswith(one[:length]) for other in whole) == 1)
        for one in whole
    ]


ORDERS = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0], [1], [3, 1], [3]]
NAMES: dict[str, Callable[[Driver], list[str]]] = {
    "indices": lambda driver: ["0", "1", "2", "3"],
    "UUIDs": uuids,
    "prefixes of UUIDs": prefixes,
}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("names", NAMES)
def test_quotas_are_of_devices_however_they_are_made_visible(
    tenant: Tenant, four: Driver, names: str, order: list[int]
) -> None:
    named = NAMES[names](four)
    script = f"""{EACH}
said = []
for ordinal in range(count.value):
    on(ordinal)
    quota = {[QUOTAS[index] if index < 3 else 0 for index in order]}[ordinal]
    said.append([total(ordinal), info()[1], *(alloc(quota)[:1] if quota else [2]), alloc(1)[0]])
answer([said, [judge.charged(index) for index in range(3)]])
"""
    told, charged = tenant.ask(script, CUDA_VISIBLE_DEVICES=",".join(named[index] for index in order))
    whole = int(Tenant(four, preload="").ask("from client import *\nup()\nanswer(info()[1])"))
    for index, (total, shown, code, more) in zip(order, told, strict=True):
        expected = QUOTAS[index] if index < 3 else whole
        assert (total, shown) == (expected, expected), f"device {index}"
        assert (code, more) == (0 if index < 3 else OUT_OF_MEMORY, OUT_OF_MEMORY)
    assert charged == [QUOTAS[index] if index in order else 0 for index in range(3)]


def test_without_us_every_device_gives_more(tenant: Tenant, four: Driver) -> None:
    script = f"""{EACH}
said = []
for ordinal in range(count.value):
    on(ordinal)
    said.append(alloc({2 * QUOTAS[2]})[0])
answer(said)
"""
    assert tenant.ask(script) == [OUT_OF_MEMORY] * 4
    assert Tenant(four, preload="").ask(script) == [0] * 4


def test_the_list_is_cut_at_what_is_no_device(tenant: Tenant, four: Driver) -> None:
    script = f"{EACH}\nanswer([count.value, *(total(ordinal) for ordinal in range(count.value))])"
    assert tenant.ask(script, CUDA_VISIBLE_DEVICES="2,1,9,0") == [2, QUOTAS[2], QUOTAS[1]]
    assert tenant.ask(script, CUDA_VISIBLE_DEVICES=f"{uuids(four)[1]},GPU-none") == [1, QUOTAS[1]]


KINDS = {
    "linear": "alloc(amount)[0]",
    "managed": "alloc_managed(amount)[0]",
    "pitched": "alloc_pitch(amount)[0]",
    "stream-ordered": "alloc_async(amount)[0]",
    "an array": "array_2d(amount >> 10, 1 << 10, UINT8, 1)[0]",
    "external": "bring_external(foreign(amount), amount)[0]",
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_allocation_is_of_the_current_contexts_device(tenant: Tenant, kind: str) -> None:
    script = f"""{EACH}
from arrays import *
from sharing import *
said = []
for ordinal, amount in ((2, 8 << 20), (0, 2 << 20), (1, 4 << 20), (0, 6 << 20)):
    on(ordinal)
    said.append({KINDS[kind]})
    said.append([judge.charged(index) >> 20 for index in range(3)])
answer([*said, [judge.held(index) >> 20 for index in range(3)]])
"""
    assert tenant.ask(script) == [0, [0, 0, 8], 0, [2, 0, 8], 0, [2, 4, 8], 0, [8, 4, 8], [8, 4, 8]]


def test_a_free_is_of_the_device_that_the_memory_is_on(tenant: Tenant) -> None:
    script = f"""{EACH}
on(1)
code, made = alloc({QUOTAS[1]})
on(2)
said = [code, alloc({QUOTAS[2]})[0], free(made), [judge.charged(index) for index in range(3)]]
on(1)
answer([*said, alloc({QUOTAS[1]})[0]])
"""
    assert tenant.ask(script) == [0, 0, 0, [0, 0, QUOTAS[2]], 0]


@pytest.mark.parametrize("function", ["cuMemAllocAsync", "cuMemAllocAsync_ptsz"])
def test_a_stream_of_another_devices_context_allocates_there(tenant: Tenant, function: str) -> None:
    script = f"""{EACH}
on(2)
stream, made = ctypes.c_void_p(), pointer()
check(cuda.cuStreamCreate(ctypes.byref(stream), 0))
on(0)
codes = [cuda.{function}(ctypes.byref(made), size(amount << 20), stream) for amount in (48, 48)]
answer([codes, [judge.charged(index) >> 20 for index in range(3)], [judge.held(index) >> 20 for index in range(3)]])
"""
    assert tenant.ask(script) == [[0, OUT_OF_MEMORY], [0, 0, 48], [0, 0, 48]]


def test_the_end_of_a_context_gives_back_what_was_on_its_device(tenant: Tenant) -> None:
    script = f"""{EACH}
for ordinal in range(3):
    on(ordinal)
    check(alloc((ordinal + 1) << 22)[0])
check(cuda.cuCtxDestroy_v2(contexts[1]))
answer([judge.charged(index) >> 20 for index in range(3)])
"""
    assert tenant.ask(script) == [4, 0, 12]


def test_without_a_context_an_allocation_gets_the_drivers_code(tenant: Tenant, four: Driver) -> None:
    script = """
    from client import *
    check(cuda.cuInit(0))
    answer([alloc(1 << 20)[0], alloc_managed(1 << 20)[0], alloc_async(1 << 20)[0], alloc(1 << 40)[0]])
    """
    assert tenant.ask(script) == Tenant(four, preload="").ask(script)


def test_threads_use_their_own_devices_at_once(tenant: Tenant) -> None:
    script = f"""{EACH}
import threading
quotas, said = {QUOTAS}, [None] * 3
def body(ordinal):
    on(ordinal)
    made, codes = [], set()
    for _ in range(300):
        code, one = alloc(quotas[ordinal] // 4)
        codes.add(code)
        if code:
            check(free(made.pop()))
        else:
            made.append(one)
    said[ordinal] = [sorted(codes), len(made)]
threads = [threading.Thread(target=body, args=(ordinal,)) for ordinal in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
answer([said, [judge.charged(i) == judge.held(i) == said[i][1] * (quotas[i] // 4) for i in range(3)]])
"""
    said, equal = tenant.ask(script)
    assert [codes for codes, _ in said] == [[0, OUT_OF_MEMORY]] * 3
    assert equal == [True] * 3


def test_each_device_has_its_own_context_to_pay_for(make_machine: Callable[[str], Driver], make_tenant: Make) -> None:
    from tools.tenants import set_knobs

    machine = make_machine("2xh200")
    assert machine.machine is not None
    set_knobs(machine.machine, context_overhead=24 * MIB)
    tenant = make_tenant(32 * MIB, devices=[0, 1], on=machine)
    tenant.change(0, memory=16 * MIB)
    script = """
    from client import *
    import judge
    check(cuda.cuInit(0))
    made = ctypes.c_void_p()
    codes = [cuda.cuCtxCreate_v2(ctypes.byref(made), 0, ordinal) for ordinal in (0, 1)]
    answer([codes, judge.charged(0), judge.charged(1), judge.held(0), judge.held(1)])
    """
    assert tenant.ask(script) == [[OUT_OF_MEMORY, 0], 0, 24 * MIB, 0, 24 * MIB]


def test_the_tenant_reads_its_devices_in_the_order_of_the_grant(tenant: Tenant, four: Driver) -> None:
    found: list[vgpu_shim.SliceUsage] = tenant.usage()
    assert [(one.device, one.memory) for one in found] == list(zip(uuids(four)[:3], QUOTAS, strict=True))
