# SPDX-License-Identifier: Apache-2.0
"""CuPy at the edge of its quota, through each of its allocators."""

from __future__ import annotations

from typing import Any

import pytest
from tools.tenants import GIB, MIB, Tenant
from tools.watch import Watch

FILE = "cupy_programs.py"
# Managed memory far below what the card has free, even without a limit.
POOLS = ("default", "async", "managed")
QUOTA = 4 * GIB


@pytest.mark.usefixtures("cupy_version")
@pytest.mark.parametrize("pool", POOLS)
def test_it_gets_its_quota_and_no_more_and_lives_on(make_tenant: Any, start: Any, watch: Watch, pool: str) -> None:
    program = start(make_tenant(QUOTA), FILE, pool)
    watch.follow(program.process.pid)
    full = program.hear()
    program.tell()
    after = program.hear()
    program.end()
    assert full["total"] == QUOTA
    assert QUOTA // 2 < full["taken"] < QUOTA
    assert "OutOfMemory" in full["error"] or "out of memory" in full["error"]
    assert after == {"reused": True, "second": "", "intact": True}
    figure = watch.ask()
    print(f"NVML: {figure}")
    assert figure.samples >= 10
    assert 0 < figure.peak_of_tenant <= QUOTA


@pytest.mark.usefixtures("cupy_version")
@pytest.mark.parametrize("pool", POOLS)
def test_without_us_the_same_program_goes_beyond(bare: Tenant, start: Any, pool: str) -> None:
    program = start(bare, FILE, pool, f"--most={(QUOTA + GIB) // MIB}")
    full = program.hear()
    assert full["error"] == ""
    assert full["taken"] > QUOTA
