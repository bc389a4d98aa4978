# SPDX-License-Identifier: Apache-2.0
"""Real containers on a node of their own: an engine, a state directory, a simulated machine.

The bundles' config.json has the hook and nothing else of ours: what a program finds inside is the hook's
doing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vgpu_runtime.demo.bundle import Mount, make_bundle

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOOK = ROOT / "hooks" / "vgpu-oci-hook"
LIBRARY = ROOT / "vgpu_runtime" / "_native" / "libvgpu.so"
SLICE = HERE / "programs" / "slice.py"
INSIDE = Path("/srv/programs")
CGROUPS = Path("/sys/fs/cgroup")

MIB, GIB = 2**20, 2**30
OUT_OF_MEMORY = 2


@dataclass(frozen=True)
class Engine:
    """An OCI runtime and the words before its name that make it run here."""

    name: str
    prefix: tuple[str, ...]


def engine_named(name: str) -> Engine:
    """The engine, or a skip with the reason."""
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    for command, package in ((name, name), ("mount", "mount"), ("unshare", "util-linux")):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed: apt-get install {package}")
    unified = CGROUPS / "unified"
    if name == "crun" and unified.is_mount():
        # crun refuses a hybrid hierarchy: it sees version 1 alone.
        hide = 'umount "$0" && exec "$@"'
        return Engine(name, ("unshare", "-m", "--propagation", "private", "--", "sh", "-c", hide, str(unified)))
    return Engine(name, ())


@dataclass
class Containers:
    """A node and the containers on it."""

    engine: Engine
    directory: Path
    cgroup: str
    bundles: dict[str, Path] = field(default_factory=dict)
    machine: str = "h200"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def driver(self) -> Path:
        return self.state / "sim" / self.machine

    @property
    def hook_environment(self) -> dict[str, str]:
        return {"VGPU_STATE_DIR": str(self.state), "VGPU_SIM": self.machine}

    def tenants(self) -> list[str]:
        """The tenants on disk, half-made ones included."""
        directory = self.state / "tenants"
        return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []

    def log(self) -> str:
        file = self.state / "hook.log"
        return file.read_text() if file.exists() else ""

    def bundle(self, identity: str, *argv: str | Path, **options: Any) -> Path:
        """Make the bundle of a container; its root can be changed before it starts."""
        options.setdefault("driver", self.driver)
        options.setdefault("hook", HOOK)
        options.setdefault("hook_env", self.hook_environment)
        options["extra_mounts"] = [Mount(SLICE.parent, INSIDE), *options.get("extra_mounts", ())]
        options["cgroup"] = f"{self.cgroup}/{identity}"
        made = make_bundle(self.directory / "bundles" / identity, argv=[str(word) for word in argv], **options)
        self.bundles[identity] = made
        return made

    def change(self, identity: str, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the config.json of a bundle."""
        file = self.bundles[identity] / "config.json"
        config = json.loads(file.read_text())
        edit(config)
        file.write_text(json.dumps(config))

    def rootfs(self, identity: str) -> Path:
        return self.bundles[identity] / "rootfs"

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*self.engine.prefix, self.engine.name, "--root", str(self.directory / "engine"), *map(str, words)]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )

    def run(self, identity: str) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return self.call("run", "--bundle", self.bundles[identity], identity)

    def start(self, identity: str) -> None:
        """Start a container that goes on."""
        words = ["--root", str(self.directory / "engine"), "run", "--detach", "--bundle", str(self.bundles[identity])]
        # Files, not pipes: the container keeps them open for as long as it lives.
        output = self.directory / f"{identity}.out"
        with output.open("w") as file:
            done = subprocess.run(
                [*self.engine.prefix, self.engine.name, *words, identity],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode == 0, output.read_text()

    def execute(self, identity: str, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        return self.call("exec", identity, *argv)

    def delete(self, identity: str) -> None:
        self.call("delete", "--force", identity)

    def status(self, identity: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.call("state", identity).stdout)
        return state

    def outside(self, *sizes: int | str) -> dict[str, Any]:
        """What the same program finds on the host."""
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.driver)}
        done = subprocess.run(
            slice_command(*sizes, program=SLICE), env=environment, capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def slice_command(*sizes: int | str, program: Path = INSIDE / SLICE.name) -> list[str]:
    return [sys.executable, str(program), *map(str, sizes)]


def found(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What slice.py printed in a container."""
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def remove_cgroup(name: str) -> None:
    """Remove an empty cgroup from every hierarchy; fails when somebody is left in it."""
    for top in (CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir())):
        directory = top / name.lstrip("/")
        if directory.is_dir():
            for below in sorted(directory.rglob("*/"), reverse=True):
                below.rmdir()
            directory.rmdir()


def mounts_of(directory: Path) -> list[str]:
    """The host's mounts from or to a test's own directory; other programs mount and unmount as they like."""
    # The source is told from the root of its file system, so only the end of the path is sure to be there.
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{directory.name}/" in line]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
