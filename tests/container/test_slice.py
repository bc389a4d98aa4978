# SPDX-License-Identifier: Apache-2.0
"""A container with nothing but the hook in its config.json lives in its slice."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container.nodes import GIB, HOOK, LIBRARY, MIB, OUT_OF_MEMORY, ROOT, Containers, found, slice_command
from tools import nvidia_smi

from vgpu_runtime.demo.bundle import Mount

WITHIN, OVER = 5 * GIB, 11 * GIB
LIMITS = {"VGPU_MEMORY": "10GiB", "VGPU_CORES": "25"}


@pytest.fixture(scope="session")
def real_nvidia_smi() -> Path:
    try:
        return nvidia_smi.find(nvidia_smi.default_cache())
    except nvidia_smi.Unavailable as error:
        pytest.skip(f"no nvidia-smi: {error}")


def test_programs_see_the_slice_and_cannot_exceed_it(node: Containers) -> None:
    node.bundle("c1", *slice_command(WITHIN, OVER), env=LIMITS)
    inside, outside = found(node.run("c1")), node.outside(WITHIN, OVER)
    assert list(inside["nvml"].values()) == [10 * GIB]
    assert inside["cuda"] == 10 * GIB
    assert inside["allocations"] == {str(WITHIN): 0, str(OVER): OUT_OF_MEMORY}
    # The limit is ours: the same program, on the same device, without us.
    assert list(outside["nvml"]) == list(inside["nvml"])
    assert min(outside["nvml"].values()) > 100 * GIB
    assert outside["allocations"] == {str(WITHIN): 0, str(OVER): 0}


def test_a_container_that_asks_for_nothing_is_left_alone(node: Containers) -> None:
    node.bundle("c1", *slice_command(WITHIN, OVER))
    inside = found(node.run("c1"))
    assert inside["allocations"] == {str(WITHIN): 0, str(OVER): 0}
    assert inside["nvml"] == node.outside()["nvml"]
    assert not (node.rootfs("c1") / "opt/vgpu").exists()
    assert not (node.rootfs("c1") / "etc/ld.so.preload").exists()
    assert node.tenants() == []


def test_the_stage_prestart_serves_as_well(node: Containers) -> None:
    node.bundle("c1", *slice_command(), env=LIMITS, hook_stage="prestart")
    assert found(node.run("c1"))["cuda"] == 10 * GIB


def test_an_installed_hook_serves_as_one_in_a_checkout(node: Containers, tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "vgpu_runtime"
    native = package / "_native"
    shutil.copytree(HOOK.parent, native / "hooks", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (LIBRARY, ROOT / "shim" / "vgpu_shim.py"):
        shutil.copy(file, native)
    for name in ("__init__.py", "errors.py", "units.py"):
        shutil.copy(ROOT / "vgpu_runtime" / name, package)
    node.bundle("c1", *slice_command(), env=LIMITS, hook=native / "hooks" / HOOK.name)
    assert found(node.run("c1"))["cuda"] == 10 * GIB
    assert not list(package.rglob("__pycache__"))


def test_nvitop_shows_the_slice(node: Containers) -> None:
    node.bundle("c1", sys.executable, "-m", "nvitop", "-1", env=LIMITS)
    done = node.run("c1")
    assert done.returncode == 0, done.stdout + done.stderr
    # It chooses the unit by what is in use.
    assert re.search(r"/ (10240MiB|10\.00GiB) ", done.stdout), done.stdout


def test_two_stages_at_once_make_one_tenant(node: Containers) -> None:
    node.bundle("c1", *slice_command(), env=LIMITS)
    node.change("c1", lambda config: config["hooks"].update(prestart=config["hooks"]["createRuntime"]))
    assert found(node.run("c1"))["cuda"] == 10 * GIB
    assert node.tenants() == []


def test_real_nvidia_smi_shows_the_slice(node: Containers, real_nvidia_smi: Path) -> None:
    mount = Mount(real_nvidia_smi, Path("/srv/nvidia-smi"))
    query = "/srv/nvidia-smi --query-gpu=memory.total --format=csv,noheader"
    node.bundle("c1", "/bin/sh", "-c", f"{query} && /srv/nvidia-smi", env=LIMITS, extra_mounts=[mount])
    done = node.run("c1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == "10240 MiB"
    assert "MiB / 10240MiB |" in done.stdout
    outside = subprocess.run(
        [str(real_nvidia_smi), "--query-gpu=memory.total", "--format=csv,noheader"],
        env={"LD_LIBRARY_PATH": str(node.driver)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(outside.stdout.split()[0]) > 100_000


def test_an_empty_environment_and_an_exec_change_nothing(node: Containers) -> None:
    node.bundle("c1", "/bin/sleep", "60", env=LIMITS)
    node.start("c1")
    assert node.tenants() == ["c1"]
    for prefix in ([], ["/usr/bin/env", "-i"]):
        inside = found(node.execute("c1", *prefix, *slice_command(WITHIN, OVER)))
        assert inside["cuda"] == 10 * GIB
        assert inside["allocations"] == {str(WITHIN): 0, str(OVER): OUT_OF_MEMORY}
        assert "LD_PRELOAD" not in inside["environment"]
    node.delete("c1")
    assert node.tenants() == []


def test_two_containers_have_each_its_own_slice(node: Containers) -> None:
    quotas = {"c1": 10 * GIB, "c2": 40 * GIB}
    for identity, quota in quotas.items():
        node.bundle(identity, "/bin/sleep", "60", env={"VGPU_MEMORY": str(quota)})
        node.start(identity)
    assert node.tenants() == ["c1", "c2"]
    for identity, quota in quotas.items():
        assert found(node.execute(identity, *slice_command()))["cuda"] == quota


SPILLING = (8 * GIB, OVER, f"host:{GIB}", f"host:{3 * GIB}")


@pytest.mark.parametrize("place", ["env", "annotations"])
def test_memory_spills_and_is_page_locked_as_far_as_was_asked_for(node: Containers, place: str) -> None:
    words = {"memory": "10GiB", "spill": "4GiB", "host-memory": "2GiB"}
    asked = {
        "annotations": {f"vgpu.io/{name}": value for name, value in words.items()},
        "env": {f"VGPU_{name.upper().replace('-', '_')}": value for name, value in words.items()},
    }
    node.bundle("c1", *slice_command(*SPILLING), **{place: asked[place]})
    inside = found(node.run("c1"))
    assert inside["cuda"] == 10 * GIB
    assert list(inside["nvml"].values()) == [10 * GIB]
    assert list(inside["allocations"].values()) == [0, OUT_OF_MEMORY, 0, OUT_OF_MEMORY]
    line = node.log().splitlines()[0]
    assert f"4 GiB ({4 * GIB} bytes) of it in host memory" in line
    assert f"2 GiB ({2 * GIB} bytes) of page-locked host memory" in line
    # The same part of the device, of which nothing may spill; and the same program without us.
    node.bundle("c2", *slice_command(*SPILLING), env={"VGPU_MEMORY": "6GiB"})
    assert list(found(node.run("c2"))["allocations"].values()) == [OUT_OF_MEMORY, OUT_OF_MEMORY, 0, 0]
    assert list(node.outside(*SPILLING)["allocations"].values()) == [0, 0, 0, 0]


def test_page_locked_memory_alone_may_be_limited(node: Containers) -> None:
    node.bundle("c1", *slice_command(*SPILLING), env={"VGPU_HOST_MEMORY": "2GiB"})
    inside = found(node.run("c1"))
    assert list(inside["allocations"].values()) == [0, 0, 0, OUT_OF_MEMORY]
    assert inside["cuda"] == node.outside()["cuda"]


def test_what_spills_is_left_to_other_containers(node: Containers) -> None:
    for identity, spill in (("c1", "40%"), ("c2", "40%")):
        node.bundle(identity, "/bin/sleep", "60", env={"VGPU_MEMORY": "80%", "VGPU_SPILL": spill})
        node.start(identity)
    total = node.outside()["cuda"]
    for identity in ("c1", "c2"):
        assert list(found(node.execute(identity, *slice_command()))["nvml"].values()) == [total * 4 // 5]


def test_annotations_leave_the_environment_no_say(node: Containers) -> None:
    annotations = {"vgpu.io/memory": "25%"}
    node.bundle("c1", *slice_command(), env={"VGPU_MEMORY": "100%", "VGPU_CORES": "no"}, annotations=annotations)
    total = node.outside()["cuda"]
    assert found(node.run("c1"))["cuda"] == total // 4


def test_a_read_only_root_gets_its_slice(node: Containers) -> None:
    node.bundle("c1", *slice_command(OVER), env=LIMITS, readonly_root=True)
    assert found(node.run("c1"))["allocations"] == {str(OVER): OUT_OF_MEMORY}


def test_an_ordinary_user_of_the_container_is_limited_too(node: Containers) -> None:
    node.bundle("c1", *slice_command(WITHIN, OVER), env=LIMITS)

    def be_ordinary(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
        config["process"]["capabilities"] = {}

    node.change("c1", be_ordinary)
    assert found(node.run("c1"))["allocations"] == {str(WITHIN): 0, str(OVER): OUT_OF_MEMORY}


def test_a_container_with_a_user_namespace_is_limited_too(node: Containers) -> None:
    node.bundle("c1", *slice_command(WITHIN, OVER), env=LIMITS)

    def be_mapped(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        identity = [{"containerID": 0, "hostID": 0, "size": 65536}]
        config["linux"] |= {"uidMappings": identity, "gidMappings": identity}

    node.change("c1", be_mapped)
    assert found(node.run("c1"))["allocations"] == {str(WITHIN): 0, str(OVER): OUT_OF_MEMORY}


def test_root_in_the_container_cannot_change_its_limits(node: Containers) -> None:
    attempts = (
        "echo x > /opt/vgpu/grant",
        "touch /opt/vgpu/other",
        "rm -f /opt/vgpu/libvgpu.so",
        "mv /opt/vgpu /opt/elsewhere",
        "rm -f /etc/ld.so.preload",
        "echo > /etc/ld.so.preload",
        "umount /etc/ld.so.preload",
        "mount -o remount,rw /opt/vgpu/grant",
    )
    script = "".join(f"({attempt}) && echo 'possible: {attempt}'\n" for attempt in attempts)
    node.bundle("c1", "/bin/sh", "-c", f"{script}exec {' '.join(slice_command(OVER))}", env=LIMITS)
    done = node.run("c1")
    assert "possible" not in done.stdout
    assert found(done)["allocations"] == {str(OVER): OUT_OF_MEMORY}


def test_a_program_reads_its_own_slice(node: Containers) -> None:
    script = (
        "import sys; sys.path.insert(0, '/opt/vgpu'); import vgpu_shim; (mine,) = vgpu_shim.slices(); "
        "print(mine.memory, mine.cores, mine.spill, vgpu_shim.host_memory().memory)"
    )
    limits = {**LIMITS, "VGPU_SPILL": "4GiB", "VGPU_HOST_MEMORY": "2GiB"}
    node.bundle("c1", sys.executable, "-c", script, env=limits)
    done = node.run("c1")
    assert done.stdout == f"{10 * GIB} 25 {4 * GIB} {2 * GIB}\n", done.stderr


def limited(done: subprocess.CompletedProcess[str], memory: int) -> set[str]:
    """The devices that NVML shows with that much memory."""
    return {uuid for uuid, total in found(done)["nvml"].items() if total == memory}


def test_devices_are_chosen_by_index_and_uuid(make_node: Callable[[str], Containers]) -> None:
    node = make_node("2xh200")
    first, second = node.outside()["nvml"]
    choices = [("1", {second}), (first, {first}), (f"1,{first}", {first, second}), (second[:9].lower(), {second})]
    for number, (devices, expected) in enumerate(choices):
        limits = {"VGPU_MEMORY": "1GiB", "VGPU_DEVICES": devices}
        node.bundle(f"c{number}", *slice_command(), env=limits)
        done = node.run(f"c{number}")
        assert limited(done, GIB) == set(found(done)["nvml"]) == expected


def test_the_device_with_the_most_free_memory_is_taken(make_node: Callable[[str], Containers]) -> None:
    node = make_node("2xh200")
    first, second = node.outside()["nvml"]
    for number, (memory, expected) in enumerate(((20 * GIB, first), (30 * GIB, second), (MIB, first))):
        node.bundle(f"c{number}", "/bin/sleep", "60", env={"VGPU_MEMORY": str(memory)})
        node.start(f"c{number}")
        assert limited(node.execute(f"c{number}", *slice_command()), memory) == {expected}


def test_where_the_freest_device_lacks_cores_the_next_is_taken(make_node: Callable[[str], Containers]) -> None:
    node = make_node("2xh200")
    first, second = node.outside()["nvml"]
    node.bundle("c1", "/bin/sleep", "60", env={"VGPU_CORES": "80", "VGPU_DEVICES": second})
    node.bundle("c2", "/bin/sleep", "60", env={"VGPU_MEMORY": "1GiB", "VGPU_DEVICES": first})
    node.bundle("c3", "/bin/sleep", "60", env={"VGPU_MEMORY": "2GiB", "VGPU_CORES": "40"})
    for identity in ("c1", "c2", "c3"):
        node.start(identity)
    assert limited(node.execute("c3", *slice_command()), 2 * GIB) == {first}


def test_a_tenant_whose_poststop_never_came_is_swept(node: Containers) -> None:
    for identity in ("c1", "c2"):
        node.bundle(identity, *slice_command(), env={"VGPU_MEMORY": "100%"})
    node.change("c1", lambda config: config["hooks"].pop("poststop"))
    assert found(node.run("c1"))
    assert node.tenants() == ["c1"]
    assert found(node.run("c2"))
    assert node.tenants() == []


def test_the_end_is_served_even_when_the_bundle_is_gone(node: Containers) -> None:
    node.bundle("c1", "/bin/sleep", "60", env=LIMITS)
    node.start("c1")
    (node.bundles["c1"] / "config.json").unlink()
    node.delete("c1")
    assert node.tenants() == []


def test_what_was_done_is_in_the_log(node: Containers) -> None:
    node.bundle("c1", "/bin/true", env=LIMITS)
    assert node.run("c1").returncode == 0
    created, ended = node.log().splitlines()
    assert f"c1: has 10 GiB ({10 * GIB} bytes), 25% (fixed) of GPU-" in created
    assert "c1: ended" in ended
