# SPDX-License-Identifier: Apache-2.0
"""A small face of NVML for test programs, which needs no libcuda: ctypes, as NVIDIA's own client uses it."""

from __future__ import annotations

import ctypes
from typing import Any

nvml = ctypes.CDLL("libnvidia-ml.so.1")

SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_FOUND, INSUFFICIENT_SIZE = 0, 1, 2, 6, 7
NODE = 40
"""The level of nearness of devices that have a processor in common."""


class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class Memory2(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint),
        *((name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")),
    ]


class Process1(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("memory", ctypes.c_ulonglong)]


class Process(ctypes.Structure):
    _fields_ = [*Process1._fields_, ("gpu", ctypes.c_uint), ("compute", ctypes.c_uint)]


class Detail(ctypes.Structure):
    _fields_ = [*Process._fields_, ("protected", ctypes.c_ulonglong)]


class DetailList(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint),
        ("mode", ctypes.c_uint),
        ("count", ctypes.c_uint),
        ("array", ctypes.POINTER(Detail)),
    ]


class Sample(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("stamp", ctypes.c_ulonglong),
        *((name, ctypes.c_uint) for name in ("sm", "memory", "encoder", "decoder")),
    ]


class Info(ctypes.Structure):
    _fields_ = [
        ("stamp", ctypes.c_ulonglong),
        ("pid", ctypes.c_uint),
        *((name, ctypes.c_uint) for name in ("sm", "memory", "encoder", "decoder", "jpeg", "flow")),
    ]


class InfoList(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint),
        ("count", ctypes.c_uint),
        ("since", ctypes.c_ulonglong),
        ("array", ctypes.POINTER(Info)),
    ]


class UUIDValue(ctypes.Union):
    _fields_ = [("text", ctypes.c_char * 41), ("bytes", ctypes.c_ubyte * 16)]


class UUID(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint), ("type", ctypes.c_uint), ("value", UUIDValue)]


def nvml_handle(index: int = 0) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    assert nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
    return handle


def nvml_up(index: int = 0) -> ctypes.c_void_p:
    """Initialise NVML; the handle of a device."""
    assert nvml.nvmlInit_v2() == 0
    return nvml_handle(index)


def nvml_count() -> int:
    count = ctypes.c_uint()
    assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    return count.value


def nvml_uuid(handle: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(96)
    assert nvml.nvmlDeviceGetUUID(handle, text, 96) == 0
    return text.value.decode()


def nvml_info(handle: ctypes.c_void_p) -> dict[str, int]:
    memory = Memory()
    assert nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    return {name: getattr(memory, name) for name, _ in Memory._fields_}


def nvml_info2(handle: ctypes.c_void_p) -> dict[str, int]:
    memory = Memory2(version=0x02000028)
    assert nvml.nvmlDeviceGetMemoryInfo_v2(handle, ctypes.byref(memory)) == 0
    return {name: getattr(memory, name) for name, _ in Memory2._fields_[1:]}


def nvml_window(handle: ctypes.c_void_p) -> dict[str, int]:
    """What BAR1 has; its fields are in the same order as those of memory."""
    memory = Memory()
    assert nvml.nvmlDeviceGetBAR1MemoryInfo(handle, ctypes.byref(memory)) == 0
    return {name: getattr(memory, name) for name, _ in Memory._fields_}


def entry_of(name: str) -> Any:
    """How an entry of a list of running processes is laid out."""
    return Process if name.endswith(("_v2", "_v3")) else Process1


def nvml_processes(
    handle: ctypes.c_void_p, name: str, capacity: int = 64, entry: Any = None
) -> tuple[int, int, list[list[int]]]:
    """Code, count, and pid and memory of the entries of a list."""
    array, count = ((entry or entry_of(name)) * capacity)(), ctypes.c_uint(capacity)
    code = getattr(nvml, name)(handle, ctypes.byref(count), array if capacity else None)
    return code, count.value, [[one.pid, one.memory] for one in array[: count.value]] if not code else []


def nvml_detail(
    handle: ctypes.c_void_p, mode: int, capacity: int = 64, version: int = 0x01000018
) -> tuple[int, int, list[list[int]]]:
    """Code, count and entries of the list that holds every kind of processes."""
    array = (Detail * capacity)()
    wanted = DetailList(version, mode, capacity, array if capacity else None)
    code = nvml.nvmlDeviceGetRunningProcessDetailList(handle, ctypes.byref(wanted))
    return code, wanted.count, [[one.pid, one.memory] for one in array[: wanted.count]] if not code else []


def nvml_samples(handle: ctypes.c_void_p, capacity: int = 64) -> tuple[int, int, list[int]]:
    """Code, count, and pids of the processes that were busy."""
    array, count = (Sample * capacity)(), ctypes.c_uint(capacity)
    code = nvml.nvmlDeviceGetProcessUtilization(
        handle, array if capacity else None, ctypes.byref(count), ctypes.c_ulonglong(0)
    )
    return code, count.value, [one.pid for one in array[: count.value]] if not code else []


def nvml_samples_info(
    handle: ctypes.c_void_p, capacity: int = 64, version: int = 0x01000018
) -> tuple[int, int, list[int]]:
    """The same by the newer function."""
    array = (Info * capacity)()
    wanted = InfoList(version, capacity, 0, array if capacity else None)
    code = nvml.nvmlDeviceGetProcessesUtilizationInfo(handle, ctypes.byref(wanted))
    return code, wanted.count, [one.pid for one in array[: wanted.count]] if not code else []
