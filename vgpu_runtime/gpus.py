# SPDX-License-Identifier: Apache-2.0
"""
The devices of this machine, through NVML: the only user of `pynvml`.

Which NVML answers is the dynamic linker's choice, as for every other program. A simulated machine is put in
its way by loading its library first: pynvml asks for `libnvidia-ml.so.1`, and the linker gives it the
library that already bears this name.

Where MIG is on, a GPU runs nothing by itself, so its instances are listed and the GPU is not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vgpu_runtime.errors import NodeError
from vgpu_runtime.model import Device

NVML = "libnvidia-ml.so.1"


def devices(driver: Path | None = None) -> list[Device]:
    """The devices that a tenant can be given, in NVML's order.

    `driver` is the directory of a simulated machine; None: this machine's own driver. Raises NodeError with
    the cure when there is no driver, no device, or NVML fails.
    """
    with _nvml(driver) as nvml:
        try:
            found = list(_devices(nvml))
        except nvml.NVMLError as error:
            raise NodeError(f"NVML cannot list the devices: {error}", hint="does `nvidia-smi` work?") from error
    if not found:
        raise NodeError("this machine has no GPU", hint="try the simulated one: --sim h200")
    return found


@contextmanager
def _nvml(driver: Path | None) -> Iterator[Any]:
    import pynvml

    if driver is not None:
        try:
            # Not RTLD_GLOBAL: its symbols are nobody's but pynvml's, who asks this very handle.
            ctypes.CDLL(str(driver / NVML))
        except OSError as error:
            raise NodeError(f"the simulated driver cannot be loaded: {error}", hint="run `make build`") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NodeError(
            f"no NVIDIA driver answers here: {error}",
            hint="install the NVIDIA driver (does `nvidia-smi` work?), or try a simulated GPU: --sim h200",
        ) from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _devices(nvml: Any) -> Iterator[Device]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if _mig_is_on(nvml, handle):
            yield from _instances(nvml, handle, index)
        else:
            yield _device(nvml, handle, str(index))


def _device(nvml: Any, handle: Any, index: str) -> Device:
    return Device(
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory=_memory(nvml, handle),
    )


def _memory(nvml: Any, handle: Any) -> int:
    """What programs can have of a device: what the driver keeps for itself nobody can be given."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:  # a driver older than the figure
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return int(memory.total - memory.reserved)


def _mig_is_on(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _instances(nvml: Any, handle: Any, index: int) -> Iterator[Device]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError_NotFound:
            continue  # a free place
        yield _device(nvml, instance, f"{index}:{number}")
