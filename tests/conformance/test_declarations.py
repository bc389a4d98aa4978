# SPDX-License-Identifier: Apache-2.0
"""
Our declarations against NVIDIA's, of every generation that is in use.

Ours are written by hand and by no macro, so that a function of ours is the driver's of that name; a wrong one
would corrupt its caller's memory in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import build
import pytest
from conformance.conftest import CUDA, ROWS, Library, Read
from tools.declarations import (
    Declarations,
    Function,
    Pointer,
    compile_with_types,
    read_compiled,
)
from tools.differences import differences
from tools.nvidia_headers import RELEASES, Release
from tools.tenants import intercepts

NEWEST = RELEASES[-1]


@dataclass(frozen=True)
class Meant:
    """A difference that is meant."""

    differs: str
    """Matches each of its differences."""
    reason: str


FIRST_FIELDS = Meant(
    r".*CUDA_KERNEL_NODE_PARAMS_st(: ours has 72 bytes, theirs 56|\.(kern|ctx) \(.*\): theirs has no such member)",
    "version 1 is the beginning of version 2, and the simulated GPU looks at no more of it",
)
OLD_PCI = Meant(
    r".*nvmlPciInfo_st: ours has (36 bytes, theirs 68|nothing at bytes 36\+32, where theirs has busId)",
    "callers of these two versions gave no room for what version 3 added; headers now show version 3's structure",
)
NOT_LOOKED_AT = Meant(r".*\*: ours is void.*", "the simulated GPU does not look at what is there")

TYPES_THAT_GREW = {"CUDA_KERNEL_NODE_PARAMS": FIRST_FIELDS}
"""Exceptions for all releases but the newest."""
PROTOTYPES_APART = {"nvmlDeviceGetPciInfo": OLD_PCI, "nvmlDeviceGetPciInfo_v2": OLD_PCI}
BODIES_APART = {
    **PROTOTYPES_APART,
    "cuStreamGetCtx_v2": NOT_LOOKED_AT,
    "cuStreamGetCtx_v2_ptsz": NOT_LOOKED_AT,
    "cuGraphAddKernelNode": FIRST_FIELDS,
    "cuGraphKernelNodeGetParams": FIRST_FIELDS,
    "cuGraphKernelNodeSetParams": FIRST_FIELDS,
    "cuGraphExecKernelNodeSetParams": FIRST_FIELDS,
}

UNDECLARED = {"nvmlInternalGetExportTable", "cuGLCtxCreate", "cuGLCtxCreate_v2"}
"""Functions that drivers export and no header declares, or one that needs another vendor's headers."""

NAMED_OTHERWISE = {
    "CU_STREAM_LEGACY_VALUE": "CU_STREAM_LEGACY",
    "CU_STREAM_PER_THREAD_VALUE": "CU_STREAM_PER_THREAD",
    "NVML_MEMORY_V2": "nvmlMemory_v2",
    "NVML_PROCESS_DETAIL_LIST_V1": "nvmlProcessDetailList_v1",
    "NVML_PROCESSES_UTILIZATION_INFO_V1": "nvmlProcessesUtilizationInfo_v1",
    "NVML_TEMPERATURE_V1": "nvmlTemperature_v1",
    "NVML_PCI_INFO_EXT_V1": "nvmlPciInfoExt_v1",
    "NVML_NO_BYTES": "NVML_VALUE_NOT_AVAILABLE",
}
MASKS_THAT_GREW = {"CU_CTX_FLAGS_MASK"}
OURS_ALONE = {
    "NVML_PROCESS_MODE_COMPUTE": "only comments give these numbers",
    "NVML_PROCESS_MODE_GRAPHICS": "only comments give these numbers",
    "NVML_PROCESS_MODE_MPS": "only comments give these numbers",
    "NVML_NO_INSTANCE": "only comments give this number",
}

# ---- what each side says ----------------------------------------------------------------------------------

Ours: TypeAlias = Callable[[Library], Declarations]
Theirs: TypeAlias = Callable[[Library, Release], Declarations]


@pytest.fixture(scope="module")
def ours(read: Read) -> Ours:
    """What our headers declare, read once."""
    known: dict[Library, Declarations] = {}

    def get(library: Library) -> Declarations:
        if library not in known:
            known[library] = read(library.ours, library.functions, build.NATIVE, constants=macros(library))
        return known[library]

    return get


@pytest.fixture(scope="module")
def theirs(read: Read, headers: dict[Release, Path], ours: Ours) -> Theirs:
    """What NVIDIA's headers of a release declare, read once."""
    known: dict[tuple[Library, Release], Declarations] = {}

    def get(library: Library, release: Release) -> Declarations:
        if (library, release) not in known:
            names = tuple(NAMED_OTHERWISE.get(name, name) for name in ours(library).constants)
            known[library, release] = read(library.theirs, library.functions, headers[release], constants=names)
        return known[library, release]

    return get


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Library], Declarations]:
    """What the simulated GPU defines."""
    known: dict[Library, Declarations] = {}

    def get(library: Library) -> Declarations:
        if library not in known:
            # The exports are weak functions without parameters, for what is not defined.
            sources = [one for one in sorted(build.SIM.glob(library.bodies)) if not one.stem.endswith("_exports")]
            made = tmp_path_factory.mktemp("bodies") / "bodies.so"
            compile_with_types(made, *sources, flags=[f"-I{build.NATIVE}", f"-I{build.SIM}"])
            known[library] = read_compiled(made)
        return known[library]

    return get


def macros(library: Library) -> tuple[str, ...]:
    """The names of our macros that stand for a value."""
    text = "".join(file.read_text() for file in library.files)
    return tuple(re.findall(r"^#define ((?:CU|CUDA|NVML)_\w+)[ \t]+\S", text, re.M))


def report(release: Release, name: str, found: list[str], excepted: Meant | None) -> list[str]:
    """The differences that are not meant, each with where it is."""
    return [f"{release} {name}: {one}" for one in found if not (excepted and re.fullmatch(excepted.differs, one))]


# ---- ours are theirs -----------------------------------------------------------------------------------------


def test_our_prototypes_are_nvidias(ours: Ours, theirs: Theirs, library: Library, release: Release) -> None:
    wrong, known = [], theirs(library, release)
    for name, function in ours(library).functions.items():
        if name in known.functions:
            found = differences(function, known.functions[name], older=release != NEWEST)
            wrong += report(release, name, found, PROTOTYPES_APART.get(name))
    assert wrong == []


def test_our_structures_are_laid_out_as_nvidias(ours: Ours, theirs: Theirs, library: Library, release: Release) -> None:
    wrong, mine, known = [], ours(library), theirs(library, release)
    for name in mine.types.keys() & known.types.keys():
        older = release != NEWEST
        found = differences(mine.types[name], known.types[name], older=older)
        if name in mine.alignments and mine.alignments[name] != known.alignments[name]:
            found.append(f"ours is aligned to {mine.alignments[name]} bytes, theirs to {known.alignments[name]}")
        wrong += report(release, name, found, TYPES_THAT_GREW.get(name) if older else None)
    assert wrong == []


def test_our_numbers_are_nvidias(ours: Ours, theirs: Theirs, library: Library, release: Release) -> None:
    known = theirs(library, release).constants
    wrong = [
        f"{release} {name}: ours is {value}, theirs {known[other]}"
        for name, value in ours(library).constants.items()
        if (other := NAMED_OTHERWISE.get(name, name)) in known
        and not same_number(value, known[other])
        and not (name in MASKS_THAT_GREW and release != NEWEST and value & known[other] == known[other])
    ]
    assert wrong == []


def same_number(ours: int, theirs: int) -> bool:
    """Equal, or the same bits where one is written with a sign: -1 is how headers say "not available"."""
    return (ours - theirs) % 2**64 == 0


def test_nothing_of_ours_is_unknown_to_every_release(ours: Ours, theirs: Theirs, library: Library) -> None:
    """A name that is spelt wrong would be compared with nothing."""
    mine, known = ours(library), [theirs(library, release) for release in RELEASES]
    functions = mine.functions.keys() - {name for one in known for name in one.functions} - UNDECLARED
    constants = {NAMED_OTHERWISE.get(name, name) for name in mine.constants.keys() - OURS_ALONE.keys()}
    prefix = ("CU", "nvml")
    types = {name for name in mine.types if name.startswith(prefix)} - {name for one in known for name in one.types}
    assert sorted(functions) == []
    assert sorted(constants - {name for one in known for name in one.constants}) == []
    assert sorted(types) == (["nvmlPciInfo_v2_t"] if library.name == "NVML" else [])


def test_the_simulated_gpu_defines_nvidias_prototypes(
    bodies: Callable[[Library], Declarations], theirs: Theirs, library: Library, release: Release
) -> None:
    wrong, compared, known = [], 0, theirs(library, release)
    for name, function in bodies(library).functions.items():
        if name in known.functions:
            compared += 1
            found = differences(function, known.functions[name], older=release != NEWEST)
            wrong += report(release, name, found, BODIES_APART.get(name))
    assert wrong == []
    assert compared > 60


def test_every_exception_is_needed(
    bodies: Callable[[Library], Declarations], ours: Ours, theirs: Theirs, library: Library
) -> None:
    def used(mine: Declarations, known: Declarations, name: str) -> bool:
        kinds = ((mine.functions, known.functions), (mine.types, known.types))
        return any(differences(one[name], other[name]) for one, other in kinds if name in one and name in other)

    tables = (
        (TYPES_THAT_GREW, ours(library)),
        (PROTOTYPES_APART, ours(library)),
        (BODIES_APART, bodies(library)),
    )
    unused = [
        name
        for table, mine in tables
        for name in table
        if name.lower().startswith(library.name.lower()[:2])
        and not any(used(mine, theirs(library, release), name) for release in RELEASES)
    ]
    assert unused == []


# ---- versions -------------------------------------------------------------------------------------------------


def test_a_version_leads_to_a_function_of_that_versions_type(theirs: Theirs, release: Release) -> None:
    known, wrong, compared = theirs(CUDA, release), [], 0
    for base, since, flags, symbol in ROWS:
        for suffix in ("_ptds", "_ptsz") if flags else ("",):
            type_ = known.types.get(f"PFN_{base}_v{since}{suffix}")
            if isinstance(type_, Pointer) and symbol in known.functions:
                compared += 1
                found = differences(type_.to, known.functions[symbol])
                wrong += report(release, f"{base} since {since} is {symbol}", found, None)
    assert wrong == []
    assert compared > 400


def test_our_table_asks_for_versions_as_the_driver_knows_them() -> None:
    known = set(ROWS)
    asked = {(row.base, row.since, row.flags, row.symbol) for row in intercepts() if row.library == "CUDA"}
    assert sorted(asked - known) == []


# ---- the judge itself -------------------------------------------------------------------------------------------

RIGHT = """
typedef enum { CU_ONE = 1, CU_TWO = 2 } CUresult;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef unsigned long long CUdeviceptr;
typedef struct CUbox_st { unsigned int kind; void *address; unsigned char usage; char reserved[15]; } CUbox;
typedef struct CUnode_st { int type; union { long long room[4]; CUdeviceptr dptr; CUbox box; }; } CUnode;
CUresult cuOne(CUdeviceptr *pointer, unsigned long bytes, CUstream stream);
CUresult cuTwo(const CUbox *box, int kind);
CUresult cuNode(CUnode *node);
typedef struct CUbits_st { unsigned int low : 3; unsigned int high : 29; } CUbits;
CUresult cuBits(CUbits *bits);
"""

WRONG = [
    ("cuOne", "unsigned long bytes", "unsigned int bytes", "parameter 2: ours is uint32, theirs uint64"),
    ("cuOne", "unsigned long bytes", "long bytes", "parameter 2: ours is int64, theirs uint64"),
    ("cuOne", "CUdeviceptr *pointer", "CUdeviceptr **pointer", "parameter 1 *: ours is uint64 *, theirs uint64"),
    ("cuOne", "CUdeviceptr *pointer", "CUdeviceptr pointer", "parameter 1: ours is uint64, theirs uint64 *"),
    ("cuOne", "CUstream stream", "CUcontext stream", "parameter 3 *: ours is struct CUctx_st"),
    ("cuOne", ", CUstream stream", "", "takes 2 parameters, theirs 3"),
    ("cuOne", "CUresult cuOne", "void cuOne", "return value: ours is void"),
    ("cuTwo", "int kind)", "float kind)", "parameter 2: ours is float"),
    ("cuTwo", "void *address", "void **address", "CUbox_st.address *: ours is void *, theirs void"),
    ("cuTwo", "unsigned int kind; void *address", "void *address; unsigned int kind", "CUbox_st.kind: ours is at"),
    ("cuTwo", "usage; char reserved[15]", "usage; char reserved[7]", "CUbox_st: ours has 24 bytes, theirs 32"),
    ("cuTwo", "unsigned char usage", "unsigned char use", "CUbox_st.use (bytes 16+1): theirs has no such member"),
    ("cuTwo", "unsigned char usage", "unsigned short usage", "CUbox_st.usage: ours is at bytes 16+2"),
    ("cuNode", "CUdeviceptr dptr", "unsigned int dptr", "CUnode_st.dptr: ours is uint32, theirs uint64"),
    ("cuBits", "low : 3; unsigned int high : 29", "low : 4; unsigned int high : 28", "CUbits_st.low: ours is at bits"),
]

ALIKE = [
    ("cuOne", "unsigned long bytes", "unsigned long long count"),
    ("cuOne", "CUdeviceptr *pointer", "unsigned long *where"),
    ("cuTwo", "const CUbox *box", "CUbox *box"),
    ("cuTwo", "int kind)", "CUresult kind)"),
    ("cuTwo", "unsigned char usage; char reserved[15]", "unsigned char reserved[16]"),
    ("cuBits", "typedef struct CUbits_st", "#define CUbits other\ntypedef struct CUbits_st"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "says"), WRONG, ids=[f"{row[0]}-{row[2]}" for row in WRONG])
def test_a_wrong_declaration_is_found(read: Read, name: str, right: str, wrong: str, says: str) -> None:
    assert RIGHT.count(right) == 1
    mine, known = read(RIGHT.replace(right, wrong), FUNCTIONS), read(RIGHT, FUNCTIONS)
    found = differences(mine.functions[name], known.functions[name])
    assert [one for one in found if says in one], found
    told = report(NEWEST, name, found, None)
    assert told[0].startswith(f"{NEWEST} {name}: ")
    assert "ours" in told[0] or "theirs" in told[0]


@pytest.mark.parametrize(("name", "right", "other"), ALIKE, ids=[f"{row[0]}-{row[2]}" for row in ALIKE])
def test_what_a_caller_cannot_tell_apart_is_alike(read: Read, name: str, right: str, other: str) -> None:
    assert right in RIGHT
    mine, known = read(RIGHT.replace(right, other), FUNCTIONS), read(RIGHT, FUNCTIONS)
    assert differences(mine.functions[name], known.functions[name]) == []
    assert isinstance(mine.functions[name], Function)


def test_what_a_union_holds_may_have_grown(read: Read) -> None:
    grown = RIGHT.replace("CUdeviceptr dptr;", "struct { CUdeviceptr dptr; int more; } dptr;")
    assert grown != RIGHT
    mine, known = read(RIGHT, FUNCTIONS), read(grown, FUNCTIONS)
    assert differences(mine.functions["cuNode"], known.functions["cuNode"]) == []
    moved = read(grown.replace("{ CUdeviceptr dptr; int more; }", "{ int more; CUdeviceptr dptr; }"), FUNCTIONS)
    assert differences(mine.functions["cuNode"], moved.functions["cuNode"]) == [
        "parameter 1 * CUnode_st.dptr: ours is uint64, theirs int32"
    ]


@pytest.mark.parametrize("older", [True, False])
def test_only_an_older_header_may_lack_a_member(read: Read, older: bool) -> None:
    before = RIGHT.replace("unsigned char usage; char reserved[15]", "char reserved[16]")
    assert before != RIGHT
    mine, known = read(RIGHT, FUNCTIONS), read(before, FUNCTIONS)
    found = differences(mine.functions["cuTwo"], known.functions["cuTwo"], older=older)
    assert found == ([] if older else ["parameter 1 * CUbox_st.usage (bytes 16+1): theirs has no such member"])


FUNCTIONS = r"\b(?:CUresult|void)\s+(cu[A-Z]\w*)\s*\("
