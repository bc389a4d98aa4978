# SPDX-License-Identifier: Apache-2.0
"""Which devices a tenant gets, on which machine, and where the state of it all is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import build
import pytest

GIB = 2**30
H200 = 143_165 * GIB // 1024  # bytes that programs can have of the simulated one


def visible(vgpu: Any, *options: object, sim: str = "2xh200") -> list[str]:
    done = vgpu.run(*options, program=["printenv", "CUDA_VISIBLE_DEVICES"], sim=sim)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip().split(",")


def test_devices_are_given_in_the_order_in_which_they_are_named(vgpu: Any) -> None:
    first, second = visible(vgpu, "--device", 0), visible(vgpu, "--device", 1)
    assert first != second
    assert visible(vgpu, "--device", 1, "--device", 0) == second + first
    assert visible(vgpu, "--device", second[0]) == second
    assert visible(vgpu, "--device", second[0][:9].lower()) == second


def test_each_named_device_has_the_same_quota(vgpu: Any) -> None:
    vgpu.hold("--device", 1, "--device", 0, "--memory", "25%", "--cores", 30, sim="2xh200")
    (tenant,) = vgpu.tenants()
    quotas = [part["quota"] for part in tenant["slices"]]
    assert [(quota["memory"], quota["cores"], quota["policy"]) for quota in quotas] == [(H200 // 4, 30, "fixed")] * 2
    assert len({quota["device"] for quota in quotas}) == 2


def test_a_device_that_is_named_twice_is_a_mistake(vgpu: Any) -> None:
    done = vgpu.run("--device", 0, "--device", visible(vgpu, "--device", 0)[0], program=["true"], sim="2xh200")
    assert done.returncode == 2
    assert "twice" in done.stderr


def test_a_slice_goes_where_most_room_is(vgpu: Any) -> None:
    first, second = visible(vgpu, "--device", 0), visible(vgpu, "--device", 1)
    assert visible(vgpu) == first
    vgpu.hold("--device", 0, "--memory", "10GiB", sim="2xh200")
    assert visible(vgpu, "--memory", "10GiB") == second
    vgpu.hold("--device", 1, "--memory", "20GiB", sim="2xh200")
    assert visible(vgpu, "--memory", "10GiB") == first


def test_the_program_finds_its_slice_on_the_second_device(vgpu: Any) -> None:
    assert vgpu.cuda("--device", 1, "--memory", "10GiB", sim="2xh200")["total"] == 10 * GIB


# ---- the machine -----------------------------------------------------------------------------------


def test_without_a_driver_the_cure_is_named(vgpu: Any) -> None:
    done = vgpu("run", "--memory", "1GiB", "--", "true", env={"LD_LIBRARY_PATH": "/nowhere"})
    if done.returncode == 0:
        pytest.skip("this machine has an NVIDIA driver")
    assert done.returncode == 1
    assert "driver" in done.stderr
    assert "--sim h200" in done.stderr


def test_the_machine_may_be_named_in_the_environment(vgpu: Any) -> None:
    done = vgpu("run", "--memory", "1GiB", "--", "printenv", "LD_LIBRARY_PATH", env={"VGPU_SIM": "t4"})
    assert done.stdout == f"{vgpu.state}/sim/t4\n"


def test_one_name_is_one_machine(vgpu: Any) -> None:
    vgpu.hold(do=[100 * GIB])
    assert vgpu.cuda(do=[100 * GIB])["answers"] == [2], "the card itself is full"


def test_a_tenant_within_a_tenant_is_refused(vgpu: Any) -> None:
    inner = vgpu.command("run", "--sim", "h200", "--memory", "1GiB", "--", "true")
    done = vgpu.run("--name", "outer", "--memory", "8GiB", program=inner)
    assert done.returncode == 2
    assert "'outer'" in done.stderr


def test_a_package_in_a_directory_with_blanks_works_as_any_other(vgpu: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "my programs: $HOME"
    shutil.copytree(
        build.ROOT / "vgpu_runtime", elsewhere / "vgpu_runtime", ignore=shutil.ignore_patterns("build", "__pycache__")
    )
    vgpu.package = elsewhere
    assert vgpu.cuda("--memory", "8GiB", do=[9 * GIB])["answers"] == [2]


@pytest.mark.parametrize("name", ["with blank", "with:colon", "$ORIGIN"])
def test_a_state_directory_that_the_linker_cannot_take_is_refused(vgpu: Any, tmp_path: Path, name: str) -> None:
    vgpu.state = tmp_path / name
    done = vgpu.run(program=["true"])
    assert done.returncode == 2
    assert "VGPU_STATE_DIR" in done.stderr
    assert not vgpu.state.exists()


def test_a_state_directory_that_others_may_write_is_refused(vgpu: Any) -> None:
    vgpu.state.mkdir()
    vgpu.state.chmod(0o777)
    done = vgpu.run(program=["true"])
    assert done.returncode == 2
    assert "forge" in done.stderr


def test_a_state_directory_that_is_none_is_refused(vgpu: Any) -> None:
    vgpu.state.write_text("a file")
    done = vgpu.run(program=["true"])
    assert done.returncode == 2
    assert str(vgpu.state) in done.stderr
