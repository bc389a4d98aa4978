# SPDX-License-Identifier: Apache-2.0
"""What a machine file may change of the driver: what modules take, and which functions it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim.programs import ask
from tools.simulated import Make

from vgpu_runtime import machines
from vgpu_runtime.errors import ConfigError

MIB = 2**20

MODULES = """
name: modules
devices: [{model: t4, count: 2}]
knobs: {module_overhead: 24MiB, context_overhead: 100MiB}
"""


def test_modules_and_libraries_take_memory_while_they_are_loaded(make_machine: Make) -> None:
    body = """
    context()
    def taken(): return before - ok(cu.cuMemGetInfo())[0]
    before = ok(cu.cuMemGetInfo())[0]
    modules = [ok(cu.cuModuleLoadData(b"an image")) for _ in range(3)]
    library = ok(cu.cuLibraryLoadData(b"code", [], [], 0, [], [], 0))
    seen = [taken() // MIB]
    ok(cu.cuModuleUnload(modules[0]))
    ok(cu.cuLibraryUnload(library))
    seen.append(taken() // MIB)
    other = ok(cu.cuCtxCreate(None, 0, 0))
    ok(cu.cuModuleLoadData(b"an image"))
    seen.append(taken() // MIB)
    ok(cu.cuCtxDestroy(other))
    seen.append(taken() // MIB)
    room = ok(cu.cuMemGetInfo())[0] // (2 * MIB) * 2 * MIB
    ok(cu.cuMemAlloc(room - 10 * MIB))
    answer([seen, rc(cu.cuModuleLoadData(b"one too many"))])
    """
    assert ask(make_machine(MODULES), body) == [[96, 48, 72, 48], 2]


def test_a_library_takes_memory_on_each_device_that_uses_it(make_machine: Make) -> None:
    body = """
    ok(cu.cuInit(0))
    library = ok(cu.cuLibraryLoadData(b"code", [], [], 0, [], [], 0))    # without a context
    kernel = ok(cu.cuLibraryGetKernel(library, b"tick_1us"))
    seen = []
    for device in (0, 1):
        context(device)
        total = ok(cu.cuDeviceTotalMem(device))
        seen.append((total - ok(cu.cuMemGetInfo())[0]) // MIB)
        launch(cu.CUfunction(int(kernel)))
        launch(cu.CUfunction(int(kernel)))
        seen.append((total - ok(cu.cuMemGetInfo())[0]) // MIB)
    ok(cu.cuDevicePrimaryCtxReset(1))
    context(1)
    ok(cu.cuLibraryUnload(library))
    seen.append((total - ok(cu.cuMemGetInfo())[0]) // MIB)
    answer(seen)
    """
    assert ask(make_machine(MODULES), body) == [100, 124, 100, 124, 100]


def test_the_memory_of_modules_is_the_processs_for_nvml(make_machine: Make) -> None:
    body = """
    context()
    ok(cu.cuModuleLoadData(b"an image"))
    import pynvml
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    answer([p.usedGpuMemory // MIB for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)])
    """
    assert ask(make_machine(MODULES), body) == [124]


OLD = """
name: old
driver_version: 470.256.02
cuda_version: 11040
devices: [{model: t4}]
lacks: [cuMemAllocAsync, cuMemAllocAsync_ptsz, cuLaunchKernelEx]
"""


def test_a_driver_without_a_function_has_it_at_no_door(make_machine: Make) -> None:
    machine = make_machine(OLD)
    doors = """
    lib = raw()
    def found(name, version=13000, flags=0):
        p, status = ctypes.c_void_p(), ctypes.c_int()
        assert not lib.cuGetProcAddress_v2(name.encode(), ctypes.byref(p), version, ctypes.c_uint64(flags),
                                           ctypes.byref(status))
        return [hasattr(lib, name), bool(p.value), status.value]
    answer([found("cuMemAllocAsync"), found("cuMemAllocAsync", flags=2), found("cuMemFreeAsync"),
            found("cuLaunchKernelEx"), found("cuLaunchKernel"), rc(cu.cuInit(0))])
    """
    gone, there = [False, False, 1], [True, True, 0]
    assert ask(machine, doors) == [gone, gone, there, gone, there, 0]


def test_a_driver_older_than_a_function_does_not_look_it_up(make_machine: Make) -> None:
    body = """
    lib = raw()
    def look(name):
        p, status = ctypes.c_void_p(), ctypes.c_int()
        lib.cuGetProcAddress_v2(name.encode(), ctypes.byref(p), 13000, ctypes.c_uint64(0), ctypes.byref(status))
        return [bool(p.value), status.value]
    answer([look("cuMulticastCreate"), look("cuMemCreate"), ok(cu.cuDriverGetVersion())])
    """
    assert ask(make_machine(OLD), body) == [[False, 1], [True, 0], 11040]


def test_a_machine_gets_its_links_back_when_its_driver_lacks_nothing(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    first = machines.create(str(file), tmp_path / "m")
    assert not (first.directory / "libcuda.so.1").is_symlink()
    assert (first.directory / "libcuda.so").resolve() == (first.directory / "libcuda.so.1").resolve()
    machines.create(str(file), tmp_path / "m")  # the same again
    file.write_text(OLD.replace(", cuLaunchKernelEx", ""))
    with pytest.raises(ConfigError, match="is a simulated machine already"):
        machines.create(str(file), tmp_path / "m")
    first.file.unlink()
    file.write_text("name: old\ndevices: [{model: t4}]\n")
    machines.create(str(file), tmp_path / "m")
    assert (first.directory / "libcuda.so.1").resolve().parent == machines.LIBRARIES.resolve()


@pytest.mark.parametrize(
    ("lacks", "message"),
    [("[cuNoSuchThing]", "no driver has a function cuNoSuchThing"), ("[memAlloc]", r"\$\.lacks\[0\]")],
)
def test_a_name_that_no_driver_has_cannot_be_lacking(tmp_path: Path, lacks: str, message: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(f"devices: [{{model: t4}}]\nlacks: {lacks}\n")
    with pytest.raises(ConfigError, match=message):
        machines.create(str(file), tmp_path / "m")


def test_a_trampoline_is_not_the_export_but_does_the_same(make_machine: Make) -> None:
    body = """
    lib = raw()
    def pointer(name):
        p = ctypes.c_void_p()
        lib.cuGetProcAddress_v2(name.encode(), ctypes.byref(p), 13000, ctypes.c_uint64(0), None)
        return p.value
    def export(name):
        return ctypes.cast(getattr(lib, name), ctypes.c_void_p).value
    context()
    count = ctypes.c_int()
    called = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int))(pointer("cuDeviceGetCount"))(count)
    found, again = (pointer("cuDeviceGetCount") for _ in range(2))
    answer([found == export("cuDeviceGetCount"), called, count.value,
            pointer("cuMemAlloc") == export("cuMemAlloc_v2"), found == again])
    """
    machine = make_machine("2xh200")
    assert ask(machine, body, VGPU_SIM_TRAMPOLINE="cuDeviceGetCount") == [False, 0, 2, True, True]
    assert ask(machine, body) == [True, 0, 2, True, True]
