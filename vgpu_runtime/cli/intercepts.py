# SPDX-License-Identifier: Apache-2.0
"""`vgpu intercepts`: the table of `native/intercepts.def`, which is the one that libvgpu.so was built from."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from vgpu_runtime.cli import options
from vgpu_runtime.errors import NodeError

PACKAGE = Path(__file__).parent.parent
TABLES = (PACKAGE / "_native" / "intercepts.def", PACKAGE.parent / "native" / "intercepts.def")
ROW = re.compile(r'^INTERCEPT\((\w+), (\w+), "(\w*)", (\d+), (\d+), (\w+)\)', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Intercept:
    """A driver function that the shim changes."""

    library: str
    symbol: str
    base: str  # what cuGetProcAddress is asked for; empty in NVML, which has no such door
    since: int  # CUDA version from which the driver has it
    flags: int  # 2: the variant with a default stream for each thread
    verb: str


def intercepts() -> list[Intercept]:
    """All rows of the table, in its order."""
    for path in TABLES:
        if path.is_file():
            rows = ROW.findall(path.read_text())
            return [Intercept(lib, symbol, base, int(since), int(flags), verb.lower())
                    for lib, symbol, base, since, flags, verb in rows]  # fmt: skip
    raise NodeError(f"the table is not at {TABLES[0]}", hint="install the package again")


@click.command("intercepts", short_help="Show the driver functions that are changed, and how.")
@options.as_json
def command(as_json: bool) -> None:
    """Show the driver functions that are changed, and how.

    \b
    refuse   fails with the driver's own code when the quota forbids it
    delay    waits until the slice has device time
    rewrite  answers with the slice instead of the device
    settle   works as ever; what was charged is corrected

    A function that is not in the table reaches the driver untouched.
    """
    rows = intercepts()
    if as_json:
        import json

        click.echo(json.dumps({"intercepts": [asdict(row) for row in rows]}, indent=2))
        return
    width = max(len(row.symbol) for row in rows)
    for row in rows:
        click.echo(f"{row.library:4}  {row.symbol:{width}}  {row.verb}")
