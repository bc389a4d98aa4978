# SPDX-License-Identifier: Apache-2.0
"""What our declarations and our table are held against: NVIDIA's own headers, and its own libraries."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import build
import pytest
from tools import declarations, nvidia_driver, nvidia_headers, nvidia_smi
from tools.declarations import Declarations
from tools.nvidia_headers import RELEASES, Release


@dataclass(frozen=True)
class Library:
    """One of the driver's two libraries, as its headers declare it."""

    name: str
    ours: str
    """C that includes our header."""
    theirs: str
    functions: str
    """Matches a prototype; the first group is its name."""
    files: tuple[Path, ...]
    """Our headers themselves."""
    bodies: str
    """Matches the C files in which the simulated GPU defines it."""

    def __str__(self) -> str:
        return self.name


CUDA = Library(
    "CUDA",
    '#include "sim/cuda_abi.h"',
    # In this mode the header declares every version of a function under its exported name.
    "#define __CUDA_API_VERSION_INTERNAL 1\n#include <cuda.h>\n#include <cudaTypedefs.h>",
    r"\bCUresult\s+(cu[A-Z]\w*)\s*\(",
    (build.NATIVE / "cuda.h", build.SIM / "cuda_abi.h"),
    "cuda*.c",
)
NVML = Library(
    "NVML",
    '#include "nvml.h"',
    "#define NVML_NO_UNVERSIONED_FUNC_DEFS\n#include <nvml.h>",
    r"\b(?:nvmlReturn_t|const\s+char\s*\*)\s*(nvml[A-Z]\w*)\s*\(",
    (build.NATIVE / "nvml.h",),
    "nvml*.c",
)
LIBRARIES = (CUDA, NVML)

ROWS = [
    (base, int(since), int(flags), symbol)
    for base, since, flags, symbol in re.findall(
        r'^ABI\("(\w+)", (\d+), (\d+), (\w+)\)', (build.SIM / "cuda_exports.def").read_text(), re.M
    )
]
"""Name, version, flags and symbol: by what ``cuGetProcAddress`` chooses."""

Read = Callable[..., Declarations]


@pytest.fixture(scope="session")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Read a piece of C, once."""

    @functools.cache
    def get(source: str, functions: str, *folders: Path, constants: tuple[str, ...] = ()) -> Declarations:
        scratch = tmp_path_factory.mktemp("header")
        return declarations.read_header(source, scratch, folders=folders, functions=functions, constants=constants)

    return get


@pytest.fixture(scope="session")
def headers() -> dict[Release, Path]:
    """The folder of each release's headers."""
    try:
        return nvidia_headers.fetch()
    except nvidia_headers.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=LIBRARIES, ids=str)
def library(request: pytest.FixtureRequest) -> Library:
    """Each of the two libraries."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session", params=RELEASES, ids=str)
def release(request: pytest.FixtureRequest) -> Release:
    """Each release."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session", params=nvidia_driver.DRIVERS, ids=str)
def real_driver(request: pytest.FixtureRequest) -> Path:
    """The folder with each real driver's two libraries."""
    try:
        return nvidia_driver.folder_of(request.param)
    except nvidia_smi.Unavailable as error:
        pytest.skip(str(error))
