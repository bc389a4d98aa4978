# SPDX-License-Identifier: Apache-2.0
"""
NVML's own figure for a tenant's processes, asked from outside of the tenant while they run.

As a program it samples, until its stdin ends, what NVML says that some processes and all that they start hold on the
first device: those whose pids it is given as lines on stdin. Each line, an empty one too, is answered by what it has
seen so far, as JSON:

``now``, ``peak``   bytes of the processes together; null while NVML has named none of them
``device_peak``     by how much more of the device was in use than when this program started
``samples``         how often it looked

Where NVML counts processes by other pids (in a container), only ``device_peak`` says something, and only if nobody
else uses the device: ``Figure.peak_of_tenant`` is the one that can be had.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 0.002


@dataclass(frozen=True)
class Figure:
    """What NVML has said so far; bytes."""

    now: int | None
    peak: int | None
    device_peak: int
    samples: int

    @property
    def peak_of_tenant(self) -> int:
        """The most that the processes held at any moment at which NVML was asked."""
        return self.device_peak if self.peak is None else self.peak


@dataclass
class Watch:
    """The program, running."""

    process: subprocess.Popen[str]

    def _say(self, line: str) -> Figure:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return Figure(**json.loads(self.process.stdout.readline()))

    def follow(self, pid: int) -> None:
        """Look at this process too from now on."""
        self._say(str(pid))

    def ask(self) -> Figure:
        """What it has seen, a look at this moment included."""
        return self._say("")


@contextmanager
def watching(outside: Mapping[str, str]) -> Iterator[Watch]:
    """Watch while the context lasts, in the environment of a program outside of any tenant."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__))], env=dict(outside),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Watch(process)


# ---- the program ----------------------------------------------------------------------------------------


def family(pids: Iterable[int]) -> set[int]:
    """Processes and all their descendants that are alive."""
    import psutil

    found = set(pids)
    for pid in pids:
        try:
            found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return found


def main() -> int:
    import pynvml

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    start = pynvml.nvmlDeviceGetMemoryInfo(device).used
    seen, pids = Figure(None, None, 0, 0), set[int]()
    print("ready", flush=True)
    while True:
        line = ""
        if select.select([sys.stdin], [], [], PERIOD_S)[0]:
            line = sys.stdin.readline()
            if not line:
                return 0
            pids |= {int(word) for word in line.split()}
        own = family(pids)
        held = [one.usedGpuMemory for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device) if one.pid in own]
        now = sum(one or 0 for one in held) if any(held) else None
        grown = pynvml.nvmlDeviceGetMemoryInfo(device).used - start
        peak = max((one for one in (seen.peak, now) if one is not None), default=None)
        seen = Figure(now, peak, max(seen.device_peak, grown), seen.samples + 1)
        if line:
            print(json.dumps(seen.__dict__), flush=True)


if __name__ == "__main__":
    sys.exit(main())
