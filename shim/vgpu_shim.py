# SPDX-License-Identifier: Apache-2.0
"""
libvgpu.so for Python programs: create tenants on a node, read one's own slices in a tenant.

Only the standard library is used, and Python 3.8 is enough: the OCI hook runs on the host's Python,
and a tenant's program on whatever its image brings. No layout of a shared file is known here; every
call goes to the flat C functions of ``vgpu.h``.

The library is ``$VGPU_LIBRARY``, else ``libvgpu.so`` beside this file, else that of the package
``vgpu_runtime`` beside this folder.

* ShimError          something here cannot be done; the text says what, and ``hint`` the cure
  + NameInUse        a live tenant has that name
  + Shortage         the other tenants' quotas leave too little of a device
  + Unusable         the files of the tenant that this program runs in cannot be used
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {"process": 1, "container": 2}
POLICIES = {"fixed": 1, "balance": 2, "none": 3}

_UUID_TEXT_SIZE = 96
_NAME_SIZE = 96


class ShimError(Exception):
    """Something that the shim's library or the driver cannot do."""

    def __init__(self, message: str, *, hint: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.hint = hint
        self.errno = code


class NameInUse(ShimError):
    """A live tenant has that name."""


class Shortage(ShimError):
    """A device has less left than was asked for: ``free`` bytes, or percent if ``is_cores``."""

    def __init__(self, message: str, *, device: str, is_cores: bool, free: int, hint: str) -> None:
        super().__init__(message, hint=hint, code=errno.ENOSPC)
        self.device = device
        self.is_cores = is_cores
        self.free = free


class Unusable(ShimError):
    """The grant or the ledger of this program's tenant cannot be used; stderr says why."""


@dataclass(frozen=True)
class Device:
    """One GPU, or one MIG instance of a GPU that is divided; memory in bytes."""

    uuid: str
    name: str
    memory: int


@dataclass(frozen=True)
class Slice:
    """A part of a device to be granted.

    ``memory`` bytes of its ``device_memory`` (None: not limited), and ``cores`` percent of its compute
    under policy "fixed" or "balance"; policy "none" does not limit compute. ``spill`` bytes of ``memory`` lie
    in host memory; the rest has to be less than ``device_memory``, and only the rest is taken from the device.
    """

    device: str
    device_memory: int
    memory: int | None = None
    cores: int | None = None
    policy: str = "none"
    spill: int = 0


@dataclass(frozen=True)
class SliceUsage:
    """One slice of this program's tenant: bytes, percent and nanoseconds, summed over its processes.

    ``cores`` is what is enforced now, None when compute is not limited. ``memory_used`` is device memory; of
    the ``spill`` bytes of ``memory`` that may lie in host memory instead, ``spilled`` do.
    """

    device: str
    memory: int
    memory_used: int
    cores: int | None
    policy: str
    device_time_ns: int
    throttled_ns: int
    launches: int
    refusals: int
    spill: int = 0
    spilled: int = 0


@dataclass(frozen=True)
class HostMemory:
    """Page-locked host memory of this program's tenant, in bytes; ``memory`` is None when it is not limited."""

    memory: int | None
    memory_used: int
    refusals: int


# ---- the library ----------------------------------------------------------------------------------


def library_path() -> Path:
    """Where libvgpu.so is; ShimError when it is nowhere."""
    named = os.environ.get("VGPU_LIBRARY")
    here = Path(__file__).resolve().parent
    places = [Path(named)] if named else [here / "libvgpu.so", here.parent / "vgpu_runtime" / "_native" / "libvgpu.so"]
    for place in places:
        if place.exists():
            return place
    raise ShimError(
        f"libvgpu.so is not at {' nor at '.join(map(str, places))}",
        hint="build it with `python native/build.py`, or set VGPU_LIBRARY to its path",
    )


@functools.lru_cache(maxsize=None)  # noqa: UP033 - Python 3.8 has no functools.cache
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ShimError(f"{path} cannot be loaded: {error}", hint="build it for this machine") from error


def _failure(code: int, what: str) -> ShimError:
    number = -code
    return ShimError(f"{what}: {os.strerror(number)}", hint=_CURES.get(number, ""), code=number)


_CURES = {
    errno.EACCES: "run it as the user that owns the state directory",
    errno.EPERM: "run it as the user that owns the state directory",
    errno.EROFS: "choose a state directory that can be written",
    errno.ENOSPC: "free some space where the state directory is",
    errno.ESRCH: "name a process that lives",
    errno.EINVAL: "names are 1 to 63 letters, digits, dots, dashes and underscores and begin with no dot or dash; "
    "cores are 1 to 100; memory is at most the device's; spill is at most the memory, and what it leaves of it is less "
    "than the device's; host memory is at least 1 byte",
}


# ---- the node's side -----------------------------------------------------------------------------------


class _Memory2(ctypes.Structure):
    """`nvmlMemory_v2_t`; bytes."""

    _fields_ = [("version", ctypes.c_uint)] + [
        (name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")
    ]
    VERSION = 0x02000028  # 2, and the structure's size


def _memory_of(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> int:
    """What programs can have of a device: what the driver keeps for itself nobody can be given."""
    memory, total_free_used = _Memory2(_Memory2.VERSION), (ctypes.c_ulonglong * 3)()
    newer = getattr(nvml, "nvmlDeviceGetMemoryInfo_v2", None)  # not in drivers before 510
    if newer is not None and not newer(handle, ctypes.byref(memory)):
        return int(memory.total - memory.reserved)
    _nvml_check(nvml, nvml.nvmlDeviceGetMemoryInfo(handle, total_free_used), "nvmlDeviceGetMemoryInfo")
    return int(total_free_used[0])


def _nvml_text(nvml: ctypes.CDLL, function: str, handle: ctypes.c_void_p, size: int) -> str:
    text = ctypes.create_string_buffer(size)
    _nvml_check(nvml, getattr(nvml, function)(handle, text, ctypes.c_uint(size)), function)
    return text.value.decode()


def _nvml_check(nvml: ctypes.CDLL, code: int, function: str) -> None:
    if code:
        describe: Callable[[int], bytes] = nvml.nvmlErrorString
        raise ShimError(f"{function}: {describe(code).decode()}", hint="run nvidia-smi on this node", code=code)


def _instances(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    """The MIG instances of a device that is divided."""
    current, pending, count = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    if not hasattr(nvml, "nvmlDeviceGetMigMode"):
        return  # a driver older than MIG
    if nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(current), ctypes.byref(pending)) or not current.value:
        return
    if nvml.nvmlDeviceGetMaxMigDeviceCount(handle, ctypes.byref(count)):
        return
    for index in range(count.value):
        instance = ctypes.c_void_p()
        if not nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, ctypes.c_uint(index), ctypes.byref(instance)):
            yield instance


def _list_devices(nvml: ctypes.CDLL) -> list[Device]:
    count = ctypes.c_uint()
    found: list[Device] = []
    _nvml_check(nvml, nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)), "nvmlDeviceGetCount_v2")
    for index in range(count.value):
        handle = ctypes.c_void_p()
        code = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
        _nvml_check(nvml, code, "nvmlDeviceGetHandleByIndex_v2")
        found += [
            Device(
                uuid=_nvml_text(nvml, "nvmlDeviceGetUUID", part, _UUID_TEXT_SIZE),
                name=_nvml_text(nvml, "nvmlDeviceGetName", part, _NAME_SIZE),
                memory=_memory_of(nvml, part),
            )
            for part in list(_instances(nvml, handle)) or [handle]
        ]
    return found


def devices(nvml_path: str | Path | None = None) -> list[Device]:
    """The node's devices, in NVML's order, from the library at ``nvml_path`` or the one that the loader finds.

    A GPU that is divided by MIG is listed as its instances. ShimError when there is no driver.
    """
    path = str(nvml_path or "libnvidia-ml.so.1")
    try:
        nvml = ctypes.CDLL(path)
    except OSError as error:
        raise ShimError(f"NVML cannot be loaded: {error}", hint="install NVIDIA's driver on this node") from error
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    _nvml_check(nvml, nvml.nvmlInit_v2(), f"nvmlInit_v2 of {path}")
    try:
        return _list_devices(nvml)
    finally:
        nvml.nvmlShutdown()


def _array(kind: Any, values: Sequence[Any]) -> Any:
    return (kind * len(values))(*values)


def _shortage(wanted: Sequence[Slice], told: Sequence[int]) -> Shortage:
    lacking, is_cores, free = wanted[told[0]], bool(told[1]), int(told[2])
    asked = f"{lacking.cores}% of the compute" if is_cores else f"{(lacking.memory or 0) - lacking.spill} bytes"
    left = f"{free}%" if is_cores else f"{free} bytes"
    return Shortage(
        f"{asked} of device {lacking.device} were asked for, and the other tenants leave {left}",
        device=lacking.device,
        is_cores=is_cores,
        free=free,
        hint=f"ask for at most {left}, or end another tenant",
    )


def create_tenant(
    state: str | Path,
    name: str,
    kind: str,
    slices: Sequence[Slice],
    pid: int | None = None,
    host_memory: int | None = None,
) -> Path:
    """Create a tenant whose first member is process ``pid`` (None: this one); its directory.

    ``kind`` is "process" or "container"; ``host_memory`` bounds its page-locked host memory in bytes (None:
    not limited). NameInUse, Shortage, or ShimError for anything else.
    """
    # To C, 0 is "not limited", and all of a device too: who gives a number means a limit.
    if (host_memory is not None and host_memory <= 0) or any(part.spill and part.memory is None for part in slices):
        raise _failure(-errno.EINVAL, f"tenant {name!r} cannot be created in {state}")
    shortage = (ctypes.c_uint64 * 3)()
    code = _library().vgpu_make_tenant(
        os.fsencode(state),
        name.encode(),
        ctypes.c_uint32(KINDS[kind]),
        ctypes.c_uint32(pid or 0),
        ctypes.c_uint32(len(slices)),
        _array(ctypes.c_char_p, [part.device.encode() for part in slices]),
        _array(ctypes.c_uint64, [part.device_memory for part in slices]),
        _array(ctypes.c_uint64, [part.device_memory if part.memory is None else part.memory for part in slices]),
        _array(ctypes.c_uint32, [100 if part.cores is None else part.cores for part in slices]),
        _array(ctypes.c_uint32, [POLICIES[part.policy] for part in slices]),
        shortage,
        _array(ctypes.c_uint64, [part.spill for part in slices]),
        ctypes.c_uint64(host_memory or 0),
    )
    if code == -errno.EEXIST:
        raise NameInUse(f"tenant {name!r}: a live tenant has that name", hint="choose another name", code=-code)
    if code > 0:
        raise _shortage(slices, list(shortage))
    if code:
        raise _failure(code, f"tenant {name!r} cannot be created in {state}")
    return Path(state) / "tenants" / name


def room(state: str | Path, device: Device) -> int:
    """Bytes of a device that the live tenants' quotas leave."""
    memory, cores = ctypes.c_uint64(), ctypes.c_uint64()
    code = _library().vgpu_device_room(
        os.fsencode(state),
        device.uuid.encode(),
        ctypes.c_uint64(device.memory),
        ctypes.byref(memory),
        ctypes.byref(cores),
    )
    if code:
        raise _failure(code, f"the tenants of {state} cannot be counted")
    return memory.value


def join_tenant(state: str | Path, name: str, pid: int | None = None) -> None:
    """Make process ``pid`` (None: this one) a further member of a live tenant."""
    code = _library().vgpu_join_tenant(os.fsencode(state), name.encode(), ctypes.c_uint32(pid or 0))
    if code:
        raise _failure(code, f"tenant {name!r} of {state} cannot be joined")


def remove_tenant(state: str | Path, name: str) -> None:
    """Remove a tenant, whatever lives in it; one that is not there is no error."""
    code = _library().vgpu_remove_tenant(os.fsencode(state), name.encode())
    if code and code != -errno.ENOENT:
        raise _failure(code, f"tenant {name!r} of {state} cannot be removed")


def sweep(state: str | Path) -> int:
    """Remove the tenants in which nothing lives any more; how many."""
    removed: int = _library().vgpu_sweep_tenants(os.fsencode(state))
    if removed < 0:
        raise _failure(removed, f"the tenants of {state} cannot be swept")
    return removed


# ---- the tenant's side ------------------------------------------------------------------------------------


def _own_slice(index: int) -> SliceUsage:
    device = (ctypes.c_uint8 * 16)()
    memory, used, device_time, throttled, launches, refusals, spill, spilled = (ctypes.c_uint64() for _ in range(8))
    cores, policy = ctypes.c_uint32(), ctypes.c_uint32()
    code = _library().vgpu_own_slice(
        ctypes.c_uint32(index),
        device,
        *map(ctypes.byref, (memory, used, cores, policy, device_time, throttled, launches, refusals, spill, spilled)),
    )
    if code:
        raise _failure(code, f"slice {index}")
    return SliceUsage(
        device=f"GPU-{uuid.UUID(bytes=bytes(device))}",
        memory=memory.value,
        memory_used=used.value,
        cores=cores.value or None,
        policy={number: name for name, number in POLICIES.items()}[policy.value],
        device_time_ns=device_time.value,
        throttled_ns=throttled.value,
        launches=launches.value,
        refusals=refusals.value,
        spill=spill.value,
        spilled=spilled.value,
    )


def slices() -> list[SliceUsage]:
    """The slices of the tenant that this program runs in; none when it runs in no tenant."""
    count: int = _library().vgpu_own_slices()
    if count < 0:
        raise Unusable("this program's tenant has files that cannot be used", hint="see stderr", code=-count)
    return [_own_slice(index) for index in range(count)]


def host_memory() -> HostMemory | None:
    """Page-locked host memory of the tenant that this program runs in; None when it runs in no tenant."""
    memory, used, refusals = (ctypes.c_uint64() for _ in range(3))
    code = _library().vgpu_own_host_memory(*map(ctypes.byref, (memory, used, refusals)))
    if code == -errno.ENOENT:
        return None
    if code:
        raise Unusable("this program's tenant has files that cannot be used", hint="see stderr", code=-code)
    return HostMemory(memory.value or None, used.value, refusals.value)
