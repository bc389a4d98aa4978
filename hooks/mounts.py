# SPDX-License-Identifier: Apache-2.0
"""
Mounts placed inside a container that is being created, by file descriptor.

The invariant: whatever the image holds, nothing outside its root is opened, made or mounted on. So every
path of the image is resolved by the kernel with the image as its root (openat2, RESOLVE_IN_ROOT), the last
component is never a symbolic link, and a mount goes to the descriptor that was resolved, not to a path.

The odd part is the order. The sources belong to the host, so they are cloned before the container's mount
namespace is entered. The targets belong to that namespace, so they are opened after. The container has not
pivoted yet: its future root is seen at the host's path. `/proc/PID/root` would be the host's own root here.

A child process does it all, because a process that has entered another mount namespace can no longer be
trusted to clean up in its own. Linux 5.12 or later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vgpu_runtime.errors import NodeError, VgpuError

# The newer system calls have one number on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_OPEN_TREE_CLONE = 1
_MOVE_EMPTY_PATHS = 0x4 | 0x40
_RESOLVE = 0x10 | 0x2  # in root, no magic links
_AT_EMPTY_PATH = 0x1000
_READ_ONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_MS_PRIVATE = 1 << 18
_CLONE_NEWNS = 0x20000

_MERGE_LIMIT = 64 * 1024  # bytes of an image's own file that are taken over

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Bind:
    """One file or directory of the host and the path at which the container sees it.

    Binds are mounted in the order given, so a directory comes before what lies in it.
    """

    source: Path
    target: PurePosixPath
    writable: bool = False
    executable: bool = False
    # Given what the image itself has at `target` (b"" for nothing), the text that `source` is to hold.
    merge: Callable[[bytes], bytes] | None = None


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


# ---- system calls ------------------------------------------------------------------------------


def _call(what: str, number: int, *arguments: object) -> int:
    """A system call; OSError with `what` as its file name when it fails."""
    # An int has to be passed as a long: ctypes would cut it to 32 bits.
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _set_attributes(fd: int, what: str, **values: int) -> None:
    attributes = _Attributes(**values)
    size = ctypes.sizeof(attributes)
    _call(what, _MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)


def _clone(bind: Bind) -> int:
    """A mount of the source that is attached nowhere yet, with its final attributes."""
    source = str(bind.source)
    tree = _call(source, _OPEN_TREE, -100, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    attributes = _NOSUID | _NODEV | (0 if bind.writable else _READ_ONLY) | (0 if bind.executable else _NOEXEC)
    # A library on a noexec mount could not be preloaded, and the dynamic linker only warns of that.
    _set_attributes(tree, source, set=attributes, clear=_NOEXEC if bind.executable else 0, propagation=_MS_PRIVATE)
    return tree


def _resolve(root: int, path: PurePosixPath, flags: int) -> int:
    """Open `path` as a process whose root is `root` would."""
    how = _How(flags | os.O_CLOEXEC, 0, _RESOLVE)
    inside = os.fsencode(str(path).lstrip("/") or ".")
    return _call(str(path), _OPENAT2, root, inside, ctypes.byref(how), ctypes.sizeof(how))


# ---- mount points --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    """Something made in the image: where, its name, and whether it is a directory."""

    parent: int
    name: str
    is_directory: bool


def _open_directory(root: int, path: PurePosixPath, made: list[_Made]) -> int:
    """Open a directory of the image; the parts that are missing are made."""
    current = _resolve(root, PurePosixPath("/"), os.O_PATH | os.O_DIRECTORY)
    for depth in range(1, len(path.parts)):
        prefix = PurePosixPath(*path.parts[: depth + 1])
        try:
            current = _resolve(root, prefix, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            try:
                os.mkdir(prefix.name, 0o755, dir_fd=current)
            except FileExistsError:
                raise NodeError(
                    f"{prefix} of the image is a symbolic link that leads nowhere inside the image",
                    hint=f"make {prefix} a directory in the image",
                ) from None
            made.append(_Made(current, prefix.name, True))
            current = _resolve(root, prefix, os.O_PATH | os.O_DIRECTORY)
    return current


def _open_point(root: int, path: PurePosixPath, is_directory: bool, made: list[_Made]) -> int:
    """The mount point for `path`, made when it is missing, never a symbolic link."""
    parent = _open_directory(root, path.parent, made)
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        point = os.open(path.name, flags, dir_fd=parent)
    except FileNotFoundError:
        if is_directory:
            os.mkdir(path.name, 0o755, dir_fd=parent)
        else:
            new = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(path.name, new, 0o644, dir_fd=parent))
        made.append(_Made(parent, path.name, is_directory))
        point = os.open(path.name, flags, dir_fd=parent)
    mode = os.fstat(point).st_mode
    if stat.S_ISLNK(mode):
        raise NodeError(
            f"{path} of the image is a symbolic link, and a limit is not mounted through one",
            hint=f"remove {path} from the image, or make it a plain {'directory' if is_directory else 'file'}",
        )
    if stat.S_ISDIR(mode) != is_directory:
        raise NodeError(
            f"{path} of the image is {'no' if is_directory else 'a'} directory",
            hint=f"remove {path} from the image",
        )
    if _is_shared(point):
        raise NodeError(
            f"{path} of the container lies on a volume that shares its mounts with the host",
            hint="mount that volume without `shared` propagation, or elsewhere",
        )
    return point


def _point_of(root: int, bind: Bind, directories: set[PurePosixPath], made: list[_Made]) -> int:
    """_open_point() for a bind, with errors that name its whole path."""
    try:
        return _open_point(root, bind.target, bind.target in directories, made)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(bind.target)) from error


def _is_shared(fd: int) -> bool:
    """Whether a mount made on `fd` would appear in other namespaces too."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    number = fields["mnt_id"].strip()
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines():
        columns = line.split(" ")
        if columns[0] == number:
            return any(each.startswith("shared:") for each in columns[6 : columns.index("-")])
    return False


def _unmake(made: Sequence[_Made]) -> None:
    """Take back what was made in the image; what is in use by now stays."""
    for each in reversed(made):
        try:
            if each.is_directory:
                os.rmdir(each.name, dir_fd=each.parent)
            else:
                os.unlink(each.name, dir_fd=each.parent)
        except OSError:
            continue


# ---- mounting ------------------------------------------------------------------------------------


def _read_point(point: int) -> bytes:
    """What the image has at a mount point; only a plain file counts."""
    if not stat.S_ISREG(os.fstat(point).st_mode):
        return b""
    with open(f"/proc/self/fd/{point}", "rb") as file:
        text = file.read(_MERGE_LIMIT + 1)
    if len(text) > _MERGE_LIMIT:
        raise NodeError(
            f"the image's own /etc/ld.so.preload is larger than {_MERGE_LIMIT} bytes",
            hint="remove it from the image, or make it smaller",
        )
    return text


def _write_all(fd: int, text: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(text)


def _enter(pid: int) -> None:
    """Enter the mount namespace of a container that has not pivoted yet."""
    if Path("/proc/self/ns/mnt").samefile(f"/proc/{pid}/ns/mnt"):
        raise NodeError(
            "the container has no mount namespace of its own, so a mount in it would be one on the host",
            hint='add {"type": "mount"} to linux.namespaces of config.json',
        )
    if not Path("/").samefile(f"/proc/{pid}/root"):
        raise NodeError(
            "the container has its own root already: the hook runs too late",
            hint="register it for the stage createRuntime (or prestart)",
        )
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.setns(namespace, _CLONE_NEWNS):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"/proc/{pid}/ns/mnt")


def _mount_all(pid: int, rootfs: Path, binds: Sequence[Bind]) -> None:
    """Clone, enter, make every mount point, then mount: nothing is mounted unless all of it can be."""
    trees = [_clone(bind) for bind in binds]
    outputs = {bind.target: os.open(bind.source, os.O_WRONLY | os.O_CLOEXEC) for bind in binds if bind.merge}
    directories = {bind.target for bind in binds if bind.source.is_dir()}
    os.umask(0)
    _enter(pid)
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    made: list[_Made] = []
    points: dict[PurePosixPath, int] = {}
    try:
        for bind in binds:
            if directories.isdisjoint(bind.target.parents):
                points[bind.target] = _point_of(root, bind, directories, made)
        for bind in binds:
            if bind.merge:
                _write_all(outputs[bind.target], bind.merge(_read_point(points[bind.target])))
    except BaseException:
        _unmake(made)
        raise
    for bind, tree in zip(binds, trees, strict=True):
        # What lies in a directory of ours is found only now that the directory is mounted.
        point = points.get(bind.target) or _point_of(root, bind, directories, [])
        _call(str(bind.target), _MOVE_MOUNT, tree, b"", point, b"", _MOVE_EMPTY_PATHS)


def _explain(error: Exception) -> str:
    """One message and its hint, on two lines."""
    if isinstance(error, VgpuError):
        return f"{error}\n{error.hint}"
    if isinstance(error, OSError):
        hints = {
            errno.EROFS: "the image is read-only: add it (empty) to the image",
            errno.ENOSYS: "Linux 5.12 or later is needed",
            errno.EPERM: "the hook has to run as root of the host",
        }
        return f"cannot mount {error.filename}: {error.strerror}\n{hints.get(error.errno or 0, '')}"
    return f"{type(error).__name__}: {error}\n"


def mount_into(pid: int, rootfs: Path, binds: Sequence[Bind]) -> None:
    """Mount `binds` into the container whose first process is `pid` and whose root will be `rootfs`.

    `rootfs` is an absolute path of the host. Raises NodeError with the reason; then nothing is mounted, save
    where the kernel refused one mount after it took another: those go with the container's namespace.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            _mount_all(pid, rootfs, binds)
            status = 0
        except Exception as error:
            os.write(writer, _explain(error).encode(errors="replace")[:4096])
        finally:
            os._exit(status)
    os.close(writer)
    try:
        with open(reader, "rb") as answer:
            text = answer.read().decode(errors="replace")
    except BaseException:
        os.kill(child, 9)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if status:
        message, _, hint = text.partition("\n")
        raise NodeError(message or f"the mounting process ended with status {status}", hint=hint)
