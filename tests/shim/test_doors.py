# SPDX-License-Identifier: Apache-2.0
"""Every row of the table, through every door by which a program reaches the driver."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import build
import pytest
from tools.tenants import LIBRARY, PROGRAMS, Driver, Row, Tenant, compile_c, intercepts

DOORS = ("link", "dlsym", "RTLD_DEFAULT", "RTLD_NEXT", "whole-program", "cuGetProcAddress", "cuGetProcAddress_v2")
FILES = {"CUDA": "libcuda.so", "NVML": "libnvidia-ml.so"}


def doors_of(row: Row) -> Iterator[str]:
    """NVML has no cuGetProcAddress."""
    yield from (door for door in DOORS if row.base or not door.startswith("cuGet"))


CASES = [pytest.param(row, door, id=f"{row.symbol}-{door}") for row in intercepts() for door in doors_of(row)]


def owners(tenant: Tenant, lookup: Path, door: str) -> dict[str, str]:
    """The library that each symbol is found in through a door."""
    return dict(line.split() for line in tenant.run(lookup, door).splitlines())


Found = Callable[[bool, str], dict[str, str]]


@pytest.fixture(scope="module")
def found(program: Callable[[str], Path], module_driver: Driver) -> Found:
    """What a door leads to, with the shim and without, asked once for the whole table."""
    known: dict[tuple[bool, str], dict[str, str]] = {}

    def get(with_shim: bool, door: str) -> dict[str, str]:
        if (with_shim, door) not in known:
            tenant = Tenant(module_driver, preload=str(LIBRARY) if with_shim else "")
            known[with_shim, door] = owners(tenant, program("lookup"), door)
        return known[with_shim, door]

    return get


@pytest.mark.parametrize(("row", "door"), CASES)
def test_every_door_leads_to_the_shim(found: Found, row: Row, door: str) -> None:
    without = found(False, "dlsym")[row.symbol]
    if without == "-":
        # The installed driver does not have it: then nobody has.
        assert found(True, door)[row.symbol] == "-"
        return
    assert without.startswith(FILES[row.library])
    assert found(False, door)[row.symbol].startswith(FILES[row.library])
    assert found(True, door)[row.symbol] == "libvgpu.so"


def test_the_lookup_program_covers_the_table(found: Found) -> None:
    assert list(found(True, "dlsym")) == [row.symbol for row in intercepts()]


# ---- cuGetProcAddress answers as the driver does -------------------------------------------------------


def test_statuses_and_codes_of_cugetprocaddress_are_the_drivers(
    make_tenant: Callable[..., Tenant], bare: Tenant
) -> None:
    script = """
    cuda = ctypes.CDLL("libcuda.so.1")
    said = []
    for name in ("cuMemAlloc", "cuMemAlloc_v2", "cuLaunchKernel", "cuLaunchKernel_ptsz", "cuMemAllocAsync",
                 "cuNoSuchFunction", "", "cuGetProcAddress", "cuDeviceGetCount", "cuInit"):
        for version in (1000, 3020, 7000, 11010, 11030, 12000, 99999):
            for flags in (0, 1, 2, 64):
                address, status = ctypes.c_void_p(7), ctypes.c_int(-5)
                code = cuda.cuGetProcAddress_v2(name.encode(), ctypes.byref(address), version, ctypes.c_uint64(flags),
                                                ctypes.byref(status))
                old = ctypes.c_void_p(7)
                old_code = cuda.cuGetProcAddress(name.encode(), ctypes.byref(old), version, ctypes.c_uint64(flags))
                kind = lambda pointer: pointer.value if pointer.value in (None, 7) else "function"
                said.append([name, version, flags, code, kind(address), status.value, old_code, kind(old)])
    address = ctypes.c_void_p()
    assert cuda.cuGetProcAddress_v2(b"cuInit", ctypes.byref(address), 12000, ctypes.c_uint64(0), None) == 0
    answer(said)
    """
    ours = make_tenant().ask(script)
    assert ours == bare.ask(script)
    assert {tuple(row[3:6]) for row in ours} >= {(0, "function", 0), (0, None, 1)}


def test_a_function_that_we_do_not_change_is_the_drivers_own(make_tenant: Callable[..., Tenant]) -> None:
    script = """
    cuda = ctypes.CDLL("libcuda.so.1")
    address = ctypes.c_void_p()
    assert cuda.cuGetProcAddress_v2(b"cuDeviceGetCount", ctypes.byref(address), 12000, ctypes.c_uint64(0), None) == 0
    answer(address.value == ctypes.cast(cuda.cuDeviceGetCount, ctypes.c_void_p).value)
    """
    assert make_tenant().ask(script)


# ---- what the driver lacks -----------------------------------------------------------------------------------


@pytest.fixture
def old_driver(make_driver: Callable[..., Driver]) -> Driver:
    """A driver with only a few functions, and no NVML."""
    return make_driver("old_driver")


HAS = {"cuInit", "cuMemFree_v2"}


@pytest.mark.parametrize("door", ["dlsym", "RTLD_DEFAULT", "RTLD_NEXT", "whole-program"])
def test_what_the_driver_lacks_stays_absent(old_driver: Driver, tmp_path: Path, door: str) -> None:
    lookup = compile_c(tmp_path / "lookup", PROGRAMS / "lookup.c",
                       flags=["-O1"], link=["-Wl,--no-as-needed", f"-L{tmp_path / 'old_driver'}",
                                            "-l:libcuda.so.1", "-ldl"])  # fmt: skip
    found = owners(Tenant(old_driver), lookup, door)
    assert {symbol for symbol, owner in found.items() if owner != "-"} == HAS
    assert set(found.values()) == {"libvgpu.so", "-"}


def test_linking_to_what_the_driver_lacks_gives_its_code_for_not_supported(old_driver: Driver, tmp_path: Path) -> None:
    linked = compile_c(tmp_path / "linked", PROGRAMS / "linked.c",
                       flags=["-O1"], link=["-Wl,--no-as-needed", f"-L{tmp_path / 'old_driver'}",
                                            "-l:libcuda.so.1"])  # fmt: skip
    said = dict(line.split() for line in Tenant(old_driver).run(linked).splitlines())
    assert said == {"cuInit": "0", "cuMemFree_v2": "0", "cuMemGetInfo_v2": "801", "cuLaunchKernelEx": "801",
                    "nvmlInit_v2": "12"}  # fmt: skip


def test_the_driver_finds_itself(old_driver: Driver) -> None:
    script = """
    driver = ctypes.CDLL("libcuda.so.1")
    ours = ctypes.cast(driver.cuInit, ctypes.c_void_p).value
    answer(driver.finds_itself())
    """
    assert Tenant(old_driver).ask(script) == 1


@pytest.mark.parametrize("function", ["cuMemAlloc_v2", "cuNoSuchFunction", "nvmlInit_v2"])
def test_a_failed_lookup_fails_with_the_loaders_own_error(driver: Driver, function: str) -> None:
    """A handle without the name, and a program without a driver."""
    script = f"""
    libc = ctypes.CDLL(None)
    libc.dlsym.restype, libc.dlerror.restype = ctypes.c_void_p, ctypes.c_char_p
    libc.dlsym.argtypes = ctypes.c_void_p, ctypes.c_char_p
    said = []
    for handle in (ctypes.CDLL("libc.so.6")._handle, None):
        found = libc.dlsym(handle, {function!r}.encode())
        said.append([found, {function!r} in (libc.dlerror() or b"").decode()])
    answer(said)
    """
    assert Tenant(driver).ask(script) == [[None, True], [None, True]]


# ---- no driver --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_driver(driver: Driver) -> Driver:
    """A machine without a driver, as far as the loader can tell."""

    class Nothing(Driver):
        def environment(self, **more: str) -> dict[str, str]:
            kept = Driver.environment(self, **more)
            kept.pop("LD_LIBRARY_PATH", None)
            return kept

    if subprocess.run(
        [shutil.which("ldconfig") or "/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False
    ).stdout.count("libcuda.so.1"):
        pytest.skip("this machine has a driver")
    return Nothing((), None)


@pytest.mark.parametrize("file", ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"])
def test_without_a_driver_the_loaders_own_error_reaches_the_program(no_driver: Driver, file: str) -> None:
    script = f"""
    try:
        ctypes.CDLL({file!r})
    except OSError as error:
        answer(str(error))
    """
    assert Tenant(no_driver).ask(script) == Tenant(no_driver, preload="").ask(script)


def test_without_a_driver_linked_calls_say_so(no_driver: Driver, tmp_path: Path) -> None:
    """Only our exports satisfy the program's weak references then."""
    linked = compile_c(tmp_path / "linked", PROGRAMS / "linked.c")
    said = dict(line.split() for line in Tenant(no_driver).run(linked).splitlines())
    assert said == {"cuInit": "100", "cuMemFree_v2": "100", "cuMemGetInfo_v2": "100", "cuLaunchKernelEx": "100",
                    "nvmlInit_v2": "12"}  # fmt: skip


# ---- RTLD_NEXT ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unoptimised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim as a debug build: there, what looks like a tail call is none."""
    folder = tmp_path_factory.mktemp("unoptimised")
    library = next(one for one in build.libraries() if one.path == "libvgpu.so")
    script = folder / "exports.map"
    script.write_text(build.version_script(library))
    return compile_c(folder / "libvgpu.so", *library.sources,
                     flags=["-O0", "-fPIC", "-shared", "-fvisibility=hidden", f"-I{build.SIM}"],
                     link=[f"-Wl,--version-script={script}", *library.link])  # fmt: skip


@pytest.mark.parametrize("order", ["shim first", "shim last"])
@pytest.mark.parametrize("optimised", [True, False])
def test_rtld_next_begins_after_its_caller(
    driver: Driver, unoptimised: Path, program: Callable[[str], Path], tmp_path: Path, order: str, optimised: bool
) -> None:
    other = compile_c(tmp_path / "next.so", PROGRAMS / "next.c", flags=["-O0", "-fPIC", "-shared"], link=["-ldl"])
    libraries = [str(LIBRARY if optimised else unoptimised), str(other)]
    if order == "shim last":
        libraries.reverse()
    tenant = Tenant(driver, preload=":".join(libraries))
    assert tenant.run(program("number"), "7") == "1007\n"
    assert tenant.run(program("lookup"), "RTLD_NEXT").count("libvgpu.so") == len(intercepts())


def test_the_symbol_walk_finds_the_libcs_dlsym(tmp_path: Path) -> None:
    """The way for libcs that have no dlvsym."""
    walk = tmp_path / "walk.c"
    walk.write_text(
        '#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\n#include <string.h>\n#include "symbols.h"\n'
        "int main(void)\n{\n\tDl_info info;\n\tvoid *found = vgpu_walk_to_dlsym();\n"
        "\tvoid *(*look)(void *, const char *) = (void *(*)(void *, const char *))found;\n"
        '\treturn !found || !dladdr(found, &info) || strcmp(info.dli_sname, "dlsym") ||\n'
        '\t       look(RTLD_DEFAULT, "printf") != (void *)printf;\n}\n'
    )
    made = compile_c(tmp_path / "walk", walk, build.SHIM / "symbols.c", link=["-ldl"])
    assert subprocess.run([made], check=False).returncode == 0


def test_only_names_of_the_table_are_looked_at(make_tenant: Callable[..., Tenant]) -> None:
    """Names of other libraries that begin alike are left to them."""
    script = """
    libc = ctypes.CDLL(None)
    libc.dlsym.restype = ctypes.c_void_p
    libc.dlsym.argtypes = ctypes.c_void_p, ctypes.c_char_p
    answer([libc.dlsym(None, name) for name in (b"cuFileRead", b"curl_easy_init", b"cublasCreate_v2", b"nvmlx", b"cu")])
    """
    assert make_tenant().ask(script) == [None] * 5


def test_a_programs_children_have_the_shim_too(driver: Driver) -> None:
    """The tenant's programs inherit the shim."""
    assert "libvgpu.so" in Tenant(driver).run("/bin/sh", "-c", "grep -o libvgpu.so /proc/self/maps | sort -u")
