"""What a series of rounds comes to, and whether it is within its gate.

A gate is missed when the whole confidence interval is beyond it: what noise may explain is not held
against the change. The interval is that of a median by order statistics, which assumes nothing of how
times are distributed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.96


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median; all of the range for few values."""
    ordered = sorted(values)
    half = Z_95 * len(ordered) ** 0.5 / 2
    low = max(0, int(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, int(len(ordered) / 2 + half))
    return ordered[low], ordered[high]


@dataclass(frozen=True, slots=True)
class Row:
    """One operation under one set-up; times in nanoseconds."""

    operation: str
    setup: str
    bare_ns: float
    ns: float
    added_ns: float
    low_ns: float
    """Bounds of what the gate is for: the added cost, or the whole."""
    high_ns: float
    batches: int
    gate_ns: float | None
    is_whole: bool

    @property
    def ratio(self) -> float:
        """Time with us in units of the time without."""
        return self.ns / self.bare_ns

    @property
    def is_over(self) -> bool:
        """The gate is missed, and noise does not explain it."""
        return self.gate_ns is not None and self.low_ns > self.gate_ns


def compare(
    operation: str,
    setup: str,
    bare: Sequence[float],
    ours: Sequence[float],
    gate_ns: float | None = None,
    is_whole: bool = False,
) -> Row:
    """What rounds with us and without come to."""
    added = [one - other for one, other in zip(ours, bare, strict=True)]
    low, high = interval(ours if is_whole else added)
    return Row(operation, setup, statistics.median(bare), statistics.median(ours), statistics.median(added),
               low, high, len(added), gate_ns, is_whole)  # fmt: skip
