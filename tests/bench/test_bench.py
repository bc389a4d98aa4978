"""The benchmark itself: it measures what it says, on the path that it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import calls

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    output = tmp_path_factory.mktemp("bench") / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--batches", "3", "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(output.read_text()), "printed": done.stdout}


def test_every_operation_is_measured_under_every_setup(result: dict[str, object]) -> None:
    rows = result["rows"]
    assert isinstance(rows, list)
    measured = {(row["operation"], row["setup"]) for row in rows}
    setups = ("memory quota", "memory and compute")
    assert measured == {(operation, setup) for operation in calls.OPERATIONS for setup in setups}
    for row in rows:
        assert row["bare_ns"] > 0
        assert row["added_p10_ns"] <= row["added_ns"] <= row["added_p90_ns"]


def test_a_charged_allocation_costs_more_than_none(result: dict[str, object]) -> None:
    """The shim is really under the timing program: four atomic additions cannot be free."""
    rows = result["rows"]
    assert isinstance(rows, list)
    pair = next(row for row in rows if row["operation"] == "alloc+free" and row["setup"] == "memory quota")
    assert pair["added_ns"] > 1


def test_the_table_says_that_the_driver_is_simulated(result: dict[str, object]) -> None:
    assert "simulated" in str(result["printed"])


def test_too_few_batches_are_refused_with_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--batches", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--batches 31" in done.stderr
