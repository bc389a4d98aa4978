# SPDX-License-Identifier: Apache-2.0
"""Several programs at once on one simulated machine, and the machine's books while they are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from sim.programs import ask, start, state
from tools.simulated import Simulated


class Peer:
    """A program that is told what to do, a piece of Python at a time."""

    def __init__(self, machine: Simulated, prelude: str, stack: ExitStack, inside: Sequence[str] = ()) -> None:
        body = prelude + "\nanswer('on')\nwhile text := line():\n    exec(json.loads(text))\n"
        self.process = stack.enter_context(start(machine, body, inside=inside))
        stack.callback(self.kill)
        self.heard()

    def heard(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, body: str) -> Any:
        """Run the piece; return what it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(body) + "\n")
        self.process.stdin.flush()
        return self.heard()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.communicate("\n")


def used(machine: Simulated) -> int:
    """What is taken on the device beyond contexts, as any program sees it."""
    code = "context()\nanswer(ok(cu.cuDeviceTotalMem(0)) - ok(cu.cuMemGetInfo())[0])"
    taken = int(ask(machine, code))  # who asks clears away the dead
    live = sum(state(machine).devices[0].shares[slot].contexts > 0 for slot in range(512))
    return taken - (live + 1) * int(state(machine).knobs.context_overhead)


def books(machine: Simulated) -> tuple[int, int]:
    """The device's sum, and the sum of its parts."""
    device = state(machine).devices[0]
    return device.memory_used, sum(device.shares[slot].memory for slot in range(512)) + device.memory_unowned
