# SPDX-License-Identifier: Apache-2.0
"""Memory and events of the simulated GPU that several processes use: counted once, and there to the last."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from sim.programs import ask, state
from sim.programs.peers import Peer, books, used
from tools.simulated import Simulated

MIB = 2**20
GIB = 2**30

IPC = """
context()
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 64)]
lib = raw()
def get(function, thing):
    h = Handle()
    return function(ctypes.byref(h), ctypes.c_uint64(int(thing))), bytes(h).hex()
def put(function, text, *flags):
    made = ctypes.c_uint64()
    return function(ctypes.byref(made), Handle.from_buffer_copy(bytes.fromhex(text)), *flags), made.value
def export(pointer):
    return ok(get(lib.cuIpcGetMemHandle, pointer))
def open_memory(text):
    return put(lib.cuIpcOpenMemHandle_v2, text, 1)
def read(pointer, size):
    back = bytearray(size)
    ok(cu.cuMemcpyDtoH(back, pointer, size))
    return bytes(back)
"""
"""Handles by ctypes: the bindings do not let one out as bytes."""


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_two_processes_see_the_same_bytes_and_the_device_counts_them_once(
    h200: Simulated, stack: ExitStack, size: int
) -> None:
    exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
    text = exporter.do(
        f"first = ok(cu.cuMemAlloc({size}))\np = ok(cu.cuMemAlloc({size}))\nbefore = ok(cu.cuMemGetInfo())[0]\n"
        f"data = os.urandom({size})\nok(cu.cuMemcpyHtoD(p, data, {size}))\nanswer(export(p))"
    )
    taken = used(h200)
    seen = importer.do(f"q = ok(open_memory({text!r}))\nanswer(read(q, {size}).hex())")
    assert seen == exporter.do("answer(data.hex())")
    importer.do(f"data = os.urandom({size})\nok(cu.cuMemcpyHtoD(q, data, {size}))\nanswer(0)")
    assert exporter.do(f"answer(read(p, {size}).hex())") == importer.do("answer(data.hex())")
    assert used(h200) == taken == {1000: 2 * MIB, 3 * MIB: 8 * MIB}[size]
    assert exporter.do("answer(ok(cu.cuMemGetInfo())[0] - before)") == 0
    importer.do("ok(cu.cuIpcCloseMemHandle(q))\nanswer(0)")
    exporter.do("ok(cu.cuMemFree(p))\nok(cu.cuMemFree(first))\nanswer(0)")
    assert used(h200) == 0
    assert books(h200)[0] == books(h200)[1]


def test_opening_twice_gives_the_same_pointer_and_counts(h200: Simulated, stack: ExitStack) -> None:
    exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
    texts = exporter.do("a, b = ok(cu.cuMemAlloc(512)), ok(cu.cuMemAlloc(512))\nanswer([export(a), export(b)])")
    body = f"""
p = [int(ok(open_memory(t))) for t in {[texts[0], texts[0], texts[1]]!r}]
codes = [rc(cu.cuIpcCloseMemHandle(x)) for x in (p[0], p[2])]
readable = [rc(cu.cuMemsetD8(p[0], 1, 512)), rc(cu.cuIpcCloseMemHandle(p[1])), rc(cu.cuMemsetD8(p[0], 1, 512))]
answer([p[0] == p[1], p[2] - p[0], codes, readable, rc(cu.cuIpcCloseMemHandle(p[0])), rc(cu.cuMemFree(p[0]))])
"""
    assert importer.do(body) == [True, 512, [0, 0], [0, 0, 1], 1, 1]
    assert exporter.do(f"answer(rc(open_memory({texts[0]!r})))") == 201


@pytest.mark.parametrize("how", ["free", "end", "kill"])
def test_memory_outlives_its_exporter_while_somebody_has_it_open(h200: Simulated, stack: ExitStack, how: str) -> None:
    exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
    text = exporter.do("p = ok(cu.cuMemAlloc(64 * MIB))\nok(cu.cuMemsetD8(p, 0x5A, 64 * MIB))\nanswer(export(p))")
    importer.do(f"q = ok(open_memory({text!r}))\nanswer(0)")
    {"free": lambda: exporter.do("answer(rc(cu.cuMemFree(p)))"), "end": exporter.end, "kill": exporter.kill}[how]()
    assert used(h200) == 64 * MIB
    assert importer.do("answer(read(int(q) + 63 * MIB, MIB) == b'Z' * MIB)")
    slot = next(s for s in range(512) if state(h200).processes[s].pid == importer.process.pid)
    assert state(h200).devices[0].shares[slot].memory == 64 * MIB + state(h200).knobs.context_overhead
    late = Peer(h200, IPC, stack)
    assert late.do(f"answer(rc(open_memory({text!r})))") == 0
    late.end()
    importer.kill()
    assert used(h200) == 0
    assert books(h200)[0] == books(h200)[1]


def test_a_killed_importer_costs_the_exporter_nothing(h200: Simulated, stack: ExitStack) -> None:
    exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
    text = exporter.do("p = ok(cu.cuMemAlloc(8 * MIB))\nanswer(export(p))")
    importer.do(f"q = ok(open_memory({text!r}))\nok(cu.cuMemsetD8(q, 7, 16))\nanswer(0)")
    importer.kill()
    assert used(h200) == 8 * MIB
    assert exporter.do("answer(read(p, 16) == b'\\7' * 16)")
    assert exporter.do("answer(rc(cu.cuMemFree(p)))") == 0
    assert used(h200) == 0


def test_a_handle_of_memory_that_is_gone_opens_nothing(h200: Simulated, stack: ExitStack) -> None:
    exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
    text = exporter.do("p = ok(cu.cuMemAlloc(8 * MIB))\nt = export(p)\nok(cu.cuMemFree(p))\nanswer(t)")
    other = exporter.do("q = ok(cu.cuMemAlloc(8 * MIB))\nanswer(export(q))")
    assert other != text
    codes = f"[rc(open_memory(t)) for t in ({text!r}, 'ff' * 64, {other!r})]"
    assert importer.do(f"answer({codes})") == [205, 400, 0]


def test_fresh_shared_memory_reads_zero_also_where_other_memory_was(h200: Simulated, stack: ExitStack) -> None:
    exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
    for _ in range(2):
        text = exporter.do("p = ok(cu.cuMemAlloc(4 * MIB))\nanswer(export(p))")
        body = f"q = ok(open_memory({text!r}))\nz = read(q, 4 * MIB) == bytes(4 * MIB)\n"
        assert importer.do(body + "ok(cu.cuMemsetD8(q, 9, 4 * MIB))\nok(cu.cuIpcCloseMemHandle(q))\nanswer(z)")
        exporter.do("ok(cu.cuMemFree(p))\nanswer(0)")


def test_exporting_what_was_never_written_takes_no_time_and_no_room(h200: Simulated, stack: ExitStack) -> None:
    exporter = Peer(h200, IPC, stack)
    exporter.do("p = ok(cu.cuMemAlloc(100 * GIB))\nok(cu.cuMemsetD8(int(p) + 50 * GIB, 3, 1))\nexport(p)\nanswer(0)")
    assert exporter.do("answer(read(int(p) + 50 * GIB - 1, 3).hex())") == "000300"
    assert (h200.directory / "machine.shared").stat().st_blocks * 512 < MIB


def test_only_plain_device_memory_has_a_handle(h200: Simulated) -> None:
    body = (
        IPC
        + """
pooled = ok(cu.cuMemAllocAsync(4096, 0))
managed = ok(cu.cuMemAllocManaged(4096, 1))
host = ok(cu.cuMemHostAlloc(4096, 0))
answer([rc(get(lib.cuIpcGetMemHandle, p)) for p in (pooled, managed, host, 0)])
"""
    )
    assert ask(h200, body) == [1, 1, 1, 1]


@pytest.mark.parametrize("how", ["served", "kill"])
def test_an_event_of_another_process_is_reached_when_its_work_is_done_or_dropped(
    h200: Simulated, stack: ExitStack, how: str
) -> None:
    exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
    text = exporter.do(
        "e = ok(cu.cuEventCreate(6))\nk = function('tick_400ms')\nplain = ok(cu.cuEventCreate(2))\n"
        "answer([ok(get(lib.cuIpcGetEventHandle, e)), rc(get(lib.cuIpcGetEventHandle, plain)), "
        "rc(cu.cuEventCreate(4))])"
    )
    assert text[1:] == [1, 1]
    before = importer.do(f"e = ok(put(lib.cuIpcOpenEventHandle, {text[0]!r}))\nanswer(rc(cu.cuEventQuery(e)))")
    pending = "launch(k)\nok(cu.cuEventRecord(e, 0))\nanswer(rc(cu.cuEventQuery(e)))"
    assert (before, exporter.do(pending), importer.do("answer(rc(cu.cuEventQuery(e)))")) == (0, 600, 600)
    if how == "kill":
        exporter.kill()
    assert importer.do("answer([rc(cu.cuEventSynchronize(e)), rc(cu.cuEventQuery(e))])") == [0, 0]
    if how == "served":
        assert exporter.do("answer(rc(cu.cuEventQuery(e)))") == 0


def test_no_trace_of_shared_memory_is_left_when_all_are_gone(h200: Simulated, stack: ExitStack) -> None:
    for _ in range(3):
        exporter, importer = Peer(h200, IPC, stack), Peer(h200, IPC, stack)
        text = exporter.do("p = ok(cu.cuMemAlloc(2 * MIB))\nok(cu.cuMemsetD8(p, 1, 2 * MIB))\nanswer(export(p))")
        importer.do(f"q = ok(open_memory({text!r}))\nanswer(0)")
        exporter.kill()
        importer.kill()
    assert used(h200) == 0
    machine = state(h200)
    assert [machine.shared[i].kind for i in range(machine.shared_top)] == [0] * machine.shared_top
    assert (h200.directory / "machine.shared").stat().st_blocks == 0


def test_two_containers_share_memory_and_its_owners_death(
    h200: Simulated, stack: ExitStack, contained: list[str]
) -> None:
    exporter, importer = (Peer(h200, IPC, stack, inside=contained) for _ in range(2))
    text = exporter.do("p = ok(cu.cuMemAlloc(6 * MIB))\nok(cu.cuMemsetD8(p, 0x51, 6 * MIB))\nanswer(export(p))")
    seen = importer.do(f"q = ok(open_memory({text!r}))\nanswer([read(q, 3).decode(), os.getpid()])")
    assert seen == ["QQQ", 1]  # both are process 1 of their container
    assert used(h200) == 6 * MIB
    exporter.kill()
    assert used(h200) == 6 * MIB
    assert importer.do("answer(read(q, 6 * MIB) == b'Q' * 6 * MIB)")
    importer.kill()
    assert used(h200) == 0


def test_without_the_file_of_shared_memory_nothing_is_shared_and_the_rest_works(
    h200: Simulated, stack: ExitStack
) -> None:
    (h200.directory / "machine.shared").unlink()
    peer = Peer(h200, IPC, stack)
    assert (
        peer.do("p = ok(cu.cuMemAlloc(MIB))\nok(cu.cuMemsetD8(p, 1, MIB))\nanswer(rc(get(lib.cuIpcGetMemHandle, p)))")
        == 304
    )
    assert peer.do("answer([rc(cu.cuMemFree(p)), rc(cu.cuMemAllocAsync(MIB, 0))])") == [0, 0]
    assert not (h200.directory / "machine.shared").exists()
