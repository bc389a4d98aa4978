# SPDX-License-Identifier: Apache-2.0
"""Tenants on disk: admission, names, members, sweeping; two at once; killed midway."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

FIXED, NONE = 1, 3
SHORT = 1
PROCESS, CONTAINER = 1, 2
Sleeper = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def create(abi: Any, state: Path, grant: Any, pid: int | None = None) -> Any:
    """The result, and what was short."""
    shortage = abi.ffi.new("struct vgpu_shortage *")
    owner = abi.lib.vgpu_owner_of(os.getpid() if pid is None else pid)
    result = abi.lib.vgpu_tenant_create(os.fsencode(state), grant, owner, shortage)
    return result, shortage


def tenants(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "tenants").iterdir())


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# ---- one tenant ------------------------------------------------------------------------------------


def test_a_tenant_is_its_grant_an_empty_ledger_and_its_first_member(abi: Any, state: Path) -> None:
    grant = abi.grant("a", [{"memory": 300}])
    assert create(abi, state, grant)[0] == 0
    home = state / "tenants" / "a"
    assert (home / "grant").read_bytes() == bytes(abi.ffi.buffer(grant))
    ledger = (home / "ledger").read_bytes()
    assert abi.lib.vgpu_ledger_check(ledger, len(ledger)) == abi.lib.VGPU_SOUND
    assert not any(ledger[24:])
    assert [path.name for path in (home / "members").iterdir()] == [f"{abi.lib.vgpu_owner_of(os.getpid()):016x}"]


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_who_may_read_and_write_does_not_depend_on_the_umask(abi: Any, state: Path, mask: int) -> None:
    state.mkdir()
    before = os.umask(mask)
    try:
        result = create(abi, state, abi.grant("a", [{}]))[0]
    finally:
        os.umask(before)
    if mask == 0o777 and os.geteuid() != 0:
        assert result == -errno.EACCES, "nobody but root may enter a directory of mode 0"
        return
    assert result == 0
    home = state / "tenants" / "a"
    modes = {name: (home / name).stat().st_mode & 0o777 for name in ("grant", "ledger")}
    assert modes == {"grant": 0o644, "ledger": 0o666}
    assert home.stat().st_mode & 0o077 == 0, "others of this machine can reach the ledger"


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "x" * 64])
def test_a_name_that_is_no_file_name_is_refused(abi: Any, state: Path, name: str) -> None:
    grant = abi.grant("a", [{}])
    abi.ffi.buffer(grant.tenant)[:] = name.encode()[:64].ljust(64, b"\0")
    assert create(abi, state, grant)[0] == -errno.EINVAL
    assert abi.lib.vgpu_tenant_join(os.fsencode(state), name.encode(), 1) == -errno.EINVAL
    assert abi.lib.vgpu_tenant_remove(os.fsencode(state), name.encode()) == -errno.EINVAL


def test_the_longest_name_is_kept_whole(abi: Any, state: Path) -> None:
    name = "x" * 63
    assert create(abi, state, abi.grant(name, [{}]))[0] == 0
    assert tenants(state) == [name]
    path = abi.ffi.new("char[]", 200)
    assert abi.lib.vgpu_tenant_path(b"/s", name.encode(), path, 200) == 0
    assert abi.ffi.string(path).decode() == f"/s/tenants/{name}"
    assert abi.lib.vgpu_tenant_path(b"/s", name.encode(), path, 70) == -errno.ENAMETOOLONG


def test_a_grant_that_is_none_makes_no_tenant(abi: Any, state: Path) -> None:
    grant = abi.grant("a", [{}])
    grant.slices[0].cores = 0
    assert create(abi, state, grant)[0] == -errno.EINVAL
    assert not state.exists()


def test_a_name_in_use_is_refused_until_its_tenant_is_dead(abi: Any, state: Path, sleeper: Sleeper) -> None:
    first = sleeper()
    assert create(abi, state, abi.grant("a", [{}]), first.pid)[0] == 0
    assert create(abi, state, abi.grant("a", [{}]))[0] == -errno.EEXIST
    end(first)
    assert create(abi, state, abi.grant("a", [{}]))[0] == 0


def test_removing_takes_everything_and_then_finds_nothing(abi: Any, state: Path) -> None:
    create(abi, state, abi.grant("a", [{}]))
    assert abi.lib.vgpu_tenant_remove(os.fsencode(state), b"a") == 0
    assert tenants(state) == []
    assert abi.lib.vgpu_tenant_remove(os.fsencode(state), b"a") == -errno.ENOENT


def test_a_state_directory_that_cannot_serve_is_an_error(abi: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for state in (tmp_path / "file", tmp_path / "no" / "where", tmp_path / "file" / "below"):
        assert create(abi, state, abi.grant("a", [{}]))[0] in {-errno.ENOTDIR, -errno.ENOENT}
        assert abi.lib.vgpu_tenant_sweep(os.fsencode(state)) < 0


def test_a_link_in_the_place_of_a_tenant_is_not_followed(abi: Any, state: Path, tmp_path: Path) -> None:
    create(abi, state, abi.grant("a", [{}]))
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "members").mkdir(parents=True)
    (elsewhere / "members" / "keep").write_text("")
    (state / "tenants" / "link").symlink_to(elsewhere)
    (state / "tenants" / "a" / "members" / "link").symlink_to(elsewhere)
    assert abi.lib.vgpu_tenant_join(os.fsencode(state), b"link", 1) < 0
    abi.lib.vgpu_tenant_sweep(os.fsencode(state))
    assert abi.lib.vgpu_tenant_remove(os.fsencode(state), b"a") == 0
    assert (elsewhere / "members" / "keep").exists()


# ---- members and sweeping ---------------------------------------------------------------------------


def test_a_tenant_lives_as_long_as_one_member(abi: Any, state: Path, sleeper: Sleeper) -> None:
    first, second = sleeper(), sleeper()
    create(abi, state, abi.grant("a", [{}]), first.pid)
    assert abi.lib.vgpu_tenant_join(os.fsencode(state), b"a", abi.lib.vgpu_owner_of(second.pid)) == 0
    end(first)
    assert abi.lib.vgpu_tenant_sweep(os.fsencode(state)) == 0
    end(second)
    assert abi.lib.vgpu_tenant_sweep(os.fsencode(state)) == 1
    assert tenants(state) == []


def test_joining_the_dead_or_the_unknown_fails(abi: Any, state: Path, sleeper: Sleeper) -> None:
    mine = abi.lib.vgpu_owner_of(os.getpid())
    assert abi.lib.vgpu_tenant_join(os.fsencode(state), b"a", mine) == -errno.ENOENT
    first = sleeper()
    create(abi, state, abi.grant("a", [{}]), first.pid)
    end(first)
    assert abi.lib.vgpu_tenant_join(os.fsencode(state), b"a", mine) == -errno.ENOENT


@pytest.mark.parametrize(("kind", "lives"), [(PROCESS, True), (CONTAINER, False)])
def test_a_row_keeps_a_tenant_of_processes_alive_but_a_container_has_no_say(
    abi: Any, state: Path, sleeper: Sleeper, kind: int, lives: bool
) -> None:
    first, child = sleeper(), sleeper()
    create(abi, state, abi.grant("a", [{}], kind), first.pid)
    ledger = abi.ffi.new("struct vgpu_ledger *")
    path = state / "tenants" / "a" / "ledger"
    abi.ffi.memmove(ledger, path.read_bytes(), abi.ffi.sizeof("struct vgpu_ledger"))
    ledger.rows[300].owner = abi.lib.vgpu_owner_of(child.pid)
    path.write_bytes(bytes(abi.ffi.buffer(ledger)))
    end(first)
    assert abi.lib.vgpu_tenant_sweep(os.fsencode(state)) == (0 if lives else 1)
    end(child)
    assert abi.lib.vgpu_tenant_sweep(os.fsencode(state)) == (1 if lives else 0)


def test_the_remains_of_a_killed_command_are_swept(abi: Any, state: Path) -> None:
    create(abi, state, abi.grant("a", [{}]))
    for name in (".new-b", ".gone-c"):
        (state / "tenants" / name / "members").mkdir(parents=True)
        (state / "tenants" / name / "members" / "0123").write_text("")
        (state / "tenants" / name / "ledger").write_text("half")
    assert abi.lib.vgpu_tenant_sweep(os.fsencode(state)) == 0
    assert tenants(state) == ["a"]


def test_a_tenant_whose_files_are_nonsense_is_swept_like_a_dead_one(abi: Any, state: Path) -> None:
    create(abi, state, abi.grant("a", [{}]))
    broken = state / "tenants" / "b"
    (broken / "members").mkdir(parents=True)
    for name in ("members/zzzz", "members/0", "grant", "ledger"):
        (broken / name).write_text("nonsense")
    assert abi.lib.vgpu_tenant_sweep(os.fsencode(state)) == 1
    assert tenants(state) == ["a"]


# ---- admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PROCESS, CONTAINER])
def test_a_node_that_has_run_out_of_descriptors_sweeps_no_live_tenant_and_gives_nothing_twice(
    abi: Any, state: Path, sleeper: Sleeper, kind: int
) -> None:
    """Whatever can still be opened: a tenant that cannot be looked at is neither dead nor nothing."""
    member, row = sleeper(), sleeper()
    assert create(abi, state, abi.grant("a", [{"memory": 600}], kind), member.pid)[0] == 0
    assert create(abi, state, abi.grant("b", [{"device": 2, "memory": 600}]), row.pid)[0] == 0
    if kind == PROCESS:  # only a row keeps it alive
        for path in (state / "tenants" / "b" / "members").iterdir():
            path.unlink()
        ledger = bytearray((state / "tenants" / "b" / "ledger").read_bytes())
        at = abi.ffi.offsetof("struct vgpu_ledger", "rows")
        ledger[at : at + 8] = abi.lib.vgpu_owner_of(row.pid).to_bytes(8, "little")
        (state / "tenants" / "b" / "ledger").write_bytes(ledger)
    script = """if True:
        import os, resource, sys
        sys.path[:0] = sys.argv[3:]
        from vgpu_runtime._native._abi import ffi
        lib = ffi.dlopen(sys.argv[1])
        state = sys.argv[2].encode()
        memory, cores = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        def take():
            try:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
        for free in range(12):
            take()
            for _ in range(free):
                os.close(taken.pop())
            lib.vgpu_tenant_sweep(state)
            result = lib.vgpu_tenant_room(state, bytes([1]) * 16, 1000, memory, cores)
            print(free, result, memory[0])
    """
    paths = [str(build.ROOT), *filter(None, sys.path)]
    library = str(build.OUTPUT / "libvgpu_abi.so")
    done = subprocess.run([sys.executable, "-c", script, library, str(state), *paths], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert tenants(state) == ["a", "b"]
    answers = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert {result for _, result, _ in answers} == {0, -errno.EMFILE}
    assert {memory for _, result, memory in answers if result == 0} == {400}


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, a_pipe, lambda path: path.symlink_to("/")])
@pytest.mark.parametrize("name", ["a", "a/grant", "a/ledger", "a/members"])
def test_whatever_stands_in_the_place_of_a_tenant_or_its_files_stops_nobody(
    abi: Any, state: Path, name: str, make: Callable[[Path], None]
) -> None:
    if "/" in name:
        assert create(abi, state, abi.grant("a", [{}]))[0] == 0
        for path in (state / "tenants" / "a" / "members").iterdir():
            path.unlink()
        place = state / "tenants" / name
        place.rmdir() if place.is_dir() else place.unlink()
    else:
        (state / "tenants").mkdir(parents=True)
    make(state / "tenants" / name)
    for _ in range(2):
        assert create(abi, state, abi.grant("a", [{}]))[0] == 0, "the remains are in the way"
        assert abi.lib.vgpu_tenant_remove(os.fsencode(state), b"a") == 0
    assert tenants(state) == []


def test_memory_that_live_tenants_leave_is_told_to_the_byte(abi: Any, state: Path) -> None:
    assert create(abi, state, abi.grant("a", [{"memory": 700}]))[0] == 0
    result, shortage = create(abi, state, abi.grant("b", [{"device": 2}, {"device": 1, "memory": 301}]))
    assert result == SHORT
    assert (shortage.slice, shortage.is_cores, shortage.free) == (1, 0, 300)
    assert tenants(state) == ["a"]
    assert create(abi, state, abi.grant("b", [{"memory": 300}]))[0] == 0


def test_cores_that_live_tenants_leave_are_told(abi: Any, state: Path) -> None:
    assert create(abi, state, abi.grant("a", [{"cores": 60, "policy": FIXED}]))[0] == 0
    result, shortage = create(abi, state, abi.grant("b", [{"cores": 41, "policy": FIXED}]))
    assert result == SHORT
    assert (shortage.slice, shortage.is_cores, shortage.free) == (0, 1, 40)
    assert create(abi, state, abi.grant("b", [{"cores": 41, "policy": NONE}]))[0] == 0
    assert create(abi, state, abi.grant("c", [{"cores": 40, "policy": FIXED}]))[0] == 0


def test_room_comes_back_when_a_tenant_dies(abi: Any, state: Path, sleeper: Sleeper) -> None:
    first = sleeper()
    assert create(abi, state, abi.grant("a", [{"memory": 900}]), first.pid)[0] == 0
    assert create(abi, state, abi.grant("b", [{"memory": 900}]))[0] == SHORT
    end(first)
    assert create(abi, state, abi.grant("b", [{"memory": 900}]))[0] == 0


def test_a_slice_without_a_limit_takes_nothing_from_the_others(abi: Any, state: Path) -> None:
    assert create(abi, state, abi.grant("all", [{"memory": 1000}]))[0] == 0
    assert create(abi, state, abi.grant("a", [{"memory": 999}]))[0] == 0
    assert create(abi, state, abi.grant("more", [{"memory": 1000}]))[0] == 0


wishes = st.tuples(st.integers(1, 2), st.integers(1, 1000), st.integers(1, 100), st.sampled_from([FIXED, NONE]))


@given(asked=st.lists(wishes, max_size=8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_admission_is_a_sum_for_each_device(
    abi: Any, tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int, int, int]]
) -> None:
    state = tmp_path_factory.mktemp("admission")
    memory, cores = {1: 1000, 2: 1000}, {1: 100, 2: 100}
    for number, (device, bytes_, percent, policy) in enumerate(asked):
        wish = {"device": device, "memory": bytes_, "cores": percent, "policy": policy}
        result, _ = create(abi, state, abi.grant(f"t{number}", [wish]))
        takes_memory = bytes_ if bytes_ < 1000 else 0  # all of the device means: not limited
        takes_cores = percent if policy == FIXED else 0
        fits = takes_memory <= memory[device] and takes_cores <= cores[device]
        assert result == (0 if fits else SHORT)
        if fits:
            memory[device] -= takes_memory
            cores[device] -= takes_cores


# ---- several at once, and killed midway ---------------------------------------------------------------


def creator(state: Path, name: str, memory: int, then: str) -> subprocess.Popen[bytes]:
    """A process of its own that creates a tenant when its stdin says so."""
    code = f"""
import os, sys
sys.path[:0] = {[str(build.ROOT), *filter(None, sys.path)]!r}
from vgpu_runtime import grants
from vgpu_runtime.errors import RefusedError
from vgpu_runtime.model import Kind, Policy, Quota
from pathlib import Path
state, name = Path({str(state)!r}), {name!r}
quota = Quota("GPU-" + "01" * 16, 1000, {memory}, None, Policy.NONE)
def create():
    try:
        grants.create(state, name, Kind.PROCESS, [quota], grants.member(os.getpid()))
    except RefusedError:
        return False
    return True
print(flush=True)
sys.stdin.readline()
{then}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def tell(process: subprocess.Popen[bytes]) -> None:
    """Send a line."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[bytes]) -> bytes:
    """The next line."""
    assert process.stdout is not None
    return process.stdout.readline()


# Create, say whether that worked, and remove it again when told; over and over.
AGAIN = """
while True:
    made = create()
    print(made, flush=True)
    sys.stdin.readline()
    if made:
        grants.remove(state, name)
    print(flush=True)
    if not sys.stdin.readline():
        break
"""


def race(creators: list[subprocess.Popen[bytes]], rounds: int) -> set[int]:
    """How many of them succeeded when they all began at once, in each of that many rounds."""
    numbers = set()
    for process in creators:
        hear(process)
    for _ in range(rounds):
        for process in creators:
            tell(process)
        numbers.add([hear(process) for process in creators].count(b"True\n"))
        for process in creators:
            tell(process)
        for process in creators:
            hear(process)
    for process in creators:
        process.communicate()
    return numbers


def test_of_processes_that_create_one_name_at_once_one_wins(state: Path) -> None:
    assert race([creator(state, "a", 10, AGAIN) for _ in range(4)], 25) == {1}


def test_processes_that_create_at_once_never_get_more_than_there_is(state: Path) -> None:
    assert race([creator(state, f"t{number}", 400, AGAIN) for number in range(4)], 60) == {2}


def test_creating_and_removing_may_be_killed_at_any_moment(abi: Any, state: Path) -> None:
    moments = random.Random(3)
    for _ in range(12):
        process = creator(state, "a", 900, "while True: assert create(); grants.remove(state, name)")
        hear(process)
        tell(process)
        time.sleep(moments.uniform(0.002, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        assert create(abi, state, abi.grant("b", [{"memory": 900}]))[0] == 0
        assert tenants(state) == ["b"]
        assert abi.lib.vgpu_tenant_remove(os.fsencode(state), b"b") == 0
