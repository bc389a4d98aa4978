"""What a driver call costs with us and without.

One worker process for each set-up (bare driver, a tenant with a memory quota, a tenant with a compute
limit as well) runs the same program and waits. Batches are asked of them in turn, forwards and then
backwards, so that a machine that gets slower for a while slows all of them alike. A batch gives
nanoseconds per call; what is reported is the median of the batches and, for the added cost, the median of
the differences within one round, with the 10th and 90th percentile as spread.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BARE = "bare"
OPERATIONS: Mapping[str, int] = {"launch": 20_000, "alloc+free": 20_000, "meminfo": 20_000, "pass-through": 50_000}


@dataclass(frozen=True, slots=True)
class Row:
    """One operation under one set-up; all in nanoseconds for each call."""

    operation: str
    setup: str
    bare_ns: float
    ns: float
    added_ns: float
    added_p10_ns: float
    added_p90_ns: float
    batches: int

    @property
    def ratio(self) -> float:
        """Time with us in units of the time without."""
        return self.ns / self.bare_ns


class Worker:
    """The timing program, running."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._answer() != "ready":
            raise RuntimeError(f"{command[0]} did not get ready")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the timing program ended with {self._process.wait()}")
        return line

    def time(self, operation: str, count: int) -> float:
        """Nanoseconds for each call, over one batch."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{operation} {count}\n")
        self._process.stdin.flush()
        return int(self._answer()) / count

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def workers(
    program: Path, setups: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]
) -> Iterator[dict[str, Worker]]:
    """One worker for each set-up: (command prefix, environment)."""
    running: dict[str, Worker] = {}
    try:
        for name, (prefix, environment) in setups.items():
            running[name] = Worker([*prefix, str(program)], environment)
        yield running
    finally:
        for worker in running.values():
            worker.close()


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def measure(running: Mapping[str, Worker], batches: int) -> list[Row]:
    """Every operation under every set-up but the bare one, against the bare one."""
    order = list(running)
    rows = []
    for operation, count in OPERATIONS.items():
        times: dict[str, list[float]] = {name: [] for name in order}
        for name in order:
            running[name].time(operation, count)  # not counted: pages, caches, estimates
        for batch in range(batches):
            for name in order if batch % 2 == 0 else reversed(order):
                times[name].append(running[name].time(operation, count))
        for name in order:
            if name == BARE:
                continue
            added = [ours - bare for ours, bare in zip(times[name], times[BARE], strict=True)]
            rows.append(
                Row(
                    operation,
                    name,
                    statistics.median(times[BARE]),
                    statistics.median(times[name]),
                    statistics.median(added),
                    percentile(added, 10),
                    percentile(added, 90),
                    batches,
                )
            )
    return rows
