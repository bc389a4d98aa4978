# SPDX-License-Identifier: Apache-2.0
"""The demonstration notices each promise that is not kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vgpu_runtime.demo.screen import Report, broken, draw

GIB = 2**30
DEVICE = 140 * GIB
GOOD = Report(
    title="tenant a",
    memory="10GiB",
    cores="25",
    cuda_total=10 * GIB,
    nvml_total=10 * GIB,
    allocated=10 * GIB - 300 * 2**20,
    refusal="CUDA_ERROR_OUT_OF_MEMORY",
    kernels=2500,
    kernel_ns=1_000_000,
    elapsed_ns=10_000_000_000,
    client="[0] NVIDIA H200 | 60°C, 75 % | 512 / 10240 MB | root(512M)",
)
UNCAPPED = dataclasses.replace(
    GOOD, title="no tenant", memory=None, cores=None, cuda_total=139 * GIB, nvml_total=DEVICE, refusal=None
)


def test_a_tenant_that_got_its_slice_breaks_no_promise() -> None:
    assert broken(GOOD, DEVICE) == []
    assert broken(UNCAPPED, DEVICE) == []


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"cuda_total": DEVICE}, "it sees"),
        ({"nvml_total": DEVICE}, "it sees"),
        ({"allocated": 10 * GIB + 1}, "it could allocate"),
        ({"allocated": 8 * GIB}, "it could allocate"),
        ({"refusal": None}, "and then"),
        ({"refusal": "CUDA_ERROR_LAUNCH_FAILED"}, "and then"),
        ({"kernels": 2750}, "share of compute"),
        ({"kernels": 2000}, "share of compute"),
        ({"client": "[0] NVIDIA H200 | 512 / 143771 MB"}, "gpustat shows"),
    ],
)
def test_a_broken_promise_is_found_and_marked(change: dict[str, Any], row: str) -> None:
    bad = dataclasses.replace(GOOD, **change)
    assert broken(bad, DEVICE) == [row]
    screen, kept = draw("t", [bad, GOOD, UNCAPPED], DEVICE, 12.0)
    assert not kept
    assert f"NOT as promised, tenant a: {row}" in screen
    assert "All as promised" not in screen


@pytest.mark.parametrize("change", [{"cuda_total": 10 * GIB}, {"nvml_total": 10 * GIB}, {"refusal": "x"}])
def test_a_program_that_is_limited_without_us_proves_nothing(change: dict[str, Any]) -> None:
    assert broken(dataclasses.replace(UNCAPPED, **change), DEVICE)


def test_a_screen_is_a_screen() -> None:
    long = dataclasses.replace(GOOD, client="x" * 500)
    screen, _ = draw("t" * 500, [long, long, UNCAPPED], DEVICE, 12.0)
    assert len(screen.splitlines()) <= 24
    assert max(map(len, screen.splitlines())) <= 100
