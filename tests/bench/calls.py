"""What a driver call costs with us and without.

One worker process for each set-up (bare driver, a tenant with a memory quota, a tenant with a compute
limit as well) runs the same program and waits. Batches are asked of them in turn, forwards and then
backwards, so that a machine that gets slower for a while slows all of them alike. A batch gives
nanoseconds per call; what is reported is the median of the batches and, for the added cost, the median of
the differences within one round with its 95 % confidence interval (`figures`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import Row, compare

BARE = "bare"


@dataclass(frozen=True, slots=True)
class Operation:
    """What a batch does: so many calls, by so many threads, while so many small allocations live."""

    call: str
    count: int
    gate_ns: float | None = None
    """At most this may be added to a call."""
    threads: int = 1
    live: int = 0
    is_whole: bool = False
    """The gate is for the whole call, not for what is added: the driver does not come into it."""

    @property
    def name(self) -> str:
        more = [f"{self.threads} threads"] if self.threads > 1 else []
        more += [f"{self.live:,} live"] if self.live else []
        return ", ".join([self.call, *more])


PAIR_NS, INFO_NS, REFUSAL_NS = 120, 20, 100

OPERATIONS = (
    Operation("launch", 20_000),
    Operation("alloc+free", 20_000, PAIR_NS),
    Operation("alloc+free", 240_000, PAIR_NS, threads=8),
    Operation("alloc+free", 20_000, PAIR_NS, live=100_000),
    Operation("alloc+free", 240_000, PAIR_NS, threads=8, live=100_000),
    Operation("refusal", 20_000, REFUSAL_NS, is_whole=True),
    Operation("meminfo", 20_000, INFO_NS),
    Operation("pass-through", 50_000),
)

# On a real card a call takes a driver's time, and 1 GiB a millisecond; what each takes for itself is not gated.
GPU_OPERATIONS = (
    Operation("launch", 20_000),
    Operation("launch+wait", 2_000),
    Operation("alloc+free", 5_000, PAIR_NS),
    Operation("alloc+free", 16_000, PAIR_NS, threads=8),
    Operation("alloc+free", 5_000, PAIR_NS, live=100_000),
    Operation("alloc+free:2MiB", 500),
    Operation("alloc+free:64MiB", 100),
    Operation("alloc+free:1GiB", 20),
    Operation("async-alloc+free", 5_000),
    Operation("context", 2),
    Operation("refusal", 20_000, REFUSAL_NS, is_whole=True),
    Operation("meminfo", 5_000, INFO_NS),
    Operation("pass-through", 50_000),
)


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

    def time(self, operation: Operation) -> float:
        """Nanoseconds for each call, over one batch, of a thread that has a processor."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{operation.call} {operation.count} {operation.threads} {operation.live}\n")
        self._process.stdin.flush()
        at_once = min(operation.threads, os.cpu_count() or 1)
        return int(self._answer()) * at_once / operation.count

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


def measure(running: Mapping[str, Worker], batches: int, operations: Sequence[Operation] = OPERATIONS) -> list[Row]:
    """Every operation under every set-up but the bare one, against the bare one."""
    order = list(running)
    rows = []
    for operation in operations:
        times: dict[str, list[float]] = {name: [] for name in order}
        for name in order:
            running[name].time(operation)  # not counted: pages, caches, estimates
        for batch in range(batches):
            for name in order if batch % 2 == 0 else reversed(order):
                times[name].append(running[name].time(operation))
        rows += [
            compare(operation.name, name, times[BARE], times[name], operation.gate_ns, operation.is_whole)
            for name in order
            if name != BARE
        ]
    return rows
