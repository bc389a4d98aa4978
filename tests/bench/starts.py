"""What the start of a process costs with us and without: one that uses no GPU, and many at once that do."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.figures import Row, compare

EXEC_NS, CROWD_NS = 500_000, 2_000_000
CROWD = 64


def rounds(command: Sequence[str], environment: Mapping[str, str], *arguments: str) -> tuple[list[float], list[float]]:
    """Nanoseconds of each round, bare and with us."""
    done = subprocess.run([*command, *arguments], env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[-1]} ended with {done.returncode}: {done.stderr}")
    pairs = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    return [bare for bare, _ in pairs], [ours for _, ours in pairs]


def measure(
    program: Path,
    preload: Path,
    setup: str,
    tenant: tuple[Sequence[str], Mapping[str, str]],
    batches: int,
    crowds: int,
) -> list[Row]:
    """Both, in one tenant: (command prefix, environment); so many batches, and so many crowds."""
    prefix, environment = tenant
    command = [*prefix, str(program)]
    bare, ours = rounds(command, environment, "exec", str(preload), str(batches * 10), "/bin/true")
    rows = [compare("exec of /bin/true", setup, bare, ours, EXEC_NS)]
    bare, ours = rounds(command, environment, "crowd", str(preload), str(crowds), str(CROWD))
    each = ([time / CROWD for time in times] for times in (bare, ours))
    return [*rows, compare(f"{CROWD} at once, each", setup, *each, CROWD_NS)]
