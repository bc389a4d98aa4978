# SPDX-License-Identifier: Apache-2.0
"""The simulated NVML as a library: codes, identities, memory, versions, events."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import build
import pytest
from tools.simulated import (
    DRIVER_NOT_LOADED,
    INSUFFICIENT_SIZE,
    INVALID_ARGUMENT,
    MIB,
    NOT_FOUND,
    NOT_SUPPORTED,
    NVML,
    TIMEOUT,
    UNINITIALIZED,
    VERSION_MISMATCH,
    Make,
    Simulated,
    program,
)


def test_every_call_before_init_answers_uninitialized(h200: Simulated) -> None:
    codes = h200.ask(
        NVML
        + """
before = [lib.nvmlDeviceGetCount_v2(ctypes.byref(number)), lib.nvmlDeviceGetMemoryInfo(None, None),
          lib.nvmlDeviceGetFanSpeed(None, None), lib.nvmlSystemGetProcessName(1, None, 0)]
shutdown = lib.nvmlShutdown()
lib.nvmlInit_v2()
after = lib.nvmlDeviceGetCount_v2(ctypes.byref(number))
answer([before, shutdown, after, number.value])
"""
    )
    assert codes == [[UNINITIALIZED] * 4, 0, 0, 1]


def test_initialising_counts_and_a_shutdown_too_many_is_harmless(h200: Simulated) -> None:
    codes = h200.ask(
        NVML
        + """
count = lambda: lib.nvmlDeviceGetCount_v2(ctypes.byref(number))
seen = []
for call in [lib.nvmlInit, lib.nvmlInitWithFlags, lib.nvmlShutdown]:
    call(0)
    seen.append(count())
for _ in range(3):
    lib.nvmlShutdown()
seen.append(count())
lib.nvmlInit_v2()
seen.append(count())
answer(seen)
"""
    )
    assert codes == [0, 0, 0, UNINITIALIZED, 0]


def test_a_missing_machine_is_a_driver_that_is_not_loaded_and_is_named_once(h200: Simulated) -> None:
    h200.machine.file.unlink()
    script = NVML + "answer([lib.nvmlInit_v2(), lib.nvmlInit_v2()])"
    done = h200.attempt(sys.executable, "-c", program(script))
    assert json.loads(done.stdout) == [DRIVER_NOT_LOADED, DRIVER_NOT_LOADED]
    assert done.stderr.count("\n") == 1
    assert str(h200.machine.file) in done.stderr


def test_what_is_not_implemented_is_not_supported_and_leaves_a_trace(h200: Simulated, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    codes = h200.ask(
        NVML + "open_device()\nanswer([lib.nvmlDeviceGetFanSpeed(device, ctypes.byref(number)) for _ in range(3)])",
        VGPU_SIM_TRACE=str(trace),
    )
    assert codes == [NOT_SUPPORTED] * 3
    assert [line.split()[1] for line in trace.read_text().splitlines()] == ["nvmlDeviceGetFanSpeed"]


def test_a_short_buffer_is_refused_and_an_exact_one_is_filled(h200: Simulated) -> None:
    name = b"NVIDIA H200"
    codes = h200.ask(
        NVML
        + """
open_device()
buffer = ctypes.create_string_buffer(b"untouched", 64)
short = lib.nvmlDeviceGetName(device, buffer, 11)
kept = buffer.value.decode()
exact = lib.nvmlDeviceGetName(device, buffer, 12)
answer([short, kept, exact, buffer.value.decode(), lib.nvmlDeviceGetUUID(device, buffer, 40),
        lib.nvmlSystemGetDriverVersion(buffer, 5)])
"""
    )
    assert codes == [INSUFFICIENT_SIZE, "untouched", 0, name.decode(), INSUFFICIENT_SIZE, INSUFFICIENT_SIZE]


def test_null_and_foreign_handles_are_invalid_arguments(h200: Simulated) -> None:
    codes = h200.ask(
        NVML
        + """
open_device()
wild = ctypes.c_void_p(0x1000)
beyond = ctypes.c_void_p(device.value + 1)
answer([lib.nvmlDeviceGetCount_v2(None), lib.nvmlDeviceGetIndex(None, ctypes.byref(number)),
        lib.nvmlDeviceGetIndex(wild, ctypes.byref(number)), lib.nvmlDeviceGetIndex(beyond, ctypes.byref(number)),
        lib.nvmlDeviceGetIndex(device, None), lib.nvmlDeviceGetMemoryInfo(device, None),
        lib.nvmlDeviceGetHandleByIndex_v2(1, ctypes.byref(device)), lib.nvmlDeviceGetHandleByUUID(None, None)])
"""
    )
    assert codes == [INVALID_ARGUMENT] * 8


def test_a_device_is_found_by_index_uuid_serial_and_bus(make_machine: Make) -> None:
    machine = make_machine("4xa100-40g")
    found = machine.ask(
        """
import pynvml as n
n.nvmlInit()
second = n.nvmlDeviceGetHandleByIndex(2)
pci = n.nvmlDeviceGetPciInfo_v3(second)
def find(function, key):
    try:
        return n.nvmlDeviceGetIndex(function(key))
    except n.NVMLError as error:
        return -error.value
answer([
    find(n.nvmlDeviceGetHandleByUUID, n.nvmlDeviceGetUUID(second)),
    find(n.nvmlDeviceGetHandleBySerial, n.nvmlDeviceGetSerial(second)),
    find(n.nvmlDeviceGetHandleByPciBusId, pci.busId),
    find(n.nvmlDeviceGetHandleByPciBusId, pci.busIdLegacy),
    find(n.nvmlDeviceGetHandleByPciBusId, f"{pci.bus:x}:{pci.device:x}.0"),
    find(n.nvmlDeviceGetHandleByUUID, "GPU-00000000-0000-0000-0000-000000000000"),
    find(n.nvmlDeviceGetHandleByPciBusId, "0000:ff:00.0"),
    n.nvmlDeviceGetMinorNumber(second),
])
"""
    )
    assert found == [2, 2, 2, 2, 2, -NOT_FOUND, -NOT_FOUND, 2]


def test_uuids_and_buses_differ_between_devices_and_stay_between_runs(make_machine: Make) -> None:
    script = """
import pynvml as n
n.nvmlInit()
each = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
answer([[n.nvmlDeviceGetUUID(h), n.nvmlDeviceGetPciInfo_v3(h).busId, n.nvmlDeviceGetSerial(h)] for h in each])
"""
    machine = make_machine("16xt4")
    first, second = machine.ask(script), machine.ask(script)
    assert first == second
    assert len({value for row in first for value in row}) == 3 * 16
    assert [row[0] for row in first] == [device.uuid for device in machine.machine.devices]


def test_the_older_pci_call_writes_only_the_shorter_structure(h200: Simulated) -> None:
    written = h200.ask(
        NVML
        + """
open_device()
def filled(function):
    buffer = ctypes.create_string_buffer(b"\\xee" * 128, 128)
    assert function(device, buffer) == 0
    return len(buffer.raw.rstrip(b"\\xee"))
answer([filled(lib.nvmlDeviceGetPciInfo), filled(lib.nvmlDeviceGetPciInfo_v2), filled(lib.nvmlDeviceGetPciInfo_v3)])
"""
    )
    assert written == [36, 36, 68]


def test_both_memory_structures_agree_and_the_version_word_is_checked(h200: Simulated) -> None:
    one, two, wrong = h200.ask(
        """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
one, two = n.nvmlDeviceGetMemoryInfo(h), n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2)
try:
    wrong = n.nvmlDeviceGetMemoryInfo(h, version=0x01000028).total
except n.NVMLError as error:
    wrong = error.value
answer([[one.total, one.free, one.used], [two.total, two.reserved, two.free, two.used], wrong])
"""
    )
    total, reserved, free, used = two
    assert total == 143771 * MIB == reserved + free + used
    assert one == [total, free, used + reserved]
    assert reserved > 0
    assert used == 0
    assert wrong == VERSION_MISMATCH


@pytest.mark.parametrize("spec", ["h200", "t4", "v100-32g", "a100-80g", "l40s", "b200"])
def test_a_device_is_what_its_preset_says(make_machine: Make, spec: str) -> None:
    machine = make_machine(spec)
    fields = machine.machine.devices[0].fields
    seen = machine.ask(
        """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
try:
    mig = n.nvmlDeviceGetMigMode(h)
except n.NVMLError as error:
    mig = error.value
answer([n.nvmlDeviceGetName(h), list(n.nvmlDeviceGetCudaComputeCapability(h)), n.nvmlDeviceGetMemoryInfo(h).total,
        n.nvmlDeviceGetMemoryBusWidth(h), n.nvmlDeviceGetEnforcedPowerLimit(h), n.nvmlDeviceGetPowerUsage(h),
        n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM), n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM),
        n.nvmlDeviceGetBAR1MemoryInfo(h).bar1Total, n.nvmlDeviceGetArchitecture(h), n.nvmlDeviceGetBrand(h),
        n.nvmlDeviceGetMaxPcieLinkGeneration(h), mig])
"""
    )
    capability = [fields["capability_major"], fields["capability_minor"]]
    names = ["memory_bus_bits", "power_limit_mw", "power_idle_mw", "sm_clock_mhz", "sm_clock_idle_mhz", "bar1_total"]
    names += ["nvml_architecture", "nvml_brand", "pcie_generation"]
    mig = [0, 0] if fields["mig_capable"] else NOT_SUPPORTED
    expected = [fields["name"], capability, fields["memory_total"], *(fields[name] for name in names), mig]
    assert seen == expected


def test_versions_are_those_of_the_machine_file(make_machine: Make) -> None:
    machine = make_machine("driver_version: 535.261.03\ncuda_version: 12020\ndevices:\n  - model: t4\n")
    seen = machine.ask(
        """
import pynvml as n
n.nvmlInit()
answer([n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetNVMLVersion(), n.nvmlSystemGetCudaDriverVersion()])
"""
    )
    assert seen == ["535.261.03", "12.535.261.03", 12020]


def test_every_error_has_a_text_and_an_unknown_one_as_well(h200: Simulated) -> None:
    texts = h200.ask(
        NVML
        + """
lib.nvmlErrorString.restype = ctypes.c_char_p
answer([lib.nvmlErrorString(code).decode() for code in [*range(31), 999, 12345, -1]])
"""
    )
    assert len(set(texts[:31])) == 31
    assert set(texts[31:]) == {"Unknown Error"}


def test_an_event_wait_ends_with_its_time_and_no_event(h200: Simulated) -> None:
    code, elapsed, unknown = h200.ask(
        NVML
        + """
open_device()
events, data = ctypes.c_void_p(), ctypes.create_string_buffer(32)
assert lib.nvmlEventSetCreate(ctypes.byref(events)) == 0
assert lib.nvmlDeviceRegisterEvents(device, ctypes.c_ulonglong(8), events) == 0
unknown = lib.nvmlDeviceRegisterEvents(device, ctypes.c_ulonglong(1 << 60), events)
begun = time.monotonic()
code = lib.nvmlEventSetWait_v2(events, data, 120)
elapsed = time.monotonic() - begun
assert lib.nvmlEventSetFree(events) == 0
answer([code, elapsed, unknown])
"""
    )
    assert code == TIMEOUT
    assert elapsed > 0.1
    assert unknown == NOT_SUPPORTED


def test_the_library_calls_itself_through_symbols_that_can_be_taken_over(h200: Simulated, tmp_path: Path) -> None:
    """As the vendor's does: an older name enters whatever was loaded first under the newer name."""
    source, library = tmp_path / "first.c", tmp_path / "first.so"
    source.write_text("int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 77; return 0; }\n")
    h200.run(*build.compiler(), "-shared", "-fPIC", "-o", library, source)
    seen = h200.ask(
        NVML + "lib.nvmlInit()\nlib.nvmlDeviceGetCount(ctypes.byref(number))\nanswer(number.value)",
        LD_PRELOAD=str(library),
    )
    assert seen == 77


def test_handles_and_threads_of_one_process_do_not_disturb_each_other(h200: Simulated) -> None:
    errors = h200.ask(
        """
import threading, pynvml as n
errors = []
def work():
    for _ in range(50):
        try:
            n.nvmlInit()
            handle = n.nvmlDeviceGetHandleByIndex(0)
            n.nvmlDeviceGetMemoryInfo(handle), n.nvmlDeviceGetComputeRunningProcesses_v3(handle)
            n.nvmlShutdown()
        except n.NVMLError as error:
            errors.append(str(error))
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(errors)
"""
    )
    assert errors == []
