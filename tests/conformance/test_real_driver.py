# SPDX-License-Identifier: Apache-2.0
"""
NVIDIA's own libraries with the shim in front of them, and without it.

No GPU is needed for what is compared: which function a name and a version lead to, which status and code come
with it, and what a call returns that the driver must turn down. The shim may exchange a function for its own of
the same name, and nothing else.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import build
import pytest
import vgpu_shim
from conformance.conftest import ROWS
from tools.tenants import GIB, MIB, Driver, Tenant, compile_c, create, intercepts

PROGRAMS = Path(__file__).parent / "programs"
FILES = {"CUDA": "libcuda.so.1", "NVML": "libnvidia-ml.so.1"}
TABLES = {"CUDA": "cuda_exports.def", "NVML": "nvml_exports.def"}
OURS = {FILES[row.library] + ":" + row.symbol: f"libvgpu.so:{row.symbol}" for row in intercepts()}
"""What stands for a function of the driver that the shim changes."""

QUOTA = 64 * MIB
"""Between the two sizes that the oracle asks for."""
ASKED_FLAGS = (0, 1, 2, 4)
"""Plain, legacy stream, stream per thread, and a bit that no driver knows."""
CRASHES = {"cuGetProcAddress", "cuGetProcAddress_v2"}
"""A real driver ends its process when they are given NULL."""


@dataclass(frozen=True)
class Real(Driver):
    """A driver that is a folder with the two libraries."""

    folder: Path = Path()

    def environment(self, **more: str) -> dict[str, str]:
        return {**Driver.environment(self, **more), "LD_LIBRARY_PATH": str(self.folder)}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("oracle") / "oracle", PROGRAMS / "oracle.c",
                     flags=["-O1"], link=["-ldl"])  # fmt: skip


@pytest.fixture
def places(real_driver: Path, tmp_path: Path) -> Iterator[tuple[Tenant, Tenant]]:
    """The driver alone, and a tenant with both kinds of limits on it."""
    device = vgpu_shim.Device("GPU-00000000-0000-0000-0000-000000000001", "a device", 8 * GIB)
    driver = Real((device,), None, folder=real_driver)
    bare, tenant = Tenant(driver, preload=""), create(tmp_path, driver, QUOTA, 30, [0])
    yield bare, tenant
    tenant.stop()


def ask(place: Tenant, oracle: Path, *words: str, lines: Iterable[str]) -> list[str]:
    """What the oracle says for each line."""
    done = subprocess.run([oracle, *words], env=place.environment(), input="".join(f"{line}\n" for line in lines),
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def exchanged(line: str) -> str:
    """A line of the driver's as the shim has to make it: its own functions for the driver's."""
    return " ".join(OURS.get(word, word) for word in line.split(" "))


def questions() -> Iterator[str]:
    """Each name, at each version where its answer may change and beside it, with each kind of flags."""
    versions: dict[str, set[int]] = {}
    for base, since, _, symbol in ROWS:
        versions.setdefault(base, {0, 1000, 99999}).update((since - 1, since, since + 1))
        if symbol != base:
            versions.setdefault(symbol, {99999})
    versions |= {"": {12000}, "cuNoSuchFunction": {12000}, "cuda": {12000}, "nvmlInit": {12000}}
    for name, those in versions.items():
        yield from (f'"{name}" {version} {flags}' for version in sorted(those) for flags in ASKED_FLAGS)


def test_every_name_and_version_leads_where_the_driver_leads(places: tuple[Tenant, Tenant], oracle: Path) -> None:
    asked = list(questions())
    bare, ours = (ask(place, oracle, "versions", lines=asked) for place in places)
    assert [line for line in bare if "unnamed" in line or "libvgpu" in line] == []
    expected = [exchanged(line) for line in bare]
    assert [pair for pair in zip(expected, ours, strict=True) if pair[0] != pair[1]] == []
    # The questions were hard enough: every kind of answer, and every function of ours that this driver has.
    kinds = {tuple(line.partition(": ")[2].split(" ")[:2]) for line in bare}
    assert kinds >= {("0", "0"), ("0", "1"), ("0", "2"), ("1", "-5")}
    has = {row.symbol for row in intercepts() if row.library == "CUDA"} & present(places[0], oracle, "CUDA")
    assert has
    assert {word for line in ours for word in line.split(" ") if word.startswith("libvgpu.so:")} == {
        f"libvgpu.so:{symbol}" for symbol in has
    }


def present(bare: Tenant, oracle: Path, library: str) -> set[str]:
    """Those names of our table of exports that a driver has."""
    names = build.simulated(build.SIM / TABLES[library])
    said = ask(bare, oracle, "names", FILES[library], lines=names)
    return {line.split(" ")[0] for line in said if not line.endswith(" null")}


@pytest.mark.parametrize("library", FILES)
def test_every_name_is_found_or_not_found_as_in_the_driver(
    places: tuple[Tenant, Tenant], oracle: Path, library: str
) -> None:
    names = [*build.simulated(build.SIM / TABLES[library]), "cuNoSuchFunction", "nvmlNoSuchFunction"]
    bare, ours = (ask(place, oracle, "names", FILES[library], lines=names) for place in places)
    expected = [exchanged(line) for line in bare]
    assert [pair for pair in zip(expected, ours, strict=True) if pair[0] != pair[1]] == []
    assert any(line.endswith(" null") for line in bare)
    assert sum(f" {FILES[library]}:" in line for line in bare) > 300


@pytest.mark.parametrize(
    ("library", "init", "says"),
    [("CUDA", "-", None), ("CUDA", "cuInit", 100), ("NVML", "-", None), ("NVML", "nvmlInit_v2", 9)],
    ids=["CUDA-before-init", "CUDA-after-init", "NVML-before-init", "NVML-after-init"],
)
def test_what_the_driver_turns_down_it_turns_down_alike(
    places: tuple[Tenant, Tenant], oracle: Path, library: str, init: str, says: int | None
) -> None:
    """Every function that the shim changes, with NULL and zeros, and with valid pointers."""
    names = [row.symbol for row in intercepts() if row.library == library and row.symbol not in CRASHES]
    bare, ours = (ask(place, oracle, "calls", FILES[library], init, lines=names) for place in places)
    assert [pair for pair in zip(bare, ours, strict=True) if pair[0] != pair[1]] == []
    if says is not None:
        assert f"{init} {says}" in [re.sub(r"^(\S+ \S+).*", r"\1", line) for line in bare]
