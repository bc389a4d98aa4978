# SPDX-License-Identifier: Apache-2.0
"""Whatever an image holds, the hook touches nothing outside of it, and what the image preloads stays."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build
import pytest
from container.nodes import GIB, Containers, found, slice_command

LIMITS = {"VGPU_MEMORY": "10GiB"}
PRELOAD = "etc/ld.so.preload"


def link(path: str, target: str) -> Callable[[Path, Path], None]:
    """An image in which `path` is a symbolic link to `target`; HOST stands for a directory of the host."""

    def plant(image: Path, host: Path) -> None:
        place = image / path
        if place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.replace("HOST", str(host)))

    return plant


ATTACKS = {
    "/opt is an absolute link": link("opt", "HOST"),
    "/opt climbs out": link("opt", "../../../../../../../../HOST"),
    "/opt/vgpu is an absolute link": link("opt/vgpu", "HOST"),
    "/etc/ld.so.preload is an absolute link to nothing": link(PRELOAD, "HOST/new"),
    "/etc/ld.so.preload is an absolute link to a file": link(PRELOAD, "HOST/file"),
    "/etc/ld.so.preload climbs out": link(PRELOAD, "../../../../../../../../HOST/file"),
    "/etc/ld.so.preload goes through procfs": link(PRELOAD, "/proc/self/root/HOST/file"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_link_in_the_image_reaches_no_file_of_the_host(
    node: Containers, tmp_path: Path, attack: Callable[[Path, Path], None]
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("/usr/lib/secret.so\n")
    node.bundle("c1", "/bin/echo", "started", env=LIMITS)
    attack(node.rootfs("c1"), host)
    done = node.run("c1")
    assert done.returncode != 0
    assert "started" not in done.stdout
    assert "of the image is a symbolic link" in node.log()
    assert [path.name for path in host.iterdir()] == ["file"]
    assert (host / "file").read_text() == "/usr/lib/secret.so\n"
    made = node.rootfs("c1") / "opt/vgpu"
    assert made.is_symlink() or not made.exists()
    assert node.tenants() == []


def test_a_link_that_stays_inside_the_image_is_followed_there(node: Containers, tmp_path: Path) -> None:
    (tmp_path / "var/opt").mkdir(parents=True)
    node.bundle("c1", *slice_command(11 * GIB), env=LIMITS)
    image = node.rootfs("c1")
    (image / "opt").rmdir()
    (image / "opt").symlink_to("/var/opt")
    (image / "var/opt").mkdir()
    assert found(node.run("c1"))["cuda"] == 10 * GIB
    assert (image / "var/opt/vgpu").is_dir()


@pytest.fixture
def own_library(tmp_path: Path) -> Path:
    """A library that an image preloads by itself."""
    source, library = tmp_path / "own.c", tmp_path / "libown.so"
    source.write_text("int preloaded_by_the_image(void) { return 42; }\n")
    subprocess.run([*build.compiler(), "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    return library


@pytest.mark.parametrize("ending", ["\n", "", " # ours\n"])
def test_what_the_image_preloads_stays_preloaded(node: Containers, own_library: Path, ending: str) -> None:
    script = (
        "import ctypes, os; print(ctypes.CDLL(None).preloaded_by_the_image(), flush=True); "
        f"os.execv({sys.executable!r}, {[sys.executable, '/srv/programs/slice.py']!r})"
    )
    node.bundle("c1", sys.executable, "-c", script, env=LIMITS)
    image = node.rootfs("c1")
    (image / "srv").mkdir()
    shutil.copy(own_library, image / "srv/libown.so")
    own = f"/srv/libown.so{ending}"
    (image / PRELOAD).write_text(own)
    done = node.run("c1")
    assert done.stdout.splitlines()[0] == "42"
    assert found(done)["cuda"] == 10 * GIB
    assert (image / PRELOAD).read_text() == own


def test_a_preload_file_that_is_not_a_plain_one_is_refused(node: Containers) -> None:
    node.bundle("c1", "/bin/echo", "started", env=LIMITS)
    (node.rootfs("c1") / PRELOAD).mkdir()
    assert node.run("c1").returncode != 0
    assert f"/{PRELOAD} of the image is a directory" in node.log()
    assert node.tenants() == []


@pytest.mark.parametrize("engine", ["runc"], indirect=True)  # the command before crun hides the shared mount
def test_a_volume_that_shares_its_mounts_with_the_host_is_refused(node: Containers, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    share = (
        'mount --bind "$0" "$0"; mount --make-shared "$0"; "$@"; code=$?; '
        'grep -c " $0/vgpu " /proc/self/mountinfo; exit $code'
    )
    engine = dataclasses.replace(
        node.engine, prefix=("unshare", "-m", "--propagation", "private", "sh", "-c", share, str(volume))
    )
    shared = dataclasses.replace(node, engine=engine)
    node.bundle("c1", "/bin/echo", "started", env=LIMITS)

    def share_it(config: dict[str, Any]) -> None:
        options = ["rbind", "rw", "rshared"]
        config["mounts"].append({"destination": "/opt", "type": "bind", "source": str(volume), "options": options})

    node.change("c1", share_it)
    done = shared.run("c1")
    assert done.returncode != 0
    assert done.stdout.splitlines() == ["0"]
    assert "shares its mounts with the host" in node.log()
    assert list(volume.iterdir()) == []
