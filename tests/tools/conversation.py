# SPDX-License-Identifier: Apache-2.0
"""Programs that run on while a test tells them, step by step, what to do next."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

from tools.tenants import PROGRAMS, Tenant


class Conversation:
    """A program in a tenant that does what it is told."""

    process: subprocess.Popen[str]

    def __init__(self, tenant: Tenant, **more: str) -> None:
        self.process = tenant.start(sys.executable, PROGRAMS / "told.py", **more)
        self("from client import *\nfrom surface import *")

    def __call__(self, text: str) -> Any:
        """Have it run a piece of Python; what that gives to ``answer()``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(textwrap.dedent(text)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the program ended with {self.process.wait(10)}"
        return json.loads(line)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(10)
