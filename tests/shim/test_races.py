# SPDX-License-Identifier: Apache-2.0
"""Refuse: threads and processes that allocate memory of every kind at once never hold more than the quota."""

from __future__ import annotations

import random
import signal
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools.conversation import Conversation
from tools.tenants import MIB, Driver, Tenant

Make = Callable[..., Tenant]
Program = Callable[[str], Path]

KINDS = ("linear", "pitched", "managed", "stream-ordered", "of a pool", "block", "array")
PROCESSES, THREADS = 4, 8
ROUNDS = 10_000
"""Of each thread."""


@dataclass(frozen=True)
class Race:
    """Processes that race for one quota, and what they have seen."""

    tenant: Tenant
    program: Path
    shared: Path
    quota: int

    def start(self, rounds: int) -> subprocess.Popen[str]:
        """Start a process whose threads go through so many rounds each."""
        assert self.tenant.driver.machine is not None
        chunk = self.quota // 24 // (2 * MIB) * (2 * MIB)
        return self.tenant.start(
            self.program, str(PROCESSES), str(THREADS), str(rounds), str(chunk), str(self.quota),
            self.tenant.driver.machine.file, self.shared,
        )  # fmt: skip

    @property
    def counts(self) -> tuple[int, list[int], list[int]]:
        """Violations, allocations made and refused, by kind."""
        _, violations, *rest = struct.unpack(f"{2 + 2 * len(KINDS)}Q", self.shared.read_bytes())
        return violations, rest[: len(KINDS)], rest[len(KINDS) :]


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """A simulated machine in any case: only that knows what is really used."""
    return make_machine("h200")


@pytest.fixture
def race(program: Program, tmp_path: Path) -> Callable[[Tenant, int], Race]:
    """Prepare a race in a tenant."""

    def prepare(tenant: Tenant, quota: int) -> Race:
        shared = tmp_path / "shared"
        shared.write_bytes(bytes(8 * (2 + 2 * len(KINDS))))
        return Race(tenant, program("race_kinds"), shared, quota)

    return prepare


QUOTA = 768 * MIB


def test_memory_of_every_kind_never_exceeds_the_quota_however_many_race(
    make_tenant: Make, driver: Driver, race: Callable[[Tenant, int], Race]
) -> None:
    tenant = make_tenant(QUOTA, on=driver)
    run = race(tenant, QUOTA)
    racers = [run.start(ROUNDS) for _ in range(PROCESSES)]
    assert [racer.wait(300) for racer in racers] == [0] * PROCESSES
    violations, made, refused = run.counts
    assert violations == 0
    assert min(made) > 50, dict(zip(KINDS, made, strict=True))
    assert min(refused) > 5, "the race was not at the edge"
    # By the ledger as they have left it: nobody has been swept.
    assert tenant.usage()[0].memory_used == 0
    assert tenant.usage()[0].refusals == sum(refused)


def test_the_same_race_exceeds_the_quota_without_us(
    driver: Driver, bare: Tenant, race: Callable[[Tenant, int], Race]
) -> None:
    run = race(bare, QUOTA)
    racers = [run.start(100) for _ in range(PROCESSES)]
    assert [racer.wait(300) for racer in racers] == [0] * PROCESSES
    assert run.counts[0] > 0


def test_members_that_are_killed_in_the_race_take_nothing_with_them(
    make_tenant: Make, driver: Driver, race: Callable[[Tenant, int], Race]
) -> None:
    tenant, chance = make_tenant(QUOTA, on=driver), random.Random(20261121)
    run = race(tenant, QUOTA)
    racers, killed = [run.start(10**9) for _ in range(PROCESSES)], 0
    while killed < 25:
        goal = sum(run.counts[1]) + chance.randrange(1, 400)
        while sum(run.counts[1]) < goal:
            assert all(racer.poll() is None for racer in racers)
        victim = chance.randrange(PROCESSES)
        racers[victim].send_signal(signal.SIGKILL)
        assert racers[victim].wait(10) == -signal.SIGKILL
        racers[victim], killed = run.start(10**9), killed + 1
    for racer in racers:
        racer.kill()
        racer.wait(10)
    violations, made, _ = run.counts
    assert violations == 0
    assert min(made) > 50, dict(zip(KINDS, made, strict=True))
    survivor = Conversation(tenant)
    survivor(f"up()\nwhile alloc({QUOTA})[0]:\n    time.sleep(0.001)")
    assert survivor(f"answer(charged({QUOTA}))") == QUOTA
