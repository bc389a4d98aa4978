# SPDX-License-Identifier: Apache-2.0
"""The simulated GPU when its users die: nothing stays locked, nothing stays lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import build
import pytest
from sim.programs import FOLDER, ask, compiled, script, start, state
from tools.simulated import Make, Simulated

HOLD = """
context()
ok(cu.cuMemAlloc(int(sys.argv[1]) * GIB))
answer("held")
line()
"""


def finish(program: subprocess.Popen[str]) -> None:
    program.kill()
    program.wait()
    for pipe in (program.stdin, program.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()


def held(machine: Simulated, gib: int) -> subprocess.Popen[str]:
    program = start(machine, HOLD, gib)
    assert program.stdout is not None
    assert program.stdout.readline() == '"held"\n'
    return program


def test_what_a_killed_process_held_is_free_for_the_next_at_once(h200: Simulated) -> None:
    for _ in range(3):
        finish(held(h200, 79))
    assert ask(h200, "context()\nanswer(rc(cu.cuMemAlloc(138 * GIB)))") == 0


def test_a_living_process_gets_what_a_killed_one_held(h200: Simulated) -> None:
    body = """
    context()
    answer("on")
    line()
    answer([ok(cu.cuMemGetInfo())[0], rc(cu.cuMemAlloc(79 * GIB))])
    """
    survivor = start(h200, body)
    assert survivor.stdout is not None
    survivor.stdout.readline()
    finish(held(h200, 79))
    out, _ = survivor.communicate("\n")
    knobs, identity = state(h200).knobs, state(h200).devices[0].identity
    assert out.strip() == f"[{identity.memory_total - identity.memory_reserved - knobs.context_overhead}, 0]"


def test_a_stopped_process_is_not_a_dead_one(h200: Simulated) -> None:
    program = held(h200, 79)
    program.send_signal(19)
    assert ask(h200, "context()\nanswer(rc(cu.cuMemAlloc(79 * GIB)))") == 2
    finish(program)
    assert ask(h200, "context()\nanswer(rc(cu.cuMemAlloc(79 * GIB)))") == 0


def test_the_work_of_a_killed_process_ends_with_it(h200: Simulated) -> None:
    loop = "context()\nk = function('tick_50ms')\n[launch(k) for _ in range(1000)]\nanswer('queued')\nline()"
    program = start(h200, loop)
    assert program.stdout is not None
    program.stdout.readline()
    finish(program)
    assert ask(h200, "context()\nlaunch(function('tick_100ms'))\nanswer(rc(cu.cuCtxSynchronize()))") == 0
    assert state(h200).devices[0].timeline.busy_ns < 10**10  # of the 50 s that were queued


def test_processes_killed_at_any_moment_leave_no_lock_and_lose_no_memory(make_machine: Make) -> None:
    machine = make_machine("name: small\ndevices: [{model: t4, memory_total: 8GiB}]\nknobs: {kernel_ns: 1000}\n")
    busy = """
    context()
    answer("on")
    kernel, stream = function("tick_1us"), ok(cu.cuStreamCreate(1))
    p, FD = cu.CUmemAllocationProp(), cu.CUmemAllocationHandleType(1)
    p.type, p.requestedHandleTypes = cu.CUmemAllocationType(1), FD
    p.location.type, p.location.id = cu.CUmemLocationType(1), 0
    d = cu.CUDA_ARRAY3D_DESCRIPTOR()
    d.Width, d.Height, d.Format, d.NumChannels = 1024, 1024, cu.CUarray_format(0x20), 4
    while True:
        shared = ok(cu.cuMemCreate(2 * MIB, p, 0))
        fd = ok(cu.cuMemExportToShareableHandle(shared, FD, 0))
        twin = ok(cu.cuMemImportFromShareableHandle(fd, FD))
        ok(cu.cuMemRelease(shared))
        os.close(fd)
        ok(cu.cuMemRelease(twin))
        ok(cu.cuArrayDestroy(ok(cu.cuArray3DCreate(d))))
        held = [ok(cu.cuMemAlloc(n)) for n in (1, 4 * MIB, 300)]
        launch(kernel, stream)
        pooled = ok(cu.cuMemAllocAsync(3 * MIB, stream))
        ok(cu.cuMemFreeAsync(pooled, stream))
        ok(cu.cuStreamSynchronize(stream))
        [ok(cu.cuMemFree(p)) for p in held]
    """
    survivor = start(machine, busy)
    choose = random.Random(7)
    for _ in range(12):
        victim = start(machine, busy)
        assert victim.stdout is not None
        victim.stdout.readline()
        time.sleep(choose.uniform(0, 0.05))
        finish(victim)
    assert survivor.poll() is None
    finish(survivor)
    body = """
    context()
    total = ok(cu.cuDeviceTotalMem(0))
    answer([total - ok(cu.cuMemGetInfo())[0], rc(cu.cuMemAlloc(7 * GIB))])
    """
    assert ask(machine, body) == [state(machine).knobs.context_overhead, 0]
    device = state(machine).devices[0]
    assert device.memory_used == sum(device.shares[slot].memory for slot in range(512)) == 0
    assert device.memory_unowned == 0
    assert [entry.kind for entry in state(machine).shared if entry.kind] == []


def test_more_processes_than_slots_over_time(make_machine: Make) -> None:
    machine = make_machine("t4")
    body = """
    for _ in range(600):
        child = os.fork()
        if not child:
            os._exit(raw().cuInit(0))     # without exit handlers: nobody says good-bye
        if os.waitpid(child, 0)[1]:
            answer("failed")
            break
    else:
        answer(rc(cu.cuInit(0)))
    """
    assert ask(machine, body) == 0


@pytest.mark.parametrize("where", ["device", "machine", "working", "sharing"])
def test_a_process_killed_with_a_lock_held_leaves_the_books_right(h200: Simulated, tmp_path: Path, where: str) -> None:
    survivor = held(h200, 2)
    program = compiled(tmp_path, "dies_locked.c", *sorted(build.SIM.glob("machine*.c")))
    done = h200.attempt(program, where, VGPU_SIM_FILE=str(h200.machine.file))
    assert (done.returncode, done.stderr) == (-9, "")
    overhead = state(h200).knobs.context_overhead
    body = """
    context()
    launch(function("tick_10ms"))
    ok(cu.cuCtxSynchronize())
    answer(ok(cu.cuDeviceTotalMem(0)) - ok(cu.cuMemGetInfo())[0])
    """
    assert ask(h200, body) == 2 * overhead + 2 * 2**30  # the survivor's and its own
    finish(survivor)
    assert ask(h200, body) == overhead


def test_a_process_in_a_container_is_known_by_its_host_pid_and_reclaimed_when_killed(
    h200: Simulated, contained: list[str]
) -> None:
    command = [*contained, sys.executable, "-c", script(HOLD), "79"]
    environment = h200.environment(PYTHONPATH=str(FOLDER))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == '"held"\n'
        (child,) = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        nvml = """
        import pynvml
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        answer([p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)])
        """
        assert ask(h200, nvml) == [int(child)]
        assert ask(h200, "context()\nanswer(rc(cu.cuMemAlloc(79 * GIB)))") == 2
        os.kill(int(child), 9)
        program.wait()
        assert ask(h200, "context()\nanswer(rc(cu.cuMemAlloc(79 * GIB)))") == 0
        assert ask(h200, nvml) == []


def test_processes_in_two_containers_cannot_take_each_others_memory(h200: Simulated, contained: list[str]) -> None:
    environment = h200.environment(PYTHONPATH=str(FOLDER))
    inside = [*contained, sys.executable, "-c"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*inside, script(HOLD), "79"], env=environment, **pipes) as first:
        assert first.stdout is not None
        first.stdout.readline()
        body = script("context()\nanswer(rc(cu.cuMemAlloc(79 * GIB)))")
        second = subprocess.run([*inside, body], env=environment, capture_output=True, text=True, check=True)
        assert second.stdout == "2\n"  # both are process 1 of their container
        first.communicate("\n")
    second = subprocess.run([*inside, body], env=environment, capture_output=True, text=True, check=True)
    assert second.stdout == "0\n"


def test_random_work_of_processes_that_share_and_die_leaves_the_books_empty(h200: Simulated, tmp_path: Path) -> None:
    folder = tmp_path / "handles"
    folder.mkdir()

    def begin(seed: int, steps: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(FOLDER / "random_memory.py"), str(seed), str(steps), str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=h200.environment(), **pipes)

    for round_ in range(3):
        programs = [begin(10 * round_ + i, 10**9 if i % 2 else 400) for i in range(4)]
        for program in programs[::2]:
            assert program.stdout is not None
            assert [program.stdout.readline() for _ in range(2)] == ['"on"\n', '"done"\n']
        for program in programs:
            assert program.poll() is None
            finish(program)
    body = "context()\nanswer(ok(cu.cuDeviceTotalMem(0)) - ok(cu.cuMemGetInfo())[0])"
    assert ask(h200, body) == state(h200).knobs.context_overhead
    device, shared = state(h200).devices[0], state(h200).shared
    assert [device.memory_used, device.memory_unowned, sum(share.memory for share in device.shares)] == [0, 0, 0]
    assert state(h200).shared_top > 0
    assert [entry.kind for entry in shared if entry.kind] == []
    assert (h200.directory / "machine.shared").stat().st_blocks == 0
