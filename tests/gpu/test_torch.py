# SPDX-License-Identifier: Apache-2.0
"""PyTorch at the edge of its quota, through each of its allocators, and NVML's own figure for it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tools.tenants import GIB, MIB, Tenant
from tools.watch import Figure, Watch

MakeTenant = Callable[[int], Tenant]

FILE = "torch_programs.py"
CHUNK = 64 * MIB

ALLOCATORS = {
    "native": "",
    "expandable": "expandable_segments:True",
    "async": "backend:cudaMallocAsync",
}


def allocator(name: str) -> dict[str, str]:
    """The variables by which users choose it: the one of before release 2.9, and the one since."""
    chosen = ALLOCATORS[name]
    return {"PYTORCH_CUDA_ALLOC_CONF": chosen, "PYTORCH_ALLOC_CONF": chosen} if chosen else {}


def within(figure: Figure, quota: int) -> bool:
    """NVML has been asked often, and never named more than the quota."""
    print(f"NVML: at most {figure.peak_of_tenant:,} of {quota:,} bytes in {figure.samples} samples; {figure}")
    return figure.samples >= 10 and 0 < figure.peak_of_tenant <= quota


@pytest.mark.usefixtures("torch_version")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_it_gets_its_quota_and_no_more_and_lives_on(
    make_tenant: MakeTenant, start: Any, watch: Watch, quota: int, name: str
) -> None:
    program = start(make_tenant(quota), FILE, "fill", **allocator(name))
    watch.follow(program.process.pid)
    full = program.hear()
    at_the_edge = watch.ask()
    program.tell()
    after = program.hear()
    program.end()
    figure = watch.ask()
    assert full["total"] == quota
    assert full["free_before"] <= quota
    assert full["free_before"] - full["taken"] < 4 * CHUNK, "it was refused long before the edge"
    assert full["free"] == quota - full["charged"]
    assert "out of memory" in full["error"]
    assert (after["reused"], after["large"], after["intact"], after["right"]) == (True, "", True, True)
    assert after["returned"] >= after["amount"] * 9 // 10
    assert "out of memory" in after["again"]
    assert at_the_edge.peak_of_tenant >= full["taken"]
    assert within(figure, quota)


@pytest.mark.usefixtures("torch_version")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_without_us_the_same_program_goes_beyond(bare: Tenant, start: Any, watch: Watch, quota: int, name: str) -> None:
    program = start(bare, FILE, "fill", f"--most={(quota + 2 * GIB) // MIB}", **allocator(name))
    watch.follow(program.process.pid)
    full = program.hear()
    figure = watch.ask()
    assert (full["error"], full["charged"]) == ("", None)
    assert full["total"] > quota
    assert full["taken"] > quota
    assert figure.peak_of_tenant > quota


@pytest.mark.usefixtures("torch_version")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_two_processes_that_race_to_the_edge_stay_within_together(
    make_tenant: MakeTenant, start: Any, watch: Watch, quota: int, name: str
) -> None:
    tenant = make_tenant(quota)
    programs = [start(tenant, FILE, "race", f"--seed={seed}", "--rounds=12", **allocator(name)) for seed in (1, 2)]
    for one in programs:
        watch.follow(one.process.pid)
    for one in programs:
        assert one.hear() == {"ready": True}
    for one in programs:
        one.tell()
    done = [one.hear() for one in programs]
    for one in programs:
        one.end()
    assert all(one["refused"] == 12 and one["made"] > 12 for one in done), done
    figure = watch.ask()
    assert figure.peak_of_tenant > quota // 2, "the race was not at the edge"
    assert within(figure, quota)


@pytest.mark.usefixtures("torch_version")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_training_goes_on_with_nine_tenths_in_use(
    make_tenant: MakeTenant, start: Any, watch: Watch, quota: int, name: str
) -> None:
    program = start(make_tenant(quota), FILE, "train", "--rounds=100", **allocator(name))
    watch.follow(program.process.pid)
    said = program.hear()
    program.end()
    assert said["total"] == quota
    assert quota * 85 // 100 <= said["used"] <= quota
    assert said["steps"] == 105
    assert said["last"] < said["first"]
    assert within(watch.ask(), quota)


# ---- what else it does with memory -------------------------------------------------------------------------


@pytest.mark.usefixtures("torch_version")
def test_a_tensor_that_is_shared_with_a_child_is_charged_once(make_tenant: MakeTenant, start: Any, quota: int) -> None:
    """Two fifths of the quota: charged twice, it would leave no room for the child's context."""
    size = quota * 2 // 5 // MIB
    program = start(make_tenant(quota), FILE, "ipc", f"--most={size}")
    said = program.hear()
    program.end()
    assert (said["first"], said["changed"], said["status"]) == (7, 8, 0)
    assert said["before"] >= size * MIB
    assert said["during"] - said["before"] < size * MIB // 2


@pytest.mark.usefixtures("torch_version")
def test_graphs_are_captured_and_replayed_under_a_quota(make_tenant: MakeTenant, start: Any, quota: int) -> None:
    program = start(make_tenant(quota), FILE, "graph")
    said = program.hear()
    program.end()
    assert (said["right"], said["right_when_full"], said["right_after"]) == (True, True, True)
    assert "out of memory" in said["full"]
    assert "out of memory" in said["too_large"]


@pytest.mark.usefixtures("torch_version")
def test_page_locked_memory_is_not_refused_when_the_slice_is_full(
    make_tenant: MakeTenant, start: Any, quota: int
) -> None:
    program = start(make_tenant(quota), FILE, "pinned")
    said = program.hear()
    program.end()
    assert "out of memory" in said["full"]
    assert said["held"] > 0
    assert (said["are_pinned"], said["block"]) == (True, True)
    assert said["total"] == said["expected"]
