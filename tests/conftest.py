"""What every tier shares: the choice of driver, and an account of what could not run.

A tier is the folder below ``tests/``. A test that cannot run here skips with its reason; the summary
gathers the reasons by tier, and ``--require-tiers`` turns such a skip into a failure, so that a machine
that is meant to run everything notices when it no longer does.
"""

from __future__ import annotations

import collections
import ctypes
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
TIERS = ("unit", "native", "conformance", "sim", "shim", "node", "container", "bench", "gpu")


def tier_of(path: Path) -> str:
    """The tier that a test file belongs to."""
    return path.relative_to(TESTS).parts[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--driver",
        choices=("sim", "gpu"),
        default="sim",
        help="what is under the shim: the simulated GPU, or this machine's own driver and GPU",
    )
    parser.addoption(
        "--require-tiers",
        default="",
        metavar="TIER,...",
        help=f"fail when a test of these tiers cannot run ({', '.join(TIERS)})",
    )


def pytest_configure(config: pytest.Config) -> None:
    unknown = required_tiers(config) - set(TIERS)
    if unknown:
        raise pytest.UsageError(f"--require-tiers: no tier {', '.join(sorted(unknown))}; there are {', '.join(TIERS)}")
    if config.getoption("--driver") == "gpu":
        require_gpu()
    elif "gpu" in required_tiers(config):
        raise pytest.UsageError("--require-tiers: gpu runs with --driver=gpu alone: `make test-gpu REQUIRE=gpu`")
    config.stash[SKIPS] = collections.defaultdict(collections.Counter)
    config.stash[RUNS] = collections.Counter()


SKIPS: pytest.StashKey[dict[str, collections.Counter[str]]] = pytest.StashKey()
RUNS: pytest.StashKey[collections.Counter[str]] = pytest.StashKey()


def require_gpu() -> None:
    """End with one sentence instead of a failure for each test where no GPU answers."""
    try:
        result = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError as error:
        raise pytest.UsageError(
            f"--driver=gpu: no NVIDIA driver here ({error}); without one run `make test`"
        ) from error
    if result:
        raise pytest.UsageError(f"--driver=gpu: cuInit answers {result}: is there a GPU? does `nvidia-smi` work?")


def required_tiers(config: pytest.Config) -> set[str]:
    return {tier for tier in config.getoption("--require-tiers").split(",") if tier}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cheap tiers first; what judges a GPU runs only when one is asked for."""
    items.sort(key=lambda item: TIERS.index(tier_of(item.path)) if tier_of(item.path) in TIERS else len(TIERS))
    if config.getoption("--driver") != "gpu":
        gpu_only = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in gpu_only]
        config.hook.pytest_deselected(items=gpu_only)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    tier = tier_of(item.path)
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "?"
        item.config.stash[SKIPS][tier][reason] += 1
        if tier in required_tiers(item.config):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: tier {tier} is required here, and this test cannot run: {reason}"
    elif report.when == "call":
        item.config.stash[RUNS][tier] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips, runs = config.stash[SKIPS], config.stash[RUNS]
    terminalreporter.section("tiers")
    for tier in TIERS:
        if tier not in runs and tier not in skips:
            continue
        left_out = sum(skips[tier].values()) if tier in skips else 0
        terminalreporter.line(f"{tier:10} {runs[tier]:4} ran" + (f", {left_out} could not:" if left_out else ""))
        for reason, count in skips[tier].most_common() if tier in skips else ():
            terminalreporter.line(f"{'':10} {count:4} × {reason}")
    if config.getoption("--driver") != "gpu":
        terminalreporter.line(f"{'gpu':10}    not run: needs an NVIDIA GPU and its driver; there, `make test-gpu`")
