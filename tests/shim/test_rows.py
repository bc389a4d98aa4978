# SPDX-License-Identifier: Apache-2.0
"""Every line of the table is called, in a tenant and bare: see rows.py."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tools.simulated import Simulated
from tools.tenants import GIB, LIBRARY, MIB, ROOT, Driver, Tenant, create, intercepts, simulated

from tests.shim import rows

QUOTA = GIB
ENTRIES = rows.load()
LINES = {row.symbol: row for row in intercepts()}
CODE_OF_A_FAULTY_TENANT = {"CUDA": 802, "NVML": 4}


def of_kind(*kinds: str) -> list[str]:
    return [symbol for symbol in LINES if symbol in ENTRIES and ENTRIES[symbol].kind in kinds]


# ---- running every entry once in each situation -----------------------------------------------------------------


@dataclass(frozen=True)
class Outcomes:
    """What came of every line, by symbol."""

    bare: dict[str, Any]
    tenant: dict[str, Any]
    bare_full: dict[str, Any]
    """With as much allocated before as the quota is."""
    tenant_full: dict[str, Any]
    faulty: dict[str, Any]
    tenants: dict[str, Tenant]


def run(environment: dict[str, str], jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Run jobs; what came of each, by symbol."""
    done = subprocess.run([sys.executable, "-m", "tests.shim.rows"], input=json.dumps(jobs), env=environment,
                          cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip((job["symbol"] for job in jobs), json.loads(done.stdout.splitlines()[-1]), strict=True))


def first_device(driver: Driver) -> str:
    """Properties of the machine's first device, as a program without us sees it."""
    script = """
    import pynvml
    pynvml.nvmlInit()
    first = pynvml.nvmlDeviceGetHandleByIndex(0)
    answer({"uuid": pynvml.nvmlDeviceGetUUID(first), "serial": pynvml.nvmlDeviceGetSerial(first),
            "pci.bus_id": pynvml.nvmlDeviceGetPciInfo(first).busId})
    """
    return json.dumps(Tenant(driver, preload="").ask(script))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Every line in every situation, on a machine whose devices have a user outside of any tenant too."""
    folder = tmp_path_factory.mktemp("rows")
    file = folder / "machine.yaml"
    file.write_text("name: rows\ndevices:\n  - model: h200\n  - model: h200\n")
    driver = simulated(str(file), folder / "driver", context_overhead=300 * MIB, module_overhead=rows.HOLD)
    assert driver.machine
    bare = driver.environment(VGPU_ROWS_FIRST=first_device(driver))
    ours = {**bare, "LD_PRELOAD": str(LIBRARY)}
    nodes = (folder / f"state-{number}" for number in itertools.count())

    def fresh(cores: int | None) -> Tenant:
        """A tenant with the device to itself: on a node of its own, as far as quotas go."""
        return create(next(nodes), driver, QUOTA, cores, [rows.DEVICE])

    lines = [symbol for symbol in LINES if symbol in ENTRIES]
    tenants = {symbol: fresh(50 if LINES[symbol].verb == "DELAY" else None) for symbol in lines}
    broken = fresh(None)
    assert broken.directory
    (broken.directory / "grant").write_bytes(b"")

    def jobs(symbols: list[str], room: int, tenant: Callable[[str], Path | None]) -> list[dict[str, Any]]:
        return [{"symbol": one, "room": room, "tenant": str(tenant(one) or "")} for one in symbols]

    refusing = of_kind("refuses")
    with ExitStack() as stack:
        stack.enter_context(Simulated(driver.machine).user(device=rows.DEVICE, memory=2**21, busy=30))
        yield Outcomes(
            bare=run(bare, jobs(lines, 0, lambda _: None)),
            tenant=run(ours, jobs(lines, 0, lambda symbol: tenants[symbol].directory)),
            bare_full=run(bare, jobs(refusing, QUOTA, lambda _: None)),
            tenant_full=run(ours, jobs(refusing, QUOTA, lambda _: fresh(None).directory)),
            faulty=run(ours, jobs(of_kind("gates"), 0, lambda _: broken.directory)),
            tenants=tenants,
        )


def answer(outcome: dict[str, Any]) -> Any:
    """What an entry returned; a failure of the entry itself is one of the test."""
    assert "error" not in outcome, outcome["error"]
    return outcome["answer"]


# ---- the table of entries -----------------------------------------------------------------------------------------


def test_every_line_of_the_table_has_an_entry() -> None:
    assert [symbol for symbol in LINES if symbol not in ENTRIES] == []


def test_every_entry_is_of_a_function_that_drivers_have() -> None:
    names = (ROOT / "native" / "sim" / f"{library}_exports.def" for library in ("cuda", "nvml"))
    exports = {line[7:-1] for file in names for line in file.read_text().splitlines() if line.startswith("EXPORT(")}
    assert [symbol for symbol in ENTRIES if symbol not in exports] == []


def test_an_entry_is_judged_by_its_lines_verb_or_says_why_not() -> None:
    odd = [symbol for symbol, line in LINES.items() if symbol in ENTRIES
           and ENTRIES[symbol].kind != rows.KIND_OF_VERB[line.verb] and not ENTRIES[symbol].why]  # fmt: skip
    assert odd == []


# ---- what the calls come to ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", [symbol for symbol in LINES if symbol in ENTRIES])
def test_the_line_is_called_through_the_shim(outcomes: Outcomes, symbol: str) -> None:
    """And bare through the driver."""
    for outcome, owner in ((outcomes.tenant[symbol], "libvgpu.so"), (outcomes.bare[symbol], "lib")):
        answer(outcome)
        assert outcome["called"]
        assert outcome["owner"].startswith(owner)
    assert outcomes.bare[symbol]["owner"] != "libvgpu.so"


@pytest.mark.parametrize("symbol", of_kind("refuses", "delays", "answers", "gates"))
def test_what_is_allowed_is_answered_as_without_us(outcomes: Outcomes, symbol: str) -> None:
    said = answer(outcomes.bare[symbol])
    assert answer(outcomes.tenant[symbol]) == said
    if ENTRIES[symbol].kind != "answers":
        assert said == 0


@pytest.mark.parametrize("symbol", of_kind("refuses"))
def test_it_is_refused_where_the_quota_is_used_up(outcomes: Outcomes, symbol: str) -> None:
    assert answer(outcomes.bare_full[symbol]) == 0
    assert answer(outcomes.tenant_full[symbol]) == 2


@pytest.mark.parametrize("symbol", of_kind("settles"))
def test_what_was_charged_is_given_back(outcomes: Outcomes, symbol: str) -> None:
    for outcome in (outcomes.bare[symbol], outcomes.tenant[symbol]):
        before, after = answer(outcome)
        assert before >= rows.HOLD
        assert after == 0


@pytest.mark.parametrize("symbol", of_kind("shows"))
def test_the_slice_is_shown_and_not_the_device(outcomes: Outcomes, symbol: str) -> None:
    assert answer(outcomes.tenant[symbol]) != answer(outcomes.bare[symbol])


@pytest.mark.parametrize("symbol", [one for one in of_kind("shows") if "Mem" in one and "BAR1" not in one])
def test_the_total_that_is_shown_is_the_quota(outcomes: Outcomes, symbol: str) -> None:
    assert answer(outcomes.tenant[symbol]) == QUOTA


@pytest.mark.parametrize("symbol", of_kind("delays"))
def test_the_launch_is_drawn_from_the_bucket(outcomes: Outcomes, symbol: str) -> None:
    assert answer(outcomes.tenant[symbol]) == 0
    assert outcomes.tenants[symbol].usage()[0].launches == 1


@pytest.mark.parametrize("symbol", of_kind("gates"))
def test_a_tenant_that_cannot_be_used_is_not_let_in(outcomes: Outcomes, symbol: str) -> None:
    assert answer(outcomes.faulty[symbol]) == CODE_OF_A_FAULTY_TENANT[LINES[symbol].library]
