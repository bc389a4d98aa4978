# SPDX-License-Identifier: Apache-2.0
"""`vgpu run`: the slice that a program gets, and quantities that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import build
import pytest

GIB = 2**30
H200 = 143_165 * GIB // 1024  # bytes that programs can have of the simulated one
CONTEXT = 300 * 2**20  # what a program's context takes on the simulated one


@pytest.mark.parametrize(
    ("text", "size"),
    {
        "8GiB": 8 * GIB,
        "8Gi": 8 * GIB,
        "8192MiB": 8 * GIB,
        "8G": 8 * 10**9,
        "1.5GiB": 3 * GIB // 2,
        "8589934592": 8 * GIB,
        "25%": H200 // 4,
    }.items(),
)
def test_a_program_sees_the_memory_that_was_asked_for(vgpu: Any, text: str, size: int) -> None:
    assert vgpu.cuda("--memory", text)["total"] == size


BAD = {
    ("--memory", "8 gigs"): "8GiB",
    ("--memory", "8g"): "8GiB",
    ("--memory", "-1"): "8GiB",
    ("--memory", "0"): "8GiB",
    ("--memory", "101%"): "25%",
    ("--memory", "nan"): "8GiB",
    ("--memory", ""): "8GiB",
    ("--cores", "0"): "30",
    ("--cores", "101"): "30",
    ("--cores", "30.5"): "30",
    ("--cores", "many"): "30",
    ("--name", "a/b"): "train-1",
    ("--name", ""): "train-1",
    ("--policy", "fixed"): "--cores 30",
    ("--policy", "balance"): "--cores 30",
    ("--policy", "elastic"): "fixed",
    ("--device", "7"): "0: GPU-",
    ("--device", "GPU-"): "0: GPU-",
    ("--memory", "200GiB"): "139.8 GiB",
    ("--spill", "2GiB"): "--memory 8GiB --spill 2GiB",
    ("--spill", "-1"): "8GiB",
    ("--spill", "8g"): "8GiB",
    ("--spill", "101%"): "25%",
    ("--spill", "0"): "8GiB",
    ("--host-memory", "25%"): "8GiB",
    ("--host-memory", "-1"): "8GiB",
    ("--host-memory", "0"): "8GiB",
    ("--host-memory", "many"): "8GiB",
    ("--host-memory", ""): "8GiB",
}


@pytest.mark.parametrize(("option", "value"), BAD)
def test_a_wrong_value_is_named_with_its_rule_and_an_example_and_nothing_starts(
    vgpu: Any, tmp_path: Path, option: str, value: str
) -> None:
    done = vgpu.run(option, value, program=["touch", tmp_path / "started"])
    assert done.returncode == 2
    assert value in done.stderr
    assert BAD[option, value] in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "started").exists()
    assert vgpu.tenants() == []


@pytest.mark.parametrize(
    ("memory", "spill", "rule"),
    [
        ("8GiB", "9GiB", "it must be less than the memory"),
        ("8GiB", "8GiB", "it must be less than the memory"),
        ("25%", "50%", "it must be less than the memory"),
        ("200GiB", "1GiB", "must be less"),
        ("100%", "0%", "a percentage of the device lies above 0"),
    ],
)
def test_a_spill_that_does_not_go_with_the_memory_is_refused_and_nothing_starts(
    vgpu: Any, tmp_path: Path, memory: str, spill: str, rule: str
) -> None:
    done = vgpu.run("--memory", memory, "--spill", spill, program=["touch", tmp_path / "started"])
    assert done.returncode == 2
    assert f"spill '{spill}'" in done.stderr
    assert rule in done.stderr
    assert "hint: " in done.stderr
    assert not (tmp_path / "started").exists()
    assert vgpu.tenants() == []


def test_cores_that_mean_nothing_are_refused(vgpu: Any) -> None:
    done = vgpu.run("--policy", "none", "--cores", 30, program=["true"])
    assert done.returncode == 2
    assert "policy none" in done.stderr


def test_an_allocation_over_the_quota_is_refused_and_the_program_goes_on(vgpu: Any) -> None:
    said = vgpu.cuda("--memory", "8GiB", do=[9 * GIB, 8 * GIB - CONTEXT + 1, 8 * GIB - CONTEXT])
    assert said["answers"] == [2, 2, 0]
    assert said["free"] == 0


def test_the_same_allocation_succeeds_without_a_quota(vgpu: Any) -> None:
    said = vgpu.cuda(do=[9 * GIB, 8 * GIB])
    assert said["answers"] == [0, 0]
    assert said["total"] > 139 * GIB


def test_memory_that_may_spill_is_the_programs_beyond_its_part_of_the_device(vgpu: Any) -> None:
    work = [5 * GIB, 5 * GIB, 5 * GIB, 5 * GIB]
    said = vgpu.cuda("--memory", "16GiB", "--spill", "8GiB", do=work)
    assert (said["answers"], said["total"]) == ([0, 0, 0, 2], 16 * GIB)
    # Without the grant's word nothing spills: the same slice of the device takes one of them.
    said = vgpu.cuda("--memory", "8GiB", do=work)
    assert (said["answers"], said["total"]) == ([0, 2, 2, 2], 8 * GIB)


def test_a_slice_may_be_larger_than_the_device_by_what_spills(vgpu: Any) -> None:
    assert vgpu.cuda("--memory", "200GiB", "--spill", "70GiB")["total"] == 200 * GIB


def test_page_locked_memory_follows_its_quota_and_no_other(vgpu: Any) -> None:
    work = [f"host:{3 * GIB}", f"host:{2 * GIB}", f"host:{GIB}", 2 * GIB]
    # All of the device's memory is given out before: the host's is another matter.
    said = vgpu.cuda("--memory", "1GiB", "--host-memory", "4GiB", do=[GIB - CONTEXT, *work])
    assert said["answers"] == [0, 0, 2, 0, 2]
    assert vgpu.cuda("--memory", "1GiB", do=work)["answers"] == [0, 0, 0, 2]


def test_an_nvml_client_sees_the_slice_and_not_the_card(vgpu: Any) -> None:
    done = vgpu.run("--memory", "10GiB", program=[sys.executable, "-m", "gpustat", "--no-color", "--json"])
    assert json.loads(done.stdout)["gpus"][0]["memory.total"] == 10 * 1024


def test_compute_follows_its_quota(vgpu: Any) -> None:
    """A wide net for one second; the shim's own tests measure it finely."""
    tenant = build.ROOT / "vgpu_runtime" / "demo" / "tenant.py"
    shares = {}
    for cores in (20, 60):
        done = vgpu(
            "run", "--sim", "h200", "--cores", cores, "--", sys.executable, tenant, 1.0, 1_000_000, 0, input="go\n"
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[1])
        shares[cores] = said["kernels"] * 1e8 / said["elapsed_ns"]
    assert 12 < shares[20] < 28
    assert 45 < shares[60] < 70
