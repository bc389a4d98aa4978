# SPDX-License-Identifier: Apache-2.0
"""`vgpu list`: the tenants, what they are entitled to and what they use."""

from __future__ import annotations

import os
import sys

import click

from vgpu_runtime import gpus, grants, node
from vgpu_runtime.cli import options
from vgpu_runtime.errors import NodeError
from vgpu_runtime.model import Policy, Slice, Tenant
from vgpu_runtime.units import format_memory

COLUMNS = ("TENANT", "DEVICE", "MEMORY", "CORES", "DEVICE TIME", "THROTTLED", "REFUSED", "PIDS")


@click.command("list", short_help="Show the tenants: their quotas and what they use.")
@options.as_json
@options.sim
def command(as_json: bool, sim: str | None) -> None:
    """Show the tenants: their quotas and what they use.

    Memory is used / quota. Device time is what launches have cost, throttled is how long they were delayed.
    Tenants whose programs have all ended are removed first.
    """
    here = node.open_node(sim, os.environ)
    grants.sweep(here.state)
    tenants = grants.tenants(here.state)
    if as_json:
        print_json(tenants)
    else:
        print_table(tenants, indices(here))


def indices(here: node.Node) -> dict[str, str]:
    """Index by UUID, as far as a driver can be asked."""
    try:
        return {grants.uuid_text(grants.uuid_bytes(device.uuid)): device.index for device in gpus.devices(here.driver)}
    except NodeError:
        return {}


def print_json(tenants: list[Tenant]) -> None:
    """The tenants as they are in `model`, in an object under `tenants`."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode({"tenants": tenants}), indent=2)
    click.echo(text)


def print_table(tenants: list[Tenant], numbers: dict[str, str]) -> None:
    """A table for people, one line for each slice."""
    from rich.console import Console
    from rich.table import Table

    if not tenants:
        click.echo("no tenants")
        return
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in {"TENANT", "DEVICE", "PIDS"} else "right", no_wrap=True)
    for tenant in tenants:
        for number, part in enumerate(tenant.slices):
            first = number == 0
            table.add_row(
                tenant.name if first else "",
                numbers.get(part.quota.device, part.quota.device),
                *_cells(part, tenant.fault),
                " ".join(map(str, tenant.pids)) if first else "",
            )
    # A pipe has no width: nothing is cut off there.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _cells(part: Slice, fault: str) -> tuple[str, ...]:
    quota, usage = part.quota, part.usage
    memory = "all" if quota.memory is None else format_memory(quota.memory)
    cores = "all" if quota.policy is Policy.NONE else f"{quota.cores}% {quota.policy}"
    if fault:
        return (f"? / {memory}", cores, "?", "?", fault)
    return (
        f"{format_memory(usage.memory)} / {memory}",
        cores,
        f"{usage.device_time_ns / 1e9:.1f} s",
        f"{usage.throttled_ns / 1e9:.1f} s",
        str(usage.refusals),
    )
