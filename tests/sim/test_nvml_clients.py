# SPDX-License-Identifier: Apache-2.0
"""Unmodified NVML programs on the simulated GPU: nvidia-ml-py, nvitop, gpustat, NVIDIA's own nvidia-smi."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from tools import nvidia_smi
from tools.simulated import MIB, Make, Simulated

from vgpu_runtime import machines

OVERHEAD_MIB = 300
SMI_LIST = """
GPU 0: NVIDIA H200 (UUID: {})
GPU 1: NVIDIA H200 (UUID: {})
"""


def script(name: str) -> Path:
    """The program that a Python package installs."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed in this environment (extra `clients`)")
    return path


@pytest.fixture(scope="session")
def smi() -> Path:
    """NVIDIA's real nvidia-smi."""
    try:
        return nvidia_smi.find(nvidia_smi.default_cache())
    except (nvidia_smi.Unavailable, OSError) as reason:
        pytest.skip(f"no nvidia-smi: {reason}")


def query(machine: Simulated, smi: Path, fields: str) -> list[list[str]]:
    """What ``nvidia-smi --query-gpu`` prints, without its heading."""
    text = machine.run(smi, f"--query-gpu={fields}", "--format=csv,nounits")
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())][1:]


def test_nvidia_smi_shows_its_default_view(h200: Simulated, smi: Path) -> None:
    with h200.user(memory=1024 * MIB):
        text = h200.run(smi)
    assert "Driver Version: 580.95.05" in text
    assert "CUDA Version: 13.0" in text
    assert "NVIDIA H200" in text
    assert f"{1024 + OVERHEAD_MIB}MiB / 14377" in text
    assert "ERR!" not in text


def test_nvidia_smi_lists_devices_with_their_uuids(make_machine: Make, smi: Path) -> None:
    machine = make_machine("2xh200")
    uuids = [device.uuid for device in machine.machine.devices]
    assert machine.run(smi, "-L") == SMI_LIST.lstrip().format(*uuids)


def test_nvidia_smi_answers_queries(make_machine: Make, smi: Path) -> None:
    machine = make_machine("2xa100-80g")
    first, second = machine.machine.devices
    fields = "name,uuid,memory.total,memory.used,utilization.gpu"
    with machine.user(device=1, memory=2048 * MIB):
        rows = query(machine, smi, fields)
    assert rows == [
        ["NVIDIA A100-SXM4-80GB", first.uuid, "81920", "0", "0"],
        ["NVIDIA A100-SXM4-80GB", second.uuid, "81920", str(2048 + OVERHEAD_MIB), "0"],
    ]


def test_nvidia_smi_sees_the_load_of_the_moment(h200: Simulated, smi: Path) -> None:
    with h200.user(busy=50):
        time.sleep(1)
        ((percent, watts),) = query(h200, smi, "utilization.gpu,power.draw")
    assert 25 <= int(percent) <= 75
    assert float(watts) > 75


def test_gpustat_shows_devices_and_processes(h200: Simulated) -> None:
    gpustat = script("gpustat")
    with h200.user(memory=512 * MIB) as user:
        shown = json.loads(h200.run(gpustat, "--json"))
        text = h200.run(gpustat, "--no-color", "--show-pid")
    (device,) = shown["gpus"]
    assert device["uuid"] == h200.machine.devices[0].uuid
    assert device["memory.total"] == 143771
    assert [(row["pid"], row["gpu_memory_usage"]) for row in device["processes"]] == [(user.pid, 512 + OVERHEAD_MIB)]
    assert "NVIDIA H200" in text
    assert f"/{user.pid}(" in text


def test_nvitop_shows_one_screen_with_the_process(h200: Simulated) -> None:
    nvitop = script("nvitop")
    with h200.user(memory=1748 * MIB, busy=50) as user:
        time.sleep(0.5)
        text = h200.run(nvitop, "-1", COLUMNS="120", LINES="60")
    assert "Driver Version: 580.95.05" in text
    assert "140.4GiB" in text
    assert str(user.pid) in text
    assert "2048MiB" in text


def test_many_clients_ask_at_once_while_programs_run(h200: Simulated, smi: Path, stack: ExitStack) -> None:
    users = [stack.enter_context(h200.user(memory=256 * MIB, busy=20)) for _ in range(2)]
    commands = [
        [script("gpustat"), "--json"],
        [smi, "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        [smi, "-L"],
        [script("nvitop"), "-1"],
        [script("gpustat"), "--json"],
        [smi],
    ]
    running = [
        subprocess.Popen(
            [str(word) for word in command],
            env=h200.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    results = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * len(commands)
    assert [errors for _, errors in results] == [""] * len(commands)
    used = 2 * (256 + OVERHEAD_MIB)
    assert int(results[1][0]) == used
    for text in (results[0][0], results[4][0]):
        (device,) = json.loads(text)["gpus"]
        assert {row["pid"] for row in device["processes"]} == {user.pid for user in users}
        assert sum(row["gpu_memory_usage"] for row in device["processes"]) == used


def test_a_client_needs_no_environment_but_the_libraries_directory(h200: Simulated, smi: Path) -> None:
    done = subprocess.run(
        [smi, "-L"],
        env={"LD_LIBRARY_PATH": str(h200.directory)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"GPU 0: NVIDIA H200 (UUID: {h200.machine.devices[0].uuid})\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_can_use_the_machine() -> None:
    """As a container's own user does: the shared file is everybody's."""
    script = """
lib = ctypes.CDLL("libnvidia-ml.so.1")
os.setgid(65534), os.setuid(65534)
answer([os.geteuid(), lib.nvmlInit_v2()])
"""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        machine = Simulated(machines.create("h200", Path(folder) / "driver"))
        assert machine.ask(script) == [65534, 0]
