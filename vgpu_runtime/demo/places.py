# SPDX-License-Identifier: Apache-2.0
"""
Two ways to make a program a tenant: in a container that the OCI hook caps, or as a process under `vgpu run`.

Both are used from outside, as a user would: by the commands `runc` and `vgpu`, not by calling what is behind
them. A place is a context manager; leaving it ends its tenants, whatever they do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from vgpu_runtime.demo.bundle import Mount, make_bundle
from vgpu_runtime.errors import NodeError

PACKAGE = Path(__file__).resolve().parent.parent
HOOKS = (PACKAGE.parent / "hooks" / "vgpu-oci-hook", PACKAGE / "_native" / "hooks" / "vgpu-oci-hook")
MACHINE = "h200"
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant of the demonstration gets, as it is asked for."""

    memory: str
    cores: str


class Place(Protocol):
    """Where tenants live."""

    title: str

    def start(self, name: str, quota: Quota, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a tenant with that program; its stdin and stdout are pipes."""

    def look(self, name: str, argv: Sequence[str]) -> str:
        """What another program prints within the same tenant."""


def vgpu(state: Path, *arguments: str) -> list[str]:
    """A `vgpu` command of this installation, wherever it is called from."""
    start = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); from vgpu_runtime.cli import main; sys.exit(main())"
    )
    return ["env", f"VGPU_STATE_DIR={state}", sys.executable, "-c", start, *arguments]


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What a command prints; NodeError with its complaint when it fails."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise NodeError(f"{Path(command[0]).name} did not end within a minute") from error
    if done.returncode:
        raise NodeError(f"`{' '.join(command[-4:])}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def start_process(command: Sequence[str], complaints: Path) -> subprocess.Popen[str]:
    """Start a command with pipes, in a session of its own: Ctrl-C is for us alone."""
    with complaints.open("w") as stderr:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )


def end_process(process: subprocess.Popen[str]) -> None:
    """End a process and give back its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        _close(pipe)


def _close(pipe: IO[str] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


# ---- processes ---------------------------------------------------------------------------------------


@dataclass
class Processes:
    """Tenants under `vgpu run`."""

    state: Path
    title: str = "processes (vgpu run)"
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, name: str, quota: Quota, argv: Sequence[str]) -> subprocess.Popen[str]:
        limits = ["--name", name, "--memory", quota.memory, "--cores", quota.cores]
        command = vgpu(self.state, "run", "--sim", MACHINE, *limits, "--", *argv)
        self.running.append(start_process(command, self.state / f"{name}.stderr"))
        return self.running[-1]

    def look(self, name: str, argv: Sequence[str]) -> str:
        return run(vgpu(self.state, "run", "--sim", MACHINE, "--join", name, "--", *argv))


@contextlib.contextmanager
def processes(state: Path) -> Iterator[Processes]:
    """A place of processes."""
    place = Processes(state)
    try:
        yield place
    finally:
        for process in place.running:
            end_process(process)


# ---- containers --------------------------------------------------------------------------------------


def why_no_containers() -> str | None:
    """What containers lack on this machine; None when they can be made."""
    if os.geteuid() != 0:
        return "this is not root"
    if shutil.which("runc") is None:
        return "runc is not installed"
    if not any(hook.is_file() for hook in HOOKS):
        return "the OCI hook is not installed"
    return None


@dataclass
class Containers:
    """Tenants in containers of runc; nothing but the hook in their config.json caps them."""

    state: Path
    driver: Path
    title: str = "containers (runc, OCI hook)"
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self, name: str, quota: Quota, argv: Sequence[str]) -> subprocess.Popen[str]:
        bundle = make_bundle(
            self.state / f"bundle-{name}",
            argv=argv,
            env={"PYTHONDONTWRITEBYTECODE": "1"},
            annotations={"vgpu.io/memory": quota.memory, "vgpu.io/cores": quota.cores},
            driver=self.driver,
            hook=next(hook for hook in HOOKS if hook.is_file()),
            hook_env={"VGPU_STATE_DIR": str(self.state), "VGPU_SIM": MACHINE},
            extra_mounts=[Mount(PACKAGE)],
        )
        command = [*self._runc("run"), "--bundle", str(bundle), self._id(name)]
        self.running[name] = start_process(command, self.state / f"{name}.stderr")
        return self.running[name]

    def look(self, name: str, argv: Sequence[str]) -> str:
        return run([*self._runc("exec"), self._id(name), *argv])

    def end(self) -> None:
        """Remove all containers; their hooks remove the tenants."""
        for name, process in self.running.items():
            # A container may still be in the making, and its maker must not be killed amid that: only runc
            # itself takes back what it has made so far. So its own end is awaited.
            deadline = time.monotonic() + PATIENCE_S
            while process.poll() is None and time.monotonic() < deadline:
                subprocess.run([*self._runc("delete"), "--force", self._id(name)], capture_output=True, check=False)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            subprocess.run([*self._runc("delete"), "--force", self._id(name)], capture_output=True, check=False)
            end_process(process)

    def _runc(self, verb: str) -> list[str]:
        return ["runc", "--root", str(self.state / "runc"), verb]

    def _id(self, name: str) -> str:
        # Cgroups have one namespace for the whole machine.
        return f"vgpu-demo-{os.getpid()}-{name}"


@contextlib.contextmanager
def containers(state: Path, driver: Path) -> Iterator[Containers]:
    """A place of containers."""
    place = Containers(state, driver)
    try:
        yield place
    finally:
        place.end()
