# SPDX-License-Identifier: Apache-2.0
"""What the tests of a tenant's NVML share: a script with the face of NVML, a program that holds memory."""

from __future__ import annotations

import textwrap
from typing import Any

from tools.tenants import Tenant, intercepts

NO_PERMISSION, NOT_FOUND, VERSION_MISMATCH = 4, 6, 25

COMPUTE = [row.symbol for row in intercepts() if "GetComputeRunningProcesses" in row.symbol]
"""The lists of compute processes, which the ledger fills."""

ONLY_THE_DRIVERS = [
    row.symbol for row in intercepts() if "RunningProcesses" in row.symbol and row.symbol not in COMPUTE
]
"""The lists that only the driver can fill."""


def script(tenant: Tenant, text: str) -> list[str]:
    """A piece of Python that may use the face of NVML, as a command."""
    return tenant.script("from nvml_client import *\n" + textwrap.dedent(text))


def ask(tenant: Tenant, text: str, **more: str) -> Any:
    """Run a piece of Python that may use the face of NVML; what it gives to ``answer()``."""
    return tenant.ask("from nvml_client import *\n" + textwrap.dedent(text), **more)


def hold(tenant: Tenant, amount: int, ordinal: int = 0) -> int:
    """Have a program hold memory of a device until the test ends; its pid."""
    process = tenant.start(
        *tenant.script(f"from client import *\nup({ordinal})\nanswer(alloc({amount})[0])\nsys.stdin.read()")
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    return process.pid
