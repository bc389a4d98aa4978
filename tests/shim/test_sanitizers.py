# SPDX-License-Identifier: Apache-2.0
"""The shim under the address, undefined-behaviour and thread sanitizers, with threads at the edge of a quota."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import build
import pytest
from tools.tenants import LIBRARY, MIB, NATIVE, PROGRAMS, Driver, Tenant

Make = Callable[..., Tenant]

SANITIZERS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0"},  # what a driver leaves at the end is its own
    "undefined": {"UBSAN_OPTIONS": "halt_on_error=1"},
    "thread": {"TSAN_OPTIONS": "halt_on_error=1"},
}


def instrument(folder: Path, sanitizer: str, name: str) -> Path:
    """Compile the shim and a program with a sanitizer; the program is linked to both."""
    flags = ["-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-w",
             f"-I{build.NATIVE}", f"-I{build.SIM}", f"-I{build.SHIM}"]  # fmt: skip
    library = next(one for one in build.libraries() if one.path == "libvgpu.so")
    script = folder / "exports.map"
    script.write_text(build.version_script(library))
    build.run(["gcc", *flags, "-fPIC", "-shared", "-fvisibility=hidden", "-o", str(folder / "libvgpu.so"),
               *map(str, library.sources), f"-Wl,--version-script={script}", *library.link])  # fmt: skip
    build.run(["gcc", *flags, "-o", str(folder / name), str(PROGRAMS / f"{name}.c"), "-Wl,--no-as-needed",
               f"-L{folder}", "-l:libvgpu.so", f"-L{NATIVE / 'sim'}", "-l:libcuda.so.1", "-l:libnvidia-ml.so.1",
               "-ldl", "-lpthread", "-Wl,--allow-shlib-undefined", f"-Wl,-rpath,{folder}"])  # fmt: skip
    return folder / name


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Where to compile; skips where there is no such sanitizer."""
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitizer = request.node.callspec.params["sanitizer"]
    command = ["gcc", f"-fsanitize={sanitizer}", str(probe), "-o", str(tmp_path / "probe")]
    if not shutil.which("gcc") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs gcc with its sanitizers: apt-get install gcc")
    return tmp_path


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_that_make_and_end_all_kinds_of_holders(make_tenant: Make, folder: Path, sanitizer: str) -> None:
    tenant = make_tenant(40 << 20)
    tenant.preload = ""
    holders = instrument(folder, sanitizer, "holders")
    made, refused = map(int, tenant.run(holders, "6", "500", str(3 << 20), **SANITIZERS[sanitizer]).split())
    assert made > 500
    assert refused > 10


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_at_the_edge_of_the_quota(make_tenant: Make, folder: Path, quota: int, sanitizer: str) -> None:
    tenant, shared = make_tenant(quota), folder / "shared"
    tenant.preload = ""
    shared.write_bytes(bytes(40))
    race = instrument(folder, sanitizer, "race")
    tenant.run(race, "8", "2", str(quota // 24), str(quota), str(shared), **SANITIZERS[sanitizer])
    held, violations, made, refused, _ = struct.unpack("5Q", shared.read_bytes())
    assert (held, violations) == (0, 0)
    assert made > 100
    assert refused > 10


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_threads_with_memory_of_every_kind(
    make_machine: Callable[[str], Driver], make_tenant: Make, folder: Path, sanitizer: str
) -> None:
    driver, quota, shared = make_machine("h200"), 768 * MIB, folder / "shared"
    tenant = make_tenant(quota, on=driver)
    tenant.preload = ""
    shared.write_bytes(bytes(16 * 8))
    race = instrument(folder, sanitizer, "race_kinds")
    assert driver.machine is not None
    tenant.run(race, "1", "8", "2000", str(quota // 24), str(quota), driver.machine.file, shared,
               **SANITIZERS[sanitizer])  # fmt: skip
    _, violations, *counts = struct.unpack("16Q", shared.read_bytes())
    assert violations == 0
    assert min(counts[:7]) > 10
    assert sum(counts[7:]) > 10


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_launches_under_a_limit(make_tenant: Make, folder: Path, sanitizer: str) -> None:
    tenant = make_tenant(cores=50)
    tenant.preload = ""
    spin = instrument(folder, sanitizer, "spin")
    assert tenant.run(spin, "kernel", "1", "200000", **SANITIZERS[sanitizer]).startswith("begin\n")
    tenant.preload = str(LIBRARY)
    assert tenant.usage()[0].launches > 1000


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_questions_to_nvml_while_it_begins_and_ends(
    make_tenant: Make, folder: Path, quota: int, sanitizer: str
) -> None:
    tenant = make_tenant(quota)
    tenant.preload = ""
    race = instrument(folder, sanitizer, "nvml_race")
    assert int(tenant.run(race, "1000", "1", str(tenant.memory), **SANITIZERS[sanitizer])) >= 4 * 1000
