# SPDX-License-Identifier: Apache-2.0
"""
Simulated machines as directories: each is a driver.

The directory of a machine holds ``libcuda.so.1``, ``libcuda.so`` and ``libnvidia-ml.so.1``, links to the
built simulator (or copies, for a driver that lacks functions); ``machine``, the shared file that is the
whole state; and ``machine.shared``, the bytes of memory that several processes use. A program that finds
its libraries there runs on the simulated GPUs; all programs that use one directory share them. The
libraries find the files beside themselves, so that no environment is needed.

This module writes the constant part of the file and zeroes the rest; from then on only the simulator
touches it. A machine that is there already is taken as it is, with everything that programs hold on it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgpu_runtime.errors import ConfigError, NodeError
from vgpu_runtime.machine_files import Description, Device, describe

LIBRARIES = Path(__file__).resolve().parent / "_native" / "sim"
LINKS = ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1")
MACHINE_FILE = "machine"
MEMORY_FILE = "machine.shared"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that is there: its description and the directory that is its driver."""

    description: Description
    directory: Path

    @property
    def name(self) -> str:
        """What it was called."""
        return self.description.name

    @property
    def devices(self) -> tuple[Device, ...]:
        """Its devices, as NVML counts them."""
        return self.description.devices

    @property
    def file(self) -> Path:
        """The shared file that is its state."""
        return self.directory / MACHINE_FILE

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return an environment in which programs find this machine's libraries before any others."""
        others = base.get("LD_LIBRARY_PATH", "")
        path = f"{self.directory}:{others}" if others else str(self.directory)
        # One that is left over would lead the libraries to another machine.
        kept = {name: value for name, value in base.items() if name != "VGPU_SIM_FILE"}
        return {**kept, "LD_LIBRARY_PATH": path}


def create(spec: str, directory: Path) -> Machine:
    """Make ``directory`` the driver of the machine that ``spec`` means, or take the one that it is already.

    Raises
        ConfigError: the machine cannot be meant (see describe), or the directory is another machine.
        NodeError: the simulator is not built, or the directory cannot be written.
    """
    description = describe(spec)
    directory = directory.absolute()
    ffi = _ffi()
    content = _content(ffi, description)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            there = _is_there(ffi, directory / MACHINE_FILE, content, description)
            for name, library in _driver(description).items():
                _install(directory / name, library)
            if not there:
                _write(directory / MEMORY_FILE, _Content(0, ()))
                _write(directory / MACHINE_FILE, content)
    except OSError as error:
        raise NodeError(
            f"cannot make the simulated machine in {directory}: {error.strerror}",
            hint="choose a state directory that you may write, with VGPU_STATE_DIR",
        ) from error
    return Machine(description, directory)


@dataclass(frozen=True, slots=True)
class _Content:
    """The shared file when it is new: these bytes at these places, zeroes else."""

    size: int
    parts: tuple[tuple[int, bytes], ...]
    """The first one begins with what says whether this simulator can use the file at all."""


LAYOUT = {"magic": 8, "abi": 4, "size": 8}
"""Fields and their sizes by which a simulator knows its layout; a file of another one is of use to nobody new."""


def _ffi() -> Any:
    """Return cffi's face of ``native/sim/machine.h``."""
    try:
        from vgpu_runtime._native import _machine
    except ImportError as error:
        raise NodeError("the simulated GPU is not built", hint="run `make build`") from error
    for name in LINKS:
        if not (LIBRARIES / name).exists():
            raise NodeError(f"the simulated GPU is not built: there is no {LIBRARIES / name}", hint="run `make build`")
    return _machine.ffi


def _content(ffi: Any, description: Description) -> _Content:
    """Return the shared file of a new machine. The constant part is all that stands before ``boot``, and
    the identity of each device."""
    image = ffi.new("struct sim_machine *")
    image.magic = ffi.integer_const("SIM_MAGIC")
    image.abi = ffi.integer_const("SIM_ABI")
    image.size = ffi.sizeof("struct sim_machine")
    image.device_count = len(description.devices)
    image.cuda_version = description.cuda_version
    image.driver_version = description.driver_version.encode()
    image.nvml_version = f"{description.cuda_version // 1000}.{description.driver_version}".encode()
    image.name = description.name.encode()
    image.lacks = "".join(f"\n{name}" for name in description.lacks).encode()
    for name, value in description.knobs.items():
        setattr(image.knobs, name, value)
    for index, device in enumerate(description.devices):
        into = image.devices[index].identity
        into.uuid = list(uuid.UUID(device.uuid.removeprefix("GPU-")).bytes)
        for name, field in device.fields.items():
            setattr(into, name, field.encode() if isinstance(field, str) else field)
    whole = ffi.buffer(image)
    places = [(0, ffi.offsetof("struct sim_machine", "boot"))]
    for index in range(len(description.devices)):
        start = ffi.offsetof("struct sim_machine", "devices", index, "identity")
        places.append((start, ffi.sizeof("struct sim_identity")))
    return _Content(len(whole), tuple((start, whole[start : start + size]) for start, size in places))


def _is_there(ffi: Any, path: Path, content: _Content, description: Description) -> bool:
    """Say whether the file is this machine already.

    Raises
        ConfigError: it is another machine, which programs may be using.
    """
    try:
        with path.open("rb") as file:
            found = tuple((start, os.pread(file.fileno(), len(part), start)) for start, part in content.parts)
            torn = os.fstat(file.fileno()).st_size != content.size
    except FileNotFoundError:
        return False
    if torn:
        return False
    if found == content.parts:
        return True
    old, new = found[0][1], content.parts[0][1]
    for name, size in LAYOUT.items():
        start = ffi.offsetof("struct sim_machine", name)
        if old[start : start + size] != new[start : start + size]:
            return False
    raise ConfigError(
        f"{path.parent} is a simulated machine already, and not as {description.name!r} is described now",
        hint=f"end its programs and remove {path.parent}, or give the new machine another name",
    )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory against other commands that make the same machine at this moment."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _driver(description: Description) -> dict[str, Path | bytes]:
    """Return the libraries by name: a link to the built one, or what stands there instead.

    Raises
        ConfigError: the driver is to lack a function that no driver has.
    """
    libraries: dict[str, Path | bytes] = {name: LIBRARIES / name for name in LINKS}
    if description.lacks:
        libraries["libcuda.so.1"] = _without((LIBRARIES / "libcuda.so.1").read_bytes(), description.lacks)
        libraries["libcuda.so"] = Path("libcuda.so.1")
    return libraries


DYNAMIC_SYMBOLS = 11
"""The type of the section that holds a library's exports."""


def _without(library: bytes, names: Iterable[str]) -> bytes:
    """Return an ELF library (64 bits, little-endian) in which nobody finds these exports: their names are spoilt.

    It must not look itself up by these names; libcuda is linked so that it never does.
    """
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count = struct.unpack_from("<HH", library, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", library, table + size * i) for i in range(count)]
    (symbols,) = (section for section in sections if section[1] == DYNAMIC_SYMBOLS)
    strings = sections[symbols[6]][4]
    places = {}
    for entry in range(symbols[4], symbols[4] + symbols[5], symbols[9]):
        start = strings + struct.unpack_from("<I", library, entry)[0]
        places[library[start : library.index(b"\0", start)].decode()] = start
    spoilt = bytearray(library)
    for name in names:
        if name not in places:
            raise ConfigError(f"lacks: no driver has a function {name}", hint="give the name of an export")
        spoilt[places[name]] = ord("-")
    return bytes(spoilt)


def _install(path: Path, library: Path | bytes) -> None:
    """Put a symbolic link or a file in place, unless it is there."""
    if isinstance(library, bytes):
        if path.is_symlink() or not path.exists() or path.read_bytes() != library:
            _write(path, _Content(len(library), ((0, library),)), 0o755)
        return
    if path.is_symlink() and path.readlink() == library:
        return
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(library)
    fresh.replace(path)


def _write(path: Path, content: _Content, mode: int = 0o666) -> None:
    """Write the file under another name and move it into place.

    Containers open it under users of their own, hence the mode.
    """
    fresh = path.with_name(f".{path.name}.fresh")
    with fresh.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        file.truncate(content.size)
        for start, part in content.parts:
            os.pwrite(file.fileno(), part, start)
    fresh.replace(path)
