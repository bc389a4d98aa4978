# SPDX-License-Identifier: Apache-2.0
"""The entries from before CUDA 3.2, which old programs are linked to: 32-bit sizes, the same quota."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tools.tenants import GIB, MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY = 2

OLD = """
from client import *
from arrays import *
import judge
context = ctypes.c_void_p()
check(cuda.cuInit(0))
check(cuda.cuCtxCreate(ctypes.byref(context), 0, 0))
def old_alloc(amount):
    made = ctypes.c_uint()
    return cuda.cuMemAlloc(ctypes.byref(made), ctypes.c_uint(amount)), made
def old_pitch(amount):
    made, pitch = ctypes.c_uint(), ctypes.c_uint()
    return cuda.cuMemAllocPitch(ctypes.byref(made), ctypes.byref(pitch), 1 << 10, amount >> 10, 4), made
def old_free(made):
    return cuda.cuMemFree(made)
def old_info():
    available, total = ctypes.c_uint(), ctypes.c_uint()
    check(cuda.cuMemGetInfo(ctypes.byref(available), ctypes.byref(total)))
    return [available.value, total.value]
def old_total():
    total = ctypes.c_uint()
    check(cuda.cuDeviceTotalMem(ctypes.byref(total), 0))
    return total.value
"""

WAYS = {
    "cuMemAlloc": ("old_alloc({amount})", "old_free"),
    "cuMemAllocPitch": ("old_pitch({amount})", "old_free"),
    "cuArrayCreate": ("array_2d({amount} >> 10, 1 << 10, UINT8, 1, 'cuArrayCreate')", "cuda.cuArrayDestroy"),
    "cuArray3DCreate": (
        "array_3d({amount} >> 10, 1 << 5, 1 << 5, UINT8, 1, 0, 'cuArray3DCreate')",
        "cuda.cuArrayDestroy",
    ),
}


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """The simulated GPU in any case: its books are read here."""
    return make_machine("h200")


@pytest.mark.parametrize("function", WAYS)
def test_an_old_allocation_over_the_quota_is_refused_and_freed_by_its_own_kind(
    make_tenant: Make, bare: Tenant, function: str
) -> None:
    ask, end = WAYS[function]
    script = f"""{OLD}
first, one = {ask.format(amount=12 * MIB)}
second, two = {ask.format(amount=8 * MIB)}
said = [first, second] + ([] if second else [{end}(two)])
books = [judge.charged(), judge.held()] if "VGPU_TENANT" in os.environ else []
said += [*books, {end}(one), {ask.format(amount=16 * MIB)}[0], alloc(1)[0]]
answer(said)
"""
    tenant = make_tenant(16 * MIB)
    assert tenant.ask(script) == [0, OUT_OF_MEMORY, 12 * MIB, 12 * MIB, 0, 0, OUT_OF_MEMORY]
    assert bare.ask(script) == [0, 0, 0, 0, 0, 0]


def test_old_and_new_frees_free_each_others_memory(make_tenant: Make) -> None:
    script = f"""{OLD}
code, made = old_alloc(4 << 20)
said = [code, cuda.cuMemFree_v2(ctypes.c_uint64(made.value)), judge.charged()]
code, made = old_alloc(4 << 20)
answer([*said, code, old_free(made), bool(old_free(made)), judge.charged(), judge.held()])
"""
    assert make_tenant(16 * MIB).ask(script) == [0, 0, 0, 0, 0, True, 0, 0]


@pytest.mark.parametrize("quota", [16 * MIB, 6 * GIB], ids=["fits 32 bits", "does not"])
def test_old_questions_show_the_slice_or_the_most_that_fits(make_tenant: Make, quota: int) -> None:
    script = f"""{OLD}
before = [old_info(), old_total()]
check(alloc(12 << 20)[0])
answer([*before, old_info(), info()[0]])
"""
    most = 2**32 - 1
    told = make_tenant(quota).ask(script)
    free = quota - 12 * MIB
    assert told == [[min(quota, most)] * 2, min(quota, most), [min(free, most), min(quota, most)], free]


def test_old_calls_that_make_no_sense_get_the_drivers_codes(make_tenant: Make, bare: Tenant) -> None:
    script = f"""{OLD}
made, null = ctypes.c_uint(), None
answer([cuda.cuMemAlloc(null, ctypes.c_uint(4)), cuda.cuMemAlloc(ctypes.byref(made), ctypes.c_uint(0)),
        cuda.cuMemAllocPitch(null, null, 4, 4, 4),
        cuda.cuMemAllocPitch(ctypes.byref(made), ctypes.byref(made), 4, 4, 3),
        cuda.cuMemFree(ctypes.c_uint(0)), cuda.cuMemFree(ctypes.c_uint(0x1230)),
        cuda.cuMemGetInfo(null, null), cuda.cuDeviceTotalMem(null, 0), cuda.cuDeviceTotalMem(ctypes.byref(made), 99),
        cuda.cuArrayCreate(null, null), cuda.cuArray3DCreate(null, null)])
"""
    tenant = make_tenant(16 * MIB)
    assert tenant.ask(script) == bare.ask(script)
    assert tenant.usage()[0].memory_used == 0
