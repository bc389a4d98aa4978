# SPDX-License-Identifier: Apache-2.0
"""The node's Python on files that are hostile or torn: sane numbers, or nothing; never an error of another tree."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from vgpu_runtime import grants
from vgpu_runtime._native._abi import ffi
from vgpu_runtime.model import Kind, Policy, Quota, Tenant

UUID = "GPU-00000000-0000-0000-0000-000000000001"
MEMORY = 2**30
MOST = 2**64 - 1


def offset(name: str, field: str) -> int:
    return int(ffi.offsetof(f"struct vgpu_{name}", field))


SIZE = ffi.sizeof("struct vgpu_grant")
NO_POLICY = offset("grant", "before") + offset("quota", "policy")


@contextmanager
def tenant(kind: Kind) -> Iterator[tuple[Path, Path]]:
    """A state directory and the directory of a live tenant in it."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        quota = Quota(UUID, MEMORY, MEMORY // 2, 30, Policy.FIXED)
        yield state, grants.create(state, "a", kind, [quota, dataclasses.replace(quota, device=UUID[:-1] + "2")],
                                   grants.member(os.getpid()))  # fmt: skip


def sane(found: Tenant) -> None:
    """What a program that reads our listing can rely on."""
    assert json.loads(json.dumps(dataclasses.asdict(found)))["name"] == found.name
    found.name.encode(), found.fault.encode()
    assert all(0 < pid < 2**22 for pid in found.pids)
    for part in found.slices:
        most = part.quota.device_memory if part.quota.memory is None else part.quota.memory
        assert 0 <= part.usage.memory <= most
        assert part.quota.memory is None or part.quota.memory < part.quota.device_memory
        assert part.quota.cores is None or 1 <= part.quota.cores <= 100
        for number in (part.usage.refusals, part.usage.device_time_ns, part.usage.throttled_ns, part.usage.launches):
            assert 0 <= number < 2**63, "more than a reader of our JSON can hold"


PATCHES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 200), st.integers(0, 2**17)),
        st.one_of(st.sampled_from([0, 1, 2, 17, 101, 2**22, 2**63, MOST]), st.integers(0, MOST)),
    ),
    max_size=12,
)
"""Offsets, and the words to be written there."""


def patch(file: Path, patches: list[tuple[int, int]], cut: int | None) -> None:
    content = bytearray(file.read_bytes())
    for offset, word in patches:
        struct.pack_into("<Q", content, offset % (len(content) - 8), word)
    file.write_bytes(content if cut is None else content[: cut % len(content)])


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(Kind),
    grant=PATCHES,
    ledger=PATCHES,
    cuts=st.tuples(st.none() | st.integers(0), st.none() | st.integers(0)),
)
# A change under way, whose slice before it is of no policy.
@example(Kind.PROCESS, [(NO_POLICY, 9), (offset("grant", "size"), SIZE | 1 << 32)], [], (None, None))
def test_hostile_files_give_sane_numbers_or_nothing(
    kind: Kind, grant: list[tuple[int, int]], ledger: list[tuple[int, int]], cuts: tuple[int | None, int | None]
) -> None:
    with tenant(kind) as (state, directory):
        patch(directory / "grant", grant, cuts[0])
        patch(directory / "ledger", ledger, cuts[1])
        listed = grants.tenants(state)
        assert listed in ([], [grants.read(state, "a")])
        for found in listed:
            sane(found)


@settings(max_examples=100, deadline=None)
@given(name=st.binary(min_size=1, max_size=40).filter(lambda name: not {0, ord("/")} & set(name) and name[0] != 46))
@example(name=b"\xff")
@example(name=b"f" * 40)
@example(name=b"-1")
@example(name="１２".encode())
def test_a_file_of_any_name_among_members_and_tenants_is_borne(name: bytes) -> None:
    with tenant(Kind.PROCESS) as (state, directory):
        (directory / "members" / os.fsdecode(name)).touch()
        stranger = state / "tenants" / os.fsdecode(name)
        if name != b"a":
            stranger.mkdir()
            (stranger / "grant").write_bytes((directory / "grant").read_bytes())
        for found in grants.tenants(state):
            sane(found)
            json.dumps(dataclasses.asdict(found)).encode()
            found.directory.encode()
        assert grants.sweep(state) in (0, 1)


def test_a_row_that_names_pid_0_names_nobody() -> None:
    here = Path("/proc/self/ns/pid").stat().st_ino
    owner = int(grants.contract()[1].vgpu_owner(0, 12345, here))
    at = offset("ledger", "rows")
    with tenant(Kind.PROCESS) as (state, directory):
        patch(directory / "ledger", [(at, owner), (at + offset("row", "pid_namespace"), here)], None)
        assert [found.pids for found in grants.tenants(state)] == [(os.getpid(),)]


@pytest.mark.parametrize("name", ["grant", "ledger"])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_stops_nobody(name: str) -> None:
    for make in (os.mkfifo, os.mkdir):
        with tenant(Kind.PROCESS) as (state, directory):
            (directory / name).unlink()
            make(directory / name)
            for found in grants.tenants(state):
                sane(found)
                assert found.fault
            assert name == "grant" or grants.tenants(state)
