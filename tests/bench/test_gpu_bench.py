# SPDX-License-Identifier: Apache-2.0
"""``make bench-gpu``, rehearsed on a simulated card, whose driver's figures are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import accuracy, calls, gpu

ROOT = Path(__file__).parent.parent.parent
COMMAND = (sys.executable, "-m", "tests.bench.gpu")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    done = subprocess.run([*COMMAND, "--rehearse", "--batches", "2", "--results", str(folder)], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    (written,) = folder.glob("*.json")
    return {
        **json.loads(written.read_text()),
        "status": done.returncode,
        "text": written.with_suffix(".txt").read_text(),
    }


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    if not gpu.no_gpu():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([*COMMAND, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("bench-gpu: no ")
    assert list(tmp_path.iterdir()) == []


def test_every_operation_is_measured_and_dated(result: dict[str, Any]) -> None:
    measured = {row["operation"] for row in result["rows"]}
    assert measured >= {operation.name for operation in calls.GPU_OPERATIONS}
    assert {"device", "driver", "date", "processor"} <= set(result)
    assert all(part in result["text"] for part in (result["device"], result["driver"], result["date"], "simulated"))


def test_every_kind_and_size_is_in_the_matrix(result: dict[str, Any]) -> None:
    rows = [(row["kind"], row["size"]) for row in result["memory"]["rows"]]
    assert {kind for kind, _ in rows} == set(accuracy.KINDS)
    assert {size for kind, size in rows if kind == "linear"} >= set(accuracy.SIZES)


def test_what_is_charged_is_what_the_device_gives_and_all_of_it_comes_back(result: dict[str, Any]) -> None:
    """By whole blocks, but for what shares one with others; what is too much is refused."""
    memory = result["memory"]
    assert memory["context_charged"] == memory["context_nvml"] == 300 * accuracy.MIB
    for row in memory["rows"]:
        assert row["left"] == 0, row
        if row["size"] > memory["quota"] - memory["context_charged"] - 64 * accuracy.MIB:
            assert (row["code"], row["charged"]) == (2, 0), row
            continue
        assert row["code"] == 0, row
        if row["kind"] in accuracy.ROUNDED or row["size"] > accuracy.MIB:
            assert row["charged"] == row["nvml"] >= row["requested"], row
        else:
            assert row["charged"] == row["requested"], row


def test_the_verdict_is_of_what_nvml_has_seen(result: dict[str, Any]) -> None:
    memory = result["memory"]
    assert memory["samples"] > len(memory["rows"])
    assert memory["peak"] > memory["quota"] * 9 // 10, "it was not at the edge"
    assert memory["is_within"] == (memory["peak"] <= memory["quota"])
    assert result["status"] == int(not memory["is_within"] or any(row["is_over"] for row in result["rows"]))
    assert ("OVER the quota" in result["text"]) == (not memory["is_within"])


def test_a_matrix_says_what_nvml_could_not_tell() -> None:
    row = accuracy.Row("linear", 1024, 1, 0, 1024, 1024, None, 0)
    matrix = accuracy.Matrix(4096, 512, None, 4097, 3, (row,))
    assert not matrix.is_within
    text = accuracy.table(matrix)
    assert "OVER the quota" in text
    assert text.splitlines()[1].split()[-2] == "?"


def test_too_few_batches_are_refused_with_an_example() -> None:
    done = subprocess.run([*COMMAND, "--batches", "1"], cwd=ROOT, capture_output=True, text=True, check=False,
                          env=dict(os.environ))  # fmt: skip
    assert done.returncode == 2
    assert "--batches 15" in done.stderr
