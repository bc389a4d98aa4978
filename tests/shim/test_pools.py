# SPDX-License-Identifier: Apache-2.0
"""Refuse: stream-ordered memory is charged by what its pools have reserved, and reusing it never fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tools.conversation import Conversation
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY, INVALID_VALUE = 2, 1
WAYS = {
    "cuMemAllocAsync": "lambda n: on_stream(n)",
    "cuMemAllocAsync_ptsz": "lambda n: on_stream(n, ptsz=True)",
    "cuMemAllocFromPoolAsync": "lambda n: from_pool(n, default_pool())",
    "cuMemAllocFromPoolAsync_ptsz": "lambda n: from_pool(n, default_pool(), ptsz=True)",
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)

QUOTA = 64 * MIB


def begin(quota: int) -> str:
    """Preamble of a script in a tenant."""
    return f"""
from client import *
from surface import *
quota = {quota}
context = up()
def both(pool=None):
    return [charged(quota), pool_says(RESERVED, pool)]
"""


def ask(tenant: Tenant, body: str, quota: int = QUOTA) -> object:
    return tenant.ask(begin(quota) + body)


@EVERY_WAY
def test_a_pool_is_charged_what_it_has_reserved_at_every_step(make_tenant: Make, quota: int, way: str) -> None:
    body = f"""
alloc_one, said, made = {way}, [], []
for amount in (1, 4096, 300000, {3 * MIB}, quota // 2, quota // 8):
    code, pointer = alloc_one(amount)
    check(code)
    made.append(pointer)
    said.append(both())
for pointer in made:
    check(free_on(pointer))
    said.append(both())
for sync in (cuda.cuStreamSynchronize, cuda.cuStreamSynchronize_ptsz):
    check(sync(None))
said.append(both())
answer(said)
"""
    said = make_tenant(quota).ask(begin(quota) + body)
    assert [charge for charge, _ in said] == [reserved for _, reserved in said]
    assert said[5][0] >= quota // 2 + quota // 8
    assert said[-1] == [0, 0]


@EVERY_WAY
def test_two_pieces_that_do_not_fit_together_are_refused_only_by_us(
    make_tenant: Make, bare: Tenant, quota: int, way: str
) -> None:
    body = f"""
alloc_one = {way}
first, second = alloc_one(quota * 6 // 10), alloc_one(quota * 6 // 10)
said = [first[0], second[0], pool_says(RESERVED) > quota]
answer([*said, free_on(first[1]), alloc_one(quota * 3 // 10)[0]])
"""
    tenant = make_tenant(quota)
    assert tenant.ask(begin(quota) + body) == [0, OUT_OF_MEMORY, False, 0, 0]
    assert bare.ask(begin(quota).replace("quota)", "quota, 0)") + body) == [0, 0, True, 0, 0]
    assert tenant.usage()[0].refusals == 1


# Ten seconds of work, which nobody waits for.
LONG = "check(launch(spin_function(), 10_000_000_000, on))\n"


@pytest.mark.parametrize("ptsz", [False, True])
@pytest.mark.parametrize("flags", ["None", "stream(0)", "stream(1)"])
def test_reuse_on_a_stream_is_never_refused_and_nothing_waits_for_work(
    make_tenant: Make, quota: int, ptsz: bool, flags: str
) -> None:
    body = f"""
on = {flags}
codes = set()
for big in range(2):
    for _ in range(50):
        code, made = on_stream(quota * 6 // 10, on, {ptsz})
        codes |= {{code, free_on(made, on, {ptsz})}}
    {LONG}
busy = cuda.cuStreamQuery(on)
answer([sorted(codes), busy == NOT_READY, *both()])
"""
    codes, busy, charge, reserved = make_tenant(quota).ask(begin(quota) + body)
    assert (codes, busy) == ([0], True)
    assert charge == reserved <= quota


def test_what_another_stream_has_to_do_first_is_not_counted_on(make_tenant: Make, quota: int) -> None:
    """The freed memory is behind ten seconds of work: the pool would have to grow."""
    body = f"""
on, other = stream(1), stream(1)
code, made = on_stream(quota * 6 // 10, on)
{LONG}
said = [code, free_on(made, on), on_stream(quota * 6 // 10, other)[0]]
answer([*said, pool_says(RESERVED) <= quota, on_stream(quota * 6 // 10, on)[0]])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, 0, OUT_OF_MEMORY, True, 0]


def test_a_block_that_was_handed_out_again_is_counted_on_only_once(make_tenant: Make, quota: int) -> None:
    body = f"""
on = stream(1)
code, made = on_stream(quota * 6 // 10, on)
{LONG}
check(free_on(made, on))
answer([on_stream(quota * 6 // 10, on)[0], on_stream(quota * 6 // 10, on)[0], pool_says(RESERVED) <= quota])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, OUT_OF_MEMORY, True]


# ---- memory that a pool keeps ----------------------------------------------------------------------------


def test_kept_memory_stays_charged_until_it_is_trimmed(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota, processes=2)
    keeper, other = Conversation(tenant), Conversation(tenant)
    other("up()")
    held = quota * 3 // 4 // (2 * MIB) * (2 * MIB)
    keeper(f"""
up()
check(keep(2**64 - 1))
code, made = on_stream({held})
check(code), check(free_on(made)), check(cuda.cuCtxSynchronize())
""")
    assert keeper(f"answer([charged({quota}), pool_says(RESERVED), pool_says(USED)])") == [held, held, 0]
    assert other(f"answer(alloc({quota // 2})[0])") == OUT_OF_MEMORY
    assert keeper(f"answer([trim({held // 2}), pool_says(RESERVED)])")[0] == 0
    assert keeper(f"answer(charged({quota}) == pool_says(RESERVED))")
    assert keeper(f"answer([trim(), charged({quota})])") == [0, 0]
    assert other(f"answer(alloc({quota // 2})[0])") == 0


def test_a_lower_threshold_lets_go_at_the_next_synchronisation(make_tenant: Make, quota: int) -> None:
    body = """
check(keep(2**64 - 1))
check(free_on(on_stream(quota // 2)[1]))
check(cuda.cuCtxSynchronize())
said = [charged(quota) >= quota // 2, keep(0)]
check(cuda.cuCtxSynchronize())
answer([*said, charged(quota)])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [True, 0, 0]


@pytest.mark.parametrize(
    "other",
    [
        "alloc(quota // 2)[0]",
        "alloc_managed(quota // 2)[0]",
        "alloc_pitch(quota // 2)[0]",
        "create(quota // 2 // (2 << 20) * (2 << 20))[0]",
        "array(quota // 2)[0]",
        "mipmap(quota // 2)[0]",
        "from_pool(quota // 2, make_pool()[1])[0]",
    ],
)
def test_kept_memory_gives_way_to_what_the_same_process_needs(make_tenant: Make, quota: int, other: str) -> None:
    body = f"""
check(keep(2**64 - 1))
check(free_on(on_stream(quota * 3 // 4)[1]))
check(cuda.cuCtxSynchronize())
kept = charged(quota)
answer([kept >= quota * 3 // 4, {other}, quota // 2 - (2 << 20) <= charged(quota) <= quota // 2 + (2 << 20)])
"""
    tenant = make_tenant(quota)
    assert tenant.ask(begin(quota) + body) == [True, 0, True]
    assert tenant.usage()[0].refusals == 0


SYNCHRONISATIONS = {
    "cuStreamSynchronize": "cuda.cuStreamSynchronize(on)",
    "cuStreamSynchronize_ptsz": "cuda.cuStreamSynchronize_ptsz(on)",
    "cuStreamSynchronize of the null stream": "cuda.cuStreamSynchronize(None)",
    "cuEventSynchronize": "cuda.cuEventSynchronize(mark)",
    "cuCtxSynchronize": "cuda.cuCtxSynchronize()",
    "cuCtxSynchronize_v2": "cuda.cuCtxSynchronize_v2(context)",
    # The driver lets go at the copy, which is none of our business; the question is where we hear of it.
    "cuStreamQuery": "cuda.cuMemcpyDtoH_v2(back, some, size(4)) or cuda.cuStreamQuery(on)",
    "cuStreamQuery_ptsz": "cuda.cuMemcpyDtoH_v2(back, some, size(4)) or cuda.cuStreamQuery_ptsz(on)",
    "cuEventQuery": "cuda.cuMemcpyDtoH_v2(back, some, size(4)) or cuda.cuEventQuery(mark)",
}


@pytest.mark.parametrize("call", SYNCHRONISATIONS.values(), ids=SYNCHRONISATIONS)
def test_after_a_synchronisation_another_process_can_have_what_was_freed(
    make_tenant: Make, quota: int, call: str
) -> None:
    tenant = make_tenant(quota, processes=2)
    owner, other = Conversation(tenant), Conversation(tenant)
    other("up()")
    owner(f"""
context, back, on = up(), ctypes.create_string_buffer(4), stream(0)
code, some = alloc(4)
check(code)
code, made = on_stream({quota // 2}, on)
check(code)
""")
    assert other(f"answer(alloc({quota * 3 // 4})[0])") == OUT_OF_MEMORY
    owner(f"check(free_on(made, on))\nmark = event(on)\ncheck({call})")
    assert other(f"code, made = alloc({quota * 3 // 4})\nanswer([code, free(made)])") == [0, 0]
    assert owner(f"answer([charged({quota}), pool_says(RESERVED)])") == [4, 0]


def test_memory_behind_work_that_goes_on_is_nobody_elses(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota, processes=2)
    owner, other = Conversation(tenant), Conversation(tenant)
    other("up()")
    owner(f"""
up()
on, idle = stream(1), stream(1)
made = on_stream({quota * 6 // 10}, on)[1]
{LONG}
check(free_on(made, on))
""")
    assert owner("answer([cuda.cuStreamQuery(on), cuda.cuStreamQuery(idle), cuda.cuStreamSynchronize(idle)])") == [
        600, 0, 0,
    ]  # fmt: skip
    assert owner(f"answer(charged({quota}) == pool_says(RESERVED) > 0)")
    assert other(f"answer(alloc({quota * 6 // 10})[0])") == OUT_OF_MEMORY


@pytest.mark.parametrize("way", ["alloc", "alloc_managed", "alloc_pitch"])
@pytest.mark.parametrize("ptsz", [False, True])
def test_memory_of_no_pool_that_is_freed_behind_work_is_charged_until_that_is_done(
    make_tenant: Make, quota: int, way: str, ptsz: bool
) -> None:
    body = f"""
on, idle, tick = stream(1), stream(1), spin_function()
def freed_behind(ns):
    code, made = {way}(quota * 6 // 10)
    check(code), check(launch(tick, ns, on)), check(free_on(made, on, {ptsz}))
freed_behind(1_000_000)
check(cuda.cuStreamSynchronize(on))
said = [charged(quota)]
freed_behind(10_000_000_000)
said += [alloc(quota * 6 // 10)[0], cuda.cuStreamSynchronize(idle), charged(quota) >= quota * 6 // 10 - 65536]
code, small = alloc(quota // 4)
said += [code, free_on(small, idle), cuda.cuStreamQuery(on)]
answer([*said, charged(quota) < quota * 6 // 10 + (2 << 20), cuda.cuCtxDestroy_v2(context), up() and charged(quota)])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, OUT_OF_MEMORY, 0, True, 0, 0, 600, True, 0, 0]


# ---- pools of the program's own ----------------------------------------------------------------------------


@pytest.mark.parametrize("ptsz", [False, True])
def test_a_pool_of_the_programs_own_is_charged_like_the_devices(make_tenant: Make, quota: int, ptsz: bool) -> None:
    body = f"""
code, pool = make_pool()
first, made = from_pool(quota // 2, pool, None, {ptsz})
said = [code, first, charged(quota) == pool_says(RESERVED, pool), from_pool(quota, pool, None, {ptsz})[0]]
said += [free_on(made, None, {ptsz}), cuda.cuCtxSynchronize(), charged(quota), cuda.cuMemPoolDestroy(pool)]
answer(said)
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, 0, True, OUT_OF_MEMORY, 0, 0, 0, 0]


def test_a_pool_that_is_destroyed_stays_charged_until_its_last_memory_goes(make_tenant: Make, quota: int) -> None:
    body = """
pool, half = make_pool()[1], quota // 4
first, second = from_pool(half, pool)[1], from_pool(half, pool)[1]
said = [cuda.cuMemPoolDestroy(pool), alloc(quota * 6 // 10)[0], from_pool(1, pool)[0], cuda.cuMemPoolDestroy(pool)]
said += [free(first), cuda.cuCtxSynchronize(), half <= charged(quota) <= half + (2 << 20)]
said += [free_on(second), cuda.cuCtxSynchronize(), charged(quota), alloc(quota)[0]]
answer(said)
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [
        0, OUT_OF_MEMORY, INVALID_VALUE, INVALID_VALUE, 0, 0, True, 0, 0, 0, 0,
    ]  # fmt: skip


def test_a_pool_that_is_destroyed_stays_charged_while_work_needs_its_memory(make_tenant: Make, quota: int) -> None:
    body = f"""
pool, on = make_pool()[1], stream(1)
made = from_pool(quota * 6 // 10, pool, on)[1]
{LONG}
said = [free_on(made, on), cuda.cuMemPoolDestroy(pool), alloc(quota * 6 // 10)[0], cuda.cuStreamQuery(on)]
answer([*said, quota * 6 // 10 <= charged(quota)])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, 0, OUT_OF_MEMORY, 600, True]


def test_pools_come_and_go_without_a_trace(make_tenant: Make, quota: int) -> None:
    body = """
codes = set()
for turn in range(300):
    code, pool = make_pool()
    first, made = from_pool(quota * 6 // 10, pool)
    codes |= {code, first, free_on(made)}
    if turn % 3:
        codes.add(cuda.cuCtxSynchronize())
    codes.add(cuda.cuMemPoolDestroy(pool))
    if not turn % 3:
        codes.add(cuda.cuCtxSynchronize())
answer([sorted(codes), charged(quota)])
"""
    tenant = make_tenant(quota)
    assert tenant.ask(begin(quota) + body) == [[0], 0]
    assert tenant.usage()[0].refusals == 0


@pytest.mark.parametrize("live", [False, True], ids=["empty", "with memory"])
def test_the_pool_in_use_decides_where_memory_comes_from(
    make_tenant: Make, bare: Tenant, quota: int, live: bool
) -> None:
    body = f"""
pool = make_pool()[1]
said = [cuda.cuDeviceSetMemPool(0, pool), current_pool().value == pool.value]
code, made = on_stream(quota // 4)
said += [code, pool_says(RESERVED, pool) >= quota // 4, pool_says(RESERVED)]
if not {live}:
    said += [free_on(made), cuda.cuCtxSynchronize()]
said += [cuda.cuMemPoolDestroy(pool), current_pool().value == default_pool().value]
answer([*said, on_stream(quota // 4)[0], pool_says(RESERVED) >= quota // 4])
"""
    tenant = make_tenant(quota)
    assert tenant.ask(begin(quota) + body) == bare.ask(begin(quota).replace("quota)", "quota, 0)") + body)


def test_calls_that_make_no_sense_get_the_drivers_codes(make_tenant: Make, bare: Tenant, quota: int) -> None:
    body = """
pool, props, value = make_pool()[1], PoolProps(alloc_type=1, location_type=77), ctypes.c_uint64(0)
nothing = ctypes.byref(value)
answer([
    cuda.cuMemPoolCreate(None, None), cuda.cuMemPoolCreate(ctypes.byref(pool), None),
    cuda.cuMemPoolCreate(ctypes.byref(handle()), ctypes.byref(props)), make_pool(99)[0],
    cuda.cuMemPoolDestroy(None), cuda.cuMemPoolDestroy(default_pool()), cuda.cuMemPoolDestroy(ctypes.c_void_p(64)),
    from_pool(4096, None)[0], from_pool(4096, ctypes.c_void_p(64))[0], from_pool(0, pool)[0],
    on_stream(4096, ctypes.c_void_p(64))[0], on_stream(4096, ctypes.c_void_p(64), True)[0],
    cuda.cuMemAllocFromPoolAsync(None, size(1), pool, None),
    cuda.cuMemPoolTrimTo(None, size(0)), cuda.cuMemPoolTrimTo(ctypes.c_void_p(64), size(0)),
    cuda.cuMemPoolSetAttribute(None, RELEASE_THRESHOLD, nothing), cuda.cuMemPoolSetAttribute(pool, 99, nothing),
    cuda.cuMemPoolSetAttribute(pool, RELEASE_THRESHOLD, None), cuda.cuMemPoolSetAttribute(pool, RESERVED, nothing),
    free_on(address(64)), free_on(address(0)), cuda.cuMemPoolDestroy(pool)])
"""
    tenant = make_tenant(quota)
    ours = tenant.ask(begin(quota) + body)
    assert ours == bare.ask(begin(quota) + body)
    assert ours[-1] == 0
    assert tenant.allocated() == 0


def test_memory_of_a_pool_is_freed_by_cumemfree_too(make_tenant: Make, quota: int) -> None:
    body = """
code, made = on_stream(quota // 2)
said = [code, free(made), cuda.cuCtxSynchronize(), charged(quota), free(made)]
answer([*said, alloc(quota)[0]])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0, 0, 0, 0, INVALID_VALUE, 0]


HOST_POOLS = {
    "made by the program": "made, pool = make_pool(0, HOST_LOCATION)",
    "the driver's own": (
        "pool, where = handle(), (ctypes.c_int * 2)(HOST_LOCATION, 0)\n"
        "made = cuda.cuMemGetDefaultMemPool(ctypes.byref(pool), where, 1)"
    ),
}


@pytest.mark.parametrize("start", HOST_POOLS.values(), ids=HOST_POOLS)
def test_pools_in_host_memory_are_not_charged(make_tenant: Make, quota: int, start: str) -> None:
    body = f"""
check(alloc(quota)[0])
{start}
first, pointer = from_pool(64 << 20, pool)
answer([made, first, charged(quota) - quota, free_on(pointer), cuda.cuCtxSynchronize(), charged(quota) - quota])
"""
    assert make_tenant(quota).ask(begin(quota) + body) == [0] * 6


# ---- ends ---------------------------------------------------------------------------------------------------

ENDS = {
    "destroyed": ("context = up()", "check(cuda.cuCtxDestroy_v2(context))"),
    "reset": (
        "check(cuda.cuInit(0)), check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)),"
        " check(cuda.cuCtxSetCurrent(context))",
        "check(cuda.cuDevicePrimaryCtxReset_v2(0)), cuda.cuDevicePrimaryCtxRelease_v2(0)",
    ),
}


@pytest.mark.parametrize(("start", "end"), ENDS.values(), ids=ENDS)
def test_pools_whose_context_ends_are_charged_what_the_driver_keeps(
    make_tenant: Make, quota: int, start: str, end: str
) -> None:
    """And begin anew: what was live before the end must not hold back what is freed after it."""
    body = f"""
from client import *
from surface import *
quota, context, said = {quota}, handle(), []
for turn in range(3):
    {start}
    pool, made = default_pool(), []
    said.append([charged(quota), pool_says(RESERVED)])
    for amount in (quota // 2, quota // 8):
        code, pointer = on_stream(amount)
        check(code)
        made.append(pointer)
    check(from_pool(quota // 8, make_pool()[1])[0])
    check(free_on(made[1]))
    check(cuda.cuCtxSynchronize())
    said.append(quota // 2 <= charged(quota) - pool_says(RESERVED) + quota // 2 < quota * 3 // 4)
    {end}
{start}
answer([said, charged(quota), alloc(quota)[0]])
"""
    assert make_tenant(quota).ask(body) == [[[0, 0], True] * 3, 0, 0]


def test_a_child_of_fork_has_no_pools(make_tenant: Make, bare: Tenant, quota: int) -> None:
    body = """
code, made = on_stream(quota // 2)
reader, writer = os.pipe()
child = os.fork()
if not child:
    said = [on_stream(quota // 8)[0], free_on(made), cuda.cuCtxSynchronize(), trim(0, default) if default else 0]
    os.write(writer, json.dumps(said).encode())
    os._exit(0)
os.waitpid(child, 0)
in_child = json.loads(os.read(reader, 1000))
answer([in_child, code, free_on(made), cuda.cuCtxSynchronize(), pool_says(RESERVED), alloc(quota)[0]])
"""
    script = begin(quota) + "default = default_pool()\n" + body
    tenant = make_tenant(quota)
    ours = tenant.ask(script)
    assert ours == bare.ask(script)
    assert ours[1:] == [0, 0, 0, 0, 0]


# ---- devices ------------------------------------------------------------------------------------------------


def test_pools_of_several_devices_draw_on_their_own_quotas(
    make_machine: Callable[[str], Driver], make_tenant: Make
) -> None:
    tenant = make_tenant(QUOTA, devices=[0, 1], on=make_machine("2xh200"))
    body = """
first = context
second = up(1)
pools = [make_pool(0)[1], make_pool(1)[1]]
check(cuda.cuCtxSetCurrent(first))
said = [from_pool(48 << 20, pools[1])[0], charged(quota), from_pool(48 << 20, pools[0])[0], charged(quota)]
said += [from_pool(48 << 20, pools[1])[0], on_stream(32 << 20)[0]]
check(cuda.cuCtxSetCurrent(second))
answer([*said, charged(quota)])
"""
    used = 48 * MIB
    assert ask(tenant, body) == [0, 0, 0, used, OUT_OF_MEMORY, OUT_OF_MEMORY, used]


def test_a_pool_on_a_device_that_is_not_granted_gives_nothing(
    make_machine: Callable[[str], Driver], make_tenant: Make
) -> None:
    machine = make_machine("2xh200")
    body = """
from client import *
from surface import *
up()
code, pool = make_pool(0)
other, granted = make_pool(1)
answer([code, from_pool(1, pool)[0], on_stream(1)[0], from_pool(1, default_pool(0))[0], cuda.cuMemPoolDestroy(pool),
        other, from_pool(1, granted)[0], from_pool(1, default_pool(1))[0]])
"""
    assert make_tenant(QUOTA, devices=[1], on=machine).ask(body) == [0, 2, 2, 2, 0, 0, 0, 0]
    assert Tenant(machine, preload="").ask(body) == [0] * 8


def test_a_killed_process_leaves_its_pools_to_the_others(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota, processes=2)
    doomed, survivor = Conversation(tenant), Conversation(tenant)
    doomed(f"up(), check(keep(2**64 - 1)), check(on_stream({quota // 2})[0])")
    doomed(f"check(free_on(on_stream({quota // 4})[1])), check(from_pool({quota // 8}, make_pool()[1])[0])")
    survivor("up()")
    assert survivor(f"answer(alloc({quota // 2})[0])") == OUT_OF_MEMORY
    doomed.kill()
    # The dead are looked for once in a tick of the clock.
    survivor(f"while on_stream({quota})[0]:\n    time.sleep(0.001)")
    assert survivor(f"answer(charged({quota}))") == quota
