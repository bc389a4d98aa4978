# SPDX-License-Identifier: Apache-2.0
"""Our declarations of NVML against those of nvidia-ml-py, which NVIDIA makes from its own header."""

from __future__ import annotations

import ctypes

import build
import cffi
import pynvml
import pytest

STRUCTURES = {
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlBAR1Memory_t": pynvml.c_nvmlBAR1Memory_t,
    "nvmlProcessInfo_v2_t": pynvml.c_nvmlProcessInfo_v2_t,
    "nvmlProcessDetail_v1_t": pynvml.c_nvmlProcessDetail_v1_t,
    "nvmlProcessDetailList_v1_t": pynvml.c_nvmlProcessDetailList_v1_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlProcessUtilizationSample_t": pynvml.c_nvmlProcessUtilizationSample_t,
    "nvmlProcessUtilizationInfo_v1_t": pynvml.c_nvmlProcessUtilizationInfo_v1_t,
    "nvmlProcessesUtilizationInfo_v1_t": pynvml.c_nvmlProcessesUtilizationInfo_v1_t,
    "nvmlSample_t": pynvml.c_nvmlSample_t,
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlPciInfoExt_v1_t": pynvml.nvmlPciInfoExt_v1_t,
    "nvmlTemperature_v1_t": pynvml.c_nvmlTemperature_v1_t,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
}

VERSION_WORDS = {
    "NVML_MEMORY_V2": pynvml.nvmlMemory_v2,
    "NVML_PROCESS_DETAIL_LIST_V1": pynvml.nvmlProcessDetailList_v1,
    "NVML_PROCESSES_UTILIZATION_INFO_V1": pynvml.ProcessesUtilizationInfo_v1,
    "NVML_TEMPERATURE_V1": pynvml.nvmlTemperature_v1,
    "NVML_PCI_INFO_EXT_V1": pynvml.nvmlPciInfoExt_v1,
}


@pytest.fixture(scope="module")
def ffi() -> cffi.FFI:
    """``native/nvml.h`` as cffi reads it."""
    parsed = cffi.FFI()
    parsed.cdef(build.declarations(build.NATIVE / "nvml.h"))
    return parsed


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_is_laid_out_as_nvidias(ffi: cffi.FFI, name: str) -> None:
    theirs = STRUCTURES[name]
    ours = [(offset.offset, ffi.sizeof(offset.type)) for _, offset in ffi.typeof(name).fields]
    fields = [getattr(theirs, field[0]) for field in theirs._fields_]
    assert ours == [(field.offset, field.size) for field in fields]
    assert ffi.sizeof(name) == ctypes.sizeof(theirs)


@pytest.mark.parametrize("name", VERSION_WORDS)
def test_a_version_word_is_nvidias(ffi: cffi.FFI, name: str) -> None:
    assert getattr(ffi.dlopen(None), name) == VERSION_WORDS[name]


def test_error_codes_are_nvidias(ffi: cffi.FFI) -> None:
    ours = {name: value for value, name in ffi.typeof("nvmlReturn_t").elements.items()}
    theirs = {name: value for name, value in vars(pynvml).items() if name in ours}
    assert theirs == ours
