# SPDX-License-Identifier: Apache-2.0
"""
The OCI hook: a container that asks for a slice gets one before its first process runs.

At creation (stages prestart and createRuntime) it reads what the container asks for, creates the tenant and
mounts the tenant's files into the container; after the end (poststop) it removes the tenant. The invariant:
a container that asks for a limit either starts with it or does not start. Whatever fails, the tenant that
was created is taken back, and the reason goes to stderr, which runc quotes, and to the log in the state
directory, which stays.

The odd part is the directory `inside` of the tenant: it holds empty files and is mounted as `/opt/vgpu`, so
that the image needs one mount point and not four, and a tenant cannot move the directory away.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType

import vgpu_shim
from mounts import Bind, mount_into
from oci import Container, Limits, State, device_names, limits_of, read_container, read_state, tenant_name

from vgpu_runtime.errors import ConfigError, NameInUse, NodeError, RefusedError, VgpuError
from vgpu_runtime.units import format_memory, parse_cores, parse_host_memory, parse_memory, parse_spill

INSIDE = PurePosixPath("/opt/vgpu")
PRELOAD = PurePosixPath("/etc/ld.so.preload")

_STATE = "/run/vgpu"
_POLICIES = ("fixed", "balance", "none")
_LOG_SIZE = 256 * 1024
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Node:
    """Where this machine keeps what the hook needs."""

    state: Path
    library: Path  # libvgpu.so
    shim: Path  # vgpu_shim.py
    nvml: Path | None  # path of the NVML library; None: whichever the dynamic linker finds
    machine: str | None  # simulated machine of the state directory


def node_of(environment: Mapping[str, str], library: Path, shim: Path) -> Node:
    """The node as the environment of the hook entry says."""
    nvml = environment.get("VGPU_NVML")
    state = Path(environment.get("VGPU_STATE_DIR") or _STATE)
    return Node(state, library, shim, Path(nvml) if nvml else None, environment.get("VGPU_SIM") or None)


def _devices(node: Node) -> list[vgpu_shim.Device]:
    if node.nvml or not node.machine:
        return vgpu_shim.devices(node.nvml)
    path = node.state / "sim" / node.machine / "libnvidia-ml.so.1"
    if not path.exists():
        raise NodeError(
            f"VGPU_SIM={node.machine}: there is no simulated machine of that name under {node.state}",
            hint=f"prepare it with `VGPU_STATE_DIR={node.state} vgpu sim {node.machine}`",
        )
    return vgpu_shim.devices(path)


# ---- what is asked for -------------------------------------------------------------------------


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say where a wrong value was written."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}", hint=error.hint) from None


def _compute(limits: Limits) -> tuple[int | None, str]:
    """Percent of a device, and the policy; (None, "none") when compute is not limited."""
    with _named(limits.names["cores"]):
        cores = None if limits.cores is None else parse_cores(limits.cores)
    policy = limits.policy
    if policy is None:
        return cores, "none" if cores is None else "fixed"
    name = limits.names["policy"]
    if policy not in _POLICIES:
        raise ConfigError(f"{name}: policy {policy!r}: it must be one of {', '.join(_POLICIES)}", hint="write fixed")
    if policy == "none" and cores is not None:
        raise ConfigError(
            f"{name}: policy 'none' does not limit compute, and {limits.names['cores']} asks for a limit",
            hint="leave one of the two out",
        )
    if policy != "none" and cores is None:
        raise ConfigError(
            f"{name}: policy {policy!r} needs cores, and {limits.names['cores']} is not given",
            hint=f"write for example {limits.names['cores']}=30",
        )
    return cores, policy


def _memory(device: vgpu_shim.Device, limits: Limits) -> tuple[int | None, int]:
    """Bytes of memory, None for no limit, and how many of them may spill."""
    names = limits.names
    if limits.memory is None:
        if limits.spill is not None:
            raise ConfigError(
                f"{names['spill']}: spill {limits.spill!r}: only memory that is limited can spill, and "
                f"{names['memory']} is not given",
                hint=f"write for example {names['memory']}=8GiB and {names['spill']}=2GiB",
            )
        return None, 0
    there = f"device {device.uuid} ({device.name}) has {format_memory(device.memory)} in all"
    with _named(names["memory"]):
        memory = parse_memory(limits.memory, device.memory)
        if limits.spill is None and memory > device.memory:
            raise ConfigError(
                f"memory {limits.memory!r}: {there}",
                hint=f"ask for at most {device.memory} bytes, or for a percentage such as 25%",
            )
    if limits.spill is None:
        return memory, 0
    with _named(names["spill"]):
        spill = parse_spill(limits.spill, memory, device.memory)
        # A part as large as the device is no limit to it, and what is not limited never spills.
        if memory - spill >= device.memory:
            raise ConfigError(
                f"spill {limits.spill!r} of memory {limits.memory!r}: {there}, and the part that does not spill, "
                f"{memory - spill} bytes, must be less",
                hint=f"let more of it spill, or ask for less: {names['memory']}=100% and {names['spill']}=25%",
            )
    return memory, spill


def _slice_on(device: vgpu_shim.Device, limits: Limits) -> vgpu_shim.Slice:
    cores, policy = _compute(limits)
    memory, spill = _memory(device, limits)
    return vgpu_shim.Slice(device.uuid, device.memory, memory, cores, policy, spill)


def host_memory_of(limits: Limits) -> int | None:
    """Bytes of page-locked host memory that the container may have; None: not limited."""
    if limits.host_memory is None:
        return None
    with _named(limits.names["host_memory"]):
        return parse_host_memory(limits.host_memory)


def _device_of(name: str, devices: Sequence[vgpu_shim.Device]) -> vgpu_shim.Device:
    """The device of that index or UUID; a UUID may be cut short where it stays unique, as CUDA allows."""
    if name.isascii() and name.isdigit() and int(name) < len(devices):
        return devices[int(name)]
    found = [device for device in devices if len(name) > 4 and device.uuid.lower().startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{index} = {device.uuid}" for index, device in enumerate(devices))
    raise ConfigError(f"device {name!r}: there is no such device", hint=f"there are {there}")


def _grants_anywhere(limits: Limits, devices: Sequence[vgpu_shim.Device]) -> list[list[vgpu_shim.Slice]]:
    """One slice on each device that is large enough, in order; the error of the last when none is."""
    grants: list[list[vgpu_shim.Slice]] = []
    too_small: ConfigError | None = None
    for device in devices:
        try:
            grants.append([_slice_on(device, limits)])
        except ConfigError as error:
            too_small = error
    if not grants and too_small is not None:
        raise too_small
    return grants


def grants_for(
    limits: Limits, devices: Sequence[vgpu_shim.Device], room: Callable[[vgpu_shim.Device], int]
) -> list[list[vgpu_shim.Slice]]:
    """The slices to try, best first.

    Exactly those that were asked for; else one, on the device with the most `room`, which is how many bytes
    other tenants leave of it, or on the next where that one has too few cores left.
    """
    if not devices:
        raise NodeError("the driver knows no GPU", hint="run nvidia-smi -L on the host")
    if limits.devices is None:
        # The sort keeps the order of equals.
        return _grants_anywhere(limits, sorted(devices, key=room, reverse=True))
    where = limits.names["devices"]
    with _named(where):
        chosen = [_device_of(name, devices) for name in device_names(limits.devices, where)]
        if len({device.uuid for device in chosen}) != len(chosen):
            raise ConfigError(f"devices {limits.devices!r}: one device is there twice", hint="name each device once")
    return [[_slice_on(device, limits) for device in chosen]]


# ---- the tenant's files ------------------------------------------------------------------------------


def merged(own: bytes) -> bytes:
    """The content of ld.so.preload: ours first, then what the image has."""
    ours = str(INSIDE / "libvgpu.so").encode()
    # Ours comes first because the first library that has a symbol answers for it.
    lines = [line for line in own.splitlines() if line.strip() != ours]
    return b"\n".join([ours, *lines]) + b"\n"


def _lay_out(directory: Path, node: Node) -> list[Bind]:
    """Make what is mounted besides grant and ledger; the mounts, in order."""
    files = {
        "libvgpu.so": Bind(node.library, INSIDE / "libvgpu.so", executable=True),
        "vgpu_shim.py": Bind(node.shim, INSIDE / "vgpu_shim.py"),
        "grant": Bind(directory / "grant", INSIDE / "grant"),
        "ledger": Bind(directory / "ledger", INSIDE / "ledger", writable=True),
    }
    inside, preload = directory / "inside", directory / "ld.so.preload"
    inside.mkdir(0o755)
    for path in (*(inside / name for name in files), preload):
        path.touch(0o644, exist_ok=False)
    return [Bind(inside, INSIDE), *files.values(), Bind(preload, PRELOAD, merge=merged)]


def _check_readable(*paths: Path) -> None:
    """A file that the container's users cannot read would be skipped by the dynamic linker, limit and all."""
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise NodeError(
                f"cannot find {path.name} at {path}: {error.strerror}",
                hint="build it with `python native/build.py`, or set VGPU_LIBRARY in the hook's env",
            ) from None
        if not stat.S_ISREG(mode) or not mode & stat.S_IROTH:
            raise NodeError(f"{path} is not a file that everybody may read", hint=f"chmod a+r {path}")


def _record(directory: Path) -> dict[str, object]:
    """Which container a tenant belongs to; empty when it is not a container's."""
    try:
        record = json.loads((directory / "container").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _record_of(state: State) -> dict[str, object]:
    return {"id": state.id, "bundle": str(state.bundle), "pid": state.pid}


# ---- the two acts ---------------------------------------------------------------------------------------


class Interrupted(VgpuError):
    """The engine told the hook to stop."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}", hint="start the container again")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait, so that what was done is also known to have been done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _create_tenant(
    node: Node, name: str, pid: int, grants: Sequence[Sequence[vgpu_shim.Slice]], host_memory: int | None
) -> tuple[Path, Sequence[vgpu_shim.Slice]]:
    """Create the tenant with the first of `grants` that fits; its directory and its slices."""
    refused: Exception | None = None
    for slices in grants:
        try:
            return vgpu_shim.create_tenant(node.state, name, "container", slices, pid, host_memory), slices
        except vgpu_shim.NameInUse as error:
            raise NameInUse(
                f"a live tenant is called {name} already", hint="give the container another id, or end the other one"
            ) from error
        except vgpu_shim.Shortage as error:
            refused = refused or error
    raise RefusedError(str(refused), hint="ask for less, or end another tenant: `vgpu list` shows them")


def _size(size: int) -> str:
    return f"{format_memory(size)} ({size} bytes)"


def _words(slices: Sequence[vgpu_shim.Slice], host_memory: int | None) -> str:
    words = " and ".join(
        f"{'all memory' if each.memory is None else _size(each.memory)}"
        f"{f', {_size(each.spill)} of it in host memory' if each.spill else ''}, "
        f"{'all cores' if each.cores is None else f'{each.cores}% ({each.policy})'} of {each.device}"
        for each in slices
    )
    return words if host_memory is None else f"{words}, and {_size(host_memory)} of page-locked host memory"


def admit(container: Container, limits: Limits, node: Node) -> str:
    """Give the container its slice; what was done, for the log. Nothing is left when it fails."""
    _check_readable(node.library, node.shim)
    name, pid, record = tenant_name(container.state.id), container.state.pid, _record_of(container.state)
    if _record(node.state / "tenants" / name) == record:
        return "has its slice already"
    host_memory = host_memory_of(limits)
    grants = grants_for(limits, _devices(node), lambda device: vgpu_shim.room(node.state, device))
    created = False
    try:
        with _undisturbed():
            directory, slices = _create_tenant(node, name, pid, grants, host_memory)
            created = True
        (directory / "container").write_text(json.dumps(record))
        mount_into(pid, container.rootfs, _lay_out(directory, node))
    except BaseException:
        if created:
            with _undisturbed():
                vgpu_shim.remove_tenant(node.state, name)
        raise
    return f"has {_words(slices, host_memory)}, as its {limits.source} ask"


def remove(state: State, node: Node) -> str:
    """Remove the container's tenant. One of the same name that belongs to another container stays."""
    name = tenant_name(state.id)
    record = _record(node.state / "tenants" / name)
    if (record.get("id"), record.get("bundle")) != (state.id, str(state.bundle)):
        return ""
    vgpu_shim.remove_tenant(node.state, name)
    return "ended"


def act(state: State, node: Node) -> str:
    """Do what the container's state asks for; what was done, empty for nothing."""
    if state.status == "stopped":
        return remove(state, node)
    container = read_container(state)
    limits = limits_of(container)
    if limits is None:
        return ""
    if state.status not in ("creating", "created") or state.pid <= 1:
        raise NodeError(
            f"the hook runs at a stage that it cannot serve (status {state.status!r}, pid {state.pid})",
            hint="register it for createRuntime (or prestart), and for poststop",
        )
    return admit(container, limits, node)


# ---- running ----------------------------------------------------------------------------------------------


def _log(state: Path, text: str) -> None:
    """Add one line to the log. What cannot be logged is still said on stderr."""
    path = state / "hook.log"
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n"
    try:
        state.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "a", errors="replace") as file:
            file.write(line)
            size = file.tell()
        if size > _LOG_SIZE:
            path.replace(state / "hook.log.old")
    except OSError as error:
        print(f"vgpu-oci-hook: cannot write {path}: {error.strerror}", file=sys.stderr)


def _line(text: str) -> str:
    """One printable line: a container's words must not forge lines of the log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def main(library: Path, shim: Path) -> int:
    """Run as the hook: 0 when the container may go on, 1 when it must not start."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    os.umask(0o022)
    node, who = node_of(os.environ, library, shim), "?"
    try:
        state = read_state(sys.stdin.buffer.read())
        who = _line(state.id)
        done = act(state, node)
    except (VgpuError, vgpu_shim.ShimError, OSError) as error:
        hint = getattr(error, "hint", "")
        reason = _line(f"{error}; {hint}" if hint else str(error))
        _log(node.state, f"refused {who}: {reason}")
        print(f"vgpu-oci-hook: container {who} is refused: {reason}", file=sys.stderr)
        return 1
    if done:
        _log(node.state, _line(f"{who}: {done}"))
    return 0
