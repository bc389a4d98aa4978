# SPDX-License-Identifier: Apache-2.0
"""Refuse: memory never exceeds its quota, and nothing is ever lost."""

from __future__ import annotations

import random
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]
Program = Callable[[str], Path]

OUT_OF_MEMORY = 2
ALLOCATIONS = ("alloc", "alloc_pitch", "alloc_managed", "alloc_async", "alloc_async_ptsz")


@pytest.mark.parametrize("function", ALLOCATIONS)
def test_an_allocation_over_the_quota_is_refused_and_the_program_lives_on(
    make_tenant: Make, bare: Tenant, quota: int, function: str
) -> None:
    script = f"""
    from client import *
    up()
    quota, said = {quota}, []
    code, first = {function}(quota // 2)
    said.append(code)
    code, second = {function}(quota)
    said.append(code)
    if not code:
        said.append(free(second))
    said += [free(first), {function}(quota // 2)[0]]
    answer(said)
    """
    tenant = make_tenant(quota)
    assert tenant.ask(script) == [0, OUT_OF_MEMORY, 0, 0]
    assert bare.ask(script) == [0, 0, 0, 0, 0]
    assert tenant.usage()[0].refusals == 1


@pytest.mark.parametrize("function", ALLOCATIONS)
def test_the_quota_is_exact_to_the_byte(make_tenant: Make, quota: int, function: str) -> None:
    script = f"""
    from client import *
    up()
    code, whole = {function}({quota})
    rest = alloc(1)[0]
    answer([code, rest, free(whole), alloc(1)[0]])
    """
    assert make_tenant(quota).ask(script) == [0, OUT_OF_MEMORY, 0, 0]


def test_frees_of_both_kinds_give_back(make_tenant: Make, quota: int) -> None:
    script = f"""
    from client import *
    up()
    said = []
    for free_one in (cuda.cuMemFree_v2, lambda made: cuda.cuMemFreeAsync(made, None),
                     lambda made: cuda.cuMemFreeAsync_ptsz(made, None)):
        code, made = alloc_async({quota})
        said += [code, free_one(made)]
        check(cuda.cuCtxSynchronize())
    answer(said)
    """
    tenant = make_tenant(quota)
    assert tenant.ask(script) == [0] * 6
    assert tenant.allocated() == 0


def test_arguments_that_make_no_sense_get_the_drivers_codes(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = f"""
    from client import *
    made, pitch, said = pointer(), ctypes.c_size_t(), []
    null = None
    def ask():
        said.append([
            cuda.cuMemAlloc_v2(null, size(1024)), cuda.cuMemAlloc_v2(ctypes.byref(made), size(0)),
            cuda.cuMemAllocManaged(null, size(1024), 1), cuda.cuMemAllocManaged(ctypes.byref(made), size(1024), 77),
            cuda.cuMemAllocPitch_v2(null, null, size(1), size(1), 4),
            cuda.cuMemAllocPitch_v2(ctypes.byref(made), ctypes.byref(pitch), size(0), size(1), 4),
            cuda.cuMemAllocPitch_v2(ctypes.byref(made), ctypes.byref(pitch), size(64), size(64), 3),
            cuda.cuMemAllocAsync(null, size(1024), null), cuda.cuMemAllocAsync(ctypes.byref(made), size(0), null),
            cuda.cuMemFree_v2(ctypes.c_uint64(0)), cuda.cuMemFree_v2(ctypes.c_uint64(0x1234)),
            cuda.cuMemFreeAsync(ctypes.c_uint64(0), null), cuda.cuMemFreeAsync(ctypes.c_uint64(0x1234), null),
            cuda.cuMemFreeAsync_ptsz(ctypes.c_uint64(0x1234), null), cuda.cuDeviceTotalMem_v2(null, 0),
            cuda.cuDeviceTotalMem_v2(ctypes.byref(pitch), 99), cuda.cuDeviceTotalMem_v2(ctypes.byref(pitch), -1),
            cuda.cuCtxDestroy_v2(null), cuda.cuDevicePrimaryCtxReset_v2(99), cuda.cuDevicePrimaryCtxRelease_v2(99),
            cuda.cuMemGetInfo_v2(null, null), cuda.cuInit(5)])
    ask()
    check(cuda.cuInit(0))
    ask()
    up()
    ask()
    code, first = alloc({quota // 4})
    said.append([code, free(first), free(first)])
    answer(said)
    """
    tenant = make_tenant(quota)
    assert tenant.ask(script) == bare.ask(script)
    assert tenant.allocated() == 0


def test_a_size_beyond_all_memory_is_the_drivers_to_refuse(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = """
    from client import *
    up()
    made, pitch, huge = pointer(), ctypes.c_size_t(), 2**64 - 1
    pitched = [cuda.cuMemAllocPitch_v2(ctypes.byref(made), ctypes.byref(pitch), size(width), size(height), 4)
               for width, height in ((huge, 1), (huge, huge), (2**40, 2**40), (1, huge))]
    answer([bool(code) for code in (*pitched, alloc(huge)[0], alloc(2**63)[0], alloc_managed(huge)[0])])
    """
    tenant = make_tenant(quota)
    assert tenant.ask(script) == bare.ask(script) == [True] * 7
    assert tenant.allocated() == 0


def test_pitched_memory_is_charged_with_the_drivers_pitch(make_tenant: Make, quota: int) -> None:
    """And in the driver's blocks, if it has any."""
    script = """
    from client import *
    up()
    total = info()[0]
    made, pitch = pointer(), ctypes.c_size_t()
    check(cuda.cuMemAllocPitch_v2(ctypes.byref(made), ctypes.byref(pitch), size(1000), size(3000), 4))
    charged = total - info()[0]
    check(free(made))
    exact, block = pitch.value * 3000, 2 << 20
    answer([charged in (exact, -(-exact // block) * block), info()[0] == total])
    """
    assert make_tenant(quota).ask(script) == [True, True]


@pytest.mark.parametrize("size", [3 * MIB, 2 * MIB + 1, 5 * MIB - 1, MIB + MIB // 2])
def test_what_the_driver_rounds_up_to_is_charged(
    make_machine: Callable[[str], Driver], make_tenant: Make, size: int
) -> None:
    """Blocks of odd sizes: what the device has given is what is charged, and stays within the quota."""
    script = f"""
    from client import *
    import judge
    up()
    made = 0
    while made < 1000 and alloc({size})[0] == 0:
        made += 1
    answer([made, judge.taken()])
    """
    block, quota = -(-size // (2 * MIB)) * 2 * MIB, 200 * MIB
    machine = make_machine("h200")
    tenant = make_tenant(quota, on=machine)
    assert tenant.ask(script) == [quota // block, quota // block * block]
    assert Tenant(machine, preload="").ask(script)[1] > quota


def test_hundred_thousand_live_allocations_are_freed_to_the_last_byte(make_tenant: Make, quota: int) -> None:
    script = """
    from client import *
    up()
    made = [alloc(256) for _ in range(100_000)]
    held = info()[0]
    codes = {code for code, _ in made} | {free(one) for _, one in made}
    answer([sorted(codes), info()[0] - held])
    """
    tenant = make_tenant(quota)
    assert tenant.ask(script) == [[0], 256 * 100_000]
    assert tenant.allocated() == 0


# ---- races ---------------------------------------------------------------------------------------------


def race(tenant: Tenant, program: Program, shared: Path, quota: int) -> tuple[int, int, int, int]:
    """8 threads in each of 4 processes for 2 s: bytes held at the end, violations, allocations, refusals."""
    shared.write_bytes(bytes(40))
    command = (program("race"), "8", "2", str(quota // 24), str(quota), str(shared), "4")
    racers = [tenant.start(*command) for _ in range(4)]
    assert [racer.wait(60) for racer in racers] == [0] * 4
    held, violations, made, refused, _ = struct.unpack("5Q", shared.read_bytes())
    return held, violations, made, refused


def test_threads_and_processes_that_race_never_exceed_the_quota(
    make_tenant: Make, program: Program, tmp_path: Path, quota: int
) -> None:
    tenant = make_tenant(quota, processes=4)
    held, violations, made, refused = race(tenant, program, tmp_path / "shared", quota)
    assert (held, violations) == (0, 0)
    assert made > (1000 if tenant.driver.machine else 100)  # a real card takes a millisecond for one
    assert refused > 100, "the race was not at the edge"
    assert tenant.allocated() == 0
    assert tenant.usage()[0].refusals == refused


def test_the_same_race_exceeds_the_quota_without_us(bare: Tenant, program: Program, tmp_path: Path, quota: int) -> None:
    _, violations, _, _ = race(bare, program, tmp_path / "shared", quota)
    assert violations > 0


# ---- processes that end in every way ----------------------------------------------------------------------


def test_sigkill_at_random_moments_leaves_nothing(
    make_tenant: Make, program: Program, tmp_path: Path, quota: int
) -> None:
    tenant, shared, chance = make_tenant(quota, processes=2), tmp_path / "shared", random.Random(20261120)
    command = (program("race"), "4", "30", str(quota // 24), str(2**62), str(shared), "2")
    for _ in range(12):
        shared.write_bytes(bytes(40))
        racers, deadline = [tenant.start(*command) for _ in range(2)], time.monotonic() + 60
        while struct.unpack("5Q", shared.read_bytes())[2] < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        for racer in racers:
            racer.send_signal(signal.SIGKILL)
        assert [racer.wait(10) for racer in racers] == [-signal.SIGKILL] * 2
        assert struct.unpack("5Q", shared.read_bytes())[2] >= 10, "they were killed before they did anything"
    script = f"""
    from client import *
    up()
    code, whole = alloc({quota})
    answer([code, free(whole)])
    """
    assert tenant.ask(script) == [0, 0]
    assert tenant.allocated() == 0


def test_exec_without_free_gives_the_memory_back(make_tenant: Make, quota: int) -> None:
    after = f"""
from client import *
up()
code, whole = alloc({quota})
print(json.dumps([os.getpid() == int(sys.argv[1]), code]))
"""
    script = f"""
    from client import *
    up()
    check(alloc({quota})[0])
    code = "import ctypes, json, os, sys; sys.path.insert(0, " + repr(sys.path[0]) + ")\\n" + {after!r}
    os.execv(sys.executable, [sys.executable, "-c", code, str(os.getpid())])
    """
    assert make_tenant(quota).ask(script) == [True, 0]


FORK = """
from client import *
up()
quota = {quota}
code, held = alloc(quota // 2)
reader, writer = os.pipe()
child = os.fork()
if not child:
    code, _ = alloc(quota // 4)
    said = [code, free(held), cuda.cuMemGetInfo_v2(None, None), cuda.cuCtxSynchronize()]
    os.write(writer, json.dumps(said).encode())
    os._exit(0)
os.waitpid(child, 0)
in_child = json.loads(os.read(reader, 1000))
rest, made = alloc(quota // 2)
answer([in_child, rest, free(held), free(made)])
"""


def test_fork_after_cuinit_behaves_as_without_us(make_tenant: Make, bare: Tenant, quota: int) -> None:
    tenant = make_tenant(quota)
    ours = tenant.ask(FORK.format(quota=quota))
    assert ours == bare.ask(FORK.format(quota=quota))
    assert ours[1:] == [0, 0, 0]
    assert tenant.allocated() == 0


def test_a_child_of_fork_has_its_own_account(make_tenant: Make, quota: int) -> None:
    """Forked before the driver was up, parent and child share the quota but nothing else."""
    script = f"""
    from client import *
    quota = {quota}
    down, up_again = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        up()
        code, held = alloc(quota // 2)
        os.write(up_again[1], json.dumps(code).encode())
        os.read(down[0], 1)
        os.kill(os.getpid(), 9)
    up()
    said = [json.loads(os.read(up_again[0], 10)), alloc(quota)[0]]
    code, held = alloc(quota // 2)
    said.append(code)
    os.write(down[1], b"x")
    os.waitpid(child, 0)
    time.sleep(0.05)
    answer([*said, alloc(quota // 2)[0]])
    """
    assert make_tenant(quota, processes=2).ask(script) == [0, OUT_OF_MEMORY, 0, 0]


@pytest.mark.parametrize(
    "end",
    [
        "check(cuda.cuCtxDestroy_v2(context))",
        "check(cuda.cuCtxDestroy(context))",
        "check(cuda.cuCtxSetCurrent(context)); check(cuda.cuCtxDetach(context))",
    ],
)
def test_the_end_of_a_context_gives_its_memory_back(make_tenant: Make, quota: int, end: str) -> None:
    script = f"""
    from client import *
    other, context = up(), up()
    check(alloc({quota // 2})[0])
    check(cuda.cuCtxSetCurrent(other))
    code, kept = alloc({quota // 4})
    {end}
    check(cuda.cuCtxSetCurrent(other))
    answer([code, alloc({quota})[0], alloc({quota - quota // 4})[0], free(kept)])
    """
    assert make_tenant(quota).ask(script) == [0, OUT_OF_MEMORY, 0, 0]


PRIMARY = """
from client import *
context = ctypes.c_void_p()
def start():
    check(cuda.cuInit(0))
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    check(cuda.cuCtxSetCurrent(context))
start()
first = alloc({quota})[0]
check(cuda.{end}(0))
start()
second, made = alloc({quota})
answer([first, second])
"""


@pytest.mark.parametrize(
    "end",
    [
        "cuDevicePrimaryCtxReset",
        "cuDevicePrimaryCtxReset_v2",
        "cuDevicePrimaryCtxRelease",
        "cuDevicePrimaryCtxRelease_v2",
    ],
)
def test_the_end_of_a_primary_context_gives_its_memory_back(make_tenant: Make, quota: int, end: str) -> None:
    assert make_tenant(quota).ask(PRIMARY.format(quota=quota, end=end)) == [0, 0]


def test_a_release_that_is_not_the_last_gives_nothing_back(make_tenant: Make, quota: int) -> None:
    script = PRIMARY.format(quota=quota, end="cuDevicePrimaryCtxRelease_v2")
    kept = script.replace("first =", "check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))\nfirst =")
    assert make_tenant(quota).ask(kept) == [0, OUT_OF_MEMORY]


# ---- devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", ["0,1", "1,0"])
def test_quotas_are_of_devices_whatever_their_order(
    make_machine: Callable[[str], Driver], make_tenant: Make, visible: str
) -> None:
    """Device 1 of the machine is granted, device 0 is only visible."""
    tenant = make_tenant(64 * MIB, devices=[1], on=make_machine("2xh200"))
    script = """
    from client import *
    said = []
    for ordinal in (0, 1):
        up(ordinal)
        said.append([alloc(64 << 20)[0], alloc(1)[0]])
    answer(said)
    """
    granted, hidden = [0, OUT_OF_MEMORY], [OUT_OF_MEMORY, OUT_OF_MEMORY]
    expected = [hidden, granted] if visible == "0,1" else [granted, hidden]
    assert tenant.ask(script, CUDA_VISIBLE_DEVICES=visible) == expected


def test_a_stream_allocates_on_its_own_device(make_machine: Callable[[str], Driver], make_tenant: Make) -> None:
    tenant = make_tenant(64 * MIB, devices=[0, 1], on=make_machine("2xh200"))
    script = """
    from client import *
    first, stream = up(0), ctypes.c_void_p()
    check(cuda.cuStreamCreate(ctypes.byref(stream), 0))
    second, made = up(1), pointer()
    code = cuda.cuMemAllocAsync(ctypes.byref(made), size(64 << 20), stream)
    here = alloc(64 << 20)[0]
    check(cuda.cuCtxSetCurrent(first))
    answer([code, here, alloc(1)[0]])
    """
    assert tenant.ask(script) == [0, 0, OUT_OF_MEMORY]
