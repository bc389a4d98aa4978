# SPDX-License-Identifier: Apache-2.0
"""The doors of the simulated CUDA driver: its exports and cuGetProcAddress."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from sim.programs import ask
from tools.simulated import Make, Simulated

from vgpu_runtime import machines

TABLE = Path(__file__).parents[2] / "native" / "sim" / "cuda_exports.def"

LOOK_UP = """
lib = ctypes.CDLL("libcuda.so.1")
POISON = 0x1234
def v2(name, version, flags, status=True):
    pointer, answered = ctypes.c_void_p(POISON), ctypes.c_int(POISON)
    code = lib.cuGetProcAddress_v2(name.encode(), ctypes.byref(pointer), version, ctypes.c_uint64(flags),
                                   ctypes.byref(answered) if status else None)
    return [code, where(pointer.value), answered.value]
def v1(name, version, flags):
    pointer = ctypes.c_void_p(POISON)
    code = lib.cuGetProcAddress(name.encode(), ctypes.byref(pointer), version, ctypes.c_uint64(flags))
    return [code, where(pointer.value)]
def address(symbol):
    return ctypes.cast(getattr(lib, symbol), ctypes.c_void_p).value
def where(pointer):
    if pointer is None or pointer == POISON:
        return {None: "null", POISON: "untouched"}[pointer]
    return next(name for name in NAMES if address(name) == pointer)
"""


def exports() -> list[str]:
    return re.findall(r"^EXPORT\((\w+)\)", TABLE.read_text(), re.M)


def rows() -> list[tuple[str, int, int, str]]:
    found = re.findall(r'^ABI\("(\w+)", (\d+), (\d), (\w+)\)', TABLE.read_text(), re.M)
    return [(name, int(version), int(flags), symbol) for name, version, flags, symbol in found]


def look_up(machine: Simulated, expression: str, **environment: str) -> object:
    return ask(machine, f"NAMES = {exports()!r}\n{LOOK_UP}\nanswer({expression})", **environment)


def test_exactly_the_names_of_the_table_are_exported() -> None:
    with (machines.LIBRARIES / "libcuda.so.1").open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        defined = {symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF" and symbol.name}
    assert defined == set(exports())


def test_rows_are_sorted_by_name_so_that_they_can_be_searched() -> None:
    names = [name for name, *_ in rows()]
    assert names == sorted(names)


def test_needs_no_symbol_newer_than_glibc_2_17() -> None:
    with (machines.LIBRARIES / "libcuda.so.1").open("rb") as file:
        needed = ELFFile(file).get_section_by_name(".gnu.version_r")
        versions = [aux.name for _, auxes in needed.iter_versions() for aux in auxes]
    assert max(tuple(map(int, version.removeprefix("GLIBC_").split("."))) for version in versions) <= (2, 17)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("v2('cuMemAlloc', 12000, 0)", [0, "cuMemAlloc_v2", 0]),
        ("v2('cuMemAlloc', 3010, 0)", [0, "cuMemAlloc", 0]),
        ("v2('cuMemAlloc', 99999, 0)", [0, "cuMemAlloc_v2", 0]),
        ("v2('cuMemAlloc', 1000, 0)", [0, "null", 2]),
        ("v2('cuMemAllocAsync', 11010, 0)", [0, "null", 2]),
        ("v2('cuMemAlloc_v2', 12000, 0)", [0, "null", 1]),
        ("v2('cuLaunchKernel_ptsz', 12000, 0)", [0, "null", 1]),
        ("v2('', 12000, 0)", [0, "null", 1]),
        ("v2('cuNoSuchThing', 12000, 0)", [0, "null", 1]),
        ("v2('cuLaunchKernel', 12000, 1)", [0, "cuLaunchKernel", 0]),
        ("v2('cuLaunchKernel', 12000, 2)", [0, "cuLaunchKernel_ptsz", 0]),
        ("v2('cuLaunchKernel', 6000, 2)", [0, "null", 2]),
        ("v2('cuMemAlloc', 12000, 2)", [0, "cuMemAlloc_v2", 0]),
        ("v2('cuMemAlloc', 12000, 4)", [1, "untouched", 0x1234]),
        ("v2('cuMemAlloc', 12000, 0, status=False)", [0, "cuMemAlloc_v2", 0x1234]),
        ("v2('cuGetProcAddress', 11030, 0)", [0, "cuGetProcAddress", 0]),
        ("v2('cuGetProcAddress', 12000, 0)", [0, "cuGetProcAddress_v2", 0]),
        ("v2('cuGetExportTable', 3000, 0)", [0, "cuGetExportTable", 0]),
        ("v1('cuMemAlloc', 12000, 0)", [0, "cuMemAlloc_v2"]),
        ("v1('cuMemAlloc', 1000, 0)", [500, "untouched"]),
        ("v1('cuNoSuchThing', 12000, 0)", [500, "untouched"]),
        ("v1('cuMemAlloc', 12000, 8)", [1, "untouched"]),
        ("v1('cuGetProcAddress', 12000, 0)", [0, "cuGetProcAddress_v2"]),
    ],
)
def test_get_proc_address_answers_as_the_real_one(h200: Simulated, call: str, expected: list[object]) -> None:
    assert look_up(h200, call) == expected


def test_every_row_leads_to_its_own_export(h200: Simulated) -> None:
    asked = [[name, max(version, 7000) if flags else version, flags] for name, version, flags, _ in rows()]
    expression = f"[where(p) if (p := probe(*row)) else None for row in {asked!r}]"
    setup = """
def probe(name, version, flags):
    pointer = ctypes.c_void_p()
    assert lib.cuGetProcAddress(name.encode(), ctypes.byref(pointer), version, ctypes.c_uint64(flags)) in (0, 500)
    return pointer.value
"""
    body = f"NAMES = {exports()!r}\n{LOOK_UP}\n{setup}\nnames = {{address(n): n for n in NAMES}}\n"
    found = ask(h200, body + "where = names.get\nanswer(" + expression + ")")
    wrong = [
        (row, got)
        for row, got in zip(rows(), found, strict=True)
        if got != row[3] and row[1] <= 13000  # the machine's driver is 13.0
    ]
    assert wrong == []
    assert len([got for got in found if got]) > 600


def test_a_driver_does_not_know_names_newer_than_itself(make_machine: Make) -> None:
    old = make_machine("name: old\ncuda_version: 12020\ndevices: [{model: t4}]\n")
    assert look_up(old, "[v2('cuCtxCreate', 13000, 0), v2('cuDeviceGetHostAtomicCapabilities', 13000, 0)]") == [
        [0, "cuCtxCreate_v3", 0],
        [0, "null", 1],
    ]


def test_a_null_name_aborts_with_a_message(h200: Simulated) -> None:
    done = h200.attempt(
        "python3", "-c", "import ctypes; ctypes.CDLL('libcuda.so.1').cuGetProcAddress_v2(None, None, 0, 0, None)"
    )
    assert done.returncode == -6
    assert "null symbol" in done.stderr


def test_lookup_and_version_work_before_init(h200: Simulated) -> None:
    assert ask(h200, "answer([ok(cu.cuDriverGetVersion()), rc(cu.cuDeviceGetCount())])") == [13000, 3]


def test_export_tables_are_refused(h200: Simulated) -> None:
    assert ask(h200, "context()\nanswer(raw().cuGetExportTable(ctypes.byref(ctypes.c_void_p()), b'0' * 16))") == 1


def test_what_is_missing_says_so_and_is_traced_once(h200: Simulated, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    body = "context()\nanswer([raw().cuTexRefCreate(None) for _ in range(3)] + [raw().cuGreenCtxDestroy(None)])"
    assert ask(h200, body, VGPU_SIM_TRACE=str(trace)) == [801] * 4
    lines = trace.read_text().splitlines()
    assert [words.split(" from ")[0] for words in lines] == ["cuTexRefCreate", "cuGreenCtxDestroy"]
    assert all(len(words.split(" from ")[1]) > 1 for words in lines)


def test_error_names_and_texts(h200: Simulated) -> None:
    body = """
    answer([ok(cu.cuGetErrorName(cu.CUresult(2))).decode(), ok(cu.cuGetErrorString(cu.CUresult(2))).decode(),
            ok(cu.cuGetErrorName(cu.CUresult(0))).decode(), ok(cu.cuGetErrorString(cu.CUresult(0))).decode()])
    """
    assert ask(h200, body) == ["CUDA_ERROR_OUT_OF_MEMORY", "out of memory", "CUDA_SUCCESS", "success"]
    unknown = "p = ctypes.c_char_p(b'x')\nanswer([raw().cuGetErrorName(12345, ctypes.byref(p)), p.value])"
    assert ask(h200, unknown) == [1, None]


def test_nothing_happens_when_the_library_is_only_loaded(h200: Simulated) -> None:
    before = h200.machine.file.read_bytes()
    h200.run("python3", "-c", "import ctypes; ctypes.CDLL('libcuda.so.1')")
    assert h200.machine.file.read_bytes() == before
