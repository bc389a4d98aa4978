# SPDX-License-Identifier: Apache-2.0
"""What cannot be granted is refused before the container starts, with the reason, and leaves nothing."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from container.nodes import HOOK, Containers, found, slice_command, wait_until

BAD = [
    ({"VGPU_MEMORY": "8 gigs"}, "VGPU_MEMORY: memory '8 gigs': there is no unit", "for example 8GiB"),
    ({"VGPU_MEMORY": ""}, "VGPU_MEMORY: memory ''", "for example 8GiB"),
    ({"VGPU_MEMORY": "-1GiB"}, "'-1GiB'", "for example 8GiB"),
    ({"VGPU_MEMORY": "101%"}, "'101%'", "for example 8GiB"),
    ({"VGPU_MEMORY": "900GiB"}, "memory '900GiB': device GPU-", "ask for at most"),
    ({"VGPU_MEMORY": "8GiB\n", "VGPU_CORES": "x\ny"}, "VGPU_CORES", "for example 30"),
    ({"VGPU_SPILL": "2GiB"}, "VGPU_SPILL: spill '2GiB': only memory that is limited", "VGPU_MEMORY=8GiB"),
    ({"VGPU_MEMORY": "8GiB", "VGPU_SPILL": "8GiB"}, "VGPU_SPILL: spill '8GiB': it must be less", "for example"),
    ({"VGPU_MEMORY": "8GiB", "VGPU_SPILL": "-1"}, "VGPU_SPILL: spill '-1'", "for example 8GiB"),
    ({"VGPU_MEMORY": "8GiB", "VGPU_SPILL": ""}, "VGPU_SPILL: spill ''", "for example 8GiB"),
    ({"VGPU_MEMORY": "900GiB", "VGPU_SPILL": "1GiB"}, "must be less", "let more of it spill"),
    ({"VGPU_HOST_MEMORY": "25%"}, "VGPU_HOST_MEMORY: host memory '25%'", "for example 8GiB"),
    ({"VGPU_MEMORY": "1GiB", "VGPU_HOST_MEMORY": "0"}, "VGPU_HOST_MEMORY: host memory '0'", "for example 8GiB"),
    ({"VGPU_CORES": "0"}, "VGPU_CORES: cores '0': it must be", "for example 30"),
    ({"VGPU_CORES": "101"}, "'101'", "for example 30"),
    ({"VGPU_CORES": "30", "VGPU_POLICY": "fast"}, "VGPU_POLICY: policy 'fast'", "write fixed"),
    ({"VGPU_MEMORY": "1GiB", "VGPU_POLICY": "balance"}, "needs cores", "for example VGPU_CORES=30"),
    ({"VGPU_CORES": "30", "VGPU_POLICY": "none"}, "does not limit", "leave one"),
    ({"VGPU_MEMORY": "1GiB", "VGPU_DEVICES": "7"}, "VGPU_DEVICES: device '7'", "0 = GPU-"),
    ({"VGPU_MEMORY": "1GiB", "VGPU_DEVICES": "0,0"}, "VGPU_DEVICES '0,0'", "for example 0"),
    ({"VGPU_MEMORY": "1GiB", "VGPU_DEVICES": "0,"}, "VGPU_DEVICES '0,'", "for example 0"),
]


def assert_refused(node: Containers, identity: str, *words: str, inside: str = "started") -> None:
    """Start a container that must not come to start, and see that nothing is left of it."""
    image = node.rootfs(identity)
    before = sorted(image.rglob("*"))
    done = node.run(identity)
    assert done.returncode != 0
    assert inside not in done.stdout
    line = node.log().splitlines()[-1]
    for word in words:
        assert word in line
        # crun keeps a hook's words to itself.
        assert node.engine.name == "crun" or word in done.stderr.replace('\\"', '"')
    assert identity not in node.tenants()
    assert not [path for path in node.tenants() if path.startswith(".")]
    # The engine makes the mount points of its own mounts, wherever they are, before it calls the hook.
    ours = [image / "opt/vgpu", image / "etc/ld.so.preload"]
    assert [path for path in ours if path not in before and path.exists()] == []


@pytest.mark.parametrize(("limits", "reason", "cure"), BAD, ids=[json.dumps(each[0]) for each in BAD])
def test_a_bad_value_is_named_with_its_rule_and_an_example(
    node: Containers, limits: dict[str, str], reason: str, cure: str
) -> None:
    node.bundle("c1", "/bin/echo", "started", env=limits)
    assert_refused(node, "c1", reason, cure)
    assert node.tenants() == []


def test_a_bad_annotation_is_called_by_its_own_name(node: Containers) -> None:
    node.bundle("c1", "/bin/echo", "started", annotations={"vgpu.io/memory": "much"})
    assert_refused(node, "c1", "vgpu.io/memory: memory 'much'")


@pytest.mark.parametrize("limit", ["spill", "host-memory"])
def test_what_lies_in_host_memory_is_called_by_its_annotation(node: Containers, limit: str) -> None:
    annotations = {"vgpu.io/memory": "1GiB", f"vgpu.io/{limit}": "much"}
    node.bundle("c1", "/bin/echo", "started", annotations=annotations)
    assert_refused(node, "c1", f"vgpu.io/{limit}: {limit.replace('-', ' ')} 'much'")


def test_more_than_other_tenants_leave_is_refused(node: Containers) -> None:
    node.bundle("c1", "/bin/sleep", "60", env={"VGPU_MEMORY": "60%"})
    node.bundle("c2", "/bin/echo", "started", env={"VGPU_MEMORY": "60%"})
    node.start("c1")
    assert_refused(node, "c2", "other tenants leave", "vgpu list")
    assert node.tenants() == ["c1"]


def test_cores_that_other_tenants_have_are_refused(node: Containers) -> None:
    node.bundle("c1", "/bin/sleep", "60", env={"VGPU_CORES": "60"})
    node.bundle("c2", "/bin/echo", "started", env={"VGPU_CORES": "60"})
    node.start("c1")
    assert_refused(node, "c2", "40", "vgpu list")


def test_a_second_container_of_the_same_id_takes_nothing_from_the_first(node: Containers, tmp_path: Path) -> None:
    node.bundle("c1", "/bin/sleep", "60", env={"VGPU_MEMORY": "1GiB"})
    node.start("c1")
    other = dataclasses.replace(node, directory=tmp_path / "other", cgroup=f"{node.cgroup}/other", bundles={})
    other.bundle("c1", "/bin/echo", "started", env={"VGPU_MEMORY": "2GiB"}, driver=node.driver,
                 hook_env=node.hook_environment)  # fmt: skip
    done = other.run("c1")
    other.delete("c1")
    assert done.returncode != 0
    assert "called c1 already" in node.log()
    assert found(node.execute("c1", *slice_command()))["cuda"] == 2**30


def test_a_missing_machine_library_or_driver_is_named_with_its_cure(node: Containers) -> None:
    cases = {
        "machine": ({"VGPU_SIM": "t4"}, "vgpu sim t4"),
        "library": ({"VGPU_LIBRARY": "/nowhere/libvgpu.so"}, "/nowhere/libvgpu.so"),
        "driver": ({"VGPU_NVML": "/nowhere/libnvidia-ml.so.1"}, "/nowhere/libnvidia-ml.so.1"),
    }
    for identity, (change, word) in cases.items():
        environment = {**node.hook_environment, **change}
        node.bundle(identity, "/bin/echo", "started", env={"VGPU_MEMORY": "1GiB"}, hook_env=environment)
        assert_refused(node, identity, word)


def test_a_node_that_is_not_ready_stops_only_containers_that_ask(node: Containers) -> None:
    broken = {**node.hook_environment, "VGPU_SIM": "t4", "VGPU_LIBRARY": "/nowhere/libvgpu.so"}
    node.bundle("c1", "/bin/echo", "started", hook_env=broken)
    assert node.run("c1").stdout == "started\n"


def test_a_library_that_the_containers_users_cannot_read_is_refused(node: Containers, tmp_path: Path) -> None:
    private = tmp_path / "libvgpu.so"
    private.write_bytes(b"")
    private.chmod(0o600)
    environment = {**node.hook_environment, "VGPU_LIBRARY": str(private)}
    node.bundle("c1", "/bin/echo", "started", env={"VGPU_MEMORY": "1GiB"}, hook_env=environment)
    assert_refused(node, "c1", f"chmod a+r {private}")


# ---- the hook by itself: what no engine does on purpose ------------------------------------------


@contextmanager
def created_container(node: Containers, mount_namespace: bool = True) -> Iterator[str]:
    """The OCI state of a container as an engine tells it at createRuntime, and a process that is its first."""
    # With its device named, it has nothing to look up before it creates the tenant.
    node.bundle("c1", "/bin/true", env={"VGPU_MEMORY": "1GiB", "VGPU_DEVICES": "0"})
    prefix = ["unshare", "--mount", "--propagation", "private"] if mount_namespace else []
    with subprocess.Popen([*prefix, "sleep", "60"]) as process:
        try:
            wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
            state = {"id": "c1", "status": "creating", "pid": process.pid, "bundle": str(node.bundles["c1"])}
            yield json.dumps(state)
        finally:
            process.kill()


def call_hook(node: Containers, state: str) -> subprocess.Popen[str]:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **node.hook_environment}
    process = subprocess.Popen(
        [str(HOOK)], env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, close_fds=True
    )
    assert process.stdin is not None
    process.stdin.write(state)
    process.stdin.close()
    process.stdin = None
    return process


def waits_for_a_lock(pid: int) -> bool:
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_hook_that_is_stopped_takes_its_tenant_back(node: Containers) -> None:
    (node.state / "tenants").mkdir()
    with created_container(node) as state, (node.state / "lock").open("w") as lock:
        # It waits for the lock in the middle of the creation, where a signal may not tear it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with call_hook(node, state) as hook:
            wait_until(lambda: waits_for_a_lock(hook.pid))
            hook.send_signal(signal.SIGTERM)
            fcntl.flock(lock, fcntl.LOCK_UN)
            _, errors = hook.communicate(timeout=20)
    assert hook.returncode == 1
    assert "SIGTERM" in errors
    assert node.tenants() == []


def test_a_container_without_a_mount_namespace_is_refused(node: Containers) -> None:
    with created_container(node, mount_namespace=False) as state, call_hook(node, state) as hook:
        _, errors = hook.communicate(timeout=20)
    assert hook.returncode == 1
    assert "mount namespace" in errors
    assert node.tenants() == []
    assert not (node.rootfs("c1") / "opt/vgpu").exists()


NONSENSE = ["", "[]", "{}", '{"id": "c1", "bundle": "relative"}', '{"id": "c1", "bundle": "/nowhere"}']


@pytest.mark.parametrize("state", NONSENSE)
def test_a_state_that_makes_no_sense_is_refused(node: Containers, state: str) -> None:
    with call_hook(node, state) as hook:
        _, errors = hook.communicate(timeout=20)
    assert hook.returncode == 1
    assert errors.startswith("vgpu-oci-hook: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("engine", ["runc"], indirect=True)  # crun ignores a hook that fails at poststart
def test_a_stage_after_the_start_is_refused(node: Containers) -> None:
    node.bundle("c1", "/bin/sleep", "5", env={"VGPU_MEMORY": "1GiB"}, hook_stage="poststart")
    assert node.run("c1").returncode != 0
    assert "createRuntime" in node.log()
    assert node.tenants() == []


def test_the_log_stays_small(node: Containers) -> None:
    log = node.state / "hook.log"
    log.write_text("x" * 300_000)
    node.bundle("c1", "/bin/true", env={"VGPU_MEMORY": "1GiB"})
    assert node.run("c1").returncode == 0
    assert sum(file.stat().st_size for file in node.state.glob("hook.log")) < 10_000
    assert node.tenants() == []
