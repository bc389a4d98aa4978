# SPDX-License-Identifier: Apache-2.0
"""The bucket of device time against the same law in exact fractions."""

from __future__ import annotations

import threading
from fractions import Fraction

import build
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vgpu_runtime._native._abi import ffi

lib = ffi.dlopen(str(build.OUTPUT / "libvgpu_abi.so"))
BURST = lib.VGPU_BURST_NS
HOUR = 3600 * 10**9
START = 10**15  # a machine that has been up for eleven days


class Bucket:
    """The law: a bucket of `burst` device time, refilled at `cores` percent, that may go into debt."""

    def __init__(self, now: int) -> None:
        self.full = Fraction(now)  # when it is full again

    def draw(self, now: int, cost: int, cores: int, burst: int) -> Fraction:
        found = max(self.full, Fraction(now))
        self.full = found + Fraction(cost * 100, cores)
        return max(Fraction(0), found - now - Fraction(burst * 100, cores))


launches = st.lists(
    st.tuples(st.integers(0, 50_000_000), st.integers(0, 40_000_000), st.sampled_from([True, False])),
    min_size=1,
    max_size=60,
)


@given(launches=launches, cores=st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_every_wait_is_the_one_of_the_exact_law(launches: list[tuple[int, int, bool]], cores: int) -> None:
    word, model, now = ffi.new("uint64_t *", START), Bucket(START), START
    for number, (pause, cost, patient) in enumerate(launches, start=1):
        now += pause
        wait = lib.vgpu_draw(word, now, cost, cores, BURST)
        exact = model.draw(now, cost, cores, BURST)
        # Each draw rounds down once, and the burst once.
        assert abs(wait - exact) <= number + 1
        now += wait if patient else 0


@given(costs=st.lists(st.integers(1, 30_000_000), min_size=30, max_size=60), cores=st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_a_slice_that_is_always_busy_gets_its_cores_and_the_burst_once(costs: list[int], cores: int) -> None:
    word, now, spent = ffi.new("uint64_t *", START), START, 0
    for number, cost in enumerate(costs, start=1):
        now += lib.vgpu_draw(word, now, cost, cores, BURST)
        spent += cost
        # A launch may begin while the bucket is not in debt, so the last one comes on top of the law; and
        # rounding gives each launch up to a nanosecond.
        assert spent - cost <= (now - START) * cores / 100 + BURST + number
    # Rounding down the burst makes a launch wait for up to a nanosecond more.
    assert spent + len(costs) >= (now - START) * cores / 100, "launches waited for more than they cost"


def test_an_idle_hour_saves_no_more_than_the_burst() -> None:
    word, now = ffi.new("uint64_t *", START), START + HOUR
    free = 0
    while lib.vgpu_draw(word, now, 1_000_000, 25, BURST) == 0:
        free += 1_000_000
    assert free == BURST + 1_000_000  # the launch that finds the bucket just empty still goes


def test_a_launch_waits_for_the_debt_that_it_finds_and_not_for_its_own_cost() -> None:
    word = ffi.new("uint64_t *", START)
    assert lib.vgpu_draw(word, START, 60 * 10**9, 10, BURST) == 0
    assert lib.vgpu_draw(word, START, 1, 10, BURST) == 600 * 10**9 - 10 * BURST


def test_draws_of_many_threads_all_count() -> None:
    word, each = ffi.new("uint64_t *", START), 20_000

    def draw() -> None:
        for _ in range(each):
            lib.vgpu_draw(word, START, 7, 50, BURST)

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert word[0] == START + 4 * each * 14


@given(estimate=st.integers(0, 10**9), actual=st.integers(0, 10**9), cores=st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_an_estimate_that_is_settled_costs_what_the_work_took(estimate: int, actual: int, cores: int) -> None:
    settled, exact = ffi.new("uint64_t *", START), ffi.new("uint64_t *", START)
    lib.vgpu_draw(settled, START, estimate, cores, BURST)
    lib.vgpu_settle(settled, actual - estimate, cores)
    lib.vgpu_draw(exact, START, actual, cores, BURST)
    assert abs(settled[0] - exact[0]) <= 2


@pytest.mark.parametrize("cores", [1, 50, 100])
@pytest.mark.parametrize("estimate", [2**63, 2**64 - 1])
def test_a_broken_estimate_delays_by_an_hour_at_most(cores: int, estimate: int) -> None:
    word = ffi.new("uint64_t *", START)
    lib.vgpu_draw(word, START, estimate, cores, BURST)
    lib.vgpu_draw(word, START, estimate, cores, BURST)
    assert 0 < lib.vgpu_draw(word, START, 1, cores, BURST) <= HOUR


def test_a_word_that_somebody_wrote_nonsense_to_delays_by_an_hour_at_most() -> None:
    """The word is in a file that the tenant can write; a stray write must not stop it for good."""
    word = ffi.new("uint64_t *", 2**64 - 1)
    assert lib.vgpu_draw(word, START, 1_000, 50, BURST) <= HOUR
    assert lib.vgpu_draw(word, START + HOUR, 1_000, 50, BURST) <= 2_000


def test_giving_back_more_than_was_drawn_leaves_a_full_bucket() -> None:
    """As after a change of cores between draw and settling, on a machine that has just booted."""
    word, now = ffi.new("uint64_t *", 0), 5 * 10**9
    lib.vgpu_draw(word, now, 10**9, 100, BURST)
    lib.vgpu_settle(word, -(10**9), 1)
    assert lib.vgpu_draw(word, now, 1_000, 50, BURST) == 0
