# SPDX-License-Identifier: Apache-2.0
"""Refuse: physical memory apart from addresses is charged where it is, once, and for as long as anything holds it."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable

import pytest
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY, INVALID_VALUE, INVALID_DEVICE = 2, 1, 101
PIECE = 2 * MIB


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """The simulated GPU in any case: its books are read here."""
    return make_machine("h200")


def of_block(script: str) -> str:
    """A script that may use a block's size."""
    return "\nfrom client import *\nimport judge\nup()\namount = 4 * PIECE\n" + textwrap.dedent(script)


def test_a_block_over_the_quota_is_refused_and_the_program_lives_on(
    make_tenant: Make, bare: Tenant, quota: int
) -> None:
    script = f"""
    from client import *
    up()
    first, one = create({quota // 2 // PIECE * PIECE})
    second, two = create({quota})
    said = [first, second, release(one)]
    if not second:
        said.append(release(two))
    answer([*said, create({quota})[0]])
    """
    tenant = make_tenant(quota)
    assert tenant.ask(script) == [0, OUT_OF_MEMORY, 0, 0]
    assert bare.ask(script) == [0, 0, 0, 0, 0]
    assert tenant.usage()[0].refusals == 1


# ---- how long it is held --------------------------------------------------------------------------------

ENDS = {
    "release": "check(release(handle))",
    "unmap one": "check(unmap(place, amount))",
    "unmap two": "check(unmap(other, amount))",
    "release retained": "check(release(again))",
}


@pytest.mark.parametrize("order", list(itertools.permutations(ENDS)), ids=", ".join)
def test_a_block_is_given_back_with_its_last_holder_in_every_order(
    make_tenant: Make, quota: int, order: tuple[str, ...]
) -> None:
    script = f"""
    place, other = reserve(amount), reserve(amount)
    code, handle = create(amount)
    check(code)
    said = [judge.charged()]
    check(map_at(place, amount, handle))
    check(map_at(other, amount, handle))
    code, again = retain(other + PIECE + 4096)
    check(code)
    said.append(judge.charged())
    for end in {[ENDS[name] for name in order]!r}:
        exec(end)
        said.append([judge.charged(), judge.held()])
    answer(said)
    """
    held = 4 * PIECE
    assert make_tenant(quota).ask(of_block(script)) == [held, held, *[[held, held]] * 3, [0, 0]]


def test_one_call_unmaps_several_neighbours(make_tenant: Make, quota: int) -> None:
    script = """
    place = reserve(3 * amount)
    blocks = [create(amount)[1] for _ in range(2)]
    host = create(amount, properties(location=HOST))[1]
    for index, handle in enumerate([blocks[0], host, blocks[1]]):
        check(map_at(place + index * amount, amount, handle))
        check(release(handle))
    said = [judge.charged()]
    partly = unmap(place, amount // 2), unmap(place + amount // 2, 2 * amount), unmap(place, 4 * amount)
    said += [[bool(code) for code in partly], judge.charged()]
    check(unmap(place, 3 * amount))
    answer([*said, judge.charged(), judge.held()])
    """
    charged = 8 * PIECE
    assert make_tenant(quota).ask(of_block(script)) == [charged, [True] * 3, charged, 0, 0]


def test_failures_leave_the_account_as_it_was(make_tenant: Make, bare: Tenant, quota: int) -> None:
    """Each call fails by the driver's own code, and what the block is charged stays."""
    script = """
    place = reserve(2 * amount)
    code, handle = create(amount)
    check(code)
    check(map_at(place, amount, handle))
    unknown, wild = ctypes.c_uint64(0x1234560), ctypes.c_uint64(2**64 - 1)
    null = None
    codes = [
        map_at(place, amount, handle), map_at(place + amount, amount, unknown), map_at(12345, amount, handle),
        map_at(place + amount, 2 * amount, handle), map_at(place + amount, 0, handle),
        unmap(place + amount, amount), unmap(place, 2**64 - 2**21), unmap(place, 2**62), unmap(0, amount),
        unmap(place, 0), release(unknown), release(wild), release(ctypes.c_uint64(0)),
        retain(place + amount)[0], retain(0)[0], retain(2**47)[0],
        cuda.cuMemRetainAllocationHandle(null, ctypes.c_void_p(place)),
        cuda.cuMemCreate(null, size(amount), ctypes.byref(properties()), 0), create(0)[0], create(12345)[0],
        cuda.cuMemCreate(ctypes.byref(wild), size(amount), null, 0), create(amount, properties(place=99))[0],
        create(amount, properties(place=-1))[0], create(amount, properties(location=0))[0],
    ]
    kept = judge.charged() if "VGPU_TENANT" in os.environ else amount
    check(unmap(place, amount))
    check(release(handle))
    answer([codes, kept, release(handle)])
    """
    tenant = make_tenant(quota)
    ours, theirs = tenant.ask(of_block(script)), bare.ask(of_block(script))
    assert ours == theirs
    assert [code for code in ours[0] if code in (0, OUT_OF_MEMORY)] == [], ours[0]
    assert ours[1] == 4 * PIECE
    assert tenant.usage()[0].memory_used == 0


def test_a_retained_handle_counts_as_often_as_it_was_given(make_tenant: Make, quota: int) -> None:
    script = """
    place = reserve(amount)
    handle = create(amount)[1]
    check(map_at(place, amount, handle))
    again = [retain(place + step)[1] for step in (0, 1, amount - 1)]
    check(unmap(place, amount))
    said = []
    for one in (handle, *again):
        said.append(judge.charged())
        check(release(one))
    answer([said, judge.charged(), judge.held()])
    """
    assert make_tenant(quota).ask(of_block(script)) == [[4 * PIECE] * 4, 0, 0]


# ---- where it is ---------------------------------------------------------------------------------------


def test_a_thread_without_a_context_is_charged_by_location(
    make_machine: Callable[[str], Driver], make_tenant: Make
) -> None:
    """As NCCL makes its buffers: cuInit was called, and on this thread nothing else."""
    tenant = make_tenant(16 * MIB, devices=[0, 1], on=make_machine("3xh200"))
    script = """
    from client import *
    import judge, threading
    up(0)
    said = []
    def body():
        current = ctypes.c_void_p()
        check(cuda.cuCtxGetCurrent(ctypes.byref(current)))
        said.append(bool(current.value))
        for place, amount in ((1, 8), (1, 8), (1, 2), (0, 16), (0, 2), (2, 2)):
            said.append(create(amount << 20, properties(place))[0])
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    answer([said, judge.charged(0), judge.charged(1)])
    """
    codes = [False, 0, 0, OUT_OF_MEMORY, 0, OUT_OF_MEMORY, OUT_OF_MEMORY]
    assert tenant.ask(script) == [codes, 16 * MIB, 16 * MIB]


@pytest.mark.parametrize("location", ["HOST", "HOST_NUMA", "HOST_NUMA_CURRENT"])
def test_blocks_in_host_memory_are_not_charged(make_tenant: Make, quota: int, location: str) -> None:
    script = f"""
    check(alloc({quota})[0])
    place = reserve(amount)
    code, handle = create(amount, properties(location={location}))
    said = [code, map_at(place, amount, handle), judge.charged()]
    again = retain(place + 1)[1]
    answer([*said, unmap(place, amount), release(handle), release(again), judge.charged(), create(PIECE)[0]])
    """
    assert make_tenant(quota).ask(of_block(script)) == [0, 0, quota, 0, 0, 0, quota, OUT_OF_MEMORY]


def test_without_any_context_in_the_process_the_quota_holds(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = f"""
    from client import *
    check(cuda.cuInit(0))
    answer([create({quota})[0], create(PIECE)[0]])
    """
    assert make_tenant(quota).ask(script) == [0, OUT_OF_MEMORY]
    assert bare.ask(script) == [0, 0]


# ---- many of them ---------------------------------------------------------------------------------------


def test_segments_that_expand_fill_the_quota_twice(make_tenant: Make) -> None:
    """As PyTorch's expandable segments: blocks of 20 MiB in one range of addresses until it is refused, all
    let go, and once more."""
    script = """
    from client import *
    import judge
    up()
    block, most = 20 << 20, 3000
    place = reserve(most * block)
    said = []
    for _ in range(2):
        count = 0
        while count < most:
            code, handle = create(block)
            if code:
                break
            check(map_at(place + count * block, block, handle))
            check(release(handle))
            count += 1
        said += [count, code, judge.charged(), judge.held()]
        check(unmap(place, count * block))
        said += [judge.charged(), judge.held()]
    answer(said)
    """
    block, count = 20 * MIB, 2500
    full = count * block
    assert make_tenant(full + block // 2).ask(script) == [count, OUT_OF_MEMORY, full, full, 0, 0] * 2


def test_threads_that_race_for_blocks_keep_the_account(make_tenant: Make, quota: int) -> None:
    script = f"""
    from client import *
    import judge, random, threading
    up()
    count = 8
    share = {quota} // (count - 2) // PIECE * PIECE
    seen, gate = [[0, 0, 0] for _ in range(count)], threading.Barrier(count)
    def body(mine, chance):
        place = reserve(share)
        for _ in range(400):
            code, handle = create(share)
            mine[bool(code)] += 1
            mine[2] = max(mine[2], judge.charged(), judge.held())
            gate.wait(60)
            if code:
                assert code == OUT_OF_MEMORY, code
                continue
            ends = [lambda: release(handle)]
            if chance.random() < 0.7:
                check(map_at(place, share, handle))
                ends.append(lambda: unmap(place, share))
                if chance.random() < 0.5:
                    code, again = retain(place + chance.randrange(share))
                    check(code)
                    ends.append(lambda again=again: release(again))
            chance.shuffle(ends)
            for end in ends:
                check(end())
    threads = [threading.Thread(target=body, args=(seen[i], random.Random(i))) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer([sum(mine[0] for mine in seen), sum(mine[1] for mine in seen), max(mine[2] for mine in seen),
            judge.charged(), judge.held()])
    """
    made, refused, most, *left = make_tenant(quota).ask(script)
    assert left == [0, 0]
    assert most <= quota
    assert made + refused == 8 * 400
    assert refused >= 2 * 400, "all hold theirs at once, and two have no room"
