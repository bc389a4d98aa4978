# SPDX-License-Identifier: Apache-2.0
"""Tenants: how long they live, who shares them, and what they leave to others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

GIB = 2**30
H200 = 143_165 * GIB // 1024  # bytes that programs can have of the simulated one
CONTEXT = 300 * 2**20  # what a program's context takes on the simulated one


def test_programs_that_join_share_one_quota(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "10GiB", do=[6 * GIB])
    said = vgpu.cuda("--join", "a", do=[4 * GIB, 4 * GIB - 2 * CONTEXT])
    assert said["answers"] == [2, 0]
    assert (said["total"], said["free"]) == (10 * GIB, 0)
    assert vgpu.cuda("--join", "a")["free"] == 4 * GIB - 2 * CONTEXT, "what a joined program held came back at its end"


@pytest.mark.parametrize(
    "option",
    [
        ("--memory", "1GiB"),
        ("--spill", "1GiB"),
        ("--host-memory", "1GiB"),
        ("--cores", "30"),
        ("--policy", "none"),
        ("--device", "0"),
        ("--name", "b"),
    ],
)
def test_joining_takes_no_other_wish(vgpu: Any, option: tuple[str, str]) -> None:
    done = vgpu.run("--join", "a", *option, program=["true"])
    assert done.returncode == 2
    assert option[0] in done.stderr


def test_joining_a_tenant_that_is_not_there_fails(vgpu: Any) -> None:
    done = vgpu.run("--join", "a", program=["true"])
    assert done.returncode == 1
    assert "'a'" in done.stderr
    assert "vgpu list" in done.stderr


def test_joining_on_another_machine_fails(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "1GiB", sim="h200")
    done = vgpu.run("--join", "a", program=["true"], sim="t4")
    assert done.returncode == 1
    assert "--sim" in done.stderr


def test_a_tenant_lives_on_with_a_program_that_joined_it(vgpu: Any) -> None:
    first = vgpu.hold("--name", "a", "--memory", "10GiB")
    second = vgpu.hold("--join", "a", do=[GIB - CONTEXT])
    first.communicate("")
    (tenant,) = vgpu.tenants()
    assert (tenant["name"], tenant["pids"]) == ("a", [second.pid])
    assert tenant["slices"][0]["usage"]["memory"] == GIB


def test_a_tenant_lives_on_with_a_child_that_uses_the_device(vgpu: Any) -> None:
    background = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, *sys.argv[1:]]); print(p.pid, flush=True)"
    )
    from_child = ["-c", "import time, ctypes; c = ctypes.CDLL('libcuda.so.1'); c.cuInit(0); d = ctypes.c_void_p(); "
                  "c.cuDevicePrimaryCtxRetain(ctypes.byref(d), 0); c.cuCtxSetCurrent(d); p = ctypes.c_uint64(); "
                  f"c.cuMemAlloc_v2(ctypes.byref(p), ctypes.c_size_t({GIB})); print('ready', flush=True); "
                  "time.sleep(60)"]  # fmt: skip
    process = vgpu.start(
        "run", "--sim", "h200", "--name", "a", "--memory", "2GiB", "--", sys.executable, "-c", background, *from_child
    )
    lines = sorted(process.stdout.readline() for _ in range(2))
    child = int(lines[0])
    try:
        process.wait(10)
        (tenant,) = vgpu.tenants()
        assert tenant["pids"] == [child]
    finally:
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: vgpu.tenants() == [])


def wait_until(condition: Any) -> None:
    """Wait for what must come; ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_what_a_killed_run_held_is_there_for_the_next(vgpu: Any) -> None:
    killed = vgpu.hold("--name", "a", "--memory", "100GiB", do=[100 * GIB - CONTEXT])
    assert vgpu.run("--memory", "100GiB", program=["true"]).returncode == 1
    killed.kill()
    killed.wait()
    assert (vgpu.state / "tenants" / "a").exists(), "nobody has come since"
    said = vgpu.cuda("--name", "a", "--memory", "100GiB", do=[100 * GIB - CONTEXT])
    assert said["answers"] == [0]
    assert vgpu.tenants() == []


def test_a_name_that_is_taken_is_refused_with_the_way_to_share_it(vgpu: Any) -> None:
    vgpu.hold("--name", "a")
    done = vgpu.run("--name", "a", program=["true"])
    assert done.returncode == 1
    assert "--join a" in done.stderr


def test_memory_that_others_have_is_refused_and_what_is_free_is_told(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "100GiB")
    for options in (["--memory", "100GiB"], ["--memory", "100GiB", "--device", "0"]):
        done = vgpu.run(*options, program=["true"])
        assert done.returncode == 1
        assert f"{H200 - 100 * GIB} bytes" in done.stderr
    assert vgpu.run("--memory", H200 - 100 * GIB, program=["true"]).returncode == 0


def test_what_spills_of_a_quota_is_left_to_others(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "100GiB", "--spill", "60GiB")
    free = H200 - 40 * GIB
    for options in ([], ["--device", "0"]):
        done = vgpu.run("--memory", free + 60 * GIB, "--spill", 60 * GIB - 1, *options, program=["true"])
        assert done.returncode == 1
        assert f"{free} bytes" in done.stderr
        assert f"{free + 1} bytes" in done.stderr, "what was asked of the device"
        done = vgpu.run("--memory", free + 60 * GIB, "--spill", "60GiB", *options, program=["true"])
        assert done.returncode == 0, done.stderr
    assert vgpu.run("--memory", free, program=["true"]).returncode == 0


def test_programs_that_join_share_what_spills_and_the_page_locked_memory(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "4GiB", "--spill", "2GiB", "--host-memory", "2GiB", do=[f"host:{GIB}"])
    work = [3 * GIB, GIB - 2 * CONTEXT + 1, GIB - 2 * CONTEXT, f"host:{2 * GIB}", f"host:{GIB}"]
    for _ in range(2):  # what a joined program held comes back at its end
        said = vgpu.cuda("--join", "a", do=work)
        assert (said["answers"], said["free"]) == ([0, 2, 0, 2, 0], 0)
    (tenant,) = vgpu.tenants()
    usage = tenant["slices"][0]["usage"]
    assert (usage["memory"], usage["spill"], usage["refusals"]) == (CONTEXT, 0, 2)
    assert tenant["host_memory"] == {"quota": 2 * GIB, "usage": GIB, "refusals": 2}


def test_cores_that_others_have_are_refused_and_what_is_free_is_told(vgpu: Any) -> None:
    vgpu.hold("--cores", 60)
    done = vgpu.run("--cores", 50, program=["true"])
    assert done.returncode == 1
    assert "40% free" in done.stderr
    assert vgpu.run("--cores", 50, "--device", "0", program=["true"]).returncode == 1
    assert vgpu.run("--cores", 40, program=["true"]).returncode == 0


def test_commands_that_start_at_once_get_no_more_than_there_is(vgpu: Any) -> None:
    started = [
        vgpu.start("run", "--sim", "2xh200", "--memory", "60GiB", "--", "sh", "-c", "echo in; read x") for _ in range(6)
    ]
    answers = [process.stdout.readline() for process in started]
    assert answers.count("in\n") == 4, "two fit on each of two devices"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a full disk")
@pytest.mark.skipif(shutil.which("mount") is None, reason="mount is not installed: apt-get install mount")
def test_a_full_disk_is_named_and_leaves_nothing(vgpu: Any) -> None:
    assert vgpu.run("--name", "before", program=["true"]).returncode == 0
    tenants = vgpu.state / "tenants"
    script = f'mount -t tmpfs -o size=64k none {tenants} && "$@"; code=$?; ls -A {tenants}; exit $code'
    command = vgpu.command("run", "--sim", "h200", "--memory", "1GiB", "--", "true")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command],
        env=vgpu.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "hint: free some space" in done.stderr
    assert done.stdout == ""
