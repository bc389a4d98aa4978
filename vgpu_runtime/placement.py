# SPDX-License-Identifier: Apache-2.0
"""
Choosing a device for a slice.

A choice is a pure function of the wish and the tenants: same input, same device. Quotas are added up, not
what happens to be in use now, because a tenant may take all of its quota at any moment; of a quota that may
spill, only the part in the device counts. The final word is the admission in `tenant.c`, which counts the same
way under a lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vgpu_runtime.model import Policy, Quota, Tenant


@dataclass(frozen=True, slots=True)
class Room:
    """What the tenants of a device leave of it."""

    memory: int
    cores: int
    tenants: int


def room_on(device: str, device_memory: int, tenants: Sequence[Tenant]) -> Room:
    """What `tenants` leave of the device of that UUID; only limited quotas take something away."""
    quotas = [part.quota for tenant in tenants for part in tenant.slices if part.quota.device == device]
    memory = sum(quota.device_part or 0 for quota in quotas)
    cores = sum(quota.cores for quota in quotas if quota.cores is not None and quota.policy is not Policy.NONE)
    return Room(memory=max(0, device_memory - memory), cores=max(0, 100 - cores), tenants=len(quotas))


def choose(wishes: Sequence[Quota], tenants: Sequence[Tenant]) -> Quota | None:
    """The wish to grant: one that fits, on the device with the most free memory.

    `wishes` is the same slice on each device it may lie on. Among equals the one with more free cores is
    taken, then the one with fewer tenants, then the first. None when it fits nowhere.
    """
    best: tuple[tuple[int, int, int], Quota] | None = None
    for wish in wishes:
        room = room_on(wish.device, wish.device_memory, tenants)
        if (wish.device_part or 0) > room.memory:
            continue
        if wish.policy is not Policy.NONE and (wish.cores or 0) > room.cores:
            continue
        rank = (room.memory, room.cores, -room.tenants)
        if best is None or rank > best[0]:
            best = (rank, wish)
    return best[1] if best else None
