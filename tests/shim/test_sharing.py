# SPDX-License-Identifier: Apache-2.0
"""Refuse: memory that several have is charged once, to the one that made it, or that brought it to the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]

OUT_OF_MEMORY, INVALID_VALUE = 2, 1
PIECE = 2 * MIB

PRELUDE = """
from client import *
from sharing import *
import judge
up()
amount = 8 * PIECE
"""


# ---- between processes of one tenant -------------------------------------------------------------------------


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """The simulated GPU in any case: its books are read here."""
    return make_machine("h200")


def test_a_block_that_two_processes_map_is_charged_once(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    giver, taker = tenant.peer(PRELUDE), tenant.peer(PRELUDE)
    amount = quota // PIECE * PIECE
    giver.do(f"""
    amount = {amount}
    code, handle = create(amount, properties(handles=FD))
    check(code)
    code, descriptor = export(handle)
    check(code)
    send({taker.process.pid}, descriptor)
    answer(0)
    """)
    brought = taker.do(f"""
    amount = {amount}
    descriptor = receive()
    code, handle = bring(descriptor)
    os.close(descriptor)
    place = reserve(amount)
    answer([code, map_at(place, amount, handle), judge.charged(), judge.taken(), create(PIECE)[0]])
    """)
    assert brought == [0, 0, amount, amount, OUT_OF_MEMORY]
    assert taker.do("answer([unmap(place, amount), release(handle), judge.charged(), judge.taken()])") == [
        0, 0, amount, amount]  # fmt: skip
    assert giver.do("answer([release(handle), judge.charged(), judge.taken()])") == [0, 0, 0]
    assert [giver.end(), taker.end()] == [0, 0]


@pytest.mark.parametrize("function", ["cuIpcOpenMemHandle", "cuIpcOpenMemHandle_v2"])
def test_memory_that_is_opened_by_ipc_is_charged_once(make_tenant: Make, quota: int, function: str) -> None:
    tenant = make_tenant(quota)
    giver, taker = tenant.peer(PRELUDE), tenant.peer(PRELUDE)
    text = giver.do(f"""
    code, made = alloc({quota})
    check(code)
    code, text = ipc_export(made)
    answer(text)
    """)
    opened = taker.do(f"""
    code, made = ipc_open({text!r}, {function!r})
    again, same = ipc_open({text!r}, {function!r})
    answer([code, again, made.value == same.value, judge.charged(), judge.taken(), alloc(1)[0]])
    """)
    assert opened == [0, 0, True, quota, quota, OUT_OF_MEMORY]
    closed = taker.do("""
    answer([free(made), ipc_close(made), ipc_close(made), bool(ipc_close(made)), judge.charged(), judge.taken()])
    """)
    assert closed == [INVALID_VALUE, 0, 0, True, quota, quota]
    assert giver.do("answer([free(made), judge.charged(), judge.taken()])") == [0, 0, 0]
    assert [giver.end(), taker.end()] == [0, 0]


# ---- memory of other drivers -----------------------------------------------------------------------------------


def test_external_memory_is_charged_once_and_its_buffers_are_freed_by_the_driver(make_tenant: Make, quota: int) -> None:
    script = f"""{PRELUDE}
descriptor = foreign(amount)
code, memory = bring_external(descriptor, amount)
said = [code, judge.charged(), judge.taken()]
buffers = [buffer_of(memory, 0, amount), buffer_of(memory, PIECE, PIECE)]
said += [[code for code, _ in buffers], judge.charged(), alloc({quota} - amount + 1)[0]]
said += [free(buffers[0][1]), free(buffers[0][1]), judge.charged()]
said += [free(buffers[1][1]), cuda.cuDestroyExternalMemory(memory), judge.charged(), judge.taken()]
answer([*said, bool(cuda.cuDestroyExternalMemory(memory))])
"""
    amount = 8 * PIECE
    said = make_tenant(quota).ask(script)
    assert said[:3] == [0, amount, amount]
    assert said[3:6] == [[0, 0], amount, OUT_OF_MEMORY]
    assert said[6:9] == [0, INVALID_VALUE, amount]
    assert said[9:] == [0, 0, 0, 0, True]


def test_external_memory_over_the_quota_is_refused(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = f"""
    from client import *
    from sharing import *
    up()
    first, memory = bring_external(foreign({quota}), {quota})
    second, more = bring_external(foreign({PIECE}), {PIECE})
    wrong = [bring_external(0, 0)[0], bring_external(0, PIECE, kind=99)[0]]
    answer([first, second, wrong, cuda.cuDestroyExternalMemory(memory), bring_external(foreign({quota}), {quota})[0]])
    """
    ours, theirs = make_tenant(quota).ask(script), bare.ask(script)
    assert ours == [0, OUT_OF_MEMORY, [*theirs[2][:1], OUT_OF_MEMORY], 0, 0]
    assert theirs == [0, 0, theirs[2], 0, 0]
    assert OUT_OF_MEMORY not in theirs[2]


# ---- objects that hold blocks ------------------------------------------------------------------------------------

BINDS = {
    "cuMulticastBindMem": "handle, size(0), size(amount), flags",
    "cuMulticastBindMem_v2": "handle, size(0), size(amount), flags",
    "cuMulticastBindAddr": "ctypes.c_uint64(place), size(amount), flags",
    "cuMulticastBindAddr_v2": "ctypes.c_uint64(place), size(amount), flags",
}


@pytest.mark.parametrize("end", ["unbind", "release of the object"])
@pytest.mark.parametrize("function", BINDS)
def test_a_multicast_object_keeps_what_is_bound(
    make_machine: Callable[[str], Driver], make_tenant: Make, function: str, end: str
) -> None:
    device = "0, " if function.endswith("_v2") else ""
    last = "unbind(team, 0, PIECE, amount)" if end == "unbind" else "release(team)"
    script = f"""{PRELUDE}
flags = ctypes.c_uint64(0)
team = multicast(2 * amount, 2)
said = [judge.charged()]
code, handle = create(amount)
place = reserve(amount)
check(map_at(place, amount, handle))
bound = cuda.{function}(team, {device}size(PIECE), {BINDS[function]})
twice = cuda.{function}(team, {device}size(PIECE), {BINDS[function]})
said += [bound, bool(twice), bool(unbind(team, 1, PIECE, amount)), judge.charged()]
check(unmap(place, amount))
check(release(handle))
said += [judge.charged(), judge.held(), {last}, judge.charged(), judge.held()]
answer(said)
"""
    amount = 8 * PIECE
    tenant = make_tenant(64 * MIB, devices=[0, 1], on=make_machine("2xh200"))
    assert tenant.ask(script) == [0, 0, True, True, amount, amount, amount, 0, 0, 0]


BACKINGS = ["cuMemMapArrayAsync", "cuMemMapArrayAsync_ptsz"]


@pytest.mark.parametrize("function", BACKINGS)
def test_a_sparse_array_takes_nothing_and_keeps_what_is_mapped_into_it(
    make_tenant: Make, quota: int, function: str
) -> None:
    script = f"""{PRELUDE}
from arrays import *
array = array_3d(256 * 100, 256, 0, UINT8, 1, SPARSE)[1]
said = [judge.charged()]
one, two = create(amount, properties(usage=1))[1], create(amount, properties(usage=1))[1]
said += [put("{function}", tiles(array, one, 0, 2), tiles(array, two, 2, 1)),
         bool(put("{function}", tiles(array, one, 0, 1000)))]
check(release(one))
check(release(two))
said.append(judge.charged() // amount)
check(put("{function}", tiles(array, None, 2, 1)))
said.append(judge.charged() // amount)
check(put("{function}", tiles(array, None, 0, 2)))
said.append([judge.charged(), judge.held()])
three = create(amount, properties(usage=1))[1]
check(put("{function}", *(tiles(array, three, x, 1) for x in range(100))))
check(release(three))
said.append(judge.charged() // amount)
check(cuda.cuArrayDestroy(array))
answer([*said, judge.charged(), judge.held()])
"""
    assert make_tenant(quota).ask(script) == [0, 0, True, 2, 1, [0, 0], 1, 0, 0]


@pytest.mark.parametrize("function", BACKINGS)
def test_the_small_levels_of_a_sparse_mipmap_keep_what_is_mapped_into_them(
    make_tenant: Make, quota: int, function: str
) -> None:
    script = f"""{PRELUDE}
from arrays import *
array = mipmap(512, 512, 0, UINT8, 1, SPARSE, 10)[1]
handle = create(amount, properties(usage=1))[1]
said = [judge.charged(), put("{function}", tail(array, handle, TILE, rubbish=7))]
check(release(handle))
said += [judge.charged(), put("{function}", tail(array, None, TILE, rubbish=8)), judge.charged(), judge.held()]
answer([*said, cuda.cuMipmappedArrayDestroy(array)])
"""
    amount = 8 * PIECE
    assert make_tenant(quota).ask(script) == [amount, 0, amount, 0, 0, 0, 0]
