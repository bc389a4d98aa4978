# SPDX-License-Identifier: Apache-2.0
"""
Every function of the driver is judged: it is in the table of intercepts, or it is passed for a reason.

What nobody has looked at is how a quota leaks: a new release brings a new way to allocate, and no test of ours
knows its name. Here NVIDIA's headers and libraries say which names there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import build
import pytest
import yaml
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from sim import exports
from tools.nvidia_headers import Release
from tools.tenants import intercepts

WORDS = re.compile(
    "Alloc|Malloc|Mem|Create|Reserve|Import|Open|Map|Register|Load|Retain|Process"  # what takes memory or shows it
)
WILDCARD = re.compile(r"[.*+\\\[{]")
TABLES = {"cuda": build.SIM / "cuda_exports.def", "nvml": build.SIM / "nvml_exports.def"}
FILES = {"cuda": "libcuda.so.1", "nvml": "libnvidia-ml.so.1"}
NAMES = {"cuda": r"cu(?:[A-Z]|dbg)\w*", "nvml": r"nvml[A-Z]\w*"}

INTERCEPTED = {row.symbol for row in intercepts()}


@dataclass(frozen=True)
class Passed:
    """One line of the table of what is passed."""

    library: str
    pattern: str
    reason: str

    def holds(self, name: str) -> bool:
        """A wildcard holds no name that might have to do with memory."""
        return re.fullmatch(self.pattern, name) is not None and not (
            WILDCARD.search(self.pattern) and WORDS.search(name)
        )


def table() -> list[Passed]:
    """What is passed, and why."""
    read = yaml.safe_load((Path(__file__).parent / "passed.yaml").read_text())
    return [
        Passed(library, pattern, group["reason"])
        for library, groups in read.items()
        for group in groups
        for pattern in group["names"]
    ]


PASSED = table()


def unjudged(library: str, names: Iterable[str]) -> list[str]:
    """Those that nobody has judged, what may allocate first."""
    left = [
        name
        for name in names
        if name not in INTERCEPTED and not any(row.holds(name) for row in PASSED if row.library == library)
    ]
    return [name + " (may take memory)" for name in sorted(left) if WORDS.search(name)] + [
        name for name in sorted(left) if not WORDS.search(name)
    ]


def declared(library: str, folder: Path) -> set[str]:
    """The functions of a release's headers, under the names that a driver exports."""
    files = sorted(folder.glob("cuda*.h") if library == "cuda" else folder.glob("nvml.h"))
    texts = [exports.linux_text(file.read_text("utf-8", "replace")) for file in files]
    return exports.cuda_exports(texts) if library == "cuda" else exports.nvml_exports(texts)


def exported(library: Path, pattern: str) -> set[str]:
    """The functions of a library that a program can look up."""
    with library.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym")
        assert isinstance(symbols, SymbolTableSection)
        names = {one.name for one in symbols.iter_symbols() if one["st_shndx"] != "SHN_UNDEF"}
    return {name for name in names if re.fullmatch(pattern, name)}


# ---- nothing is forgotten ---------------------------------------------------------------------------------


@pytest.mark.parametrize("library", NAMES)
def test_every_function_of_a_release_is_judged(headers: dict[Release, Path], release: Release, library: str) -> None:
    names = declared(library, headers[release])
    assert len(names) > 250
    assert unjudged(library, names) == []


@pytest.mark.parametrize("library", NAMES)
def test_every_function_of_a_real_library_is_judged(real_driver: Path, library: str) -> None:
    """Also what no header declares."""
    names = exported(real_driver / FILES[library], NAMES[library])
    assert len(names) > 250
    assert unjudged(library, names) == []


@pytest.mark.parametrize("library", NAMES)
def test_every_function_of_the_simulated_gpu_is_judged(library: str) -> None:
    """Needs no network."""
    assert unjudged(library, build.simulated(TABLES[library])) == []


NEW = [
    ("cuda", "cuMemAllocElsewhere", "cuMemAllocElsewhere (may take memory)"),
    ("cuda", "cuMemAlloc_v3", "cuMemAlloc_v3 (may take memory)"),
    ("cuda", "cuMemcpy_v2", "cuMemcpy_v2 (may take memory)"),
    ("cuda", "cuStreamDoSomething", "cuStreamDoSomething"),
    ("nvml", "nvmlDeviceGetMemoryInfo_v3", "nvmlDeviceGetMemoryInfo_v3 (may take memory)"),
    ("nvml", "nvmlUnitGetProcesses", "nvmlUnitGetProcesses (may take memory)"),
    ("nvml", "nvmlDeviceGetSomething", "nvmlDeviceGetSomething"),
]


@pytest.mark.parametrize(("library", "name", "told"), NEW, ids=[row[1] for row in NEW])
def test_a_new_function_has_to_be_judged(library: str, name: str, told: str) -> None:
    known = build.simulated(TABLES[library])
    assert unjudged(library, [*known, name]) == [told]


# ---- the tables themselves -----------------------------------------------------------------------------------


def test_a_function_is_judged_once() -> None:
    twice = []
    for library in NAMES:
        for name in build.simulated(TABLES[library]):
            verdicts = [row.pattern for row in PASSED if row.library == library and row.holds(name)]
            verdicts += ["intercepts.def"] if name in INTERCEPTED else []
            if len(verdicts) != 1:
                twice.append(f"{name}: {', '.join(verdicts)}")
    assert twice == []


def test_what_is_passed_has_a_reason_and_exists(headers: dict[Release, Path], real_driver: Path) -> None:
    known = {library: set(build.simulated(TABLES[library])) for library in NAMES}
    for library, names in known.items():
        names.update(*(declared(library, folder) for folder in headers.values()))
        names |= exported(real_driver / FILES[library], NAMES[library])
    assert [row for row in PASSED if len(row.reason) < 20] == []
    assert [row.pattern for row in PASSED if not any(row.holds(name) for name in known[row.library])] == []


def test_only_families_of_nvml_have_wildcards() -> None:
    assert [row.pattern for row in PASSED if row.library == "cuda" and WILDCARD.search(row.pattern)] == []
