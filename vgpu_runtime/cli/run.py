# SPDX-License-Identifier: Apache-2.0
"""
`vgpu run`: make a tenant, then become the program.

There is no process of ours beside the program: after exec it has our pid, our parent, our terminal and our
open files, so that its exit code, signals, input and output cannot be touched. Nothing has to be done at
its end either: a tenant lives as long as its members do, and the next command sweeps it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import click

from vgpu_runtime import grants, node
from vgpu_runtime.cli import options
from vgpu_runtime.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, ProgramError, UsageError
from vgpu_runtime.model import Policy
from vgpu_runtime.units import parse_cores, parse_host_memory, parse_memory

EPILOG = """
\b
Examples:
  vgpu run --memory 8GiB --cores 30 -- python train.py
  vgpu run --memory 25% --name a -- python serve.py     a quarter of the device, known as "a"
  vgpu run --join a -- nvidia-smi                       a second program, on the same quota
  vgpu run --device 0 --device 2 --memory 8GiB -- prog  that much of two devices
  vgpu run --memory 24GiB --spill 8GiB -- prog          24GiB, 16GiB of them in the device
  vgpu run --sim h200 --memory 8GiB -- nvitop -1        no GPU needed
\b
Quantities: 8GiB and 8Gi are binary, 8GB and 8G decimal; 8589934592 is bytes; 25% is of the device.
Without --memory the memory is not limited, without --cores the compute, without --host-memory
the page-locked host memory. Nothing lies in host memory instead of the device's without --spill.
The exit code is the program's; 127 when there is no such program, 126 when it cannot be started.
"""


@click.command(
    "run",
    epilog=EPILOG,
    # All that follows the program's name is the program's.
    context_settings={"allow_interspersed_args": False},
    short_help="Run a program within a slice of a GPU.",
)
@click.option("--memory", metavar="SIZE", help="Device memory: 8GiB, 8192MiB, 8G, bytes, or 25% of the device.")
@click.option("--spill", metavar="SIZE", help="Of --memory, so much may lie in host memory, which is slower.")
@click.option(
    "--host-memory", metavar="SIZE", help="Page-locked memory of the host, for all programs together: 4GiB, bytes."
)
@click.option("--cores", metavar="PERCENT", help="Compute: percent of the device's time, 1 to 100.")
@click.option(
    "--policy",
    type=click.Choice([str(policy) for policy in Policy]),
    help="fixed: never above the cores (the default with --cores); balance: idle cores may be borrowed; none: "
    "compute is not limited.",
)
@click.option(
    "--device",
    "devices",
    metavar="INDEX|UUID",
    multiple=True,
    help="Device to use; more than once for several. Default: the one with the most room.",
)
@click.option("--name", metavar="NAME", help="Name of the tenant.  [default: run-<pid>]")
@click.option("--join", metavar="NAME", help="Share the quota of a tenant that lives already.")
@options.sim
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    memory: str | None,
    spill: str | None,
    host_memory: str | None,
    cores: str | None,
    policy: str | None,
    devices: tuple[str, ...],
    name: str | None,
    join: str | None,
    sim: str | None,
    program: str,
    arguments: tuple[str, ...],
) -> None:
    """Run PROGRAM within a slice of a GPU, in the place of this command."""
    wish = node.Wish(memory, cores, Policy(policy) if policy else None, spill)
    _check(wish, host_memory, devices, name, join)
    environ = initial_environment()
    node.refuse_inside_a_tenant(environ)
    path = find_program(program, environ.get("PATH", os.defpath))
    here = node.open_node(sim, os.environ)
    node.preload(here.state)
    if join is not None:
        admission = node.join(here, join, os.getpid())
    else:
        locked = None if host_memory is None else parse_host_memory(host_memory)
        admission = node.admit(here, name, devices, wish, os.getpid(), locked)
    try:
        become(path, [program, *arguments], node.environment(here, admission, environ))
    except OSError as error:
        if join is None:
            grants.remove(here.state, admission.name)
        raise ProgramError(
            f"{program}: {error.strerror}",
            exit_code=EXIT_NOT_EXECUTABLE,
            hint="a script begins with #! and the path of its interpreter",
        ) from error


def _check(
    wish: node.Wish, host_memory: str | None, devices: tuple[str, ...], name: str | None, join: str | None
) -> None:
    """Judge what can be judged before any device is looked at."""
    if join is not None:
        given = {
            "--memory": wish.memory,
            "--spill": wish.spill,
            "--host-memory": host_memory,
            "--cores": wish.cores,
            "--policy": wish.policy,
            "--device": devices or None,
            "--name": name,
        }
        for option, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{option} together with --join {join}: a tenant that is joined has its slices already",
                    hint=f"leave {option} out, or create another tenant with --name",
                )
    if wish.memory is not None:
        parse_memory(wish.memory, 2**40)
    if wish.spill is not None:
        parse_memory(wish.spill, 2**40, "spill")
    if host_memory is not None:
        parse_host_memory(host_memory)
    if wish.cores is not None:
        parse_cores(wish.cores)


def initial_environment() -> Mapping[str, str]:
    """The environment as this command was given it; Python's start may have added to its own."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def find_program(name: str, search: str) -> str:
    """The file to execute for `name`, as a shell finds it. ProgramError with a shell's exit code if none."""
    places = [name] if "/" in name else [os.path.join(folder or ".", name) for folder in search.split(":")]  # noqa: PTH118
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):  # noqa: PTH113
            return place
    if any(os.path.lexists(place) for place in places):
        raise ProgramError(
            f"{name}: it is there but cannot be executed", exit_code=EXIT_NOT_EXECUTABLE, hint=f"chmod +x {name}?"
        )
    raise ProgramError(
        f"{name}: there is no such program", exit_code=EXIT_NOT_FOUND, hint="is it installed, and in PATH?"
    )


def become(path: str, argv: list[str], environ: Mapping[str, str]) -> None:
    """Replace this process by a program. Returns only by an OSError."""
    # The two signals that Python has taken for itself; ignored ones would stay so across exec.
    ignored = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    try:
        os.execve(path, argv, environ)
    finally:
        for number, handler in ignored.items():
            signal.signal(number, handler)
