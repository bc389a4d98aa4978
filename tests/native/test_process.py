# SPDX-License-Identifier: Apache-2.0
"""Who a process is, and when it is gone, judged on real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

HERE = Path("/proc/self/ns/pid").stat().st_ino


@given(pid=st.integers(1, 2**22 - 1), ticks=st.integers(0, 2**64 - 1), namespace=st.integers(0, 2**64 - 1))
def test_an_owner_word_keeps_the_pid_and_the_low_bits_of_the_rest(
    abi: Any, pid: int, ticks: int, namespace: int
) -> None:
    owner = abi.lib.vgpu_owner(pid, ticks, namespace)
    assert abi.lib.vgpu_owner_pid(owner) == pid
    assert owner >> 32 == ticks % 2**32
    assert owner >> 22 & 1023 == namespace % 1024


def test_a_process_sees_itself_as_others_see_it(abi: Any) -> None:
    namespace = abi.ffi.new("uint64_t *")
    assert abi.lib.vgpu_owner_self(namespace) == abi.lib.vgpu_owner_of(os.getpid()) != 0
    assert namespace[0] == HERE


def test_a_process_is_gone_when_it_has_ended_and_not_before(
    abi: Any, sleeper: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = sleeper()
    owner = abi.lib.vgpu_owner_of(process.pid)
    assert owner
    assert not abi.lib.vgpu_process_is_gone(owner, HERE)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert abi.lib.vgpu_process_is_gone(owner, HERE), "a zombie runs no more"
    process.wait()
    assert abi.lib.vgpu_process_is_gone(owner, HERE)
    assert abi.lib.vgpu_owner_of(process.pid) == 0


def test_a_pid_that_is_used_again_does_not_revive_the_dead(abi: Any) -> None:
    again = abi.lib.vgpu_owner(os.getpid(), 12345, HERE)
    assert abi.lib.vgpu_process_is_gone(again, HERE)


def test_pid_0_which_a_hostile_ledger_may_name_is_nobody(abi: Any) -> None:
    assert abi.lib.vgpu_process_is_gone(abi.lib.vgpu_owner(0, 12345, HERE), HERE)
    assert abi.lib.vgpu_owner_of(0) == 0


@pytest.mark.parametrize("namespace", [HERE + 1, HERE + 1024])
def test_a_process_of_another_pid_namespace_is_not_judged(abi: Any, namespace: int) -> None:
    # No process has this pid here.
    owner = abi.lib.vgpu_owner(2**22 - 1, 1, namespace)
    assert not abi.lib.vgpu_process_is_gone(owner, namespace)


def test_exec_keeps_the_owner_and_changes_the_image(program: Callable[[str], Path]) -> None:
    lines = subprocess.run([program("who"), "3"], capture_output=True, text=True, check=True).stdout.splitlines()
    owners, images, namespaces = zip(*(line.split() for line in lines), strict=True)
    assert len(lines) == 4
    assert len(set(owners)) == 1
    assert len(set(images)) == 4
    assert set(namespaces) == {str(HERE)}


@pytest.mark.parametrize("name", ["a) R 1 (b", "  ) S 0 0", "))))"])
def test_a_process_may_be_called_anything(abi: Any, program: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    shutil.copy(program("leader_ends"), tmp_path / name)
    with subprocess.Popen([tmp_path / name], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        owner = abi.lib.vgpu_owner_of(process.pid)
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        assert owner >> 32 == int(ticks) % 2**32
        process.stdout.readline()
        assert not abi.lib.vgpu_process_is_gone(owner, HERE)
        process.kill()


def test_a_process_whose_first_thread_has_ended_still_lives(abi: Any, program: Callable[[str], Path]) -> None:
    with subprocess.Popen([program("leader_ends")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        owner = abi.lib.vgpu_owner_of(process.pid)
        assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        assert not abi.lib.vgpu_process_is_gone(owner, HERE)


def test_a_process_of_another_user_is_not_gone(abi: Any) -> None:
    if os.geteuid() != 0:
        owner = abi.lib.vgpu_owner_of(1)
        assert not abi.lib.vgpu_process_is_gone(owner, HERE)
        return
    # As nobody, this very process is somebody else's.
    code = (
        "import os, sys; os.setuid(65534); sys.path[:0] = sys.argv[3:]\n"
        "from vgpu_runtime._native._abi import ffi\n"
        "lib = ffi.dlopen(sys.argv[1])\n"
        "sys.exit(lib.vgpu_process_is_gone(int(sys.argv[2]), 0))"
    )
    import build

    library = str(build.OUTPUT / "libvgpu_abi.so")
    owner = str(abi.lib.vgpu_owner_of(os.getpid()))
    paths = [str(build.ROOT), *filter(None, sys.path)]
    done = subprocess.run([sys.executable, "-c", code, library, owner, *paths], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
