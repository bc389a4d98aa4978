# SPDX-License-Identifier: Apache-2.0
"""
What a simulated machine is: its GPUs and how they behave.

A machine is named by a preset (``h200``), by several of one (``8xa100-80g``), or by a machine file. All
give a Description, with every field of the shared file's constant part; nothing is made here.

A machine file, every field but ``devices`` and ``model`` optional::

    name: lab                       # default: the file's name without its ending
    driver_version: 580.95.05
    cuda_version: 13000             # 13.0; cuGetProcAddress has no function that came later
    lacks: [cuMemCreate]            # functions that libcuda.so.1 does not export at all
    devices:
      - model: h200                 # a preset
        count: 2
      - model: t4
        memory_total: 8GiB          # any field of the preset (presets.yaml)
    knobs:
      context_overhead: 300MiB      # any field of `struct sim_knobs` (native/sim/machine.h)
      sharing: time-slices          # or processor-sharing
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from vgpu_runtime.errors import ConfigError
from vgpu_runtime.units import format_memory, parse_memory

PRESETS = Path(__file__).resolve().with_name("presets.yaml")

MAX_DEVICES = 16
NAME_RULE = "letters, digits, '.', '_' and '-', starting with a letter or digit, at most 63"

# One namespace for all, so that a machine of one name has the same devices everywhere.
_UUIDS = uuid.UUID("6f1d2f5e-6a0b-5c7e-9d0c-3f0a1b7c9e21")

U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
FunctionName = Annotated[str, msgspec.Meta(pattern=r"^cu\w+$", max_length=78)]
Size = U64 | str
"""Bytes, or a text such as 80GiB."""


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a device is: the fields of ``struct sim_identity`` that a file may set. None: not said here."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=63)] | None = None
    pci_device_id: U32 | None = None
    pci_subsystem_id: U32 | None = None
    memory_total: Size | None = None
    memory_reserved: Size | None = None
    bar1_total: Size | None = None
    shared_per_sm: Size | None = None
    shared_per_block: Size | None = None
    shared_per_block_optin: Size | None = None
    l2_cache: Size | None = None
    sm_count: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    capability_major: U32 | None = None
    capability_minor: U32 | None = None
    threads_per_sm: U32 | None = None
    blocks_per_sm: U32 | None = None
    registers_per_sm: U32 | None = None
    memory_bus_bits: U32 | None = None
    sm_clock_mhz: U32 | None = None
    sm_clock_idle_mhz: U32 | None = None
    memory_clock_mhz: U32 | None = None
    power_limit_mw: U32 | None = None
    power_idle_mw: U32 | None = None
    temperature_c: U32 | None = None
    pcie_generation: U32 | None = None
    pcie_width: U32 | None = None
    ecc: bool | None = None
    mig_capable: bool | None = None
    nvml_brand: U32 | None = None
    nvml_architecture: U32 | None = None


class Preset(Identity, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model of ``presets.yaml``."""

    architecture: str


class FileDevice(Identity, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One entry of a machine file's ``devices``."""

    model: str
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEVICES)] = 1


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a machine behaves: the fields of ``struct sim_knobs``, which gives their meaning."""

    context_overhead: Size = 300 * 2**20
    kernel_ns: U64 = 10_000
    copy_latency_ns: U64 = 2_000
    copy_bytes_per_us: U64 = 25_000
    quantum_ns: Annotated[int, msgspec.Meta(ge=1_000, le=2**62)] = 2_000_000
    switch_ns: U64 = 0
    launch_cpu_ns: U64 = 0
    alloc_cpu_ns: U64 = 0
    sample_ns: Annotated[int, msgspec.Meta(ge=1_000_000, le=2**62)] = 166_666_667
    module_overhead: Size = 0
    queue_depth: Annotated[int, msgspec.Meta(ge=1, lt=2**20)] = 1024
    sharing: Literal["time-slices", "processor-sharing"] = "time-slices"
    null_mode: bool = False
    process_view: bool = True
    pid_offset: Annotated[int, msgspec.Meta(gt=-(2**31), lt=2**31)] = 0


class MachineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine file as it is written."""

    devices: Annotated[list[FileDevice], msgspec.Meta(min_length=1)]
    name: str | None = None
    driver_version: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{3}(\.[0-9]{1,3}){1,2}$")] = "580.95.05"
    cuda_version: Annotated[int, msgspec.Meta(ge=11000, lt=20000)] = 13000
    lacks: Annotated[tuple[FunctionName, ...], msgspec.Meta(max_length=50)] = ()
    knobs: Knobs = Knobs()


class PresetsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``presets.yaml`` as it is written."""

    architectures: dict[str, Identity]
    models: dict[str, Preset]


@dataclass(frozen=True, slots=True)
class Device:
    """One simulated device."""

    uuid: str
    fields: Mapping[str, int | str]
    """Fields of ``struct sim_identity``, but for the UUID."""

    @property
    def name(self) -> str:
        """What NVML and CUDA call it."""
        return str(self.fields["name"])

    @property
    def memory(self) -> int:
        """Bytes in all, as NVML counts them: those that the driver keeps included."""
        return int(self.fields["memory_total"])

    @property
    def usable(self) -> int:
        """Bytes that programs can have: without those that the driver keeps."""
        return self.memory - int(self.fields["memory_reserved"])


@dataclass(frozen=True, slots=True)
class Description:
    """A machine as it is to be."""

    name: str
    driver_version: str
    cuda_version: int
    devices: tuple[Device, ...]
    knobs: Mapping[str, int]
    lacks: tuple[str, ...] = ()
    """Functions that its ``libcuda.so.1`` does not have."""


def presets() -> tuple[str, ...]:
    """Return the names of the models."""
    return tuple(_presets().models)


def describe(spec: str) -> Description:
    """Return the machine that a preset's name, a number of them, or a machine file's path means.

    Raises
        ConfigError: there is no such preset or file, or the file is wrong; with the path of the key.
    """
    if "/" in spec or spec.endswith((".yaml", ".yml")):
        return _from_file(Path(spec))
    match = re.fullmatch(r"(?:([0-9]{1,3})x)?([a-z0-9.-]+)", spec, re.ASCII)
    if match is None or match[2] not in presets():
        raise ConfigError(
            f"there is no simulated machine {spec!r}",
            hint=f"presets: {', '.join(presets())}; several of one: 2xh200; or the path of a machine file (.yaml)",
        )
    count = int(match[1] or 1)
    if not 1 <= count <= MAX_DEVICES:
        raise ConfigError(
            f"machine {spec!r}: a machine has 1 to {MAX_DEVICES} devices", hint=f"for example 8x{match[2]}"
        )
    return _description(spec, MachineFile(devices=[FileDevice(model=match[2], count=count)]))


def _from_file(path: Path) -> Description:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise ConfigError(f"machine file {path}: {reason}", hint="give the path of a YAML file") from error
    try:
        wanted = msgspec.convert(yaml.safe_load(text), MachineFile)
        return _description(wanted.name or path.stem, wanted)
    except yaml.YAMLError as error:
        raise ConfigError(f"machine file {path}: not YAML: {' '.join(str(error).split())}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"machine file {path}: {error}", hint=f"the fields are those of {PRESETS}") from error
    except ConfigError as error:
        raise ConfigError(f"machine file {path}: {error}", hint=error.hint) from error


@functools.cache
def _presets() -> PresetsFile:
    return msgspec.convert(yaml.safe_load(PRESETS.read_text()), PresetsFile)


def _said(part: Identity) -> dict[str, Any]:
    """Return the fields of ``struct sim_identity`` that a file says something about."""
    return {name: value for name in Identity.__struct_fields__ if (value := getattr(part, name)) is not None}


DEFAULTS: dict[str, Any] = {
    "registers_per_sm": 65536,
    "shared_per_block": 48 * 2**10,
    "pcie_width": 16,
    "temperature_c": 30,
    "ecc": True,
    "mig_capable": False,
}


def _description(name: str, wanted: MachineFile) -> Description:
    """Put together what the presets and the file say."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name, re.ASCII):
        raise ConfigError(f"name {name!r}: it must be of {NAME_RULE}", hint="for example lab")
    if (count := sum(device.count for device in wanted.devices)) > MAX_DEVICES:
        raise ConfigError(f"{count} devices: a machine has 1 to {MAX_DEVICES}", hint="lower `count`")
    devices: list[Device] = []
    for number, entry in enumerate(wanted.devices):
        where = f"$.devices[{number}]"
        if entry.model not in _presets().models:
            raise ConfigError(
                f"there is no model {entry.model!r} - at `{where}.model`", hint=f"models: {', '.join(presets())}"
            )
        preset = _presets().models[entry.model]
        architecture = _presets().architectures[preset.architecture]
        said = {**DEFAULTS, **_said(architecture), **_said(preset), **_said(entry)}
        fields = {key: _number(value, f"{where}.{key}") if key != "name" else value for key, value in said.items()}
        if fields["memory_reserved"] >= fields["memory_total"]:
            raise ConfigError(
                f"the driver would keep all of {format_memory(fields['memory_total'])} - at `{where}.memory_reserved`",
                hint="memory_total must be the larger",
            )
        devices += [_device(name, len(devices) + i, fields) for i in range(entry.count)]
    knobs = {key: _number(value, f"$.knobs.{key}") for key, value in msgspec.structs.asdict(wanted.knobs).items()}
    return Description(name, wanted.driver_version, wanted.cuda_version, tuple(devices), knobs, wanted.lacks)


SHARING = {"time-slices": 0, "processor-sharing": 1}


def _number(value: int | bool | str, where: str) -> int:
    """Return the value as the shared file has it."""
    if isinstance(value, int):
        return int(value)
    if value in SHARING:
        return SHARING[value]
    try:
        return parse_memory(value, 0)
    except ConfigError as error:
        raise ConfigError(f"{error} - at `{where}`", hint=error.hint) from error


def _device(machine: str, index: int, fields: Mapping[str, int | str]) -> Device:
    """Give a device what tells it from its neighbours; the same for the same machine's name."""
    identity = uuid.uuid5(_UUIDS, f"{machine}/{index}")
    place: dict[str, int | str] = {
        "serial": f"{int.from_bytes(identity.bytes[:5], 'big') % 10**13:013d}",
        "pci_domain": 0,
        "pci_bus": 0x10 + 8 * index,
        "pci_device": 0,
        "minor_number": index,
    }
    return Device(f"GPU-{identity}", {**fields, **place})
