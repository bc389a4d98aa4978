# SPDX-License-Identifier: Apache-2.0
"""
An OCI bundle of this machine's own programs, without an image and without a registry.

The root directory is made anew: an `/etc` and an `/opt` of its own, the host's `/usr` mounted read-only, and
the running Python with its virtual environment at their own paths. A simulated driver appears at its own
path as well, and the linker cache of the bundle names it before any other: a program finds it with an empty
environment, as it finds the real driver in a container of NVIDIA's toolkit.

The odd part is that cache: it is computed on the host, which is right only because every library lies at the
same path on both sides.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgpu_runtime.errors import NodeError

# What Docker and containerd give a container that asks for nothing.
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
# Their numbers, in the same order: the kernel shows capabilities as bits.
_CAPABILITY_BITS = (0, 1, 4, 3, 27, 13, 6, 7, 31, 8, 10, 18, 5, 29)
_MASKED = ("/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware")
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host, and where the container sees it (None: at its own path)."""

    source: Path
    target: Path | None = None
    writable: bool = False


def make_bundle(
    directory: Path,
    *,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    driver: Path | None = None,
    hook: Path | None = None,
    hook_env: Mapping[str, str] | None = None,
    hook_stage: str = "createRuntime",
    readonly_root: bool = False,
    extra_mounts: Iterable[Mount] = (),
    cgroup: str | None = None,
) -> Path:
    """Make an OCI bundle in `directory`, which must not exist yet, and return it.

    `argv` runs as root with `env`, no terminal, and the capabilities that engines give by default. `driver`
    is the directory of a simulated machine (libcuda.so.1, libcuda.so, libnvidia-ml.so.1, machine). `hook` is
    called at `hook_stage` and at poststop with exactly `hook_env` and a PATH. `cgroup` is the container's
    cgroup, from the root of the hierarchy; None lets the engine choose.

    Run it as root with `runc --root DIR run --bundle BUNDLE ID`. Raises NodeError when this machine lacks
    something that is needed.
    """
    rootfs = directory / "rootfs"
    links, mounts = _system(Path("/"))
    mounts += [*python_mounts(), *extra_mounts, *(_driver_mounts(driver) if driver else ())]
    _make_root(rootfs, links)
    _write_linker_cache(rootfs / "etc", driver)
    config = {
        "ociVersion": "1.0.2",
        "hostname": "vgpu",
        "root": {"path": "rootfs", "readonly": readonly_root},
        "process": _process(argv, env or {}),
        "mounts": [*_kernel_mounts(), *(_bind(mount) for mount in _distinct(mounts))],
        "annotations": dict(annotations or {}),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        }
        | ({"cgroupsPath": cgroup} if cgroup else {}),
    }
    if hook is not None:
        entry = _hook(hook, hook_env or {})
        config["hooks"] = {hook_stage: [entry], "poststop": [entry]}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return directory


def python_mounts() -> list[Mount]:
    """What the running Python needs: its virtual environment and the installation below it."""
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    # A prefix may be a link to the directory that the interpreter's own link names directly.
    prefixes |= {prefix.resolve() for prefix in prefixes}
    prefixes.add(Path(sys.executable).resolve().parent.parent)
    return [Mount(prefix) for prefix in sorted(prefixes)]


# ---- the root directory -----------------------------------------------------------------------------


def _system(host: Path) -> tuple[dict[str, str], list[Mount]]:
    """How /usr and the directories that may be links into it appear: links to repeat, and mounts."""
    links: dict[str, str] = {}
    mounts = [Mount(host / "usr")]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = host / name
        if path.is_symlink():
            links[name] = str(path.readlink())
        elif path.is_dir():
            mounts.append(Mount(path))
    alternatives = host / "etc/alternatives"
    if alternatives.is_dir():
        mounts.append(Mount(alternatives))
    return links, mounts


def _make_root(rootfs: Path, links: Mapping[str, str]) -> None:
    for name in ("etc", "opt", "root", "tmp", "run", "proc", "sys", "dev", "usr", "var/tmp", "home"):
        (rootfs / name).mkdir(parents=True)
    for name, target in links.items():
        (rootfs / name).symlink_to(target)
    etc = rootfs / "etc"
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
    (etc / "group").write_text("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
    (etc / "hosts").write_text("127.0.0.1 localhost vgpu\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")


def _write_linker_cache(etc: Path, driver: Path | None) -> None:
    """The linker's cache of the host, with the driver's directory before all others."""
    tool = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if tool is None:
        raise NodeError("this machine has no ldconfig", hint="install the package libc-bin")
    first = f"{driver}\n" if driver else ""
    (etc / "ld.so.conf").write_text(f"{first}include /etc/ld.so.conf\n")
    # -X: only the cache, no link is touched.
    command = [tool, "-X", "-f", str(etc / "ld.so.conf"), "-C", str(etc / "ld.so.cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodeError(f"ldconfig failed: {done.stderr.strip()}", hint="see whether `ldconfig -p` works")


def _driver_mounts(driver: Path) -> Iterator[Mount]:
    """The files of a simulated driver at their own path; the machine itself is shared and written by all."""
    for name in ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"):
        yield Mount((driver / name).resolve(strict=True), driver / name)
    for name in ("machine", "machine.shared"):
        yield Mount(driver / name, driver / name, writable=True)


# ---- config.json --------------------------------------------------------------------------------------


def _distinct(mounts: Iterable[Mount]) -> Iterator[Mount]:
    """Each target once, parents before children, without what another read-only mount shows already."""
    shown: list[Path] = []
    for target, mount in sorted({mount.target or mount.source: mount for mount in mounts}.items()):
        same_path = mount.source == target and not mount.writable
        if same_path and any(parent in shown for parent in target.parents):
            continue
        if same_path:
            shown.append(target)
        yield mount


def _bind(mount: Mount) -> dict[str, Any]:
    options = ["rbind", "nosuid", "nodev", "rprivate", "rw" if mount.writable else "ro"]
    target = mount.target or mount.source
    return {"destination": str(target), "type": "bind", "source": str(mount.source), "options": options}


def _kernel_mounts() -> list[dict[str, Any]]:
    def mount(target: str, kind: str, *options: str) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": kind, "options": ["nosuid", *options]}

    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        mount("/dev", "tmpfs", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        mount("/dev/shm", "tmpfs", "noexec", "nodev", "mode=1777", "size=65536k"),
        mount("/sys", "sysfs", "noexec", "nodev", "ro"),
        mount("/tmp", "tmpfs", "nodev", "mode=1777"),
    ]


def _capabilities() -> list[str]:
    """The usual ones, less those that this machine itself was denied."""
    status = Path("/proc/self/status").read_text().splitlines()
    bounding = next(int(line.split()[1], 16) for line in status if line.startswith("CapBnd:"))
    pairs = zip(_CAPABILITIES, _CAPABILITY_BITS, strict=True)
    return [f"CAP_{name}" for name, bit in pairs if bounding >> bit & 1]


def _process(argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    capabilities = _capabilities()
    variables = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **env}
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "cwd": "/",
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in variables.items()],
        "noNewPrivileges": True,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
    }


def _hook(hook: Path, env: Mapping[str, str]) -> dict[str, Any]:
    # A hook's environment is what its entry says and nothing else, and the script looks python3 up in PATH.
    variables = {"PATH": f"{Path(sys.executable).parent}:{_PATH}", **env}
    return {
        "path": str(hook),
        "args": [hook.name],
        "env": [f"{name}={value}" for name, value in variables.items()],
        "timeout": 60,
    }
