# SPDX-License-Identifier: Apache-2.0
"""`vgpu list`: the tenants, what they are entitled to and what they use."""

from __future__ import annotations

import os
import sys

import click

from vgpu_runtime import gpus, grants, node
from vgpu_runtime.cli import options
from vgpu_runtime.errors import NodeError
from vgpu_runtime.model import HostMemory, Policy, Slice, Tenant
from vgpu_runtime.units import format_memory

COLUMNS = (
    "TENANT", "DEVICE", "MEMORY", "SPILLED", "CORES", "DEVICE TIME", "THROTTLED", "REFUSED", "HOST MEMORY", "PIDS"
)  # fmt: skip


@click.command("list", short_help="Show the tenants: their quotas and what they use.")
@options.as_json
@options.sim
def command(as_json: bool, sim: str | None) -> None:
    """Show the tenants: their quotas and what they use.

    Memory is used / quota. Spilled is what of it lies in host memory, used / quota; host memory is what is
    page-locked there, used / quota and allocations refused. Each of the two is shown where a tenant has it.
    Device time is what launches have cost, throttled is how long they were delayed. Tenants whose programs have
    all ended are removed first.
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
    rows = []
    for tenant in tenants:
        for number, part in enumerate(tenant.slices):
            cells = {"DEVICE": numbers.get(part.quota.device, part.quota.device), **_cells(part, tenant.fault)}
            if number == 0:
                cells |= {"TENANT": tenant.name, "PIDS": " ".join(map(str, tenant.pids)),
                          "HOST MEMORY": _host_memory(tenant)}  # fmt: skip
            rows.append(cells)
    # What nobody has would only take the room of what somebody has.
    columns = [
        column
        for column in COLUMNS
        if column not in {"SPILLED", "HOST MEMORY"} or any(cells.get(column) for cells in rows)
    ]
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in {"TENANT", "DEVICE", "PIDS"} else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*(cells.get(column, "") for column in columns))
    # A pipe has no width: nothing is cut off there.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _cells(part: Slice, fault: str) -> dict[str, str]:
    quota, usage = part.quota, part.usage
    memory = "all" if quota.memory is None else format_memory(quota.memory)
    cores = "all" if quota.policy is Policy.NONE else f"{quota.cores}% {quota.policy}"
    spill = f" / {format_memory(quota.spill)}" if quota.spill else ""
    if fault:
        spilled = f"?{spill}" if spill else ""
        return {"MEMORY": f"? / {memory}", "SPILLED": spilled, "CORES": cores, "DEVICE TIME": "?", "THROTTLED": "?",
                "REFUSED": fault}  # fmt: skip
    return {
        "MEMORY": f"{format_memory(usage.memory + usage.spill)} / {memory}",
        "SPILLED": f"{format_memory(usage.spill)}{spill}" if spill else "",
        "CORES": cores,
        "DEVICE TIME": f"{usage.device_time_ns / 1e9:.1f} s",
        "THROTTLED": f"{usage.throttled_ns / 1e9:.1f} s",
        "REFUSED": str(usage.refusals),
    }


def _host_memory(tenant: Tenant) -> str:
    host = tenant.host_memory
    quota = "all" if host.quota is None else format_memory(host.quota)
    if host == HostMemory(None, 0, 0):
        return ""
    if tenant.fault:
        return f"? / {quota}"
    return f"{format_memory(host.usage)} / {quota}" + (f", {host.refusals} refused" if host.refusals else "")
