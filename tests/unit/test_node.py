# SPDX-License-Identifier: Apache-2.0
"""Decisions of the node that need no device: where its state is, what a wish means, which devices are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpu_runtime.errors import ConfigError, UsageError
from vgpu_runtime.grants import uuid_bytes, uuid_text
from vgpu_runtime.model import Device, Policy
from vgpu_runtime.node import Wish, pick, quota_on, state_directory, state_path

GPUS = [
    Device("GPU-11111111-0000-0000-0000-000000000000", "0", "one", 1000),
    Device("GPU-11112222-0000-0000-0000-000000000000", "1", "two", 2000),
    Device("MIG-33333333-0000-0000-0000-000000000000", "2:0", "part", 500),
]


def test_the_state_directory_is_the_first_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    session = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert state_path({"VGPU_STATE_DIR": "/here", **session}, 1000) == Path("/here")
    assert state_path(session, 0) == Path("/run/vgpu")
    assert state_path(session, 1000) == tmp_path / "vgpu"
    assert state_path({"XDG_RUNTIME_DIR": "/no/such"}, 1000) == Path("/tmp/vgpu-1000")
    assert state_path({}, 1000) == Path("/tmp/vgpu-1000")
    assert state_path({"VGPU_STATE_DIR": ""}, 0) == Path("/run/vgpu")


def test_a_relative_state_directory_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert state_directory({"VGPU_STATE_DIR": "state"}) == tmp_path / "state"


def test_a_state_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(ConfigError, match="somebody else"):
        state_directory({"VGPU_STATE_DIR": str(theirs)})
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    os.lchown(link, 12345, 12345)
    with pytest.raises(ConfigError, match="somebody else"):
        state_directory({"VGPU_STATE_DIR": str(link)})


def test_a_wish_without_limits_limits_nothing() -> None:
    quota = quota_on(GPUS[0], Wish(None, None, None))
    assert (quota.memory, quota.cores, quota.policy) == (None, None, Policy.NONE)


def test_cores_alone_are_fixed() -> None:
    quota = quota_on(GPUS[0], Wish("25%", "30%", None))
    assert (quota.memory, quota.cores, quota.policy) == (250, 30, Policy.FIXED)
    assert quota_on(GPUS[0], Wish(None, "30", Policy.BALANCE)).policy is Policy.BALANCE


@pytest.mark.parametrize("policy", [Policy.FIXED, Policy.BALANCE])
def test_a_policy_without_cores_is_a_mistake(policy: Policy) -> None:
    with pytest.raises(UsageError, match=str(policy)):
        quota_on(GPUS[0], Wish("25%", None, policy))


def test_a_wish_may_be_all_of_a_device_and_no_more() -> None:
    assert quota_on(GPUS[0], Wish("1000", None, None)).memory == 1000
    with pytest.raises(ConfigError, match="1000 bytes"):
        quota_on(GPUS[0], Wish("1001", None, None))


@pytest.mark.parametrize(
    ("memory", "spill", "expected"),
    [
        ("800", "200", (800, 200, 600)),
        ("80%", "30%", (800, 300, 500)),
        ("1000", "1", (1000, 1, 999)),
        ("1500", "501", (1500, 501, 999)),
        ("800", None, (800, 0, 800)),
    ],
)
def test_what_spills_of_the_memory_need_not_be_in_the_device(
    memory: str, spill: str | None, expected: tuple[int, int, int]
) -> None:
    quota = quota_on(GPUS[0], Wish(memory, None, None, spill))
    assert (quota.memory, quota.spill, quota.device_part) == expected


def test_memory_without_a_limit_takes_no_part_and_has_none_to_spill() -> None:
    quota = quota_on(GPUS[0], Wish(None, "30", None))
    assert (quota.spill, quota.device_part) == (0, None)
    with pytest.raises(UsageError, match="'200'") as caught:
        quota_on(GPUS[0], Wish(None, None, None, "200"))
    assert "--memory 8GiB --spill 2GiB" in caught.value.hint


@pytest.mark.parametrize(("memory", "spill"), [("1500", "500"), ("1500", "1"), ("100000", "200")])
def test_what_does_not_spill_must_be_less_than_the_device(memory: str, spill: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{memory}' with spill '{spill}'.*1000 bytes.*{int(memory) - int(spill)}"):
        quota_on(GPUS[0], Wish(memory, None, None, spill))


@pytest.mark.parametrize("spill", ["800", "900", "-1", "0", "8g"])
def test_a_spill_that_cannot_be_is_refused(spill: str) -> None:
    with pytest.raises(ConfigError, match=f"spill '{spill}'"):
        quota_on(GPUS[0], Wish("800", None, None, spill))


@pytest.mark.parametrize(
    ("name", "index"),
    [("0", 0), ("1", 1), ("2:0", 2), (GPUS[1].uuid, 1), (GPUS[1].uuid.upper(), 1), ("GPU-11112", 1), ("mig-3", 2)],
)
def test_a_device_is_named_by_index_uuid_or_its_beginning(name: str, index: int) -> None:
    assert pick(GPUS, [name]) == [GPUS[index]]


@pytest.mark.parametrize("name", ["3", "-1", "", "00", "GPU-1111", "GPU-", "GPU-9", "one", "1111"])
def test_a_device_that_cannot_be_meant_is_refused_and_those_that_can_are_shown(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        pick(GPUS, [name])
    assert all(device.uuid in caught.value.hint for device in GPUS)


@given(st.binary(min_size=16, max_size=16), st.sampled_from(["GPU", "MIG"]))
def test_a_uuid_and_its_bytes_are_one(value: bytes, prefix: str) -> None:
    text = uuid_text(value, prefix)
    assert len(text) == 40
    assert uuid_bytes(text) == uuid_bytes(text.upper()) == value


@pytest.mark.parametrize("text", ["", "GPU", "GPU-", "GPU-xyz", "GPU-1234", "MIG-GPU-11111111-0000/1/0"])
def test_what_is_no_uuid_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        uuid_bytes(text)
