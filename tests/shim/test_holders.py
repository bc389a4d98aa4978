# SPDX-License-Identifier: Apache-2.0
"""Whatever holds memory, made and ended by many threads of many processes at once: the account ends at nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tools.tenants import MIB, Driver, Tenant, set_knobs

Make = Callable[..., Tenant]


@pytest.fixture
def driver(make_machine: Callable[[str], Driver]) -> Driver:
    """A simulated GPU where contexts and modules take memory."""
    made = make_machine("h200")
    assert made.machine is not None
    set_knobs(made.machine, context_overhead=8 * MIB, module_overhead=1 * MIB)
    return made


def outcome(printed: str) -> tuple[int, int]:
    made, refused = printed.split()
    return int(made), int(refused)


def test_threads_and_processes_end_with_an_empty_account(make_tenant: Make, program: Callable[[str], Path]) -> None:
    tenant = make_tenant(64 * MIB)
    watcher = tenant.peer("import judge")
    running = [tenant.start(program("holders"), "4", "400", str(3 * MIB)) for _ in range(3)]
    said = [outcome(one.communicate(timeout=120)[0]) for one in running]
    assert [one.returncode for one in running] == [0] * 3
    assert sum(made for made, _ in said) > 1000
    assert sum(refused for _, refused in said) > 100, "they were not at the edge"
    assert watcher.do("answer([judge.charged(), judge.host(), judge.taken()])") == [0, 0, 0]


def test_the_same_threads_are_never_refused_without_us(bare: Tenant, program: Callable[[str], Path]) -> None:
    assert outcome(bare.run(program("holders"), "4", "400", str(3 * MIB)))[1] == 0
