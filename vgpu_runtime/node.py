# SPDX-License-Identifier: Apache-2.0
"""
What is true on this machine now: its state directory, its devices, its tenants.

The state directory holds `tenants/` and, for simulated machines, `sim/`; nothing else of ours is anywhere
on the disk. Front doors (the command line today) ask here and only translate: which device a slice lies
on, what a grant says and which environment makes a program a tenant are decided in this one place.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vgpu_runtime import gpus, grants, placement
from vgpu_runtime.errors import ConfigError, NameInUse, NodeError, NoSuchTenant, RefusedError, UsageError
from vgpu_runtime.model import Device, Kind, Policy, Quota, Tenant
from vgpu_runtime.units import format_memory, parse_cores, parse_memory, parse_spill

if TYPE_CHECKING:  # what reads YAML costs a command that needs no simulated machine too much
    from vgpu_runtime.machines import Machine

LIBRARY = Path(__file__).parent / "_native" / "libvgpu.so"
IN_CONTAINER = Path("/opt/vgpu/grant")
# The dynamic linker divides its lists at these, or expands them.
UNFIT_FOR_LINKER = frozenset(" \t\r\n\v\f:;$")


@dataclass(frozen=True, slots=True)
class Node:
    """This machine: where its state is, and whose driver it uses."""

    state: Path
    machine: Machine | None  # a simulated one; None: this machine's own driver

    @property
    def driver(self) -> Path | None:
        """The directory of a simulated driver."""
        return self.machine.directory if self.machine else None


@dataclass(frozen=True, slots=True)
class Wish:
    """A slice as somebody asked for it, before it is known on which device."""

    memory: str | None
    cores: str | None
    policy: Policy | None
    spill: str | None = None  # of `memory`, what may lie in host memory


@dataclass(frozen=True, slots=True)
class Admission:
    """A tenant that was just let in."""

    name: str
    directory: Path
    devices: tuple[str, ...]  # UUIDs of its slices, in order


# ---- the state directory -----------------------------------------------------------------------


def state_directory(environ: Mapping[str, str]) -> Path:
    """The state directory, made if it is not there.

    `$VGPU_STATE_DIR`, else `/run/vgpu` for root, else `$XDG_RUNTIME_DIR/vgpu`, else a private directory
    below the temporary one. Raises ConfigError when it cannot serve.
    """
    path = state_path(environ, os.geteuid())
    if UNFIT_FOR_LINKER & set(str(path)):
        raise ConfigError(
            f"state directory {str(path)!r}: the dynamic linker cannot take blanks, ':', ';' or '$' in it",
            hint="set VGPU_STATE_DIR to a path without them",
        )
    try:
        path.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        owners = {path.lstat().st_uid, path.stat().st_uid}
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"state directory {path}: {error.strerror}", hint="set VGPU_STATE_DIR to a directory that you may write"
        ) from error
    if not owners <= {os.geteuid(), 0}:
        raise ConfigError(f"state directory {path} belongs to somebody else", hint="set VGPU_STATE_DIR to your own")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"state directory {path} can be written by others, who could forge grants",
            hint=f"chmod go-w {path}, or set VGPU_STATE_DIR to another directory",
        )
    return path


def state_path(environ: Mapping[str, str], user: int) -> Path:
    """Where the state directory of that user is, by the rule of state_directory()."""
    chosen = environ.get("VGPU_STATE_DIR")
    if chosen:
        # Programs that change their working directory must find it again.
        return Path(chosen).absolute()
    if user == 0:
        return Path("/run/vgpu")
    session = environ.get("XDG_RUNTIME_DIR")
    if session and Path(session).is_dir() and os.access(session, os.W_OK):
        return Path(session).absolute() / "vgpu"
    return Path(tempfile.gettempdir()).absolute() / f"vgpu-{user}"


def open_node(sim: str | None, environ: Mapping[str, str]) -> Node:
    """This node, with the simulated machine `sim` (a preset or a machine file) if one is named."""
    state = state_directory(environ)
    return Node(state, simulate(state, sim) if sim else None)


def simulate(state: Path, spec: str) -> Machine:
    """The simulated machine of that name or file; it is made when it is not there yet."""
    from vgpu_runtime import machine_files, machines

    return machines.create(spec, state / "sim" / machine_files.describe(spec).name)


# ---- devices and slices --------------------------------------------------------------------------


def pick(devices: Sequence[Device], names: Sequence[str]) -> list[Device]:
    """The devices of those names: NVML's index, or the UUID, or its beginning. UsageError otherwise."""
    there = "; ".join(f"{device.index}: {device.uuid} ({device.name})" for device in devices)
    picked: list[Device] = []
    for name in names:
        found = [device for device in devices if name == device.index or name.lower() == device.uuid.lower()]
        if not found and name[:4].upper() in {"GPU-", "MIG-"} and len(name) > 4:
            found = [device for device in devices if device.uuid.lower().startswith(name.lower())]
        if len(found) != 1:
            how = "there is no such device" if not found else "more than one device begins so"
            raise UsageError(f"--device {name}: {how}", hint=f"here are {there}")
        if found[0] in picked:
            raise UsageError(f"--device {name}: named twice", hint="a tenant has one slice of a device")
        picked += found
    return picked


def quota_on(device: Device, wish: Wish) -> Quota:
    """What `wish` means on `device`. ConfigError when the device is too small for it, or it is no quantity."""
    memory, spill = _memory_on(device, wish)
    cores = None if wish.cores is None else parse_cores(wish.cores)
    if cores is None and wish.policy in {Policy.FIXED, Policy.BALANCE}:
        raise UsageError(f"policy {wish.policy} needs a quota of cores", hint="for example: --cores 30")
    if cores is not None and wish.policy is Policy.NONE:
        raise UsageError("policy none does not limit compute, so cores mean nothing", hint="leave one of them out")
    policy = wish.policy or (Policy.NONE if cores is None else Policy.FIXED)
    return Quota(device.uuid, device.memory, memory, cores, policy, spill)


def _memory_on(device: Device, wish: Wish) -> tuple[int | None, int]:
    """Bytes of memory, None for no limit, and how many of them may spill."""
    if wish.memory is None:
        if wish.spill is not None:
            raise UsageError(
                f"spill {wish.spill!r}: only memory that is limited can spill",
                hint="for example: --memory 8GiB --spill 2GiB",
            )
        return None, 0
    memory = parse_memory(wish.memory, device.memory)
    there = f"device {device.index} ({device.name}) has {format_memory(device.memory)} ({device.memory} bytes) in all"
    if wish.spill is None:
        if memory > device.memory:
            raise ConfigError(
                f"memory {wish.memory!r}: {there}", hint="ask for at most that, or for a percentage: 100%"
            )
        return memory, 0
    spill = parse_spill(wish.spill, memory, device.memory)
    # A part as large as the device is no limit to it, and what is not limited never spills.
    if memory - spill >= device.memory:
        raise ConfigError(
            f"memory {wish.memory!r} with spill {wish.spill!r}: {there}, and the part that does not spill, "
            f"{format_memory(memory - spill)} ({memory - spill} bytes), must be less",
            hint="let more of it spill, or ask for less memory: --memory 100% --spill 25%",
        )
    return memory, spill


def _quotas(node: Node, devices: Sequence[Device], names: Sequence[str], wish: Wish) -> list[Quota]:
    if names:
        return [quota_on(device, wish) for device in pick(devices, names)]
    candidates, too_small = [], None
    for device in devices:
        try:
            candidates.append(quota_on(device, wish))
        except ConfigError as error:
            too_small = error
    if not candidates and too_small is not None:
        raise too_small
    there = grants.tenants(node.state)
    chosen = placement.choose(candidates, there)
    if chosen is None:
        raise RefusedError(
            f"no device has room for {_words(candidates[0])}: " + _rooms(devices, there),
            hint="ask for less, or end a tenant (`vgpu list` shows them)",
        )
    return [chosen]


def _words(quota: Quota) -> str:
    part = quota.device_part
    memory = "" if part is None else f"{format_memory(part)} ({part} bytes)"
    cores = "" if quota.cores is None else f"{quota.cores}% of the cores"
    return " and ".join(filter(None, (memory, cores))) or "a slice"


def _rooms(devices: Sequence[Device], there: Sequence[Tenant]) -> str:
    rooms = ((device, placement.room_on(device.uuid, device.memory, there)) for device in devices)
    return "; ".join(
        f"device {device.index} ({device.name}) has {format_memory(room.memory)} ({room.memory} bytes) and "
        f"{room.cores}% free"
        for device, room in rooms
    )


# ---- tenants --------------------------------------------------------------------------------------


def admit(
    node: Node, name: str | None, names: Sequence[str], wish: Wish, pid: int, host_memory: int | None = None
) -> Admission:
    """Create a tenant for process `pid`: on the devices of those `names`, else on the one with most room.

    `host_memory` bounds its page-locked host memory in bytes, if given. Everything is judged before anything
    is made. A tenant without a name gets one of its own.
    """
    devices = gpus.devices(node.driver)
    owner = grants.member(pid)
    grants.sweep(node.state)
    # Somebody else may take the same room, or name, between a look and the admission: look again.
    tries = max(2, len(devices))
    for attempt in range(tries):
        quotas = _quotas(node, devices, names, wish)
        own = f"run-{pid}-{attempt + 1}" if attempt else f"run-{pid}"
        title = own if name is None else name
        try:
            directory = grants.create(node.state, title, Kind.PROCESS, quotas, owner, host_memory)
        except NameInUse:
            if name is not None or attempt == tries - 1:
                raise
        except RefusedError:
            if names or attempt == tries - 1:
                raise
        else:
            return Admission(title, directory, tuple(quota.device for quota in quotas))
    raise AssertionError("the last attempt returns or raises")


def join(node: Node, name: str, pid: int) -> Admission:
    """Make process `pid` a member of a live tenant. NodeError when its devices are not of this machine."""
    grants.check_name(name)
    grants.sweep(node.state)
    tenant = grants.read(node.state, name)
    if tenant is None:
        raise NoSuchTenant(f"there is no live tenant {name!r}", hint="`vgpu list` shows those that live")
    here = {grants.uuid_bytes(device.uuid): device.uuid for device in gpus.devices(node.driver)}
    wanted = [part.quota.device for part in tenant.slices]
    missing = [uuid for uuid in wanted if grants.uuid_bytes(uuid) not in here]
    if missing:
        raise NodeError(
            f"tenant {name!r} has a slice of device {', '.join(missing)}, which is not here",
            hint="a tenant of a simulated machine is joined with the same --sim",
        )
    directory = grants.join(node.state, name, grants.member(pid))
    return Admission(name, directory, tuple(here[grants.uuid_bytes(uuid)] for uuid in wanted))


def refuse_inside_a_tenant(environ: Mapping[str, str]) -> None:
    """Raise UsageError when this very process is a tenant's: its view of the devices is not the node's."""
    if IN_CONTAINER.exists():
        raise UsageError(
            f"this is the inside of a tenant: {IN_CONTAINER} holds its limits, and no other ones count here",
            hint="start the program as it is",
        )
    if environ.get("VGPU_TENANT"):
        raise UsageError(
            f"this shell is in tenant {Path(environ['VGPU_TENANT']).name!r} already",
            hint="start the program as it is, or leave the tenant's shell first",
        )


def environment(node: Node, admission: Admission, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that makes a program a member of the tenant: `environ` with a few changes."""
    changed = dict(environ)
    changed["VGPU_TENANT"] = str(admission.directory)
    changed["CUDA_VISIBLE_DEVICES"] = ",".join(admission.devices)
    others = environ.get("LD_PRELOAD")
    changed["LD_PRELOAD"] = f"{preload(node.state)}:{others}" if others else str(preload(node.state))
    return node.machine.environment(changed) if node.machine else changed


def preload(state: Path) -> Path:
    """libvgpu.so under a path that LD_PRELOAD can hold. NodeError when it was not built."""
    if not LIBRARY.is_file():
        raise NodeError(
            f"{LIBRARY.name} is missing from {LIBRARY.parent}",
            hint="in a checkout run `make build`; else install the package again",
        )
    if not UNFIT_FOR_LINKER & set(str(LIBRARY)):
        return LIBRARY
    link = state / LIBRARY.name
    fresh = state / f"{LIBRARY.name}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(LIBRARY)
    fresh.replace(link)
    return link
