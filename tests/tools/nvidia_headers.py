# SPDX-License-Identifier: Apache-2.0
"""
NVIDIA's public headers of several releases, fetched once into the user's cache.

They come from the header wheels on the Python package index, are read by tests on this machine alone, and are
never in the checkout.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """The headers cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Release:
    """One toolkit: the wheel with ``cuda.h`` and the one with ``nvml.h``."""

    name: str
    cuda: str
    nvml: str

    def __str__(self) -> str:
        return self.name


RELEASES = (
    Release("11.8", "nvidia-cuda-runtime-cu11==11.8.89", "nvidia-nvml-dev-cu11==11.8.86"),
    Release("12.0", "nvidia-cuda-runtime-cu12==12.0.146", "nvidia-nvml-dev-cu12==12.0.140"),
    Release("12.4", "nvidia-cuda-runtime-cu12==12.4.127", "nvidia-nvml-dev-cu12==12.4.127"),
    Release("12.9", "nvidia-cuda-runtime-cu12==12.9.79", "nvidia-nvml-dev-cu12==12.9.79"),
    Release("13.0", "nvidia-cuda-runtime==13.0.96", "nvidia-nvml-dev==13.0.87"),
    Release("13.5", "nvidia-cuda-runtime==13.5.37", "nvidia-nvml-dev==13.5.37"),
)
"""The first and the last of each generation, and the one between that most drivers in use belong to; in ascending
order. A new toolkit is a new line here."""

FOREIGN = {
    # What the headers include and these wheels lack. Only sizes matter.
    "GL/gl.h": "typedef unsigned int GLenum; typedef unsigned int GLuint;",
    "EGL/egl.h": "typedef int EGLint; typedef void *EGLSyncKHR; typedef void *EGLStreamKHR; typedef void *EGLImageKHR;",
    "EGL/eglext.h": "",
    "vdpau/vdpau.h": "#include <stdint.h>\ntypedef uint32_t VdpDevice; typedef uint32_t VdpVideoSurface;"
    "typedef uint32_t VdpOutputSurface; typedef int VdpGetProcAddress(uint32_t, uint32_t, void **);",
}


def cache() -> Path:
    """The directory of this user's cache where they are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vgpu-runtime" / "headers"


def fetch(releases: tuple[Release, ...] = RELEASES) -> dict[Release, Path]:
    """
    Return the folder of each release's headers.

    Raises
        Unavailable: one of them is not in the cache and cannot be downloaded.
    """
    with concurrent.futures.ThreadPoolExecutor(len(releases)) as pool:
        return dict(zip(releases, pool.map(folder_of, releases), strict=True))


def folder_of(release: Release) -> Path:
    """Return the folder of one release's headers, filled if need be."""
    folder = cache() / "-".join(wheel.partition("==")[2] for wheel in (release.cuda, release.nvml))
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent) as name:
        scratch = Path(name)
        download(release, scratch)
        made = scratch / "include"
        made.mkdir()
        for wheel in scratch.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for path in headers_in(archive):
                    (made / Path(path).name).write_bytes(archive.read(path))
        for path, text in FOREIGN.items():
            (made / path).parent.mkdir(exist_ok=True)
            (made / path).write_text(text + "\n")
        if not folder.exists():  # another run may have been quicker
            made.rename(folder)
    return folder


def download(release: Release, target: Path) -> None:
    """Download the wheels of a release."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(target),
        release.cuda,
        release.nvml,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"NVIDIA's headers of {release}: no package index answers") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip gives no reason"])[-1]
        raise Unavailable(f"NVIDIA's headers of {release} cannot be downloaded: {reason}")


def headers_in(archive: zipfile.ZipFile) -> Iterator[str]:
    """The C headers of a wheel, runtime library's aside."""
    for path in archive.namelist():
        name = path.rpartition("/")[2]
        if name == "nvml.h" or (name.startswith("cuda") and name.endswith(".h")):
            yield path
