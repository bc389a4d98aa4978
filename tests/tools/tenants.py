# SPDX-License-Identifier: Apache-2.0
"""
A tenant on a driver, and programs that run in it.

Every program is a process of its own, because that is how a preloaded library meets its host. A tenant
without a grant is a process with the shim in it and nothing else; one with an empty ``preload`` is the bare
driver, with which what a limit does is compared.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build
import vgpu_shim

from vgpu_runtime import machines

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "vgpu_runtime" / "_native"
LIBRARY = NATIVE / "libvgpu.so"
PROGRAMS = ROOT / "tests" / "shim" / "programs"

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One line of intercepts.def."""

    library: str
    symbol: str
    base: str
    since: int
    flags: int
    verb: str


def intercepts() -> list[Row]:
    """The table of what the shim changes."""
    text = (ROOT / "native" / "intercepts.def").read_text()
    found = re.findall(r'^INTERCEPT\((\w+), (\w+), "(\w*)", (\d+), (\d+), (\w+)\)', text, re.M)
    return [
        Row(library, symbol, base, int(since), int(flags), verb) for library, symbol, base, since, flags, verb in found
    ]


def compile_c(target: Path, *sources: Path, flags: Sequence[str] = (), link: Sequence[str] = ()) -> Path:
    """Compile with the compiler that builds the libraries."""
    command = [*build.compiler(), "-std=gnu11", "-g0", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", *flags,
               f"-I{build.NATIVE}", f"-I{build.SIM}", f"-I{build.SHIM}", f"-I{ROOT / 'tests'}", "-o", str(target),
               *map(str, sources), *link]  # fmt: skip
    build.run(command)
    return target


# ---- drivers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Driver:
    """What is under the shim."""

    devices: tuple[vgpu_shim.Device, ...]
    machine: machines.Machine | None
    """None: this machine's own driver."""
    context_memory: int = 0
    """Bytes that the first context of a process takes: what tenants are granted beside what they may allocate."""

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of a program that no shim is in."""
        kept = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "VGPU_TENANT")}
        base = self.machine.environment(kept) if self.machine else kept
        return {**base, "LC_ALL": "C.UTF-8", **more}


def simulated(spec: str, directory: Path, **knobs: int) -> Driver:
    """A new simulated machine, where a context takes nothing for itself unless a knob says so."""
    machine = machines.create(spec, directory)
    set_knobs(machine, **{"context_overhead": 0, **knobs})
    return Driver(tuple(vgpu_shim.Device(one.uuid, one.name, one.usable) for one in machine.devices), machine)


def set_knobs(machine: machines.Machine, **knobs: int) -> None:
    """Change how a simulated machine behaves (`struct sim_knobs` in native/sim/machine.h)."""
    from vgpu_runtime._native._machine import ffi

    with (
        machine.file.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as view,
        ffi.from_buffer("struct sim_machine *", view, require_writable=True) as shared,
    ):
        for name, value in knobs.items():
            setattr(shared.knobs, name, value)


MEASURE = """
from client import *
import pynvml, uuid
pynvml.nvmlInit()
name = (ctypes.c_ubyte * 16)()
check(cuda.cuInit(0))
check(cuda.cuDeviceGetUuid_v2(name, 0))
def find():
    for prefix in ("GPU-", "MIG-"):
        device = prefix + str(uuid.UUID(bytes=bytes(name)))
        try:
            return device, pynvml.nvmlDeviceGetHandleByUUID(device)
        except pynvml.NVMLError:
            pass
device, handle = find()
before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
up()
grown = pynvml.nvmlDeviceGetMemoryInfo(handle).used - before
own = [one.usedGpuMemory for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if one.pid == os.getpid()]
answer([device, (own or [None])[0] or max(grown, 0)])
"""


@functools.cache
def real() -> Driver:
    """This machine's own driver: CUDA's first device, and what a context takes there.

    That is NVML's figure for a process that has only a context, or, where NVML does not know the process by its
    pid (in a container), by how much more of the device was in use with it than before. Asked once.
    """
    uuid_, context = Tenant(Driver((), None), preload="").ask(MEASURE)
    devices = vgpu_shim.devices()
    first = [one for one in devices if one.uuid == uuid_]
    return Driver((*first, *(one for one in devices if one.uuid != uuid_)), None, context)


# ---- tenants ------------------------------------------------------------------------------------------

PREAMBLE = """
import ctypes, json, os, sys, time
sys.path.insert(0, {programs!r})
def answer(value):
    print(json.dumps(value), flush=True)
"""


@dataclass(frozen=True)
class Peer:
    """A program of a tenant that waits for the next thing to do."""

    process: subprocess.Popen[str]

    def heard(self) -> Any:
        """What it answers next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the peer has ended with {self.process.wait(10)}"
        return json.loads(line)

    def tell(self, text: str) -> None:
        """Have it run a piece of Python."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(textwrap.dedent(text)) + "\n")
        self.process.stdin.flush()

    def do(self, text: str) -> Any:
        """Have it run a piece of Python; what that answers."""
        self.tell(text)
        return self.heard()

    def end(self, number: int | None = None) -> int:
        """End it by a signal, or let it end by itself."""
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


@dataclass
class Tenant:
    """A place to run programs: with the shim and a grant, or bare."""

    driver: Driver
    directory: Path | None = None
    preload: str = str(LIBRARY)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of the tenant's programs."""
        ours = {"LD_PRELOAD": self.preload} if self.preload else {}
        if self.directory:
            ours["VGPU_TENANT"] = str(self.directory)
            if self.driver.context_memory:
                ours["VGPU_TEST_CONTEXT"] = str(self.driver.context_memory)
        return self.driver.environment(**ours, **more)

    def attempt(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, whatever that is."""
        return subprocess.run([str(word) for word in command], env=self.environment(**more), capture_output=True,
                              text=True, timeout=120, check=False)  # fmt: skip

    def run(self, *command: str | Path, **more: str) -> str:
        """Run a program that must succeed and say nothing on stderr; what it prints."""
        done = self.attempt(*command, **more)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert done.stderr == "", done.stderr
        return done.stdout

    def script(self, text: str) -> list[str]:
        """A piece of Python as a command."""
        return [sys.executable, "-c", PREAMBLE.format(programs=str(PROGRAMS)) + textwrap.dedent(text)]

    def ask(self, text: str, **more: str) -> Any:
        """Run a piece of Python; what it gives to ``answer()``."""
        return json.loads(self.run(*self.script(text), **more))

    def start(self, *command: str | Path, **more: str) -> subprocess.Popen[str]:
        """Start a program that ends with the test at the latest."""
        process = subprocess.Popen([str(word) for word in command], env=self.environment(**more), text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        self.running.append(process)
        return process

    def stop(self) -> None:
        """End what was started."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def peer(self, prelude: str = "", **more: str) -> Peer:
        """Start a program that does what it is told, a piece of Python at a time."""
        body = f"{textwrap.dedent(prelude)}\nanswer('on')\nfor text in sys.stdin:\n    exec(json.loads(text))\n"
        peer = Peer(self.start(*self.script(body), **more))
        peer.heard()
        return peer

    @contextmanager
    def mapped(self, name: str) -> Iterator[Any]:
        """The tenant's "grant" or "ledger", shared with its programs."""
        from vgpu_runtime._native._abi import ffi

        assert self.directory is not None
        with (
            (self.directory / name).open("r+b") as file,
            mmap.mmap(file.fileno(), 0) as view,
            ffi.from_buffer(f"struct vgpu_{name} *", view, require_writable=True) as there,
        ):
            yield there

    def change(self, index: int, **fields: int) -> None:
        """Write fields of a slice's quota, as the node does."""
        with self.grant() as (ffi, native, grant):
            quota = ffi.new("struct vgpu_quota *", grant.slices[index])
            for name, value in fields.items():
                setattr(quota, name, value)
            native.vgpu_quota_write(grant, index, quota)

    def limit_host_memory(self, amount: int) -> None:
        """Write how many bytes of page-locked memory the tenant may have; 0: not limited."""
        with self.grant() as (_, _, grant):
            grant.host_memory = amount

    @contextmanager
    def grant(self) -> Iterator[tuple[Any, Any, Any]]:
        """The tenant's grant, to be written, with cffi and the library that writes it."""
        from vgpu_runtime._native._abi import ffi

        with self.mapped("grant") as grant:
            yield ffi, ffi.dlopen(str(NATIVE / "libvgpu_abi.so")), grant

    @property
    def memory(self) -> int:
        """Bytes that the first slice is granted: what its programs may allocate, and their contexts."""
        with self.mapped("grant") as grant:
            return int(grant.slices[0].memory)

    def allocated(self) -> int:
        """Bytes of the first slice that are charged for something else than the context of each process."""
        context = self.driver.context_memory
        with self.mapped("ledger") as ledger:
            held = (sum(lane.memory[0] for lane in lanes) % 2**64 for lanes in ledger.lanes)
            contexts = sum(row.owner != 0 and one >= context for row, one in zip(ledger.rows, held, strict=True))
            return int(ledger.slices[0].memory_used) - contexts * context

    def usage(self) -> list[vgpu_shim.SliceUsage]:
        """What the tenant has used, as a program in it reads it."""
        text = f"""
        sys.path.insert(0, {str(ROOT / "shim")!r})
        import dataclasses, vgpu_shim
        answer([dataclasses.asdict(part) for part in vgpu_shim.slices()])
        """
        return [vgpu_shim.SliceUsage(**part) for part in self.ask(text)]


def create(
    state: Path, driver: Driver, memory: int | None, cores: int | None, devices: Sequence[int], processes: int = 1
) -> Tenant:
    """Create a tenant with the same quota on each device that is named by its index (None: not limited).

    ``memory`` is what its programs may allocate. The contexts of so many ``processes`` at once are granted beside it,
    and that each takes what was measured is written down, as the tenant's first process would.
    """
    granted = None if memory is None else memory + processes * driver.context_memory
    slices = [
        vgpu_shim.Slice(
            driver.devices[index].uuid, driver.devices[index].memory, granted, cores, "fixed" if cores else "none"
        )
        for index in devices
    ]
    tenant = Tenant(driver, vgpu_shim.create_tenant(state, f"t-{uuid.uuid4().hex[:12]}", "process", slices))
    if driver.context_memory:
        with tenant.mapped("ledger") as ledger:
            for index in range(len(slices)):
                ledger.slices[index].context_memory = driver.context_memory + 1
    return tenant


def served_ns(machine: machines.Machine, pid: int, device: int = 0) -> int:
    """Device time that a simulated device has given a process, by the machine's own count."""
    from vgpu_runtime._native._machine import ffi

    with (
        machine.file.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ffi.from_buffer("struct sim_machine *", view) as shared,
    ):
        for slot in range(len(shared.processes)):
            if shared.processes[slot].pid == pid and shared.processes[slot].state:
                return int(shared.devices[device].shares[slot].served_ns)
    raise LookupError(f"process {pid} has not used the machine")
