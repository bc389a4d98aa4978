# SPDX-License-Identifier: Apache-2.0
"""Memory accounting against a model of it, and against death at every step."""

from __future__ import annotations

import mmap
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import build
import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vgpu_runtime._native._abi import ffi

lib = ffi.dlopen(str(build.OUTPUT / "libvgpu_abi.so"))
QUOTA = 1000
MOST = 2**64 - 1


def fresh() -> Any:
    ledger = ffi.new("struct vgpu_ledger *")
    ledger.magic, ledger.abi = lib.VGPU_LEDGER_MAGIC, lib.VGPU_ABI
    ledger.size = ffi.sizeof("struct vgpu_ledger")
    return ledger


def judge(gone: set[int]) -> Any:
    """A `vgpu_is_gone` for which the processes of that set are dead."""
    return ffi.callback("int(uint64_t, uint64_t)", lambda owner, _: int(owner in gone))


def take(ledger: Any, owner: int, gone: set[int] | None = None, image: int = 1) -> int:
    return int(lib.vgpu_row_take(ledger, owner, image, 7, judge(gone or set())))


def sweep(ledger: Any, owner: int, gone: set[int], image: int = 1) -> int:
    return int(lib.vgpu_sweep(ledger, owner, image, judge(gone)))


def is_torn(lanes: Any) -> bool:
    """Whether a change is under way in one of a row's lanes."""
    return any(lane.begun != lane.ended for lane in lanes)


def used(ledger: Any, number: int = 0) -> int:
    return int(ledger.slices[number].memory_used)


# ---- one thing at a time -------------------------------------------------------------------------


class Tenant(RuleBasedStateMachine):
    """Processes come, charge, refund, die, exec and sweep; the model is what each of them holds."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = fresh()
        self.held: dict[int, list[list[int]]] = {}  # owner -> slice -> sizes
        self.rows: dict[int, int] = {}
        self.images: dict[int, int] = {}
        self.dead: set[int] = set()
        self.next_owner = 100

    @property
    def living(self) -> list[int]:
        return [owner for owner in self.rows if owner not in self.dead]

    @rule()
    def a_process_comes(self) -> None:
        owner, self.next_owner = self.next_owner, self.next_owner + 1
        self.rows[owner] = take(self.ledger, owner, self.dead)
        assert 0 <= self.rows[owner] < lib.VGPU_MAX_PROCESSES
        self.forget_the_dead()
        self.held[owner], self.images[owner] = [[], []], 1
        assert len(set(self.rows.values())) == len(self.rows), "two processes share a row"

    @precondition(lambda self: self.living)
    @rule(data=st.data(), number=st.integers(0, 1), size=st.one_of(st.integers(0, QUOTA + 1), st.just(MOST)))
    def charge(self, data: st.DataObject, number: int, size: int) -> None:
        owner = data.draw(st.sampled_from(self.living))
        fits = self.total(number) + size <= QUOTA
        assert lib.vgpu_charge(self.ledger, self.rows[owner], number, size, QUOTA) == (0 if fits else -1)
        if fits:
            self.held[owner][number].append(size)

    @precondition(lambda self: any(part for owner in self.living for part in self.held[owner]))
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        owner, number = data.draw(st.sampled_from([(o, n) for o in self.living for n in range(2) if self.held[o][n]]))
        size = self.held[owner][number].pop()
        lib.vgpu_refund(self.ledger, self.rows[owner], number, size)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.dead.add(data.draw(st.sampled_from(self.living)))

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def exec(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(self.living))
        self.images[owner] += 1
        self.rows[owner] = take(self.ledger, owner, self.dead, self.images[owner])
        self.forget_the_dead()
        self.held[owner] = [[], []]

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(self.living))
        there = len(self.dead & set(self.rows))
        assert sweep(self.ledger, owner, self.dead, self.images[owner]) == there
        self.forget_the_dead()

    def forget_the_dead(self) -> None:
        for owner in self.dead & set(self.rows):
            del self.rows[owner], self.held[owner]

    def total(self, number: int) -> int:
        return sum(sum(parts[number]) for parts in self.held.values())

    @invariant()
    def usage_is_the_sum_of_what_is_held(self) -> None:
        for number in range(2):
            assert used(self.ledger, number) == self.total(number) <= QUOTA
            for owner, row in self.rows.items():
                assert lib.vgpu_row_charged(self.ledger, row, number) == sum(self.held[owner][number])


TestTenant = Tenant.TestCase
TestTenant.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_request_that_would_overflow_is_refused_and_changes_nothing() -> None:
    ledger = fresh()
    row = take(ledger, 5)
    assert lib.vgpu_charge(ledger, row, 0, 10, MOST) == 0
    assert lib.vgpu_charge(ledger, row, 0, MOST - 5, MOST) == -1
    assert used(ledger) == 10


def test_a_quota_below_what_is_held_refuses_every_charge_and_takes_every_refund() -> None:
    ledger = fresh()
    row = take(ledger, 5)
    assert lib.vgpu_charge(ledger, row, 0, 600, QUOTA) == 0
    assert lib.vgpu_charge(ledger, row, 0, 1, 500) == -1
    lib.vgpu_refund(ledger, row, 0, 600)
    assert used(ledger) == 0


def test_a_process_finds_its_own_row_again() -> None:
    ledger = fresh()
    assert take(ledger, 5) == take(ledger, 5)


def test_the_guesses_of_the_dead_go_with_their_row() -> None:
    ledger = fresh()
    row = take(ledger, 5)
    ledger.rows[row].guesses = 0x11
    assert sweep(ledger, 6, {5}) == 1
    assert (ledger.rows[row].owner, ledger.rows[row].guesses) == (0, 0)


def test_when_all_rows_are_taken_a_newcomer_waits_for_a_death() -> None:
    ledger = fresh()
    owners = range(1, lib.VGPU_MAX_PROCESSES + 1)
    assert sorted(take(ledger, owner) for owner in owners) == list(range(lib.VGPU_MAX_PROCESSES))
    assert take(ledger, 9999) == -1
    assert take(ledger, 9999, {17}) == 16


# ---- death at every step ---------------------------------------------------------------------------
# What the words of a ledger are when a process is killed between two steps of ledger.c. `size` is what it
# was charging or refunding on slice 0, `held` what it held before.


def killed_charging(step: int) -> Callable[[Any, int, int, int], None]:
    def leave(ledger: Any, row: int, held: int, size: int) -> None:
        assert lib.vgpu_charge(ledger, row, 0, held, MOST) == 0
        ledger.lanes[row][0].begun += step >= 1
        ledger.slices[0].memory_used += size * (step >= 2)
        ledger.lanes[row][0].memory[0] += size * (step >= 3)
        ledger.lanes[row][0].ended += step >= 4

    return leave


def killed_refunding(step: int) -> Callable[[Any, int, int, int], None]:
    def leave(ledger: Any, row: int, held: int, size: int) -> None:
        assert lib.vgpu_charge(ledger, row, 0, held + size, MOST) == 0
        ledger.lanes[row][0].begun += step >= 1
        ledger.lanes[row][0].memory[0] -= size * (step >= 2)
        ledger.slices[0].memory_used -= size * (step >= 3)
        ledger.lanes[row][0].ended += step >= 4

    return leave


DEATHS = {
    **{f"charging, step {step}": killed_charging(step) for step in range(5)},
    **{f"refunding, step {step}": killed_refunding(step) for step in range(5)},
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize(("held", "size"), [(0, 100), (300, 100), (300, 0)])
def test_what_a_killed_process_held_comes_back_whole(death: str, held: int, size: int) -> None:
    ledger = fresh()
    dead, alive = 11, 12
    rows = {owner: take(ledger, owner) for owner in (dead, alive)}
    assert lib.vgpu_charge(ledger, rows[alive], 0, 50, QUOTA) == 0
    DEATHS[death](ledger, rows[dead], held, size)
    assert used(ledger) >= 50 + held, "a death must never free what is in use"
    assert sweep(ledger, alive, {dead}) == 1
    assert used(ledger) == 50
    assert ledger.rows[rows[dead]].owner == 0
    assert not ledger.suspect


@pytest.mark.parametrize("steps", range(6))
def test_a_sweeper_that_is_killed_midway_leaves_nothing_that_the_next_cannot_repair(steps: int) -> None:
    """The steps of free_row, done by hand up to the kill, with the right to sweep still held."""
    ledger = fresh()
    dead, killer, alive = 11, 12, 13
    rows = {owner: take(ledger, owner) for owner in (dead, killer, alive)}
    for owner, size in ((dead, 300), (killer, 70), (alive, 50)):
        assert lib.vgpu_charge(ledger, rows[owner], 0, size, QUOTA) == 0
    ledger.janitor = killer
    ledger.janitor_image = 1
    row = ledger.rows[rows[dead]]
    if steps >= 1:
        ledger.suspect = 1
    if steps >= 2:
        row.owner = lib.VGPU_OWNER_VOID
    if steps >= 3:
        ledger.slices[0].memory_used -= 300
    if steps >= 4:
        for lane in ledger.lanes[rows[dead]]:
            lane.memory[0], lane.ended = 0, lane.begun
    if steps >= 5:
        row.image, row.owner = 0, 0
    assert sweep(ledger, alive, set()) == 0, "the right to sweep belongs to a live process"
    assert sweep(ledger, alive, {dead, killer}) >= 1
    assert used(ledger) == 50


def test_a_leak_is_not_repaired_over_a_change_that_is_under_way() -> None:
    ledger = fresh()
    dead, busy, alive = 11, 12, 13
    rows = {owner: take(ledger, owner) for owner in (dead, busy, alive)}
    killed_charging(2)(ledger, rows[dead], 0, 100)  # leaks 100
    ledger.lanes[rows[busy]][0].begun += 1  # `busy` has reserved 30 and not said so in its row yet
    ledger.slices[0].memory_used += 30
    sweep(ledger, alive, {dead})
    assert used(ledger) >= 30, "what a live process has reserved was taken away"
    ledger.lanes[rows[busy]][0].memory[0] += 30
    ledger.lanes[rows[busy]][0].ended += 1
    sweep(ledger, alive, {dead})
    assert used(ledger) == 30


def test_the_right_to_sweep_that_exec_left_behind_passes_on() -> None:
    ledger = fresh()
    dead, alive = 11, 12
    rows = {owner: take(ledger, owner) for owner in (dead, alive)}
    assert lib.vgpu_charge(ledger, rows[dead], 0, 100, QUOTA) == 0
    ledger.janitor, ledger.janitor_image = alive, 1
    assert sweep(ledger, alive, {dead}, image=1) == 0, "another thread of this image sweeps"
    assert sweep(ledger, alive, {dead}, image=2) >= 1
    assert used(ledger) == 0


# ---- many at once ----------------------------------------------------------------------------------


def test_threads_that_race_for_the_rest_of_a_quota_get_it_to_the_last_byte_and_no_more() -> None:
    ledger = fresh()
    rows = [take(ledger, owner) for owner in range(1, 5)]
    quota, got, start = 200_003, [0] * 8, threading.Barrier(8)

    def race(number: int) -> None:
        row, moments = rows[number % 4], random.Random(number)
        start.wait()
        for _ in range(1000):  # up and down at the edge
            if lib.vgpu_charge(ledger, row, 0, 500, quota) == 0:
                got[number] += 500
            elif got[number] and moments.random() < 0.5:
                lib.vgpu_refund(ledger, row, 0, 500)
                got[number] -= 500
        size = 256
        while size:  # then all that is left
            if lib.vgpu_charge(ledger, row, 0, size, quota) == 0:
                got[number] += size
            else:
                size //= 2

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used(ledger) == sum(got) == sum(lib.vgpu_row_charged(ledger, row, 0) for row in range(512))
    # Whoever was last to refund asked for a single byte after it.
    assert used(ledger) == quota
    assert not any(is_torn(lanes) for lanes in ledger.lanes)


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        view = ffi.from_buffer(mapping)
        yield ffi.cast("struct vgpu_ledger *", view)
        ffi.release(view)


def test_processes_killed_at_any_instruction_lose_no_memory_and_leave_no_lock(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    """Real processes, killed at random moments; `hammer` itself checks the quota at every step."""
    path = tmp_path / "ledger"
    path.write_bytes(bytes(ffi.buffer(fresh())))
    hammer = program("hammer")
    command = [str(hammer), str(path), "100000", "2"]
    moments = random.Random(2)
    torn = 0
    with mapped(path) as ledger:
        running = [subprocess.Popen(command) for _ in range(3)]
        for _ in range(60):
            time.sleep(moments.uniform(0.001, 0.02))
            victim = running.pop(0)
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL, "a process saw more charged than the quota"
            torn += any(
                row.owner and lib.vgpu_owner_pid(row.owner) == victim.pid and is_torn(ledger.lanes[number])
                for number, row in enumerate(ledger.rows)
            )
            running.append(subprocess.Popen(command))
        for process in running:
            process.kill()
            process.wait()
        assert torn, "no kill came in the middle of a change: this test has proved nothing"
        lib.vgpu_sweep(ledger, 1, 1, ffi.addressof(lib, "vgpu_process_is_gone"))
        assert used(ledger) == 0
        assert not any(row.owner for row in ledger.rows)
        assert not ledger.janitor


# ---- lanes --------------------------------------------------------------------------------------------------


def test_seven_threads_have_a_lane_each_and_the_others_share() -> None:
    ledger, ended = fresh(), set[int]()
    row = take(ledger, 11)
    is_ended = ffi.callback("int(uint32_t)", lambda tid: int(tid in ended))
    seats = [lib.vgpu_seat_take(ledger, row, tid, is_ended) for tid in range(100, 109)]
    assert seats == [1, 2, 3, 4, 5, 6, 7, 0, 0]
    assert lib.vgpu_seat_take(ledger, row, 103, is_ended) == 4, "a second copy of the shim in that thread"
    ended.add(105)
    assert lib.vgpu_seat_take(ledger, row, 200, is_ended) == 6, "the lane of a thread that has ended"
    assert lib.vgpu_seat_take(ledger, row, 201, is_ended) == 0


def test_what_one_thread_charges_another_may_refund() -> None:
    ledger = fresh()
    row, other = take(ledger, 11), take(ledger, 12)
    assert lib.vgpu_charge_seated(ledger, row, 1, 0, 70, QUOTA) == 0
    assert lib.vgpu_charge_seated(ledger, other, 1, 0, 5, QUOTA) == 0
    lib.vgpu_refund_seated(ledger, row, 2, 0, 60)
    lib.vgpu_refund(ledger, row, 0, 10)
    assert (lib.vgpu_row_charged(ledger, row, 0), used(ledger)) == (0, 5)
    assert lib.vgpu_charge_seated(ledger, row, 2, 0, 40, QUOTA) == 0
    assert lib.vgpu_charge_seated(ledger, row, 2, 0, QUOTA - 44, QUOTA) == -1
    assert sweep(ledger, 12, {11}) == 1
    assert (lib.vgpu_row_charged(ledger, row, 0), used(ledger)) == (0, 5), "lanes below zero count as well"
    assert not any(ledger.rows[row].seats)
