# SPDX-License-Identifier: Apache-2.0
"""Judging a grant, changing it and reading it while it changes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def grant(abi: Any) -> Any:
    return abi.grant("a", [{"device": 1, "memory": 100}, {"device": 2, "cores": 30, "policy": 1}])


def check(abi: Any, grant: Any, size: int | None = None) -> str:
    fault = abi.lib.vgpu_grant_check(grant, abi.ffi.sizeof("struct vgpu_grant") if size is None else size)
    return str(abi.ffi.string(abi.ffi.cast("enum vgpu_fault", fault)))


def test_a_grant_as_the_node_writes_it_is_sound(abi: Any, grant: Any) -> None:
    assert check(abi, grant) == "VGPU_SOUND"


@pytest.mark.parametrize("size", [0, 1, 15, 16, 127, 1215])
def test_a_cut_off_grant_is_found_whatever_is_left_of_it(abi: Any, grant: Any, size: int) -> None:
    assert check(abi, grant, size) == "VGPU_TRUNCATED"


def break_grant(grant: Any, field: str, value: Any) -> None:
    holder = grant
    *path, last = field.split(".")
    for step in path:
        holder = holder[int(step)] if step.isdigit() else getattr(holder, step)
    setattr(holder, last, value)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("magic", 1, "VGPU_NOT_OURS"),
        ("abi", 2, "VGPU_OTHER_ABI"),
        ("size", 64, "VGPU_TRUNCATED"),
        ("size", 10**6, "VGPU_TRUNCATED"),
        ("slice_count", 0, "VGPU_BAD_VALUE"),
        ("slice_count", 17, "VGPU_BAD_VALUE"),
        ("tenant", b"x" * 64, "VGPU_BAD_VALUE"),
        ("slices.1.cores", 0, "VGPU_BAD_VALUE"),
        ("slices.1.cores", 101, "VGPU_BAD_VALUE"),
        ("slices.0.policy", 0, "VGPU_BAD_VALUE"),
        ("slices.0.policy", 4, "VGPU_BAD_VALUE"),
    ],
)
def test_a_wrong_field_is_found(abi: Any, grant: Any, field: str, value: Any, fault: str) -> None:
    break_grant(grant, field, value)
    assert check(abi, grant) == fault


def test_a_slice_that_is_not_in_use_may_hold_anything(abi: Any, grant: Any) -> None:
    grant.slices[2].cores = 5000
    assert check(abi, grant) == "VGPU_SOUND"


@given(content=st.binary(max_size=2000))
def test_no_bytes_whatever_make_the_judges_read_beyond_them(abi: Any, content: bytes) -> None:
    """They are placed at the end of their allocation; the sanitizer builds would see a byte too many."""
    buffer = abi.ffi.new("char[]", content) if content else abi.ffi.new("char[1]")
    assert abi.lib.vgpu_grant_check(buffer, len(content)) != abi.lib.VGPU_SOUND
    assert abi.lib.vgpu_ledger_check(buffer, len(content)) != abi.lib.VGPU_SOUND


def test_every_fault_has_words_of_its_own(abi: Any) -> None:
    texts = [abi.ffi.string(abi.lib.vgpu_fault_text(fault)) for fault in range(abi.lib.VGPU_BAD_VALUE + 1)]
    assert len(set(texts)) == len(texts)
    assert abi.ffi.string(abi.lib.vgpu_fault_text(99)) == b"unknown fault"


@pytest.mark.parametrize(
    ("memory", "spill", "device_part"),
    [(400, 0, 400), (400, 100, 300), (400, 400, 0), (1000, 0, 2**64 - 1), (2000, 0, 2**64 - 1), (1000, 600, 400),
     (1600, 600, 1000), (3000, 600, 1000)],
)  # fmt: skip
def test_the_device_part_of_a_quota_is_what_does_not_spill(
    abi: Any, grant: Any, memory: int, spill: int, device_part: int
) -> None:
    """All of a device is no limit, but where what is beyond it has a place."""
    quota = grant.slices[0]
    quota.device_memory, quota.memory, quota.memory_spill = 1000, memory, spill
    assert abi.lib.vgpu_quota_of(grant, 0) == device_part
    assert abi.lib.vgpu_quota_of(grant, abi.lib.VGPU_MAX_SLICES) == spill


def test_a_slice_is_found_by_its_device(abi: Any, grant: Any) -> None:
    assert [abi.lib.vgpu_slice_of(grant, bytes([device]) * 16) for device in (1, 2, 3)] == [0, 1, -1]


@pytest.mark.parametrize(
    ("fields", "now", "cores"),
    [
        ({"policy": 3, "cores": 30}, 0, 0),
        ({"policy": 1, "cores": 30}, 0, 30),
        ({"policy": 2, "cores": 30, "cores_limit": 80, "limit_end_ns": 100}, 99, 80),
        ({"policy": 2, "cores": 30, "cores_limit": 80, "limit_end_ns": 100}, 100, 30),
        ({"policy": 2, "cores": 30, "cores_limit": 10, "limit_end_ns": 0}, 10**18, 10),
        ({"policy": 2, "cores": 30, "cores_limit": 4000, "limit_end_ns": 0}, 0, 100),
    ],
)
def test_a_limit_holds_until_its_end_and_then_the_quota(
    abi: Any, grant: Any, fields: dict[str, int], now: int, cores: int
) -> None:
    for name, value in fields.items():
        setattr(grant.slices[0], name, value)
    assert abi.lib.vgpu_cores_in_force(grant, 0, now) == cores


def test_a_reader_sees_a_change_whole_or_not_at_all(program: Callable[[str], Path]) -> None:
    done = subprocess.run([program("quota_race"), "50000"], capture_output=True, text=True, check=True, timeout=60)
    seen, mixed = map(int, done.stdout.split())
    assert seen > 1000, "next to nothing changed while it was read"
    # Without the sequence it is every tenth change; without `before`, each at which the kernel stops the writer.
    assert mixed == 0


def limits(abi: Any, grant: Any, number: int) -> tuple[int, int, int]:
    quota = abi.ffi.new("struct vgpu_quota *")
    abi.lib.vgpu_quota_read(grant, number, quota)
    return int(quota.memory), int(quota.cores), int(quota.limit_end_ns)


def leave_half_changed(grant: Any) -> None:
    """Slice 0 of 100 bytes and 100 percent, by a writer that died when it had written one of its two fields."""
    grant.changing = 0
    grant.before = grant.slices[0]
    grant.sequence = 7
    grant.slices[0].memory = 50


def test_a_writer_that_died_midway_has_changed_nothing(abi: Any, grant: Any) -> None:
    leave_half_changed(grant)
    assert check(abi, grant) == "VGPU_SOUND"
    assert limits(abi, grant, 0) == (100, 100, 0)
    assert limits(abi, grant, 1) == (1000, 30, 0)


def test_the_next_writer_puts_right_what_one_that_died_has_left(abi: Any, grant: Any) -> None:
    leave_half_changed(grant)
    quota = abi.ffi.new("struct vgpu_quota *", grant.slices[1])
    quota.cores = 20
    abi.lib.vgpu_quota_write(grant, 1, quota)
    assert grant.sequence == 10
    assert limits(abi, grant, 0) == (100, 100, 0)
    assert limits(abi, grant, 1) == (1000, 20, 0)


@pytest.mark.parametrize(("field", "value"), [("cores", 0), ("policy", 9)])
def test_what_a_writer_that_died_has_kept_is_judged_as_well(abi: Any, grant: Any, field: str, value: int) -> None:
    leave_half_changed(grant)
    setattr(grant.before, field, value)
    assert check(abi, grant) == "VGPU_BAD_VALUE"
