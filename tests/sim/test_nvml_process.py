# SPDX-License-Identifier: Apache-2.0
"""The simulated NVML's lists of processes: memory, capacity rule, names, pids."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from tools.simulated import (
    INSUFFICIENT_SIZE,
    INVALID_ARGUMENT,
    MIB,
    NOT_FOUND,
    NOT_SUPPORTED,
    NVML,
    VERSION_MISMATCH,
    Make,
    Simulated,
)


def test_a_process_appears_with_its_memory_and_leaves_with_it(h200: Simulated) -> None:
    script = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
answer([[(p.pid, p.usedGpuMemory) for p in n.nvmlDeviceGetComputeRunningProcesses_v3(h)],
        n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2).used])
"""
    with h200.user(memory=1024 * MIB) as user:
        listed, used = h200.ask(script)
        assert listed == [[user.pid, used]]
        assert used == 1024 * MIB + 300 * MIB
    assert h200.ask(script) == [[], 0]


def test_a_killed_process_is_gone_from_the_list_and_its_memory_free(h200: Simulated) -> None:
    script = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
answer([len(n.nvmlDeviceGetComputeRunningProcesses_v3(h)), n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2).used])
"""
    with h200.user(memory=79 * 1024 * MIB) as user:
        assert h200.ask(script)[0] == 1
        user.process.kill()
        user.process.wait(10)
        assert h200.ask(script) == [0, 0]


LISTS = """
open_device()
name = {name!r}
size = {size}
function = getattr(lib, name)
def call(capacity, entries=True):
    count = ctypes.c_uint(capacity)
    buffer = ctypes.create_string_buffer(b"\\xee" * 256, 256)
    code = function(device, ctypes.byref(count), buffer if entries else None)
    return [code, count.value, len(buffer.raw.rstrip(b"\\xee")), buffer.raw[:size].hex()]
answer([call(0, False), call(0), call(1), call(2), call(5), call(2, False)])
"""


@pytest.mark.parametrize(
    ("version", "size"), [("", 16), ("_v2", 24), ("_v3", 24)], ids=["version 1", "version 2", "version 3"]
)
def test_a_list_takes_the_callers_capacity_and_answers_the_count(
    h200: Simulated, stack: ExitStack, version: str, size: int
) -> None:
    users = [stack.enter_context(h200.user(memory=64 * MIB)) for _ in range(2)]
    name = f"nvmlDeviceGetComputeRunningProcesses{version}"
    nothing, zero, one, two, five, nowhere = h200.ask(NVML + LISTS.format(name=name, size=size))
    for refused in (nothing, zero, one):
        assert refused[:3] == [INSUFFICIENT_SIZE, 2, 0], "the count, and no entry touched"
    assert two[:2] == five[:2] == [0, 2]
    assert two[2] == five[2] or version == "", "no more written than there is"
    assert nowhere[0] == INVALID_ARGUMENT
    first = bytes.fromhex(two[3])
    assert int.from_bytes(first[:4], "little") in {user.pid for user in users}
    assert int.from_bytes(first[8:16], "little") == (300 + 64) * MIB


def test_graphics_and_mps_lists_are_there_and_empty(h200: Simulated) -> None:
    with h200.user(memory=2 * MIB):
        seen = h200.ask(
            NVML
            + """
open_device()
def count(name):
    number.value = 8
    buffer = ctypes.create_string_buffer(8 * 24)
    return [getattr(lib, name)(device, ctypes.byref(number), buffer), number.value]
answer([count(f"nvmlDeviceGet{kind}RunningProcesses{version}")
        for kind in ("Graphics", "MPSCompute") for version in ("", "_v2", "_v3")])
"""
        )
    assert seen == [[0, 0]] * 6


def test_the_detail_list_holds_the_compute_processes_and_checks_its_version(h200: Simulated) -> None:
    script = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
got = n.nvmlDeviceGetRunningProcessDetailList(h, n.nvmlProcessDetailList_v1, n.NVML_PROCESS_MODE_COMPUTE)
mps = n.nvmlDeviceGetRunningProcessDetailList(h, n.nvmlProcessDetailList_v1, n.NVML_PROCESS_MODE_MPS)
try:
    wrong = n.nvmlDeviceGetRunningProcessDetailList(h, 0x02000018, 0) and 0
except n.NVMLError as error:
    wrong = error.value
answer([[(p.pid, p.usedGpuMemory) for p in got], len(mps), wrong])
"""
    with h200.user(memory=4 * MIB) as user:
        listed, others, wrong = h200.ask(script)
    assert [pid for pid, _ in listed] == [user.pid]
    assert others == 0
    assert wrong == VERSION_MISMATCH


def test_a_process_is_named_by_its_executable(h200: Simulated) -> None:
    script = """
import pynvml as n
n.nvmlInit()
def name(pid):
    try:
        return n.nvmlSystemGetProcessName(pid)
    except n.NVMLError as error:
        return error.value
answer([name({pid}), name(2**22 + 1)])
"""
    with h200.user() as user:
        named, unknown = h200.ask(script.format(pid=user.pid))
        assert Path(named) == Path(f"/proc/{user.pid}/exe").resolve()
    assert unknown == NOT_FOUND


def test_a_process_name_is_cropped_to_the_buffer(h200: Simulated) -> None:
    with h200.user() as user:
        seen = h200.ask(
            NVML
            + f"""
open_device()
buffer = ctypes.create_string_buffer(64)
answer([lib.nvmlSystemGetProcessName({user.pid}, buffer, 5), buffer.value.decode(),
        lib.nvmlSystemGetProcessName({user.pid}, buffer, 0), lib.nvmlSystemGetProcessName({user.pid}, None, 5)])
"""
        )
    assert seen == [0, str(Path(sys.executable).resolve())[:4], INVALID_ARGUMENT, INVALID_ARGUMENT]


def test_pids_can_be_those_of_another_namespace_and_names_follow_them(make_machine: Make) -> None:
    machine = make_machine("knobs:\n  pid_offset: 1000000\ndevices:\n  - model: a10\n")
    script = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
pid = n.nvmlDeviceGetComputeRunningProcesses_v3(h)[0].pid
try:
    own = n.nvmlSystemGetProcessName(pid - 1000000)
except n.NVMLError as error:
    own = error.value
answer([pid, n.nvmlSystemGetProcessName(pid), own])
"""
    with machine.user() as user:
        pid, name, own = machine.ask(script)
    assert pid == user.pid + 1_000_000
    assert name == str(Path(sys.executable).resolve())
    assert own == NOT_FOUND


def test_without_the_process_view_lists_are_not_supported(make_machine: Make) -> None:
    machine = make_machine("knobs:\n  process_view: false\ndevices:\n  - model: a10\n")
    with machine.user(memory=2 * MIB):
        codes = machine.ask(
            NVML
            + """
open_device()
buffer = ctypes.create_string_buffer(1024)
number.value = 8
names = ["ComputeRunningProcesses", "ComputeRunningProcesses_v3", "GraphicsRunningProcesses_v3"]
answer([getattr(lib, "nvmlDeviceGet" + name)(device, ctypes.byref(number), buffer) for name in names]
       + [lib.nvmlDeviceGetProcessUtilization(device, buffer, ctypes.byref(number), ctypes.c_ulonglong(0))])
"""
        )
    assert codes == [NOT_SUPPORTED] * 4
