# SPDX-License-Identifier: Apache-2.0
"""
The nouns of the node's side, as frozen values.

Sizes are bytes, times are nanoseconds, cores are percent of a device. `None` where a limit could stand
means "not limited"; how the shared files write that down is the business of `grants` alone. What
`--json` prints are these values, field by field.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    """What becomes of a slice's cores."""

    FIXED = "fixed"  # never above the quota
    BALANCE = "balance"  # the quota is guaranteed, idle cores may be borrowed
    NONE = "none"  # compute is not limited


class Kind(StrEnum):
    """What a tenant is."""

    PROCESS = "process"  # programs under `vgpu run`
    CONTAINER = "container"  # one container; its ledger is not to be trusted


@dataclass(frozen=True, slots=True)
class Device:
    """One physical GPU, or one MIG instance; the UUID is its key."""

    uuid: str  # as NVML and CUDA_VISIBLE_DEVICES write it: GPU-… or MIG-…
    index: str  # as NVML counts: "0"; the second MIG instance of GPU 0 is "0:1"
    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant is entitled to on one device."""

    device: str  # UUID
    device_memory: int  # what the device has in all
    memory: int | None  # all that the tenant sees, the part that may spill included
    cores: int | None
    policy: Policy
    spill: int = 0  # so much of `memory` lies in host memory; 0: the device has room for all of it

    @property
    def device_part(self) -> int | None:
        """What the slice takes of the device's memory; None: it is not limited."""
        return None if self.memory is None else max(0, self.memory - self.spill)


@dataclass(frozen=True, slots=True)
class Usage:
    """What all processes of a tenant hold and have spent on one device."""

    memory: int  # in the device's memory
    refusals: int  # allocations refused
    device_time_ns: int
    throttled_ns: int  # time that launches were delayed, summed over threads
    launches: int
    spill: int = 0  # in host memory instead: `memory` and this together are what the tenant sees as used


@dataclass(frozen=True, slots=True)
class Slice:
    """One tenant's part of one device."""

    quota: Quota
    usage: Usage


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Page-locked memory of the host that a tenant may have and has; spilled memory is not of it."""

    quota: int | None
    usage: int
    refusals: int  # allocations refused


@dataclass(frozen=True, slots=True)
class Tenant:
    """One container, or the programs of one `vgpu run`."""

    name: str
    kind: Kind
    directory: str  # where its grant and ledger are
    pids: tuple[int, ...]  # live processes known to keep or use it, as this machine counts them
    slices: tuple[Slice, ...]
    fault: str  # why the ledger cannot be believed; its usage then reads 0. Empty: it can
    host_memory: HostMemory = HostMemory(None, 0, 0)
