# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

sim: Decorator = click.option(
    "--sim",
    metavar="MACHINE",
    envvar="VGPU_SIM",
    help="Use a simulated machine: h200, 2xa100-80g, … (`vgpu sim --list`) or a machine file.  [env: VGPU_SIM]",
)

as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
