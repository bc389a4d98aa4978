# SPDX-License-Identifier: Apache-2.0
"""
The contract, as Python: the only user of `_abi`.

Tenants are created, joined, removed and swept by the C of `tenant.c`, under its lock; this module fills
in a grant, reads tenants back, and says in words what C says in numbers. A grant was written by a node
like this one. A ledger was written by the tenant, perhaps a hostile one: it is read, never mapped (its
owner may cut it off), judged before it is believed, and no usage above the quota is passed on.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vgpu_runtime.errors import ConfigError, NameInUse, NodeError, NoSuchTenant, RefusedError, VgpuError
from vgpu_runtime.model import HostMemory, Kind, Policy, Quota, Slice, Tenant, Usage
from vgpu_runtime.units import format_memory

LIBRARY = Path(__file__).parent / "_native" / "libvgpu_abi.so"
MOST = 2**63 - 1  # what a reader of our JSON can hold, whatever a tenant wrote
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")
NO_LIMIT = 2**64 - 1  # UINT64_MAX, as the contract answers where it does not limit
NAME_RULE = "letters, digits, '.', '_' and '-', not beginning with '.' or '-', and at most 63 of them"


@cache
def contract() -> tuple[Any, Any]:
    """cffi's `ffi` and the library of the contract. NodeError when they were not built."""
    try:
        from vgpu_runtime._native._abi import ffi

        return ffi, ffi.dlopen(str(LIBRARY))
    except (ImportError, OSError) as error:
        raise NodeError(
            f"the native part of vgpu-runtime is missing: {error}",
            hint="in a checkout run `make build`; else install the package again",
        ) from error


# ---- between our words and C's ----------------------------------------------------------------


def _policies() -> dict[Policy, int]:
    _, lib = contract()
    return {
        Policy.FIXED: lib.VGPU_POLICY_FIXED,
        Policy.BALANCE: lib.VGPU_POLICY_BALANCE,
        Policy.NONE: lib.VGPU_POLICY_NONE,
    }


def _kinds() -> dict[Kind, int]:
    _, lib = contract()
    return {Kind.PROCESS: lib.VGPU_KIND_PROCESS, Kind.CONTAINER: lib.VGPU_KIND_CONTAINER}


def uuid_bytes(uuid: str) -> bytes:
    """The 16 bytes of `GPU-…` or `MIG-…`. ConfigError when it is of no such form."""
    digits = uuid.partition("-")[2].replace("-", "")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise ConfigError(
            f"device {uuid!r} has no UUID that a grant can hold",
            hint="a UUID looks like GPU-8f1e2d3c-0123-4567-89ab-0123456789ab; `nvidia-smi -L` shows them",
        )
    return value


def uuid_text(value: bytes, prefix: str = "GPU") -> str:
    """The UUID of 16 bytes; a grant does not keep whether it is of a GPU or of a MIG instance."""
    digits = value.hex()
    return "-".join((prefix, digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _write_quota(target: Any, quota: Quota) -> None:
    ffi, _ = contract()
    ffi.buffer(target.device)[:] = uuid_bytes(quota.device)
    target.device_memory = quota.device_memory
    target.memory = quota.device_memory if quota.memory is None else quota.memory
    target.cores = 100 if quota.cores is None else quota.cores
    target.policy = _policies()[quota.policy]
    target.memory_spill = quota.spill


def _read_quota(source: Any) -> Quota:
    ffi, lib = contract()
    policy = {number: name for name, number in _policies().items()}[source.policy]
    is_limited = lib.vgpu_device_part(source) != NO_LIMIT
    return Quota(
        device=uuid_text(bytes(ffi.buffer(source.device))),
        device_memory=source.device_memory,
        memory=source.memory if is_limited else None,
        cores=None if policy is Policy.NONE else source.cores,
        policy=policy,
        spill=source.memory_spill if is_limited else 0,
    )


# ---- changing what is there ----------------------------------------------------------------------


def member(pid: int) -> int:
    """The word that names a live process, for as long as it lives and whatever it execs."""
    _, lib = contract()
    owner = int(lib.vgpu_owner_of(pid))
    if not owner:
        raise NodeError(f"process {pid} is not there", hint="is /proc mounted?")
    return owner


def create(
    state: Path, name: str, kind: Kind, quotas: Sequence[Quota], owner: int, host_memory: int | None = None
) -> Path:
    """Create a tenant with `owner` (see member()) as its first member; its directory.

    The quotas have one device each; `host_memory` bytes of page-locked host memory are the tenant's in all
    (None: not limited). Raises NameInUse, RefusedError when the live tenants leave too little,
    ConfigError for a bad name, NodeError for what the system refuses; nothing is left behind.
    """
    ffi, lib = contract()
    check_name(name)
    if not 1 <= len(quotas) <= lib.VGPU_MAX_SLICES:
        raise ConfigError(
            f"{len(quotas)} devices for one tenant: it must be 1 to {lib.VGPU_MAX_SLICES}",
            hint="name fewer devices",
        )
    grant = ffi.new("struct vgpu_grant *")
    grant.magic = lib.VGPU_GRANT_MAGIC
    grant.abi = lib.VGPU_ABI
    grant.size = ffi.sizeof("struct vgpu_grant")
    grant.tenant = name.encode()
    grant.kind = _kinds()[kind]
    grant.slice_count = len(quotas)
    grant.host_memory = host_memory or 0
    for target, quota in zip(grant.slices, quotas, strict=False):
        _write_quota(target, quota)
    shortage = ffi.new("struct vgpu_shortage *")
    result = lib.vgpu_tenant_create(os.fsencode(state), grant, owner, shortage)
    if result == -errno.EEXIST:
        raise NameInUse(f"tenant {name!r} lives already", hint=f"share it with --join {name}, or take another --name")
    if result == lib.VGPU_SHORT:
        raise _shortage(name, quotas[shortage.slice], bool(shortage.is_cores), int(shortage.free))
    if result:
        raise _failure(f"tenant {name!r} cannot be created", state, result)
    return state / "tenants" / name


def join(state: Path, name: str, owner: int) -> Path:
    """Make `owner` a member of a live tenant; its directory. Raises NoSuchTenant."""
    _, lib = contract()
    check_name(name)
    result = lib.vgpu_tenant_join(os.fsencode(state), name.encode(), owner)
    if result == -errno.ENOENT:
        raise NoSuchTenant(f"there is no live tenant {name!r}", hint="`vgpu list` shows those that live")
    if result:
        raise _failure(f"tenant {name!r} cannot be joined", state, result)
    return state / "tenants" / name


def remove(state: Path, name: str) -> None:
    """Remove a tenant, whatever lives in it. Raises NoSuchTenant."""
    _, lib = contract()
    check_name(name)
    result = lib.vgpu_tenant_remove(os.fsencode(state), name.encode())
    if result == -errno.ENOENT:
        raise NoSuchTenant(f"there is no tenant {name!r}", hint="`vgpu list` shows those that live")
    if result:
        raise _failure(f"tenant {name!r} cannot be removed", state, result)


def sweep(state: Path) -> int:
    """Remove the tenants that nobody lives in any more; how many there were."""
    _, lib = contract()
    result = int(lib.vgpu_tenant_sweep(os.fsencode(state)))
    if result < 0:
        raise _failure("dead tenants cannot be removed", state, result)
    return result


def check_name(name: str) -> None:
    """Raise ConfigError when no tenant can be called so."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"tenant name {name!r}: it must be of {NAME_RULE}", hint="for example: train-1")


def _shortage(name: str, quota: Quota, is_cores: bool, free: int) -> RefusedError:
    if is_cores:
        asked, left = f"{quota.cores}% of the cores", f"{free}%"
    else:
        asked = f"{format_memory(quota.device_part or 0)} ({quota.device_part} bytes)"
        left = f"{format_memory(free)} ({free} bytes)"
    return RefusedError(
        f"tenant {name!r} asks for {asked} of {quota.device}; {left} is free",
        hint="ask for less, name another --device, or end a tenant (`vgpu list`)",
    )


def _failure(what: str, state: Path, result: int) -> VgpuError:
    number = -result
    if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        hint = f"run as the owner of {state}, or choose another directory with VGPU_STATE_DIR"
    elif number in {errno.ENOSPC, errno.EDQUOT}:
        hint = f"free some space where {state} is, or choose another directory with VGPU_STATE_DIR"
    elif number == errno.ENOTDIR:
        hint = f"{state} and what is in it must be directories; choose another one with VGPU_STATE_DIR"
    else:
        hint = f"the state directory is {state}; VGPU_STATE_DIR chooses another"
    return NodeError(f"{what}: {os.strerror(number)}", hint=hint)


# ---- reading what is there ---------------------------------------------------------------------


def tenants(state: Path) -> list[Tenant]:
    """The tenants on disk, by name. Those that disappear or are unreadable meanwhile are left out."""
    try:
        names = sorted(entry.name for entry in os.scandir(state / "tenants") if NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _failure("tenants cannot be listed", state, -(error.errno or errno.EIO)) from error
    found = (read(state, name) for name in names)
    return [tenant for tenant in found if tenant is not None]


def read(state: Path, name: str) -> Tenant | None:
    """One tenant as it is now; None when there is none, or its grant is not one."""
    ffi, lib = contract()
    directory = state / "tenants" / name
    with contextlib.ExitStack() as stack:
        try:
            grant = stack.enter_context(_mapped_grant(directory / "grant"))
        except OSError:
            return None
        if grant is None:
            return None
        quota = ffi.new("struct vgpu_quota *")
        quotas = []
        for number in range(grant.slice_count):
            lib.vgpu_quota_read(grant, number, quota)
            quotas.append(_read_quota(quota))
        kind = {number: kind for kind, number in _kinds().items()}.get(grant.kind, Kind.CONTAINER)
        ledger, fault = _read_ledger(directory / "ledger")
        charged = [] if ledger is None else _charged(ledger)
        pids = set(_members(directory / "members"))
        if kind is Kind.PROCESS and ledger is not None:
            pids |= set(_rows(ledger))
        return Tenant(
            name=ffi.string(grant.tenant).decode("ascii", "replace"),
            kind=kind,
            directory=str(directory),
            pids=tuple(sorted(pids)),
            slices=tuple(Slice(item, _usage(ledger, charged, number, item)) for number, item in enumerate(quotas)),
            fault=fault,
            host_memory=_host_memory(ledger, charged, grant.host_memory),
        )


@contextlib.contextmanager
def _mapped_grant(path: Path) -> Iterator[Any]:
    """The grant, mapped so that a change is seen at one moment; None when it is not a sound one."""
    ffi, lib = contract()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size
        if size < ffi.sizeof("struct vgpu_grant"):
            yield None
            return
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapping:
            view = ffi.from_buffer(mapping)
            try:
                grant = ffi.cast("struct vgpu_grant *", view)
                yield grant if lib.vgpu_grant_check(grant, size) == lib.VGPU_SOUND else None
            finally:
                ffi.release(view)
    finally:
        os.close(descriptor)


def _read_ledger(path: Path) -> tuple[Any, str]:
    """A copy of the ledger, or None and why it cannot be believed."""
    ffi, lib = contract()
    size = ffi.sizeof("struct vgpu_ledger")
    try:
        # Not blocking: a tenant may have put a pipe in its place.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return None, f"{path.name}: {error.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None, f"{path.name}: not a regular file"
        content = os.pread(descriptor, size, 0)
    except OSError as error:
        return None, f"{path.name}: {error.strerror}"
    finally:
        os.close(descriptor)
    fault = lib.vgpu_ledger_check(content, len(content))
    if fault != lib.VGPU_SOUND:
        return None, f"{path.name}: {ffi.string(lib.vgpu_fault_text(fault)).decode()}"
    ledger = ffi.new("struct vgpu_ledger *")
    ffi.memmove(ledger, content, size)
    return ledger, ""


def _charged(ledger: Any) -> list[int]:
    """Bytes charged, by account. What the dead still hold does not count: their tenant sweeps when it needs it."""
    _, lib = contract()
    charged = [int(lib.vgpu_charged(ledger, account)) for account in range(lib.VGPU_ACCOUNTS)]
    for number, row in enumerate(ledger.rows):
        if row.owner in (0, lib.VGPU_OWNER_VOID):
            continue
        if lib.vgpu_process_is_gone(row.owner, row.pid_namespace):
            held = [int(lib.vgpu_row_charged(ledger, number, account)) for account in range(lib.VGPU_ACCOUNTS)]
            charged = [max(0, total - part) for total, part in zip(charged, held, strict=True)]
    return charged


def _usage(ledger: Any, charged: Sequence[int], number: int, quota: Quota) -> Usage:
    _, lib = contract()
    if ledger is None:
        return Usage(memory=0, refusals=0, device_time_ns=0, throttled_ns=0, launches=0)
    usage = ledger.slices[number]
    part = quota.device_part
    return Usage(
        memory=min(charged[number], quota.device_memory if part is None else part),
        refusals=min(usage.refusals, MOST),
        device_time_ns=min(usage.device_time_ns, MOST),
        throttled_ns=min(usage.throttled_ns, MOST),
        launches=min(usage.launches, MOST),
        spill=min(charged[lib.VGPU_HOST - lib.VGPU_MAX_SLICES + number], quota.spill),
    )


def _host_memory(ledger: Any, charged: Sequence[int], quota: int) -> HostMemory:
    _, lib = contract()
    limit = quota or None
    if ledger is None:
        return HostMemory(limit, 0, 0)
    return HostMemory(limit, min(charged[lib.VGPU_HOST], limit or MOST), min(ledger.host_refusals, MOST))


def _members(directory: Path) -> Iterator[int]:
    _, lib = contract()
    try:
        names = [entry.name for entry in directory.iterdir()]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(ValueError, OverflowError):
            owner = int(name, 16)
            if not lib.vgpu_process_is_gone(owner, 0):
                yield lib.vgpu_owner_pid(owner)


def _rows(ledger: Any) -> Iterator[int]:
    _, lib = contract()
    try:
        here = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return
    for row in ledger.rows:
        # A pid of another namespace would name some other process here.
        if row.owner and row.pid_namespace == here and not lib.vgpu_process_is_gone(row.owner, here):
            yield lib.vgpu_owner_pid(row.owner)
