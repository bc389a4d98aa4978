# SPDX-License-Identifier: Apache-2.0
"""What is asked for, what the tenant is charged, and what NVML says that its process holds: by kind and by size.

A charge that is less than what NVML says is memory that a node's quotas do not cover; one that is more is a program
that gets less than its quota. NVML is asked from outside of the tenant.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.tools.watch import watching

PROGRAM = Path(__file__).with_name("memory_kinds.py")
KINDS = ("linear", "pitched", "managed", "pool", "block", "array")
KIB, MIB, GIB = 2**10, 2**20, 2**30
SIZES = (KIB, 64 * KIB, MIB, 2 * MIB, 3 * MIB, 32 * MIB, 100 * MIB, GIB)
QUOTA = 8 * GIB
ODD = 3 * MIB
ROUNDED = ("pool", "block")
"""Kinds that are asked for, or charged, in whole blocks of 2 MiB."""
MANY = 64
"""So many of those that are smaller than a block, of which drivers cut them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind and size; bytes."""

    kind: str
    size: int
    count: int
    code: int
    """The driver's, or ours: 2 is a refusal."""
    requested: int
    charged: int
    nvml: int | None
    """By how much NVML's figure for the process rose; None where NVML does not know it by its pid."""
    left: int
    """Charged still, after all was freed."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """All rows, and what they cannot show."""

    quota: int
    context_charged: int
    context_nvml: int | None
    peak: int
    """The most that NVML ever said of the process; of the whole device where it does not know the process."""
    samples: int
    rows: tuple[Row, ...]

    @property
    def is_within(self) -> bool:
        return self.peak <= self.quota


def cases(room: int) -> Iterator[tuple[str, int, int]]:
    """Every kind by every size, by all that is left, by more than that, and by as many odd ones as have room."""
    rest = room // (64 * MIB) * (64 * MIB)
    for kind in KINDS:
        for size in (*SIZES, rest - 64 * MIB, rest + 64 * MIB):
            yield kind, size, MANY if size < 2 * MIB else 1
        yield kind, ODD, rest // (ODD + MIB)


def measure(prefix: Sequence[str], inside: Mapping[str, str], outside: Mapping[str, str]) -> Matrix:
    """Run the program in a tenant: the command that puts it there, its environment, and that of a program outside."""
    with watching(outside) as watch, subprocess.Popen(
        [*prefix, sys.executable, str(PROGRAM)],
        env=dict(inside), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        watch.follow(process.pid)

        def answer() -> dict[str, Any]:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the allocating program ended with {process.wait()}")
            return dict(json.loads(line))

        def ask(line: str) -> dict[str, Any]:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            return answer()

        start = answer()
        context, rows = watch.ask().now, []
        for kind, size, count in cases(start["free"]):
            before, known = ask("free")["charged"], watch.ask().now
            said, now = ask(f"{kind} {size} {count}"), watch.ask().now
            nvml = None if now is None or known is None else now - known
            left = ask("free")["charged"] - before
            requested = 0 if said["code"] else size * count
            rows.append(Row(kind, size, count, said["code"], requested, said["charged"] - before, nvml, left))
        figure = watch.ask()
    quota = start["charged"] + start["free"]
    return Matrix(quota, start["charged"], context, figure.peak_of_tenant, figure.samples, tuple(rows))


def as_json(matrix: Matrix) -> dict[str, Any]:
    return {**asdict(matrix), "is_within": matrix.is_within}


def size_text(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} B"


def table(matrix: Matrix) -> str:
    """The matrix as people read it."""
    lines = [f"{'kind':10}{'blocks':>18}{'asked for':>18}{'charged':>18}{'NVML':>18}{'NVML - charged':>18}{'left':>12}"]
    for row in matrix.rows:
        blocks = f"{row.count} × {size_text(row.size)}"
        if row.code:
            lines.append(f"{row.kind:10}{blocks:>18}{f'refused: {row.code}':>18}{'':>54}{row.left:12,}")
            continue
        nvml, more = ("?", "?") if row.nvml is None else (f"{row.nvml:,}", f"{row.nvml - row.charged:+,}")
        lines.append(f"{row.kind:10}{blocks:>18}{row.requested:18,}{row.charged:18,}{nvml:>18}{more:>18}{row.left:12,}")
    context = "?" if matrix.context_nvml is None else f"{matrix.context_nvml:,}"
    lines += [
        "",
        f"a context: charged {matrix.context_charged:,}, NVML {context}",
        f"the most that NVML said: {matrix.peak:,} of {matrix.quota:,} bytes in {matrix.samples:,} samples: "
        f"{'within' if matrix.is_within else 'OVER'} the quota",
    ]
    return "\n".join(lines)
