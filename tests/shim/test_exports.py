# SPDX-License-Identifier: Apache-2.0
"""What kind of a file the shim is: any process of any distribution may have to load it."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

import build
import pytest
from elftools.elf.elffile import ELFFile
from tools.tenants import LIBRARY, ROOT, intercepts

FLOOR = (2, 17)


@pytest.fixture
def elf() -> Iterator[ELFFile]:
    with LIBRARY.open("rb") as file:
        yield ELFFile(file)


def exported(elf: ELFFile) -> set[str]:
    """Names that others can bind to; some linkers also enter the names of versions, as absolute numbers."""
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    return {one.name for one in symbols if one.name and one["st_shndx"] not in ("SHN_UNDEF", "SHN_ABS")}


def imported(elf: ELFFile) -> set[str]:
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    return {one.name for one in symbols if one.name and one["st_shndx"] == "SHN_UNDEF"}


def test_the_exports_are_the_table_dlsym_and_the_documented_interface(elf: ELFFile) -> None:
    documented = set(build.prototypes(ROOT / "shim" / "vgpu.h"))
    assert documented
    assert exported(elf) == {row.symbol for row in intercepts()} | {"dlsym"} | documented


def test_only_dlsym_has_versions_and_those_are_the_libcs(elf: ELFFile) -> None:
    """The driver's names have none, and a program that asks dlsym of a version must not get past us."""
    names = [one.name for one in elf.get_section_by_name(".dynsym").iter_symbols()]
    defined = {
        part["vd_ndx"]: next(iter(names)).name
        for part, names in elf.get_section_by_name(".gnu.version_d").iter_versions()
        if part["vd_ndx"] > 1
    }
    indices = [one["ndx"] for one in elf.get_section_by_name(".gnu.version").iter_symbols()]
    versioned = [
        (name, defined[index & 0x7FFF], not index & 0x8000)
        for name, index in zip(names, indices, strict=True)
        if isinstance(index, int) and index & 0x7FFF in defined and not name.startswith("GLIBC_")
    ]
    base = build.BASE_VERSIONS[platform.machine()]
    assert sorted(versioned) == [("dlsym", base, False), ("dlsym", "GLIBC_2.34", True)]


def test_every_documented_function_is_named_in_the_readme() -> None:
    text = (ROOT / "shim" / "README.md").read_text()
    assert [name for name in build.prototypes(ROOT / "shim" / "vgpu.h") if name not in text] == []


def test_only_the_libc_is_needed(elf: ELFFile) -> None:
    dynamic = elf.get_section_by_name(".dynamic")
    needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    assert needed <= {"libc.so.6", "libdl.so.2", "libpthread.so.0"}


def is_built_for_the_floor() -> bool:
    return "ziglang" in build.compiler() or "zig" in Path(build.compiler()[0]).name


def test_symbol_versions_are_those_of_old_libcs(elf: ELFFile) -> None:
    if not is_built_for_the_floor():
        pytest.skip("the compiler is not ziglang, so the libc is this machine's: pip install ziglang")
    versions = {
        tuple(map(int, match.group(1).split(".")))
        for _, auxiliaries in elf.get_section_by_name(".gnu.version_r").iter_versions()
        for auxiliary in auxiliaries
        if (match := re.fullmatch(r"GLIBC_([\d.]+)", auxiliary.name))
    }
    assert versions
    assert max(versions) <= FLOOR


def test_nothing_runs_when_it_is_loaded(elf: ELFFile) -> None:
    tags = {tag.entry.d_tag for tag in elf.get_section_by_name(".dynamic").iter_tags()}
    if not is_built_for_the_floor():
        pytest.skip("the compiler is not ziglang, and adds constructors of its own: pip install ziglang")
    assert tags.isdisjoint({"DT_INIT", "DT_FINI", "DT_INIT_ARRAY", "DT_FINI_ARRAY", "DT_PREINIT_ARRAY"})


def test_it_imports_nothing_that_ends_or_changes_its_host(elf: ELFFile) -> None:
    names = imported(elf)
    assert "mmap" in names
    forbidden = {"exit", "_exit", "abort", "signal", "sigaction", "umask", "setenv", "putenv", "atexit", "printf",
                 "puts", "fork", "pthread_create", "__tls_get_addr", "pthread_atfork"}  # fmt: skip
    assert names.isdisjoint(forbidden)
    assert [name for name in names if name.endswith("_chk") or name.startswith(("_Z", "Py"))] == []


def test_thread_local_memory_is_a_few_dozen_bytes(elf: ELFFile) -> None:
    """A library that is loaded late has to fit into what the loader keeps in reserve."""
    sizes = [segment["p_memsz"] for segment in elf.iter_segments() if segment["p_type"] == "PT_TLS"]
    assert sum(sizes) <= 64
