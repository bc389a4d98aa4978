# SPDX-License-Identifier: Apache-2.0
"""
What the shim is judged on: the driver under it, tenants, and the C programs of ``programs/``.

The driver is the simulated GPU, or with ``--driver=gpu`` this machine's own; sizes are taken from the device.
What a context takes is granted beside a tenant's quota, so that a quota is what a test's programs can allocate
whatever is under them. A test that needs a machine of a certain kind asks for ``make_machine`` or ``make_driver``,
or is marked ``simulated``; such tests are left out with ``--driver=gpu``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
import vgpu_shim
from tools.tenants import GIB, MIB, NATIVE, PROGRAMS, Driver, Tenant, compile_c, create, real, simulated

SIMULATED = {
    "make_machine": "the test makes a simulated machine of a certain kind, such as one of several devices",
    "make_driver": "the test makes a driver of its own, such as an old one",
    "outcomes": "the rows want a second device, to see that it is hidden, and a neighbour whose load is known",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, where a real card is to be judged, what would judge a simulated machine."""
    if config.getoption("--driver") != "gpu":
        return
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        mark = item.get_closest_marker("simulated")
        reasons = [reason for name, reason in SIMULATED.items() if name in getattr(item, "fixturenames", ())]
        if mark or reasons:
            item.add_marker(pytest.mark.skip(reason=mark.args[0] if mark else reasons[0]))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile a program of ``programs/``, linked to the driver, once."""
    folder = tmp_path_factory.mktemp("programs")

    def get(name: str) -> Path:
        made = folder / name
        if not made.exists():
            # Against the simulated driver: a real one has the same names, and may not be there.
            compile_c(made, PROGRAMS / f"{name}.c", flags=["-O1"],
                      link=["-Wl,--no-as-needed", f"-L{NATIVE / 'sim'}", "-l:libcuda.so.1", "-l:libnvidia-ml.so.1",
                            "-ldl", "-lpthread", "-Wl,--allow-shlib-undefined"])  # fmt: skip
        return made

    return get


@pytest.fixture(scope="module")
def module_driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The driver of this run, shared by a file's tests."""
    if request.config.getoption("--driver") == "gpu":
        return real()
    return simulated("h200", tmp_path_factory.mktemp("machine") / "driver")


@pytest.fixture
def make_machine(tmp_path: Path) -> Callable[[str], Driver]:
    """Make a simulated machine from a preset's name or from the text of a machine file."""

    def make(spec: str) -> Driver:
        if "\n" in spec:
            file = tmp_path / "machine.yaml"
            file.write_text(textwrap.dedent(spec))
            spec = str(file)
        return simulated(spec, tmp_path / f"driver-{Path(spec).stem}")

    return make


@pytest.fixture
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    """The driver of this run: a new simulated H200, or the real one."""
    if request.config.getoption("--driver") == "gpu":
        return real()
    return simulated("h200", tmp_path / "driver")


@pytest.fixture
def make_driver(tmp_path: Path) -> Callable[..., Driver]:
    """Make a driver of a C file of ``programs/``, which has no NVML; ``devices`` are those that it claims."""

    def make(name: str, *devices: vgpu_shim.Device) -> Driver:
        folder = tmp_path / name
        folder.mkdir()
        compile_c(folder / "libcuda.so.1", PROGRAMS / f"{name}.c", flags=["-O1", "-fPIC", "-shared"],
                  link=["-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic", "-ldl"])  # fmt: skip

        class Made(Driver):
            def environment(self, **more: str) -> dict[str, str]:
                return {**Driver.environment(self, **more), "LD_LIBRARY_PATH": str(folder)}

        return Made(devices, None)

    return make


class Make(Protocol):
    """Makes a tenant; without a driver, on the one of this run. ``processes`` of it may have a context at once."""

    def __call__(
        self,
        memory: int | None = None,
        cores: int | None = None,
        *,
        devices: Sequence[int] = (0,),
        on: Driver | None = None,
        processes: int = 1,
    ) -> Tenant: ...


@pytest.fixture
def make_tenant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make tenants that end with the test."""
    made: list[Tenant] = []

    def make(
        memory: int | None = None,
        cores: int | None = None,
        *,
        devices: Sequence[int] = (0,),
        on: Driver | None = None,
        processes: int = 1,
    ) -> Tenant:
        driver = on or request.getfixturevalue("driver")
        made.append(create(tmp_path / "state", driver, memory, cores, devices, processes))
        return made[-1]

    yield make
    for tenant in made:
        tenant.stop()


@pytest.fixture
def bare(driver: Driver) -> Iterator[Tenant]:
    """The driver without us: what a limit is compared with."""
    tenant = Tenant(driver, preload="")
    yield tenant
    tenant.stop()


@pytest.fixture
def quota(driver: Driver) -> int:
    """A memory quota: a sixteenth of the device, more of a small one, in whole steps by which pools grow."""
    memory = driver.devices[0].memory
    return max(memory // 16, min(memory // 4, 4 * GIB)) // (64 * MIB) * (64 * MIB)
