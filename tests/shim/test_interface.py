# SPDX-License-Identifier: Apache-2.0
"""The flat interface of libvgpu.so, through vgpu_shim.py."""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vgpu_shim
from tools.tenants import GIB, LIBRARY, MIB, ROOT, Driver, Tenant
from vgpu_shim import Slice

Make = Callable[..., Tenant]

DEVICE = "GPU-8c2a281d-ea0f-5001-8895-878271c64e9d"
PART = Slice(DEVICE, 100 * GIB, 10 * GIB, 25, "fixed")


def test_a_tenant_is_a_directory_with_grant_and_ledger(tmp_path: Path) -> None:
    made = vgpu_shim.create_tenant(tmp_path, "one", "container", [PART], os.getpid())
    assert made == tmp_path / "tenants" / "one"
    assert (made / "grant").stat().st_mode & 0o777 == 0o644
    assert (made / "ledger").stat().st_mode & 0o777 == 0o666


def test_a_name_in_use_says_so(tmp_path: Path) -> None:
    vgpu_shim.create_tenant(tmp_path, "one", "process", [PART])
    with pytest.raises(vgpu_shim.NameInUse, match="one"):
        vgpu_shim.create_tenant(tmp_path, "one", "process", [PART])


@pytest.mark.parametrize(
    ("wanted", "is_cores", "free"),
    [
        (replace(PART, memory=91 * GIB), False, 90 * GIB),
        (replace(PART, memory=140 * GIB, spill=49 * GIB), False, 90 * GIB),
        (replace(PART, cores=76), True, 75),
    ],
)
def test_a_shortage_tells_what_is_free(tmp_path: Path, wanted: Slice, is_cores: bool, free: int) -> None:
    vgpu_shim.create_tenant(tmp_path, "one", "process", [PART])
    with pytest.raises(vgpu_shim.Shortage) as caught:
        vgpu_shim.create_tenant(tmp_path, "two", "process", [wanted])
    assert (caught.value.device, caught.value.is_cores, caught.value.free) == (DEVICE, is_cores, free)
    assert str(free) in caught.value.hint
    assert is_cores or f"{91 * GIB} bytes" in str(caught.value), "what was asked of the device"
    assert not (tmp_path / "tenants" / "two").exists()


def test_room_is_what_the_quotas_leave(tmp_path: Path) -> None:
    device = vgpu_shim.Device(DEVICE, "a device", 100 * GIB)
    assert vgpu_shim.room(tmp_path, device) == 100 * GIB
    vgpu_shim.create_tenant(tmp_path, "one", "process", [PART])
    assert vgpu_shim.room(tmp_path, device) == 90 * GIB
    vgpu_shim.create_tenant(tmp_path, "two", "process", [replace(PART, memory=120 * GIB, spill=100 * GIB)])
    assert vgpu_shim.room(tmp_path, device) == 70 * GIB
    assert vgpu_shim.room(tmp_path, replace(device, uuid=DEVICE.replace("8c2a", "0000"))) == 100 * GIB


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a/b", PART),
        ("", PART),
        (".one", PART),
        ("x" * 64, PART),
        ("one", replace(PART, device="GPU-1")),
        ("one", replace(PART, device=DEVICE + "0")),
        ("one", replace(PART, device=DEVICE.replace("-ea", "_ea"))),
        ("one", replace(PART, device="TPU" + DEVICE[3:])),
        ("one", replace(PART, memory=101 * GIB)),
        ("one", replace(PART, memory=10 * GIB, spill=10 * GIB + 1)),
        ("one", replace(PART, memory=101 * GIB, spill=GIB)),
        ("one", replace(PART, memory=100 * GIB, spill=-1)),
        ("one", replace(PART, memory=None, spill=GIB)),
        ("one", replace(PART, cores=0)),
        ("one", replace(PART, cores=101)),
    ],
)
def test_values_out_of_range_are_refused_with_the_rules(tmp_path: Path, name: str, part: Slice) -> None:
    with pytest.raises(vgpu_shim.ShimError) as caught:
        vgpu_shim.create_tenant(tmp_path, name, "process", [part])
    assert caught.value.errno == errno.EINVAL
    assert "1 to 100" in caught.value.hint
    assert not (tmp_path / "tenants" / "one").exists()


@pytest.mark.parametrize("host_memory", [0, -1])
def test_a_limit_of_nothing_does_not_come_to_mean_no_limit(tmp_path: Path, host_memory: int) -> None:
    with pytest.raises(vgpu_shim.ShimError) as caught:
        vgpu_shim.create_tenant(tmp_path, "one", "process", [PART], host_memory=host_memory)
    assert caught.value.errno == errno.EINVAL
    assert "host memory is at least 1 byte" in caught.value.hint
    assert not (tmp_path / "tenants").exists()


def test_a_caller_that_knows_nothing_of_host_memory_leaves_it_out(tmp_path: Path) -> None:
    def array(kind: type[Any], value: Any) -> Any:
        return (kind * 1)(value)

    made = ctypes.CDLL(str(LIBRARY)).vgpu_make_tenant(
        os.fsencode(tmp_path), b"one", ctypes.c_uint32(1), ctypes.c_uint32(0), ctypes.c_uint32(1),
        array(ctypes.c_char_p, DEVICE.encode()), array(ctypes.c_uint64, 100 * GIB), array(ctypes.c_uint64, 10 * GIB),
        array(ctypes.c_uint32, 25), array(ctypes.c_uint32, 1), (ctypes.c_uint64 * 3)(), None, ctypes.c_uint64(0),
    )  # fmt: skip
    assert made == 0
    vgpu_shim.create_tenant(tmp_path, "two", "process", [PART])
    grants = [(tmp_path / "tenants" / name / "grant").read_bytes() for name in ("one", "two")]
    assert grants[0].replace(b"one", b"two") == grants[1]


def test_a_dead_process_cannot_be_a_member(tmp_path: Path) -> None:
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    with pytest.raises(vgpu_shim.ShimError) as caught:
        vgpu_shim.create_tenant(tmp_path, "one", "process", [PART], dead.pid)
    assert caught.value.errno == errno.ESRCH


def test_a_tenant_whose_members_are_gone_is_swept(tmp_path: Path) -> None:
    member, other = (subprocess.Popen(["/bin/sleep", "60"]) for _ in range(2))
    try:
        vgpu_shim.create_tenant(tmp_path, "one", "process", [PART], member.pid)
        vgpu_shim.join_tenant(tmp_path, "one", other.pid)
        member.kill()
        member.wait()
        assert vgpu_shim.sweep(tmp_path) == 0
        other.kill()
        other.wait()
        assert vgpu_shim.sweep(tmp_path) == 1
    finally:
        for one in (member, other):
            one.kill()
            one.wait()
    assert list((tmp_path / "tenants").iterdir()) == []


def test_removing_is_repeatable(tmp_path: Path) -> None:
    vgpu_shim.create_tenant(tmp_path, "one", "process", [PART])
    vgpu_shim.remove_tenant(tmp_path, "one")
    vgpu_shim.remove_tenant(tmp_path, "one")
    with pytest.raises(vgpu_shim.ShimError):
        vgpu_shim.join_tenant(tmp_path, "one")


SLICES = f"""
sys.path.insert(0, {str(ROOT / "shim")!r})
import vgpu_shim
"""


def test_a_program_reads_its_own_slices(make_tenant: Make, driver: Driver, quota: int) -> None:
    script = (
        SLICES + f"from client import *\nup()\nalloc({quota // 2}), alloc({quota})\nanswer(repr(vgpu_shim.slices()))"
    )
    tenant = make_tenant(quota, 30)
    used = quota // 2 + driver.context_memory
    expected = vgpu_shim.SliceUsage(driver.devices[0].uuid, tenant.memory, used, 30, "fixed", 0, 0, 0, 1)
    assert tenant.ask(script) == repr([expected])


def test_a_program_reads_what_lies_in_host_memory(
    make_tenant: Make, driver: Driver, quota: int, tmp_path: Path
) -> None:
    device = driver.devices[0]
    part = Slice(device.uuid, device.memory, quota, None, "none", quota // 2)
    script = f"""
    sys.path.insert(0, {str(ROOT / "shim")!r})
    import vgpu_shim
    from client import *
    up()
    held = ctypes.c_void_p()
    codes = [alloc({quota // 4 * 3})[0], alloc({quota})[0]]
    codes += [cuda.cuMemAllocHost_v2(ctypes.byref(held), size({MIB} * amount)) for amount in (3, 2)]
    (mine,), host = vgpu_shim.slices(), vgpu_shim.host_memory()
    answer([codes, info(), mine.memory, mine.memory_used, mine.spill, mine.spilled, mine.refusals,
            host.memory, host.memory_used, host.refusals])
    """
    directory = vgpu_shim.create_tenant(tmp_path / "state", "one", "process", [part], host_memory=4 * MIB)
    codes, (free, total), memory, used, spill, spilled, refusals, *host = Tenant(driver, directory).ask(script)
    assert (codes, refusals) == ([0, 2, 0, 2], 1)
    assert host == [4 * MIB, 3 * MIB, 1]
    assert (total, memory, spill) == (quota, quota, quota // 2)
    assert used <= quota // 2 < used + spilled == quota - free
    # Without the spill, the same part of the device has no room for it.
    script = f"from client import *\nup()\nanswer(alloc({quota // 4 * 3})[0])"
    assert make_tenant(quota // 2).ask(script) == 2


def test_page_locked_memory_without_a_quota_is_counted_and_outside_of_a_tenant_there_is_none(
    make_tenant: Make, driver: Driver, quota: int
) -> None:
    script = SLICES + "answer(repr(vgpu_shim.host_memory()))"
    assert make_tenant(quota).ask(script) == repr(vgpu_shim.HostMemory(None, 0, 0))
    assert Tenant(driver).ask(script) == "None"


def test_a_slice_without_a_compute_limit_has_no_cores(make_tenant: Make, quota: int) -> None:
    assert [(one.cores, one.policy) for one in make_tenant(quota).usage()] == [(None, "none")]


def test_outside_of_a_tenant_there_are_no_slices(driver: Driver) -> None:
    assert Tenant(driver, preload="").usage() == []
    assert Tenant(driver).usage() == []


def test_an_unusable_tenant_is_an_error(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    assert tenant.directory is not None
    (tenant.directory / "ledger").unlink()
    for question in ("slices", "host_memory"):
        ask = f"try:\n    vgpu_shim.{question}()\nexcept vgpu_shim.Unusable as error:\n    answer(error.errno)"
        assert tenant.attempt(*tenant.script(SLICES + ask)).stdout == f"{errno.EIO}\n"


def test_devices_are_listed_through_the_nvml_that_is_named(make_machine: Callable[[str], Driver]) -> None:
    machine = make_machine("2xh200")
    assert machine.machine is not None
    nvml = machine.machine.directory / "libnvidia-ml.so.1"
    script = SLICES + f"answer([[one.uuid, one.name, one.memory] for one in vgpu_shim.devices({str(nvml)!r})])"
    listed = Tenant(machine, preload="").ask(script)
    assert listed == [[one.uuid, one.name, one.memory] for one in machine.devices]


def test_a_missing_nvml_is_an_error_with_a_cure() -> None:
    with pytest.raises(vgpu_shim.ShimError) as caught:
        vgpu_shim.devices("/nowhere/libnvidia-ml.so.1")
    assert "install" in caught.value.hint


def test_a_missing_library_is_an_error_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPU_LIBRARY", "/nowhere/libvgpu.so")
    with pytest.raises(vgpu_shim.ShimError, match="/nowhere") as caught:
        vgpu_shim.library_path()
    assert "build.py" in caught.value.hint
    monkeypatch.setenv("VGPU_LIBRARY", str(LIBRARY))
    assert vgpu_shim.library_path() == LIBRARY


def test_only_the_standard_library_is_imported_and_python_3_8_parses_it() -> None:
    tree = ast.parse((ROOT / "shim" / "vgpu_shim.py").read_text(), feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
        if not isinstance(node, ast.ImportFrom) or node.module
    }
    assert imported <= set(sys.stdlib_module_names)
