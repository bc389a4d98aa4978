# SPDX-License-Identifier: Apache-2.0
"""NVML: see rows.py. The machine has two devices, and a program outside of any tenant runs on each."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.shim.rows import DEVICE, check, declarations, entry, hold, new, null, nvml, up

NOTHING_THERE = "the simulated driver lists no such process, so there is nothing to leave out"


def text(characters: Any) -> str:
    raw = declarations().string(characters)
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def device(index: int) -> Any:
    """A handle of a device by its index among those that are shown."""
    handle = new("nvmlDevice_t *")
    check(nvml.nvmlDeviceGetHandleByIndex_v2(index, handle))
    return handle[0]


def uuid_of(handle: Any) -> str:
    uuid = new("char[96]")
    check(nvml.nvmlDeviceGetUUID(handle, uuid, 96))
    return text(uuid)


def first(what: str) -> bytes:
    """What nvidia-smi calls a property of the machine's first device; the tests say it in the environment."""
    return str(json.loads(os.environ["VGPU_ROWS_FIRST"])[what]).encode()


def begin() -> int:
    """Start NVML; how many devices it shows."""
    count = new("unsigned int *")
    check(nvml.nvmlInit_v2())
    check(nvml.nvmlDeviceGetCount_v2(count))
    return int(count[0])


def granted() -> Any:
    """The device of the grant: the only one that is shown, or the second one."""
    return device(min(begin() - 1, DEVICE))


# ---- start ------------------------------------------------------------------------------------------------------

FAILS_CLOSED = "it takes nothing; it fails for a tenant whose files cannot be used"


@entry("gates", "nvmlInit", "nvmlInit_v2", why=FAILS_CLOSED)
def init(symbol: str) -> Any:
    return getattr(nvml, symbol)()


@entry("gates", "nvmlInitWithFlags", why=FAILS_CLOSED)
def init_with_flags(symbol: str) -> Any:
    return nvml.nvmlInitWithFlags(0)


# ---- memory -----------------------------------------------------------------------------------------------------


@entry("shows", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2")
def memory(symbol: str) -> Any:
    what = new("nvmlMemory_v2_t *" if symbol.endswith("_v2") else "nvmlMemory_t *")
    if symbol.endswith("_v2"):
        what.version = 0x02000028
    check(getattr(nvml, symbol)(granted(), what))
    return what.total


@entry("shows", "nvmlDeviceGetBAR1MemoryInfo")
def window(symbol: str) -> Any:
    what = new("nvmlBAR1Memory_t *")
    check(nvml.nvmlDeviceGetBAR1MemoryInfo(granted(), what))
    return [what.bar1Total, what.bar1Free, what.bar1Used]


# ---- processes --------------------------------------------------------------------------------------------------


def listed(symbol: str) -> int:
    """How many processes a list holds when this one is on the device too."""
    up()
    hold()
    size = "nvmlProcessInfo_v2_t" if symbol[-3:] in ("_v2", "_v3") else "nvmlProcessInfo_v1_t"
    count, entries = new("unsigned int *", 64), new(f"{size}[64]")
    check(getattr(nvml, symbol)(granted(), count, declarations().cast("void *", entries)))
    return int(count[0])


def versions(name: str) -> list[str]:
    return [name + suffix for suffix in ("", "_v2", "_v3")]


@entry("shows", *versions("nvmlDeviceGetComputeRunningProcesses"))
def compute_processes(symbol: str) -> Any:
    return listed(symbol)


@entry(
    "answers",
    *versions("nvmlDeviceGetGraphicsRunningProcesses"),
    *versions("nvmlDeviceGetMPSComputeRunningProcesses"),
    why=NOTHING_THERE,
)
def other_processes(symbol: str) -> Any:
    return listed(symbol)


@entry("shows", "nvmlDeviceGetRunningProcessDetailList")
def detailed_processes(symbol: str) -> Any:
    up()
    hold()
    found, entries = new("nvmlProcessDetailList_v1_t *"), new("nvmlProcessDetail_v1_t[64]")
    found.version, found.mode, found.numProcArrayEntries, found.procArray = 0x01000018, 0, 64, entries
    check(nvml.nvmlDeviceGetRunningProcessDetailList(granted(), found))
    return found.numProcArrayEntries


@entry("shows", "nvmlDeviceGetProcessUtilization")
def samples(symbol: str) -> Any:
    """The program outside is busy; this one is not."""
    entries, count = new("nvmlProcessUtilizationSample_t[256]"), new("unsigned int *", 256)
    code = nvml.nvmlDeviceGetProcessUtilization(granted(), entries, count, 0)
    return [code, 0 if code else len({entries[i].pid for i in range(count[0])})]


@entry("shows", "nvmlDeviceGetProcessesUtilizationInfo")
def detailed_samples(symbol: str) -> Any:
    found, entries = new("nvmlProcessesUtilizationInfo_v1_t *"), new("nvmlProcessUtilizationInfo_v1_t[256]")
    found.version, found.processSamplesCount, found.procUtilArray = 0x01000018, 256, entries
    code = nvml.nvmlDeviceGetProcessesUtilizationInfo(granted(), found)
    return [code, 0 if code else len({entries[i].pid for i in range(found.processSamplesCount)})]


# ---- devices ----------------------------------------------------------------------------------------------------


@entry("shows", "nvmlDeviceGetCount", "nvmlDeviceGetCount_v2")
def count(symbol: str) -> Any:
    begin()
    found = new("unsigned int *")
    check(getattr(nvml, symbol)(found))
    return found[0]


@entry("shows", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByIndex_v2")
def by_index(symbol: str) -> Any:
    begin()
    handle = new("nvmlDevice_t *")
    check(getattr(nvml, symbol)(0, handle))
    return uuid_of(handle[0])


# Of the machine's first device, which the grant does not name.


@entry("shows", "nvmlDeviceGetHandleByUUID")
def by_uuid(symbol: str) -> Any:
    begin()
    return nvml.nvmlDeviceGetHandleByUUID(first("uuid"), new("nvmlDevice_t *"))


@entry("shows", "nvmlDeviceGetHandleByUUIDV")
def by_uuid_or_bytes(symbol: str) -> Any:
    begin()
    uuid = new("nvmlUUID_t *")
    uuid.version, uuid.type, uuid.value.str = 0x01000034, 1, first("uuid")
    return nvml.nvmlDeviceGetHandleByUUIDV(uuid, new("nvmlDevice_t *"))


@entry("shows", "nvmlDeviceGetHandleBySerial")
def by_serial(symbol: str) -> Any:
    begin()
    return nvml.nvmlDeviceGetHandleBySerial(first("serial"), new("nvmlDevice_t *"))


@entry("shows", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetHandleByPciBusId_v2")
def by_place(symbol: str) -> Any:
    begin()
    return getattr(nvml, symbol)(first("pci.bus_id"), new("nvmlDevice_t *"))


@entry("shows", "nvmlDeviceGetIndex")
def index(symbol: str) -> Any:
    found = new("unsigned int *")
    check(nvml.nvmlDeviceGetIndex(granted(), found))
    return found[0]


@entry("shows", "nvmlSystemGetTopologyGpuSet")
def neighbours(symbol: str) -> Any:
    begin()
    found = new("unsigned int *")
    return [nvml.nvmlSystemGetTopologyGpuSet(0, found, null()), found[0]]


@entry("shows", "nvmlDeviceGetTopologyNearestGpus")
def nearest(symbol: str) -> Any:
    found = new("unsigned int *")
    return [nvml.nvmlDeviceGetTopologyNearestGpus(granted(), 40, found, null()), found[0]]


@entry("answers", "nvmlDeviceGetMigDeviceHandleByIndex", why="the machine has no MIG instances")
def mig(symbol: str) -> Any:
    return nvml.nvmlDeviceGetMigDeviceHandleByIndex(granted(), 0, new("nvmlDevice_t *"))
