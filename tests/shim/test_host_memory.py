# SPDX-License-Identifier: Apache-2.0
"""Refuse: page-locked host memory has a quota of its own, or none, and a full device is nothing to it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY = 2

PRELUDE = """
from client import *
import judge, mmap
up()
"""

# How each way asks for memory and gives it back: code, something to free, and the freeing.
WAYS = {
    "cuMemAllocHost": ("lock('cuMemAllocHost', ctypes.c_uint({amount}))", "cuMemFreeHost"),
    "cuMemAllocHost_v2": ("lock('cuMemAllocHost_v2', size({amount}))", "cuMemFreeHost"),
    "cuMemHostAlloc": ("lock('cuMemHostAlloc', size({amount}), 2)", "cuMemFreeHost"),
    "cuMemHostRegister": ("register('cuMemHostRegister', {amount})", "cuMemHostUnregister"),
    "cuMemHostRegister_v2": ("register('cuMemHostRegister_v2', {amount})", "cuMemHostUnregister"),
}

CALLS = """
own = []
def lock(function, *arguments):
    made = ctypes.c_void_p()
    return getattr(cuda, function)(ctypes.byref(made), *arguments), made
def register(function, amount):
    own.append(mmap.mmap(-1, amount))
    place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(own[-1])))
    return getattr(cuda, function)(place, size(amount), 0), place
"""


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """The simulated GPU in any case: its books are read here."""
    return make_machine("h200")


def way(name: str, amount: int) -> str:
    return WAYS[name][0].format(amount=amount)


@pytest.mark.parametrize("function", WAYS)
def test_page_locked_memory_over_its_quota_is_refused(make_tenant: Make, bare: Tenant, function: str) -> None:
    tenant = make_tenant(64 * MIB)
    tenant.limit_host_memory(8 * MIB)
    script = f"""{PRELUDE}{CALLS}
first, one = {way(function, 5 * MIB)}
second, two = {way(function, 4 * MIB)}
rest, three = {way(function, 3 * MIB)}
codes = [first, second, rest]
codes += [cuda.{WAYS[function][1]}(made) for made, code in ((one, first), (two, second), (three, rest)) if not code]
codes.append({way(function, 8 * MIB)}[0])
answer([codes, [judge.host(), int(judge.ledger().host_refusals)] if "VGPU_TENANT" in os.environ else []])
"""
    assert tenant.ask(script) == [[0, OUT_OF_MEMORY, 0, 0, 0, 0], [8 * MIB, 1]]
    assert bare.ask(script) == [[0, 0, 0, 0, 0, 0, 0], []]


@pytest.mark.parametrize("function", WAYS)
@pytest.mark.parametrize("host", [0, 64 * MIB], ids=["not limited", "limited"])
def test_page_locked_memory_never_fails_because_the_device_is_full(
    make_tenant: Make, function: str, host: int, quota: int
) -> None:
    tenant = make_tenant(quota)
    tenant.limit_host_memory(host)
    script = f"""{PRELUDE}{CALLS}
full = [alloc({quota})[0], alloc(1)[0]]
code, made = {way(function, 64 * MIB)}
held = judge.host()
answer([full, code, held, judge.charged(), cuda.{WAYS[function][1]}(made), judge.host()])
"""
    assert tenant.ask(script) == [[0, OUT_OF_MEMORY], 0, 64 * MIB, quota, 0, 0]


def test_page_locked_memory_takes_nothing_from_the_device(make_tenant: Make, quota: int) -> None:
    script = f"""{PRELUDE}{CALLS}
before = info()
check({way("cuMemHostAlloc", 64 * MIB)}[0])
answer([info() == before, judge.charged(), judge.refused(), alloc({quota})[0]])
"""
    assert make_tenant(quota).ask(script) == [True, 0, 0, 0]


def test_page_locked_memory_is_counted_for_the_tenant_as_a_whole(make_tenant: Make) -> None:
    tenant = make_tenant(64 * MIB)
    tenant.limit_host_memory(8 * MIB)
    first, second = tenant.peer(PRELUDE + CALLS), tenant.peer(PRELUDE + CALLS)
    ask = f"code, made = {way('cuMemHostAlloc', 5 * MIB)}\nanswer([code, judge.host()])"
    assert first.do(ask) == [0, 5 * MIB]
    assert second.do(ask) == [OUT_OF_MEMORY, 5 * MIB]
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    time.sleep(0.05)  # the dead are looked for once in a tick of the kernel's coarse clock
    assert second.do(ask) == [0, 5 * MIB]
    assert second.end() == 0


def test_a_host_quota_that_shrinks_refuses_what_is_new_and_keeps_what_is_there(make_tenant: Make) -> None:
    tenant = make_tenant(64 * MIB)
    tenant.limit_host_memory(8 * MIB)
    peer = tenant.peer(PRELUDE + CALLS)
    assert peer.do(f"code, made = {way('cuMemHostAlloc', 6 * MIB)}\nanswer(code)") == 0
    tenant.limit_host_memory(4 * MIB)
    assert peer.do(f"answer([{way('cuMemHostAlloc', 1)}[0], judge.host()])") == [OUT_OF_MEMORY, 6 * MIB]
    assert peer.do(f"answer([cuda.cuMemFreeHost(made), {way('cuMemHostAlloc', 4 * MIB)}[0]])") == [0, 0]
    assert peer.end() == 0


def test_arguments_that_make_no_sense_get_the_drivers_codes(make_tenant: Make, bare: Tenant) -> None:
    script = f"""
    from client import *
    import judge, mmap
    {CALLS.replace(chr(10), chr(10) + "    ")}
    null, made = None, ctypes.c_void_p()
    def ask():
        return [
            cuda.cuMemAllocHost_v2(null, size(64)), lock("cuMemAllocHost_v2", size(0))[0],
            lock("cuMemHostAlloc", size(0), 0)[0], lock("cuMemHostAlloc", size(64), 0xff)[0],
            cuda.cuMemHostAlloc(null, size(64), 0), lock("cuMemAllocHost", ctypes.c_uint(0))[0],
            cuda.cuMemHostRegister_v2(null, size(64), 0), cuda.cuMemHostRegister(null, size(64), 0),
            cuda.cuMemFreeHost(null), cuda.cuMemFreeHost(ctypes.c_void_p(0x1234)),
            cuda.cuMemHostUnregister(null), cuda.cuMemHostUnregister(ctypes.c_void_p(0x1234))]
    said = [ask()]
    check(cuda.cuInit(0))
    said.append(ask())
    up()
    said.append(ask())
    code, place = register("cuMemHostRegister_v2", 4096)
    twice = cuda.cuMemHostRegister_v2(place, size(4096), 0)
    ends = [cuda.cuMemHostUnregister(place), cuda.cuMemHostUnregister(place)]
    code, place = lock("cuMemHostAlloc", size(4096), 0)
    ends += [cuda.cuMemHostUnregister(place), cuda.cuMemFreeHost(place), cuda.cuMemFreeHost(place)]
    answer([said, twice, ends, judge.host() if "VGPU_TENANT" in os.environ else 0])
    """
    tenant = make_tenant(64 * MIB)
    tenant.limit_host_memory(8 * MIB)
    assert tenant.ask(script) == bare.ask(script)
