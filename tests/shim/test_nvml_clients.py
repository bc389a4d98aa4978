# SPDX-License-Identifier: Apache-2.0
"""Unmodified clients of NVML in a tenant: gpustat, nvitop, nvidia-ml-py and NVIDIA's own nvidia-smi."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools import nvidia_smi
from tools.nvml import hold
from tools.tenants import GIB, MIB, Driver, Tenant

Make = Callable[..., Tenant]
MakeMachine = Callable[[str], Driver]


@pytest.fixture
def shared(make_machine: MakeMachine, make_tenant: Make) -> Iterator[tuple[Tenant, int, Tenant, int]]:
    """The tenant of the second of two devices with a program, and another program outside, on the same device."""
    machine = make_machine("2xh200")
    tenant, outside = make_tenant(10 * GIB, devices=[1], on=machine), Tenant(machine, preload="")
    try:
        yield tenant, hold(tenant, 512 * MIB, 1), outside, hold(outside, 768 * MIB, 1)
    finally:
        outside.stop()


Shared = tuple[Tenant, int, Tenant, int]


def client(name: str) -> Path:
    """The program that a Python package installs."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed in this environment (extra `clients`)")
    return path


def gpustat(tenant: Tenant) -> list[tuple[str, int, int, list[int]]]:
    """Device, MiB in all, MiB used and pids, as gpustat has them."""
    said = json.loads(tenant.run(client("gpustat"), "--json"))["gpus"]
    return [
        (one["uuid"], one["memory.total"], one["memory.used"], [row["pid"] for row in one["processes"]]) for one in said
    ]


def test_gpustat_shows_the_tenants_device_and_process(shared: Shared) -> None:
    tenant, own, outside, other = shared
    first, second = (one.uuid for one in tenant.driver.devices)
    ((device, total, used, pids),) = gpustat(tenant)
    assert (device, total, pids) == (second, 10 * 1024, [own])
    assert 512 <= used < 768
    whole = gpustat(outside)
    assert [row[0] for row in whole] == [first, second]
    assert sorted(whole[1][3]) == sorted([own, other])


def nvitop(tenant: Tenant, *pids: int) -> tuple[int, bool, list[bool]]:
    """How many devices nvitop shows, whether one is of the slice's size, and which of the processes it lists."""
    text = tenant.run(client("nvitop"), "-1", COLUMNS="120", LINES="60")
    return text.count(" 00000000:"), "/ 10240MiB" in text, [f" {pid} C " in text for pid in pids]


def test_nvitop_shows_the_tenants_device_and_process(shared: Shared) -> None:
    tenant, own, outside, other = shared
    assert nvitop(tenant, own, other) == (1, True, [True, False])
    assert nvitop(outside, own, other) == (2, False, [True, True])


def test_nvidia_ml_py_finds_the_tenants_device_alone(shared: Shared) -> None:
    tenant, own, outside, _ = shared
    script = """
    import pynvml as n
    n.nvmlInit()
    devices = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
    lists = [n.nvmlDeviceGetComputeRunningProcesses, n.nvmlDeviceGetGraphicsRunningProcesses,
             n.nvmlDeviceGetMPSComputeRunningProcesses]
    last = devices[-1]
    bar1 = n.nvmlDeviceGetBAR1MemoryInfo(last)
    answer([[n.nvmlDeviceGetUUID(one) for one in devices], [n.nvmlDeviceGetIndex(one) for one in devices],
            len(n.nvmlSystemGetTopologyGpuSet(0)), [[one.pid for one in list(last)] for list in lists],
            n.nvmlDeviceGetMemoryInfo(last).total, bar1.bar1Total])
    """
    uuids = [one.uuid for one in tenant.driver.devices]
    assert tenant.ask(script) == [uuids[1:], [0], 1, [[own], [], []], 10 * GIB, 10 * GIB]
    assert outside.ask(script)[:3] == [uuids, [0, 1], 2]


def test_nvidia_smi_shows_the_tenants_device(shared: Shared) -> None:
    tenant, _, outside, _ = shared
    try:
        smi = nvidia_smi.find(nvidia_smi.default_cache())
    except (nvidia_smi.Unavailable, OSError) as reason:
        pytest.skip(f"no nvidia-smi: {reason}")
    first, second = (one.uuid for one in tenant.driver.devices)
    query = (smi, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
    assert tenant.run(smi, "-L") == f"GPU 0: NVIDIA H200 (UUID: {second})\n"
    assert tenant.run(*query) == f"0, {second}, 10240\n"
    assert "MiB / 10240MiB |" in tenant.run(smi)
    assert [row.split(", ")[1] for row in outside.run(*query).splitlines()] == [first, second]
    hidden = tenant.attempt(smi, "-i", first, "--query-gpu=name", "--format=csv,noheader")
    assert "H200" not in hidden.stdout
    assert "H200" in outside.run(smi, "-i", first, "--query-gpu=name", "--format=csv,noheader")
