# SPDX-License-Identifier: Apache-2.0
"""Refuse, but not yet: where the grant lets a slice spill, what its part of the device has no room for lies in host
memory, and both together are bounded by the grant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tools.tenants import MIB, Driver, Tenant, set_knobs

Make = Callable[..., Tenant]

OUT_OF_MEMORY = 2
PHYSICAL, SPILL = 16 * MIB, 48 * MIB

PRELUDE = """
from client import *
import judge
up()
def books():
    return [judge.charged() >> 20, judge.spilled() >> 20, judge.held() >> 20]
"""


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """The simulated GPU in any case: its books are read here."""
    return make_machine("h200")


@pytest.fixture
def spilling(make_tenant: Make, driver: Driver) -> Tenant:
    """A tenant with 64 MiB, of which 48 lie in host memory."""
    tenant = make_tenant(PHYSICAL, on=driver)
    tenant.change(0, memory=PHYSICAL + SPILL, memory_spill=SPILL)
    return tenant


ALLOCATIONS = ("alloc", "alloc_managed")


@pytest.mark.parametrize("function", ALLOCATIONS)
def test_what_the_device_part_has_no_room_for_lies_in_host_memory(spilling: Tenant, function: str) -> None:
    script = f"""{PRELUDE}
made, said = [], []
for amount in (10, 10, 40, 4):
    code, one = {function}(amount << 20)
    made.append(one)
    said.append([code, *books()])
said.append([alloc(1)[0], *books()])
for one in (made[1], made[0], made[3], made[2]):
    said.append([free(one), *books()])
answer(said)
"""
    assert spilling.ask(script) == [
        [0, 10, 0, 10], [0, 16, 4, 16], [0, 16, 44, 16], [0, 16, 48, 16], [OUT_OF_MEMORY, 16, 48, 16],
        [0, 10, 44, 10], [0, 0, 44, 0], [0, 0, 40, 0], [0, 0, 0, 0]]  # fmt: skip
    assert spilling.usage()[0].refusals == 1


@pytest.mark.parametrize("function", ALLOCATIONS)
def test_nothing_spills_unless_it_is_granted(make_tenant: Make, function: str) -> None:
    script = f"""{PRELUDE}
answer([{function}({PHYSICAL + 1})[0], {function}({PHYSICAL})[0], {function}(1)[0], *books()])
"""
    assert make_tenant(PHYSICAL).ask(script) == [OUT_OF_MEMORY, 0, OUT_OF_MEMORY, 16, 0, 16]


@pytest.mark.parametrize("function", ALLOCATIONS)
def test_the_sum_is_bounded_by_the_grant_to_the_byte(spilling: Tenant, bare: Tenant, function: str) -> None:
    script = f"""
    from client import *
    up()
    most = {PHYSICAL + SPILL}
    over = {function}(most + 1)[0]
    code, whole = {function}(most)
    answer([over, code, {function}(1)[0], free(whole), {function}(most - 1)[0], {function}(1)[0], {function}(1)[0]])
    """
    assert spilling.ask(script) == [OUT_OF_MEMORY, 0, OUT_OF_MEMORY, 0, 0, 0, OUT_OF_MEMORY]
    assert bare.ask(script) == [0] * 7


def test_spilled_memory_is_memory(spilling: Tenant) -> None:
    """One allocation on both sides holds what is written to it, from end to end."""
    script = f"""{PRELUDE}
code, made = alloc(40 << 20)
data = os.urandom(40 << 20)
back = ctypes.create_string_buffer(40 << 20)
check(cuda.cuMemcpyHtoD_v2(made, data, size(len(data))))
check(cuda.cuMemcpyDtoH_v2(back, made, size(len(data))))
answer([code, back.raw == data, *books()])
"""
    assert spilling.ask(script) == [0, True, 16, 24, 16]


CANNOT = {
    "blocks": "create(2 << 20)[0]",
    "stream-ordered memory": "alloc_async(2 << 20)[0]",
    "pitched memory": "alloc_pitch(2 << 20)[0]",
    "arrays": "array_2d(2048, 1024, UINT8, 1)[0]",
    "32-bit addresses": "cuda.cuMemAlloc(ctypes.byref(ctypes.c_uint()), ctypes.c_uint(2 << 20))",
}


@pytest.mark.parametrize("kind", CANNOT)
def test_what_cannot_spill_is_refused_beyond_the_device_part(spilling: Tenant, kind: str) -> None:
    script = f"""{PRELUDE}
from arrays import *
code, made = alloc({PHYSICAL})
said = [code, {CANNOT[kind]}, *books(), free(made), {CANNOT[kind]}]
answer([*said, alloc(1 << 20)[0]])
"""
    assert spilling.ask(script) == [0, OUT_OF_MEMORY, 16, 0, 16, 0, 0, 0]


def test_all_that_a_tenant_is_told_includes_what_may_spill(spilling: Tenant) -> None:
    script = f"""{PRELUDE}
nvml = ctypes.CDLL("libnvidia-ml.so.1")
check(nvml.nvmlInit_v2())
handle, memory, device = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)(), ctypes.c_size_t()
check(nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)))
def ask():
    check(nvml.nvmlDeviceGetMemoryInfo(handle, memory))
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(device), 0))
    return [one >> 20 for one in (*info(), device.value, *memory)]
said = [ask()]
check(alloc(30 << 20)[0])
said.append(ask())
said += [alloc(info()[0] + 1)[0], alloc(info()[0])[0], ask()]
answer(said)
"""
    assert spilling.ask(script) == [
        [64, 64, 64, 64, 64, 0], [34, 64, 64, 64, 34, 30], OUT_OF_MEMORY, 0, [0, 64, 64, 64, 0, 64]]  # fmt: skip


def test_the_context_lies_on_the_device(spilling: Tenant, driver: Driver) -> None:
    assert driver.machine is not None
    set_knobs(driver.machine, context_overhead=12 * MIB)
    script = f"""{PRELUDE}
said = [books(), alloc(10 << 20)[0], books()]
answer(said)
"""
    assert spilling.ask(script) == [[12, 0, 12], 0, [16, 6, 16]]


def test_a_device_with_less_room_than_the_quota_says_makes_memory_spill(
    make_machine: Callable[[str], Driver], make_tenant: Make
) -> None:
    """Somebody outside of all tenants has filled it."""
    machine = make_machine("t4")
    outside = Tenant(machine, preload="")
    fill = outside.peer("from client import *\nup()")
    assert fill.do("answer(alloc(info()[0] - (8 << 20))[0])") == 0
    tenant = make_tenant(PHYSICAL, on=machine)
    script = f"""{PRELUDE}
code, made = alloc(12 << 20)
said = [code, *books()]
answer([*said, *([] if code else [free(made), *books()])])
"""
    assert tenant.ask(script) == [OUT_OF_MEMORY, 0, 0, 0]
    tenant.change(0, memory=PHYSICAL + SPILL, memory_spill=SPILL)
    assert tenant.ask(script) == [0, 0, 12, 0, 0, 0, 0, 0]
    tenant.change(0, memory=PHYSICAL + 8 * MIB, memory_spill=8 * MIB)
    assert tenant.ask(script) == [OUT_OF_MEMORY, 0, 0, 0]
    outside.stop()


def test_a_slice_may_be_larger_than_the_device(make_machine: Callable[[str], Driver], make_tenant: Make) -> None:
    machine = make_machine("t4")
    device = machine.devices[0].memory
    tenant = make_tenant(device, on=machine)
    tenant.change(0, memory=device + SPILL, memory_spill=SPILL)
    script = f"""{PRELUDE}
capacity = int(judge.machine().devices[0].identity.memory_total - judge.machine().devices[0].identity.memory_reserved)
total = info()[1]
most = capacity >> 21 << 21
code, whole = alloc(most)
more, rest = alloc({SPILL})
answer([total == capacity + {SPILL}, code, more, judge.spilled() + judge.charged() == most + {SPILL},
        judge.held() <= capacity, free(whole), free(rest), *books()])
"""
    assert tenant.ask(script) == [True, 0, 0, True, True, 0, 0, 0, 0, 0]


def test_threads_that_race_for_both_parts_keep_both_accounts(spilling: Tenant) -> None:
    script = f"""{PRELUDE}
import random, threading
seen, context = [[0, 0, 0, 0] for _ in range(8)], ctypes.c_void_p()
check(cuda.cuCtxGetCurrent(ctypes.byref(context)))
def body(mine, chance):
    check(cuda.cuCtxSetCurrent(context))
    live = []
    for _ in range(400):
        code, made = alloc(chance.randrange(1, 8 << 20))
        assert code in (0, OUT_OF_MEMORY), code
        mine[bool(code)] += 1
        mine[2], mine[3] = max(mine[2], judge.charged()), max(mine[3], judge.spilled())
        if not code:
            live.append(made)
        while live and (code or len(live) > 4):
            check(free(live.pop(chance.randrange(len(live)))))
            code = 0
    for made in live:
        check(free(made))
threads = [threading.Thread(target=body, args=(seen[i], random.Random(i))) for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
answer([sum(mine[1] for mine in seen), max(mine[2] for mine in seen), max(mine[3] for mine in seen), books()])
"""
    refused, charged, spilled, left = spilling.ask(script)
    assert left == [0, 0, 0]
    assert PHYSICAL / 2 < charged <= PHYSICAL
    assert 0 < spilled <= SPILL
    assert refused > 0, "the race was not at the edge"
