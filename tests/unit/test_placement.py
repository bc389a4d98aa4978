# SPDX-License-Identifier: Apache-2.0
"""Choosing a device: a pure function, judged by its law."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from vgpu_runtime.model import Kind, Policy, Quota, Slice, Tenant, Usage
from vgpu_runtime.placement import Room, choose, room_on

IDLE = Usage(memory=0, refusals=0, device_time_ns=0, throttled_ns=0, launches=0)
SIZE = 1000


def wish(
    device: str, memory: int | None = None, cores: int | None = None, policy: Policy = Policy.NONE, spill: int = 0
) -> Quota:
    return Quota(device, SIZE, memory, cores, policy, spill)


def tenant(*quotas: Quota) -> Tenant:
    return Tenant("t", Kind.PROCESS, "/nowhere", (), tuple(Slice(quota, IDLE) for quota in quotas), "")


def test_limits_are_added_up_and_what_is_not_limited_takes_nothing() -> None:
    there = [tenant(wish("a", 300, 20, Policy.FIXED), wish("b", 100)), tenant(wish("a", 200, 30, Policy.BALANCE)),
             tenant(wish("a"))]  # fmt: skip
    assert room_on("a", SIZE, there) == Room(memory=500, cores=50, tenants=3)
    assert room_on("b", SIZE, there) == Room(memory=900, cores=100, tenants=1)
    assert room_on("c", SIZE, there) == Room(memory=SIZE, cores=100, tenants=0)


def test_the_device_with_the_most_free_memory_is_taken() -> None:
    there = [tenant(wish("a", 300), wish("b", 100), wish("c", 200))]
    assert choose([wish(name, 10) for name in "abc"], there) == wish("b", 10)


def test_among_equals_free_cores_decide_then_the_number_of_tenants_then_the_order() -> None:
    wishes = [wish(name, 10) for name in "abc"]
    assert choose(wishes, []) == wishes[0]
    busy = tenant(
        wish("a", None, 20, Policy.FIXED), wish("b", None, 10, Policy.FIXED), wish("c", None, 10, Policy.FIXED)
    )
    assert choose(wishes, [busy, tenant(wish("b"))]) == wishes[2]


def test_a_device_without_cores_left_is_passed_over_unless_none_are_asked_for() -> None:
    there = [tenant(wish("a", None, 80, Policy.FIXED), wish("b", 900))]
    assert choose([wish(name, 50, 30, Policy.FIXED) for name in "ab"], there) == wish("b", 50, 30, Policy.FIXED)
    assert choose([wish(name, 50) for name in "ab"], there) == wish("a", 50)


def test_of_a_quota_that_may_spill_only_the_part_in_the_device_counts() -> None:
    there = [tenant(wish("a", 900, spill=600)), tenant(wish("a", 200))]
    assert room_on("a", SIZE, there).memory == 500
    assert choose([wish("a", 1200, spill=700)], there) == wish("a", 1200, spill=700)
    assert choose([wish("a", 1200, spill=699)], there) is None


def test_what_fits_nowhere_gets_nothing() -> None:
    assert choose([wish("a", 101)], [tenant(wish("a", 900))]) is None
    assert choose([], []) is None


quotas = st.builds(
    wish,
    st.sampled_from("abc"),
    st.none() | st.integers(1, SIZE),
    st.integers(1, 100),
    st.sampled_from(list(Policy)),
    st.integers(0, SIZE // 2),
)


@given(
    there=st.lists(st.lists(quotas, max_size=3).map(lambda parts: tenant(*parts)), max_size=5),
    memory=st.none() | st.integers(1, SIZE),
    cores=st.integers(1, 100),
    policy=st.sampled_from(list(Policy)),
    spill=st.integers(0, SIZE),
)
def test_a_choice_fits_and_no_device_that_fits_has_more_free_memory(
    there: list[Tenant], memory: int | None, cores: int, policy: Policy, spill: int
) -> None:
    wishes = [wish(name, memory, cores, policy, spill) for name in "abc"]
    rooms = {name: room_on(name, SIZE, there) for name in "abc"}
    fitting = [
        room.memory
        for room in rooms.values()
        if (memory or 0) - spill <= room.memory and (policy is Policy.NONE or cores <= room.cores)
    ]
    chosen = choose(wishes, there)
    assert (chosen is None) == (not fitting)
    if chosen:
        assert rooms[chosen.device].memory == max(fitting)
        assert choose(wishes, list(reversed(there))) == chosen, "the order of the tenants means nothing"
