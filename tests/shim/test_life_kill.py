# SPDX-License-Identifier: Apache-2.0
"""SIGKILL after any instruction of the shim, by single steps: the others of the tenant find all that it held."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tools.tenants import MIB, Driver, Tenant, set_knobs

# How many kills: an operation executes some hundred instructions in the shim. The first context looks through
# all rows of the ledger, which takes long in single steps.
KILLS = {
    "alloc": 240,
    "free": 240,
    "managed": 80,
    "pitch": 80,
    "async": 80,
    "free-async": 80,
    "pool": 80,
    "trim": 60,
    "block": 80,
    "release": 60,
    "array": 80,
    "array-end": 60,
    "context": 40,
    "first-context": 60,
}


@pytest.mark.parametrize("operation", KILLS)
def test_what_a_process_held_that_is_killed_at_any_instruction_can_be_had_by_the_others(
    make_tenant: Callable[..., Tenant],
    program: Callable[[str], Path],
    driver: Driver,
    quota: int,
    operation: str,
) -> None:
    tenant, kills = make_tenant(quota), KILLS[operation]
    if driver.machine:
        set_knobs(driver.machine, context_overhead=64 * MIB)
        machine = [driver.machine.file]
    else:
        # To start a process on a real card takes a second, and each step of its driver is one of ours.
        machine, kills = [], 6
    done, left = map(int, tenant.run(program("killed"), operation, str(kills), str(tenant.memory), *machine).split())
    assert done == kills
    assert left > 0, "nothing was ever left to be taken back: this test has proved nothing"
