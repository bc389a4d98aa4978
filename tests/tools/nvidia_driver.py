# SPDX-License-Identifier: Apache-2.0
"""
NVIDIA's real ``libcuda.so.1`` and ``libnvidia-ml.so.1``, fetched once into the user's cache.

Both load on a machine without a GPU and answer what needs none: which names and versions there are, and which
codes come back. So they judge the doors of the shim. As with ``nvidia_smi.py``, they are unpacked from the
distribution's own package by a private apt, never installed and never in the checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools import nvidia_smi
from tools.nvidia_smi import Unavailable

LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")


@dataclass(frozen=True, slots=True)
class Packages:
    """Where a distribution keeps a driver."""

    suite: str
    """Empty: this machine's own."""
    components: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Driver:
    """One driver, by the branch that it belongs to."""

    branch: str
    places: dict[str, Packages]
    """By the ``ID`` of ``/etc/os-release``."""

    def __str__(self) -> str:
        return self.branch


def debian(suite: str) -> Packages:
    return Packages(suite, "main contrib non-free", ("libcuda1", "libnvidia-ml1"))


def ubuntu(branch: str) -> Packages:
    return Packages("", "main restricted", (f"libnvidia-compute-{branch}",))


DRIVERS = (
    Driver("535", {"debian": debian("bookworm"), "ubuntu": ubuntu("535")}),
    Driver("550", {"debian": debian("trixie"), "ubuntu": ubuntu("550")}),
)


def folder_of(driver: Driver) -> Path:
    """
    Return the folder with a driver's two libraries, fetched if need be.

    Raises
        Unavailable: this machine cannot have them; the message says why.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "vgpu-runtime" / "drivers" / driver.branch
    if not folder.exists():
        release = nvidia_smi.os_release()
        packages = driver.places.get(release.get("ID", ""))
        if packages is None:
            raise Unavailable("only Debian and Ubuntu package the driver's libraries")
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Unavailable(f"{tool} is not on this machine")
        folder.parent.mkdir(parents=True, exist_ok=True)
        fetch(packages, release.get("VERSION_CODENAME", ""), driver, folder)
    return folder


def fetch(packages: Packages, codename: str, driver: Driver, folder: Path) -> None:
    """Download and unpack the packages in a scratch directory; keep only the two libraries."""
    own = [source for source in nvidia_smi.apt_sources() if source.suite == codename]
    if not own:
        raise Unavailable(f"apt on this machine has no source for {codename}")
    suite = packages.suite or codename
    lines = [nvidia_smi.Source(one.options, one.uri, suite).line(packages.components) for one in own]
    with tempfile.TemporaryDirectory(prefix="driver-", dir=folder.parent) as name:
        scratch = Path(name)
        apt = nvidia_smi.private_apt(scratch, lines)
        nvidia_smi.run([*apt("apt-get"), "update"], scratch)
        nvidia_smi.run([*apt("apt-get"), "download", *packages.names], scratch)
        for package in scratch.glob("*.deb"):
            nvidia_smi.run(["dpkg-deb", "--extract", str(package), str(scratch / "tree")], scratch)
        made = scratch / "libraries"
        made.mkdir()
        for library in LIBRARIES:
            keep(library, driver, scratch / "tree", made)
        if not folder.exists():  # another run may have been quicker
            made.rename(folder)


def keep(library: str, driver: Driver, tree: Path, target: Path) -> None:
    """Take one library out of the unpacked packages, under the name by which programs load it."""
    name = library.removesuffix(".1")
    found = [
        path
        for path in tree.rglob(f"{name}.*")
        if re.fullmatch(rf"{re.escape(name)}\.\d+\.[\d.]+", path.name) and path.is_file() and not path.is_symlink()
    ]
    if len(found) != 1 or not found[0].name.startswith(f"{name}.{driver.branch}."):
        named = ", ".join(path.name for path in found) or "none"
        raise Unavailable(f"the packages hold {named} where one {name}.{driver.branch}.* is expected")
    found[0].replace(target / library)
