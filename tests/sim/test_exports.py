# SPDX-License-Identifier: Apache-2.0
"""What the simulated libraries export: the generator, its committed tables, and the built files."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import build
import pytest
from elftools.elf.elffile import ELFFile
from sim import exports

from vgpu_runtime import machines

CUDA_HEADER = """
#define cuMemAlloc                 cuMemAlloc_v2
#define cuMemcpyAsync              __CUDA_API_PTSZ(cuMemcpyAsync)
#define cuMemcpyHtoD               __CUDA_API_PTDS(cuMemcpyHtoD_v2)
/* a comment that names CUresult CUDAAPI cuNotThere(void); */
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *dptr, size_t bytesize);
CUresult CUDAAPI cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s);
#ifdef _WIN32
CUresult CUDAAPI cuWGLGetDevice(CUdevice *pDevice, HGPUNV hGpu);
#endif
static inline CUresult cuGetProcAddress_v2_ptsz(const char *symbol);
#define cuGetProcAddress_v2 cuGetProcAddress_v2_ptsz
#if defined(__CUDA_API_VERSION_INTERNAL)
CUresult CUDAAPI cuMemAlloc(CUdeviceptr_v1 *dptr, unsigned int bytesize);
CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr_v1 dst, const void *src, unsigned int n);
#endif
"""
CUDA_TYPES = """
typedef CUresult (CUDAAPI *PFN_cuInit_v2000)(unsigned int Flags);
typedef CUresult (CUDAAPI *PFN_cuMemAlloc_v3020)(CUdeviceptr_v2 *dptr, size_t bytesize);
typedef CUresult (CUDAAPI *PFN_cuMemAlloc_v2000)(CUdeviceptr_v1 *dptr, unsigned int bytesize);
typedef CUresult (CUDAAPI *PFN_cuMemcpyAsync_v4000)(CUdeviceptr_v2 dst);
typedef CUresult (CUDAAPI *PFN_cuMemcpyAsync_v7000_ptsz)(CUdeviceptr_v2 dst);
typedef CUresult (CUDAAPI *PFN_cuMemcpyHtoD_v2000)(CUdeviceptr_v1 dst);
typedef CUresult (CUDAAPI *PFN_cuMemcpyHtoD_v3020)(CUdeviceptr_v2 dst);
typedef CUresult (CUDAAPI *PFN_cuMemcpyHtoD_v7000_ptds)(CUdeviceptr_v2 dst);
typedef CUresult (CUDAAPI *PFN_cuProfilerInitialize_v4000)(const char *configFile);
typedef CUresult (CUDAAPI *PFN_cuProfilerStart_v4000)(void);
typedef CUresult (CUDAAPI *PFN_cuProfilerStop_v4000)(void);
"""
NVML_HEADER = """
#define nvmlDeviceGetCount nvmlDeviceGetCount_v2
#define nvmlGetBlacklistDeviceCount nvmlGetExcludedDeviceCount
#define nvmlFlagForce 0x01
#define nvmlBlacklistDeviceInfo_t nvmlExcludedDeviceInfo_t
nvmlReturn_t DECLDIR nvmlInit_v2(void);
nvmlReturn_t DECLDIR nvmlDeviceGetCount_v2(unsigned int *deviceCount);
nvmlReturn_t DECLDIR nvmlGetExcludedDeviceCount(unsigned int *deviceCount);
const DECLDIR char* nvmlErrorString(nvmlReturn_t result);
"""


def wheel(path: Path, **files: str) -> Path:
    """A wheel with these headers."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"nvidia/include/{name}.h", text)
    return path


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """One wheel with small headers of both libraries."""
    return wheel(tmp_path / "headers.whl", cuda=CUDA_HEADER, cudaTypedefs=CUDA_TYPES, nvml=NVML_HEADER)


def rows(text: str, kind: str) -> list[str]:
    """The rows of a table of one kind."""
    return re.findall(rf"^{kind}\((.*)\)$", text, re.MULTILINE)


def test_names_come_from_declarations_and_from_renaming_macros(headers: Path) -> None:
    found = set(rows(exports.cuda_table([headers]), "EXPORT"))
    assert found == {
        "cuInit",
        "cuMemAlloc",
        "cuMemAlloc_v2",
        "cuMemcpyAsync",
        "cuMemcpyAsync_ptsz",
        "cuMemcpyHtoD",
        "cuMemcpyHtoD_v2",
        "cuMemcpyHtoD_v2_ptds",
        "cuProfilerInitialize",
        "cuProfilerStart",
        "cuProfilerStop",
        "cuMemGetAttribute",
    }


def test_versions_belong_to_symbols_in_ascending_order(headers: Path) -> None:
    found = rows(exports.cuda_table([headers]), "ABI")
    assert [row for row in found if row.startswith(('"cuMemAlloc"', '"cuMemcpy'))] == [
        '"cuMemAlloc", 2000, 0, cuMemAlloc',
        '"cuMemAlloc", 3020, 0, cuMemAlloc_v2',
        '"cuMemcpyAsync", 4000, 0, cuMemcpyAsync',
        '"cuMemcpyAsync", 7000, 2, cuMemcpyAsync_ptsz',
        '"cuMemcpyHtoD", 2000, 0, cuMemcpyHtoD',
        '"cuMemcpyHtoD", 3020, 0, cuMemcpyHtoD_v2',
        '"cuMemcpyHtoD", 7000, 2, cuMemcpyHtoD_v2_ptds',
    ]


def test_a_symbol_without_a_version_stops_the_generator(
    tmp_path: Path, headers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = wheel(tmp_path / "odd.whl", cuda="CUresult CUDAAPI cuOdd(void);")
    assert exports.main([str(headers), str(odd), "--directory", str(tmp_path)]) == 2
    assert "cuOdd" in capsys.readouterr().err
    assert not (tmp_path / "cuda_exports.def").exists()


def test_nvml_names_are_functions_under_their_old_and_new_names(headers: Path) -> None:
    assert set(rows(exports.nvml_table([headers]), "EXPORT")) == {
        "nvmlInit_v2",
        "nvmlDeviceGetCount",
        "nvmlDeviceGetCount_v2",
        "nvmlErrorString",
        "nvmlGetBlacklistDeviceCount",
        "nvmlGetExcludedDeviceCount",
        "nvmlInternalGetExportTable",
    }


def test_the_check_names_each_row_that_differs(
    tmp_path: Path, headers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(headers), "--directory", str(tmp_path)]
    assert exports.main(arguments) == 0
    assert exports.main([*arguments, "--check"]) == 0
    table = tmp_path / "cuda_exports.def"
    table.write_text(table.read_text().replace('ABI("cuMemAlloc", 3020', 'ABI("cuMemAlloc", 3030'))
    assert exports.main([*arguments, "--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        'cuda_exports.def: -ABI("cuMemAlloc", 3030, 0, cuMemAlloc_v2)',
        'cuda_exports.def: +ABI("cuMemAlloc", 3020, 0, cuMemAlloc_v2)',
    ]


def test_wheels_without_headers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exports.main([str(wheel(tmp_path / "empty.whl", other=""))]) == 2
    assert "nvidia-cuda-runtime" in capsys.readouterr().err


def test_the_committed_tables_are_what_nvidias_headers_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), *exports.REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"cannot fetch NVIDIA's header wheels: {done.stderr.strip().splitlines()[-1:]}")
    assert exports.main(["--check", *map(str, tmp_path.glob("*.whl"))]) == 0, capsys.readouterr().out


def test_every_cuda_symbol_but_the_undeclared_one_has_a_version() -> None:
    text = (exports.HERE / "cuda_exports.def").read_text()
    versioned = {row.split(", ")[3] for row in rows(text, "ABI")}
    assert set(rows(text, "EXPORT")) - versioned == exports.CUDA_UNDECLARED
    assert versioned <= set(rows(text, "EXPORT"))
    assert len(versioned) > 700


@dataclass(frozen=True)
class Elf:
    """What the linker wrote about a library."""

    defined: frozenset[str]
    dynamic: dict[str, list[Any]]

    @classmethod
    def read(cls, path: Path) -> Elf:
        with path.open("rb") as file:
            elf = ELFFile(file)
            symbols = elf.get_section_by_name(".dynsym").iter_symbols()
            defined = frozenset(each.name for each in symbols if each["st_shndx"] != "SHN_UNDEF" and each.name)
            dynamic: dict[str, list[Any]] = {}
            for tag in elf.get_section_by_name(".dynamic").iter_tags():
                name = tag.entry.d_tag
                value = getattr(tag, name.removeprefix("DT_").lower(), tag.entry.d_val)
                dynamic.setdefault(name, []).append(value)
        return cls(defined, dynamic)


CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"


@pytest.mark.parametrize(("library", "table"), [(CUDA, "cuda_exports.def"), (NVML, "nvml_exports.def")])
def test_a_library_exports_exactly_its_table(library: str, table: str) -> None:
    assert Elf.read(machines.LIBRARIES / library).defined == set(build.simulated(build.SIM / table))


@pytest.mark.parametrize("library", [CUDA, NVML])
def test_a_library_has_the_drivers_name_and_needs_only_libc(library: str) -> None:
    dynamic = Elf.read(machines.LIBRARIES / library).dynamic
    assert dynamic["DT_SONAME"] == [library]
    libc = {"libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libm.so.6", "ld-linux-x86-64.so.2"}
    assert set(dynamic["DT_NEEDED"]) <= libc


@pytest.mark.parametrize("library", [CUDA, NVML])
def test_only_libcuda_binds_its_own_calls_to_itself(library: str) -> None:
    dynamic = Elf.read(machines.LIBRARIES / library).dynamic
    symbolic = "DT_SYMBOLIC" in dynamic or any(flags & 2 for flags in dynamic.get("DT_FLAGS", []))
    assert symbolic == (library == CUDA)


@pytest.mark.parametrize("library", [CUDA, NVML])
def test_a_library_does_nothing_when_it_is_loaded(library: str) -> None:
    """One entry may be there: the C compiler's own."""
    sizes = Elf.read(machines.LIBRARIES / library).dynamic.get("DT_INIT_ARRAYSZ", [0])
    assert sizes[0] <= ctypes.sizeof(ctypes.c_void_p)
