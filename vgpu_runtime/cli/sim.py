# SPDX-License-Identifier: Apache-2.0
"""`vgpu sim`: a simulated machine, ready to be used by any program."""

from __future__ import annotations

import os

import click

from vgpu_runtime import machine_files, node
from vgpu_runtime.errors import UsageError

EPILOG = """
\b
Examples:
  vgpu sim h200                                      prints its driver directory
  LD_LIBRARY_PATH=$(vgpu sim 2xh200) nvidia-smi      the whole machine, without any quota
  vgpu run --sim h200 --memory 8GiB -- nvidia-smi    a slice of it
"""


@click.command("sim", epilog=EPILOG, short_help="Make a simulated machine and print where its driver is.")
@click.argument("machine", required=False, envvar="VGPU_SIM")
@click.option("--list", "show", is_flag=True, help="Show the machines that are known by name.")
def command(machine: str | None, show: bool) -> None:
    """Make the simulated MACHINE and print the directory of its driver.

    MACHINE is a name (`--list`), a number of them (2xh200) or a machine file. A machine that is there
    already is kept as it is: all commands that name it share it.
    """
    if show:
        for name in machine_files.presets():
            click.echo(name)
        return
    if machine is None:
        raise UsageError("no machine is named", hint="`vgpu sim --list` shows their names")
    click.echo(str(node.simulate(node.state_directory(os.environ), machine).directory))
