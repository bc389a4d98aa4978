# SPDX-License-Identifier: Apache-2.0
"""Every line of the table is called on a real card, in a tenant and bare: tests/shim/rows.py holds the calls.

A simulated machine is judged more strictly (tests/shim/test_rows.py): here nothing is known of a neighbour, and a call
that the installed driver itself does not answer is left out with what it said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools.tenants import GIB, LIBRARY, ROOT, Driver, Tenant, create, intercepts, real

from tests.shim import rows

QUOTA = GIB
AT_ONCE = 8
ENTRIES = rows.load()
LINES = {row.symbol: row for row in intercepts() if row.symbol in ENTRIES}
IDENTITY = """
import pynvml
pynvml.nvmlInit()
first = pynvml.nvmlDeviceGetHandleByIndex(0)
def ask(function):
    try:
        return function(first)
    except pynvml.NVMLError:
        return ""
answer({"uuid": ask(pynvml.nvmlDeviceGetUUID), "serial": ask(pynvml.nvmlDeviceGetSerial),
        "pci.bus_id": pynvml.nvmlDeviceGetPciInfo(first).busId})
"""
TAKE_WHAT_THE_DRIVER_LIKES = ("Module", "Library", "Limit")
"""Names of calls that take as much as the driver finds good, also nothing."""


def of_kind(*kinds: str) -> list[str]:
    return [symbol for symbol in LINES if ENTRIES[symbol].kind in kinds]


@dataclass(frozen=True)
class Outcomes:
    """What came of every line, by symbol."""

    bare: dict[str, Any]
    tenant: dict[str, Any]
    bare_full: dict[str, Any]
    tenant_full: dict[str, Any]
    granted: int


def run(environment: dict[str, str], jobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Run jobs, some at once; what came of each, by symbol."""

    def part(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
        done = subprocess.run([sys.executable, "-m", "tests.shim.rows"], input=json.dumps(some), env=environment,
                              cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        return dict(zip((job["symbol"] for job in some), said, strict=True))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        pieces = pool.map(part, [jobs[first::AT_ONCE] for first in range(AT_ONCE)])
        return {symbol: outcome for piece in pieces for symbol, outcome in piece.items()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Every line in every situation; each in a tenant of its own, on a node of its own as far as quotas go."""
    driver: Driver = real()
    folder = tmp_path_factory.mktemp("rows")
    first = json.dumps(Tenant(driver, preload="").ask(IDENTITY))
    bare = driver.environment(VGPU_ROWS_FIRST=first, VGPU_ROWS_DEVICE="0")
    ours = {**bare, "LD_PRELOAD": str(LIBRARY)}
    made: list[Tenant] = []

    def fresh(symbol: str) -> Path | None:
        cores = 50 if LINES[symbol].verb == "DELAY" else None
        made.append(create(folder / f"state-{len(made)}", driver, QUOTA, cores, [0]))
        return made[-1].directory

    def jobs(symbols: list[str], room: int, tenant: Callable[[str], Path | None]) -> list[dict[str, Any]]:
        return [{"symbol": one, "room": room, "tenant": str(tenant(one) or "")} for one in symbols]

    refusing = of_kind("refuses")
    return Outcomes(
        bare=run(bare, jobs(list(LINES), 0, lambda _: None)),
        tenant=run(ours, jobs(list(LINES), 0, fresh)),
        bare_full=run(bare, jobs(refusing, QUOTA, lambda _: None)),
        tenant_full=run(ours, jobs(refusing, QUOTA, fresh)),
        granted=made[0].memory,
    )


def answers(outcomes: Outcomes, symbol: str) -> tuple[Any, Any]:
    """What the entry came to in a tenant and bare."""
    ours, theirs = outcomes.tenant[symbol], outcomes.bare[symbol]
    if "error" in theirs:
        pytest.skip(f"this driver, without us: {theirs['error'].strip().splitlines()[-1]}")
    assert "error" not in ours, ours["error"]
    return ours["answer"], theirs["answer"]


@pytest.mark.parametrize("symbol", LINES)
def test_the_line_is_called_through_the_shim(outcomes: Outcomes, symbol: str) -> None:
    answers(outcomes, symbol)
    assert outcomes.tenant[symbol]["owner"] == "libvgpu.so"
    assert outcomes.bare[symbol]["owner"] != "libvgpu.so"


@pytest.mark.parametrize("symbol", of_kind("refuses", "delays", "answers", "gates"))
def test_what_is_allowed_is_answered_as_without_us(outcomes: Outcomes, symbol: str) -> None:
    ours, theirs = answers(outcomes, symbol)
    assert ours == theirs


@pytest.mark.parametrize("symbol", of_kind("refuses"))
def test_it_is_refused_where_the_quota_is_used_up(outcomes: Outcomes, symbol: str) -> None:
    answers(outcomes, symbol)
    ours, theirs = outcomes.tenant_full[symbol], outcomes.bare_full[symbol]
    if theirs.get("answer") != 0:
        said = theirs["answer"] if "answer" in theirs else theirs["error"].strip().splitlines()[-1]
        pytest.skip(f"this driver, without us: {said}")
    assert ours.get("answer") == 2, ours


@pytest.mark.parametrize("symbol", of_kind("settles"))
def test_what_was_charged_is_given_back(outcomes: Outcomes, symbol: str) -> None:
    (before, after), _ = answers(outcomes, symbol)
    least = 0 if any(word in symbol for word in TAKE_WHAT_THE_DRIVER_LIKES) else rows.HOLD
    assert before >= least
    assert after == 0


@pytest.mark.parametrize("symbol", [one for one in of_kind("shows") if "Mem" in one and "BAR1" not in one])
def test_the_total_that_is_shown_is_what_is_granted(outcomes: Outcomes, symbol: str) -> None:
    ours, theirs = answers(outcomes, symbol)
    assert ours == outcomes.granted < theirs
