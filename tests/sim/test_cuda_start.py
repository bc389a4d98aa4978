# SPDX-License-Identifier: Apache-2.0
"""How the simulated CUDA driver starts, what it shows, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sim.programs import FOLDER, ask, script, state
from tools.simulated import Make, Simulated

from vgpu_runtime import machines

INIT = "import ctypes; print(ctypes.CDLL({path!r}).cuInit(0))"


def test_a_library_without_a_machine_says_what_is_missing_once(h200: Simulated, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    (lonely / "libcuda.so.1").symlink_to((h200.directory / "libcuda.so.1").resolve())
    code = "import ctypes; lib = ctypes.CDLL({!r}); print([lib.cuInit(0) for _ in range(3)])"
    path = str(lonely / "libcuda.so.1")
    done = subprocess.run([sys.executable, "-c", code.format(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[100, 100, 100]"
    assert len(done.stderr.splitlines()) == 1
    assert str(lonely / "machine") in done.stderr
    assert "vgpu run --sim" in done.stderr


def test_a_file_that_is_no_machine_is_refused(h200: Simulated, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"x" * h200.machine.file.stat().st_size)
    done = h200.attempt(sys.executable, "-c", INIT.format(path="libcuda.so.1"), VGPU_SIM_FILE=str(wrong))
    assert done.stdout.strip() == "100"
    assert "not a machine file" in done.stderr
    wrong.write_bytes(b"short")
    done = h200.attempt(sys.executable, "-c", INIT.format(path="libcuda.so.1"), VGPU_SIM_FILE=str(wrong))
    assert "too short" in done.stderr


def test_the_machine_beside_the_library_is_found_in_an_empty_environment(h200: Simulated) -> None:
    path = str(h200.directory / "libcuda.so.1")
    done = subprocess.run(
        [sys.executable, "-c", INIT.format(path=path)], env={}, capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_before_init_calls_say_so(h200: Simulated) -> None:
    body = """
    lib = raw()
    p, n = ctypes.c_void_p(), ctypes.c_size_t()
    answer([lib.cuMemAlloc_v2(ctypes.byref(p), n), lib.cuMemGetInfo_v2(None, None), lib.cuCtxGetCurrent(None),
            lib.cuDeviceGetCount(None), lib.cuLaunchKernel(None, 1, 1, 1, 1, 1, 1, 0, None, None, None),
            lib.cuMemFree_v2(0), lib.cuInit(1)])
    """
    assert ask(h200, body) == [3, 3, 3, 3, 3, 3, 1]


def test_without_a_context_calls_say_so(h200: Simulated) -> None:
    body = """
    ok(cu.cuInit(0))
    answer([rc(cu.cuMemAlloc(1)), rc(cu.cuMemGetInfo()), rc(cu.cuCtxGetDevice()), rc(cu.cuCtxSynchronize()),
            rc(cu.cuStreamCreate(0)), rc(cu.cuModuleLoadData(b"x")), key(ok(cu.cuCtxGetCurrent()))])
    """
    assert ask(h200, body) == [201, 201, 201, 201, 201, 201, 0]


def test_a_forked_child_has_no_driver_and_leaves_its_parent_alone(h200: Simulated) -> None:
    body = """
    context()
    ok(cu.cuMemAlloc(GIB))
    before = ok(cu.cuMemGetInfo())
    child = os.fork()
    if not child:
        codes = [rc(cu.cuInit(0)), rc(cu.cuMemAlloc(1)), rc(cu.cuCtxSynchronize()), rc(cu.cuDeviceGetCount())]
        sys.exit(0 if codes == [3, 3, 3, 3] else 1)   # with all exit handlers
    _, status = os.waitpid(child, 0)
    pointer = ok(cu.cuMemAlloc(GIB))
    ok(cu.cuMemFree(pointer))
    answer([status, ok(cu.cuMemGetInfo()) == before])
    """
    assert ask(h200, body) == [0, True]


def test_a_child_forked_before_init_has_a_driver_of_its_own(h200: Simulated) -> None:
    body = """
    lib = raw()
    child = os.fork()
    context()
    ok(cu.cuMemAlloc(GIB))
    if not child:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    answer([status, ok(cu.cuMemGetInfo())[1] - ok(cu.cuMemGetInfo())[0]])
    """
    overhead = state(h200).knobs.context_overhead
    assert ask(h200, body) == [0, 2**30 + overhead]


def test_processes_that_share_an_open_machine_from_before_init_are_two_all_the_same(h200: Simulated) -> None:
    body = """
    version = ok(cu.cuDriverGetVersion())   # opens the machine's file, which fork then shares
    child = os.fork()
    context()
    ok(cu.cuMemAlloc(60 * GIB))
    if not child:
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    code = rc(cu.cuMemAlloc(60 * GIB))
    child = os.fork()
    if not child:                           # inherits the lock's file, and must not keep it
        os.closerange(0, 3)
        time.sleep(60)
    answer([code, child])
    os.kill(os.getpid(), 9)
    """
    done = h200.attempt(sys.executable, "-c", script(body), PYTHONPATH=str(FOLDER))
    code, child = json.loads(done.stdout)
    try:
        assert code == 0
        assert ask(h200, "context()\nanswer(rc(cu.cuMemAlloc(138 * GIB)))") == 0
    finally:
        os.kill(child, 9)


def test_a_machine_from_before_a_reboot_starts_afresh(h200: Simulated) -> None:
    ask(h200, "context()\nlaunch(function('tick_1ms'))\nok(cu.cuCtxSynchronize())\nanswer(0)")
    assert state(h200).devices[0].timeline.busy_ns == 1_000_000
    ffi = machines._ffi()
    with h200.machine.file.open("r+b") as file:
        for name, value in (("boot", 1), ("lock", 2**40)):  # another boot's number, and its mutex in use
            file.seek(ffi.offsetof("struct sim_machine", name))
            file.write(value.to_bytes(8, "little"))
        file.seek(ffi.offsetof("struct sim_machine", "devices", 0, "memory_used"))
        file.write((2**40).to_bytes(8, "little"))
    body = "context()\nanswer(ok(cu.cuDeviceTotalMem(0)) - ok(cu.cuMemGetInfo())[0])"
    assert ask(h200, body) == state(h200).knobs.context_overhead
    assert state(h200).devices[0].timeline.busy_ns == 0


def test_the_library_can_be_closed_and_opened_again(h200: Simulated) -> None:
    body = """
    from _ctypes import dlclose
    codes = []
    for _ in range(3):
        lib = raw()
        codes.append(lib.cuInit(0))
        dlclose(lib._handle)
    answer(codes)
    """
    assert ask(h200, body) == [0, 0, 0]


def test_calls_after_the_exit_handler_are_harmless(h200: Simulated) -> None:
    body = """
    libc = ctypes.CDLL(None)
    lib = raw()
    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def late(_):
        codes = [lib.cuMemFree_v2(ctypes.c_uint64(pointer)), lib.cuCtxSynchronize(),
                 lib.cuDevicePrimaryCtxRelease_v2(0)]
        os.write(1, json.dumps(codes).encode())
    libc.__cxa_atexit(late, None, None)   # registered before the driver's own, so it runs after it
    context()
    pointer = int(ok(cu.cuMemAlloc(GIB)))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(late))
    libc.exit(0)
    """
    assert ask(h200, body) == [4, 4, 4]
    assert state(h200).devices[0].memory_used == 0


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("1,0", [1, 0]),
        ("2", [2]),
        ("", []),
        ("-1", []),
        ("0,9,1", [0]),
        ("1,x,0", [1]),
        ("0,0", []),
        ("{1},{0}", [1, 0]),
        ("{2:12},0", [2, 0]),
        ("GPU-", []),
        (" 1 , 2", [1, 2]),
    ],
)
def test_visible_devices_are_chosen_and_ordered(make_machine: Make, listed: str, expected: list[int]) -> None:
    machine = make_machine("3xt4")
    uuids = [device.uuid for device in machine.machine.devices]
    listed = listed.replace("{2:12}", uuids[2][:12]).replace("{1}", uuids[1]).replace("{0}", uuids[0])
    body = """
    code = rc(cu.cuInit(0))
    count = ok(cu.cuDeviceGetCount()) if not code else 0
    answer([code, [ok(cu.cuDeviceGetUuid(i)).bytes.hex() for i in range(count)]])
    """
    code, found = ask(machine, body, CUDA_VISIBLE_DEVICES=listed)
    assert code == (0 if expected else 100)
    assert found == [uuids[index].removeprefix("GPU-").replace("-", "") for index in expected]


def test_every_attribute_of_the_bindings_answers(h200: Simulated) -> None:
    body = """
    ok(cu.cuInit(0))
    bad = [a.name for a in cu.CUdevice_attribute
           if a.name != 'CU_DEVICE_ATTRIBUTE_MAX' and rc(cu.cuDeviceGetAttribute(a, 0))]
    value = ctypes.c_int()
    get = raw().cuDeviceGetAttribute
    answer([bad, get(ctypes.byref(value), 99999, 0), get(ctypes.byref(value), 0, 0), get(ctypes.byref(value), 1, 7)])
    """
    assert ask(h200, body) == [[], 1, 1, 101]


def test_a_device_is_what_its_machine_says(h200: Simulated) -> None:
    body = """
    ok(cu.cuInit(0))
    A = cu.CUdevice_attribute
    answer([ok(cu.cuDeviceGetName(64, 0)).rstrip(b'\\0 ').decode(), ok(cu.cuDeviceTotalMem(0)),
            ok(cu.cuDeviceGetAttribute(A.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0)),
            ok(cu.cuDeviceGetAttribute(A.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0)),
            int(ok(cu.cuDeviceGetByPCIBusId(ok(cu.cuDeviceGetPCIBusId(32, 0)))))])
    """
    identity = state(h200).devices[0].identity
    assert ask(h200, body) == ["NVIDIA H200", identity.memory_total - identity.memory_reserved, 132, 9, 0]
