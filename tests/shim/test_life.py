# SPDX-License-Identifier: Apache-2.0
"""The life of a tenant's processes: how they begin, what they run out of, how they end, and limits that change."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tools.tenants import MIB, NATIVE, PROGRAMS, ROOT, Tenant

from vgpu_runtime._native._abi import ffi

Make = Callable[..., Tenant]
Program = Callable[[str], Path]

OUT_OF_MEMORY, NOT_READY = 2, 802

HERE = Path("/proc/self/ns/pid").stat().st_ino


@contextmanager
def shared(tenant: Tenant, name: str) -> Iterator[Any]:
    """A tenant's grant or ledger, mapped."""
    assert tenant.directory is not None
    with (
        (tenant.directory / name).open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as view,
        ffi.from_buffer(f"struct vgpu_{name} *", view, require_writable=True) as there,
    ):
        yield there


def used(tenant: Tenant) -> int:
    """Bytes charged, as they stand in the ledger."""
    with shared(tenant, "ledger") as ledger:
        return int(ledger.slices[0].memory_used)


def rows(tenant: Tenant) -> int:
    with shared(tenant, "ledger") as ledger:
        return sum(bool(row.owner) for row in ledger.rows)


def say(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def hold(tenant: Tenant, program: Program, size: int) -> subprocess.Popen[str]:
    """A process of the tenant that holds so much until it is killed."""
    process = tenant.start(program("holds"), str(size))
    say(process)
    assert hear(process) == "0"
    return process


# ---- beginnings ------------------------------------------------------------------------------------


def test_threads_that_allocate_first_together_share_one_row(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    script = f"""
    import threading
    from client import *
    context, codes, start = up(), [], threading.Barrier(32)
    def first():
        check(cuda.cuCtxSetCurrent(context))
        start.wait()
        codes.append(alloc({quota // 64})[0])
    threads = [threading.Thread(target=first) for _ in range(32)]
    for one in threads: one.start()
    for one in threads: one.join()
    answer(codes)
    """
    assert tenant.ask(script) == [0] * 32
    assert rows(tenant) == 1


# What a child does: its own program, or none. Each says its code for the quarter that it asks for, and leaves
# without giving it back; a child of fork cannot use its parent's driver, so it only leaves.
CHILDREN = {
    "fork and _exit": ("pid = os.fork()\nif not pid: os._exit(0)", False),
    "fork and exit": ("pid = os.fork()\nif not pid: sys.exit(0)", False),
    "fork and exec": ("pid = os.fork()\nif not pid: os.execv(sys.executable, command)", True),
    "posix_spawn": ("pid = os.posix_spawn(sys.executable, command, os.environ)", True),
    "vfork": ("import subprocess\npid = subprocess.Popen(command, close_fds=False).pid", True),
}

CHILD = """
import ctypes, os, sys
sys.path.insert(0, {programs!r})
from client import *
up()
code = alloc({quarter})[0]
os.write(1, str(code).encode())
os.read(int(sys.argv[1]), 1)
os._exit(0)
"""


@pytest.mark.parametrize("how", CHILDREN)
def test_a_child_has_an_account_of_its_own_and_leaves_its_parents_alone(
    make_tenant: Make, quota: int, how: str
) -> None:
    begin, is_charged = CHILDREN[how]
    tenant = make_tenant(quota)
    child = CHILD.format(programs=str(PROGRAMS), quarter=quota // 4)
    script = f"""
sys.path.insert(0, {str(ROOT / "shim")!r})
import time, vgpu_shim
from client import *
def charged():
    return vgpu_shim.slices()[0].memory_used
up()
code, held = alloc({quota // 2})
alone = charged()
say_code, leave, out = os.pipe(), os.pipe(), os.dup(1)
os.set_inheritable(leave[0], True)
os.dup2(say_code[1], 1)
command = [sys.executable, "-c", {child!r}, str(leave[0])]
{begin}
os.dup2(out, 1)
during = json.loads(os.read(say_code[0], 10)) if {is_charged} else 0
both = charged() - alone
os.write(leave[1], b"x")
os.waitpid(pid, 0)
time.sleep(0.05)
in_parent = [charged() >= alone, alloc({quota})[0]]  # refused, but what the dead hold is taken back
answer([code, during, both >= {quota // 4}, *in_parent, charged() == alone, free(held), charged() < alone])
"""
    done = tenant.run(sys.executable, "-c", PREAMBLE + script)
    assert done == f"[0, 0, {str(is_charged).lower()}, true, {OUT_OF_MEMORY}, true, 0, true]\n"


PREAMBLE = f"""
import ctypes, json, os, sys
sys.path.insert(0, {str(PROGRAMS)!r})
def answer(value):
    print(json.dumps(value), flush=True)
"""


def test_64_processes_that_start_at_once_all_get_their_part(
    make_tenant: Make, bare: Tenant, program: Program, quota: int
) -> None:
    """The quota is what 64 of them need, to the byte."""
    tenant, size = make_tenant(quota), 4 * MIB
    first = hold(tenant, program, size)
    each = used(tenant)
    first.kill()
    first.wait()
    tenant.change(0, memory=64 * each)
    processes = [tenant.start(program("holds"), str(size)) for _ in range(64)]
    for process in processes:
        say(process)
    assert [hear(process) for process in processes] == ["0"] * 64
    assert used(tenant) == 64 * each
    assert rows(tenant) == 64
    one_more = tenant.start(program("holds"), "1")
    say(one_more)
    assert hear(one_more) == str(OUT_OF_MEMORY)
    assert hold(bare, program, 1).poll() is None, "the limit is not ours"
    for process in [*processes[::2], one_more]:
        say(process)
    for process in processes[1::2]:
        process.kill()
    for process in [*processes, one_more]:
        process.wait()
    time.sleep(0.05)
    last = hold(tenant, program, 63 * each)
    assert rows(tenant) == 1
    last.kill()


def test_more_processes_than_rows_are_refused_until_one_ends(make_tenant: Make, program: Program, quota: int) -> None:
    tenant = make_tenant(quota)
    native = ffi.dlopen(str(NATIVE / "libvgpu_abi.so"))
    with subprocess.Popen(["sleep", "600"]) as alive, shared(tenant, "ledger") as ledger:
        owner = native.vgpu_owner_of(alive.pid)
        for row in ledger.rows:
            row.owner, row.image, row.pid_namespace = owner, 1, HERE
        newcomer = tenant.start(program("holds"), str(MIB))
        say(newcomer)
        assert hear(newcomer) == str(OUT_OF_MEMORY)
        alive.kill()
        alive.wait()
        assert hold(tenant, program, MIB).poll() is None
    assert rows(tenant) == 1


# ---- what they run out of ---------------------------------------------------------------------------

EXHAUST = """
import resource
from client import *
def exhaust():
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return taken
def relieve(taken):
    for one in taken:
        os.close(one)
"""


def test_without_file_descriptors_no_neighbour_is_taken_for_dead(
    make_tenant: Make, program: Program, quota: int
) -> None:
    tenant = make_tenant(quota)
    neighbour = hold(tenant, program, quota // 2)
    script = f"""
    {textwrap.indent(EXHAUST, "    ").strip()}
    up()
    said = [alloc({quota // 8})[0]]
    taken = exhaust()
    time.sleep(0.05)
    code, made = alloc({quota // 8})
    said += [code, alloc({quota // 2})[0], alloc({quota // 2})[0], free(made)]
    answer(said)
    sys.stdin.readline()
    time.sleep(0.05)
    relieve(taken)
    answer(alloc({quota // 2})[0])
    """
    process = tenant.start(*tenant.script(script))
    assert hear(process) == f"[0, 0, {OUT_OF_MEMORY}, {OUT_OF_MEMORY}, 0]"
    assert used(tenant) >= quota // 2 + quota // 8
    neighbour.kill()
    neighbour.wait()
    say(process)
    assert hear(process) == "0"


def test_a_process_that_has_no_descriptor_for_its_first_allocation_is_accounted_for_all_the_same(
    make_tenant: Make, program: Program, quota: int
) -> None:
    tenant = make_tenant(quota)
    script = f"""
    {textwrap.indent(EXHAUST, "    ").strip()}
    up()
    taken = exhaust()
    code, made = alloc({quota // 2})
    answer([code, alloc({quota})[0]])
    sys.stdin.readline()
    """
    process = tenant.start(*tenant.script(script))
    assert hear(process) == f"[0, {OUT_OF_MEMORY}]"
    assert used(tenant) >= quota // 2
    refused = tenant.start(program("holds"), str(quota))
    say(refused)
    assert hear(refused) == str(OUT_OF_MEMORY), "a process whose start time nobody knows was taken for dead"
    process.kill()
    process.wait()
    refused.kill()
    refused.wait()
    time.sleep(0.05)
    before = used(tenant)
    hold(tenant, program, quota // 2)
    assert used(tenant) <= before
    assert rows(tenant) == 1


def test_a_grant_for_which_no_descriptor_is_free_is_looked_at_again(make_tenant: Make, quota: int) -> None:
    script = f"""
    {textwrap.indent(EXHAUST, "    ").strip()}
    taken = exhaust()
    codes = [cuda.cuInit(0), cuda.cuInit(0)]
    relieve(taken)
    up()
    answer([*codes, alloc({quota // 2})[0], alloc({quota})[0]])
    """
    tenant = make_tenant(quota)
    done = tenant.attempt(*tenant.script(script))
    assert done.stdout == f"[{NOT_READY}, {NOT_READY}, 0, {OUT_OF_MEMORY}]\n"
    assert done.stderr.count("\n") == 1
    assert "no file descriptor is free" in done.stderr


# ---- ends -------------------------------------------------------------------------------------------


def test_a_thread_that_is_cancelled_takes_nothing_with_it(make_tenant: Make, program: Program, quota: int) -> None:
    tenant = make_tenant(quota)
    neighbour = hold(tenant, program, quota // 2)
    process = tenant.start(program("cancelled"), str(quota))
    assert hear(process) == "cancelled"
    with shared(tenant, "ledger") as ledger:
        assert not ledger.janitor
    neighbour.kill()
    neighbour.wait()
    time.sleep(0.05)
    say(process)
    assert hear(process) == f"{OUT_OF_MEMORY} 0"


REUSE = """
import json, os, subprocess, sys, time
holds, size = sys.argv[1:]
def start(amount):
    made = subprocess.Popen([holds, amount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    made.stdin.write(chr(10))
    made.stdin.flush()
    return made, int(made.stdout.readline())
witness, code = start("1048576")
victim, first = start(size)
victim.kill()
victim.wait()
time.sleep(0.05)  # start times are counted in hundredths of a second
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(victim.pid - 1))
reborn, second = start(size)
third, refused = start(size)
print(json.dumps([code, first, reborn.pid == victim.pid, second, refused]))
for one in (witness, reborn, third):
    one.kill()
"""


def test_a_pid_that_is_used_again_is_another_process(make_tenant: Make, program: Program, quota: int) -> None:
    """In a pid namespace of its own, where nobody else takes pids."""
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if os.geteuid() or not last_pid.exists():
        pytest.skip("needs root and a kernel that lets it choose the next pid (CONFIG_CHECKPOINT_RESTORE)")
    tenant = make_tenant(quota)
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", REUSE]
    said = tenant.run(*command, program("holds"), str(quota * 5 // 8))
    assert said == f"[0, 0, true, 0, {OUT_OF_MEMORY}]\n"


# ---- limits that change -----------------------------------------------------------------------------

SHRUNK = """
from client import *
up()
total = info()[1]
code, held = alloc({quota} // 2)
def say():
    free_bytes, shown = info()
    code, made = alloc(1 << 20)
    if not code:
        check(free(made))
    answer([code, free_bytes, shown])
for line in sys.stdin:
    if line == "free\\n":
        check(free(held))
    say()
"""


def test_a_grant_that_shrinks_below_what_is_in_use_refuses_and_ends_nothing(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    process = tenant.start(*tenant.script(SHRUNK.format(quota=quota)))

    def ask(word: str = "") -> list[int]:
        say(process, word)
        return [int(part) for part in hear(process).strip("[]").split(",")]

    code, free, total = ask()
    assert (code, total) == (0, tenant.memory)
    assert 0 < free <= quota // 2
    tenant.change(0, memory=quota // 4)
    assert ask() == [OUT_OF_MEMORY, 0, quota // 4]
    assert used(tenant) >= quota // 2, "what is held stays charged"
    code, free, total = ask("free")
    assert (code, total) == (0, quota // 4)
    assert 0 < free <= quota // 4
    tenant.change(0, memory=quota)
    assert ask()[2] == quota
    assert process.poll() is None


def test_a_grant_whose_writer_died_midway_is_the_one_before(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    granted = tenant.memory
    process = tenant.start(*tenant.script(SHRUNK.format(quota=quota)))
    say(process)
    assert hear(process).endswith(f" {granted}]")
    with shared(tenant, "grant") as grant:
        grant.changing = 0
        grant.before = grant.slices[0]
        grant.sequence += 1
        grant.slices[0].memory = 4096  # and here its writer is killed
    say(process)
    assert hear(process).endswith(f" {granted}]")
    assert tenant.usage()[0].memory == granted, "a program that starts now sees the same"
    tenant.change(0, memory=quota // 2)
    say(process)
    assert hear(process).endswith(f" {quota // 2}]")
