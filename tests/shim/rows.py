# SPDX-License-Identifier: Apache-2.0
"""
Every line of intercepts.def as a small call: what the tests run in a tenant and bare.

An entry calls its function once, through the driver's library as a program has it, and returns something that
can be judged. What that is depends on its kind, which goes with the verb of the line:

``refuses``   takes ``HOLD`` bytes of the device; returns the driver's code
``settles``   returns by how many bytes the device's use was above the start before the call and after it
``shows``     returns what the driver says of the device: not the same in a tenant and bare
``delays``    launches; returns the code
``gates``     returns the code, which is another where the tenant's files cannot be used
``answers``   returns codes that are the same in a tenant and bare; ``why`` says why nothing else can be seen

An entry whose kind is not the one that goes with its line's verb says why. Entries run in children of one
process, forked before the driver is loaded: ``python -m tests.shim.rows`` reads jobs as JSON from stdin.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
HOLD = 64 * MIB
DEVICE = int(os.environ.get("VGPU_ROWS_DEVICE", "1"))
"""The device that is granted; the simulated machine has two, so that what hides one can be seen."""

KIND_OF_VERB = {"REFUSE": "refuses", "SETTLE": "settles", "REWRITE": "shows", "DELAY": "delays"}

PIECES = ("rows_cuda", "rows_memory", "rows_blocks", "rows_nvml")
"""The modules that hold the entries."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line's call."""

    kind: str
    run: Callable[[], Any]
    why: str
    alone: bool
    """It must be the first of its process that uses the device; what fills the quota is another process."""


ENTRIES: dict[str, Entry] = {}


Run = Callable[[str], Any]


def entry(kind: str, *symbols: str, why: str = "", alone: bool = False) -> Callable[[Run], Run]:
    """Enter a function, which is given the symbol, as the call of these lines."""

    def enter(run: Run) -> Run:
        for symbol in symbols:
            assert symbol not in ENTRIES, f"{symbol} has two entries"
            ENTRIES[symbol] = Entry(kind, functools.partial(run, symbol), why, alone)
        return run

    return enter


def load() -> dict[str, Entry]:
    """All entries."""
    for piece in PIECES:
        importlib.import_module(f"tests.shim.{piece}")
    return ENTRIES


# ---- the driver, as a program has it ------------------------------------------------------------------------

called: set[str] = set()
"""Functions that were taken from the driver's libraries."""

HELPERS = """
CUresult cuCtxCreate_v2(CUcontext *, unsigned int, CUdevice);
CUresult cuMemAddressReserve(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *, CUdevice);
CUresult cuMemPoolCreate(CUmemoryPool *, const CUmemPoolProps *);
CUresult cuMemPoolSetAttribute(CUmemoryPool, int, void *);
CUresult cuMulticastAddDevice(CUmemGenericAllocationHandle, CUdevice);
CUresult cuGraphCreate(CUgraph *, unsigned int);
CUresult cuGraphAddMemAllocNode(CUgraphNode *, CUgraph, const CUgraphNode *, size_t, CUDA_MEM_ALLOC_NODE_PARAMS *);
CUresult cuGraphAddMemFreeNode(CUgraphNode *, CUgraph, const CUgraphNode *, size_t, CUdeviceptr);
CUresult cuGraphInstantiateWithFlags(CUgraphExec *, CUgraph, unsigned long long);
CUresult cuGraphLaunch(CUgraphExec, CUstream);
"""
"""What entries call beside the lines of the table; a header may declare it as well."""


@functools.cache
def declarations() -> Any:
    """The driver's functions and types, from our own headers."""
    import cffi

    from native import build

    ffi = cffi.FFI()
    # Types first: cuda.h includes the others.
    headers = (
        *build.NATIVE.glob("cuda_*.h"),
        build.NATIVE / "cuda.h",
        build.SIM / "cuda_abi.h",
        build.NATIVE / "nvml.h",
    )
    text = "".join(build.declarations(header) for header in headers)
    ffi.cdef(re.sub(r"_Static_assert\(.*?\);\n", "", text, flags=re.S))
    ffi.cdef(HELPERS, override=True)
    return ffi


class Library:
    """A library of the driver, loaded when it is first used."""

    def __init__(self, file: str) -> None:
        self._file = file

    @functools.cached_property
    def _library(self) -> Any:
        return declarations().dlopen(self._file)

    def __getattr__(self, name: str) -> Any:
        called.add(name)
        return getattr(self._library, name)

    def owner(self, name: str) -> str:
        """The library that a function is really in."""
        ffi = declarations()
        address = int(ffi.cast("uintptr_t", ffi.addressof(self._library, name)))
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, _, end = line.split()[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return Path(line.split()[-1]).name
        return "?"


cuda = Library("libcuda.so.1")
nvml = Library("libnvidia-ml.so.1")


def new(kind: str, value: Any = None) -> Any:
    """Memory of a C type, zeroed or with a value."""
    return declarations().new(kind) if value is None else declarations().new(kind, value)


def twins(*symbols: str) -> list[str]:
    """Functions and those for a default stream per thread."""
    return [name for symbol in symbols for name in (symbol, f"{symbol}_ptsz")]


def null() -> Any:
    return declarations().NULL


def check(code: int) -> None:
    assert code == 0, f"the driver returned {code}"


def up() -> Any:
    """Initialise the driver and make a context of the device current."""
    context = new("CUcontext *")
    check(cuda.cuInit(0))
    check(cuda.cuCtxCreate_v2(context, 0, DEVICE))
    return context[0]


def info() -> tuple[int, int]:
    """Free and total bytes of the device."""
    available, total = new("size_t *"), new("size_t *")
    check(cuda.cuMemGetInfo_v2(available, total))
    return available[0], total[0]


def used() -> int:
    available, total = info()
    return total - available


def hold(amount: int = HOLD) -> int:
    """Allocate; the pointer."""
    pointer = new("CUdeviceptr *")
    check(cuda.cuMemAlloc_v2(pointer, amount))
    return int(pointer[0])


def fill(room: int) -> None:
    """Allocate until less than a block of 2 MiB is left of so many bytes."""
    pointer = new("CUdeviceptr *")
    step = room
    while step >= 2 * MIB and room >= 2 * MIB:
        if step <= room and cuda.cuMemAlloc_v2(pointer, step) == 0:
            room -= step
        else:
            step //= 2


# ---- running --------------------------------------------------------------------------------------------------


@contextmanager
def filled(room: int, apart: bool) -> Iterator[None]:
    """So many bytes are allocated by this process, or by one that ends with the context."""
    if not apart:
        up()
        fill(room)
        called.clear()
        yield
        return
    ready, done = os.pipe(), os.pipe()
    if not os.fork():
        os.close(done[1])
        up()
        fill(room)
        os.write(ready[1], b"!")
        os.read(done[0], 1)
        os._exit(0)
    os.close(ready[1])
    assert os.read(ready[0], 1), "what fills the device has failed"
    try:
        yield
    finally:
        os.close(done[1])
        os.wait()


def outcome(symbol: str, room: int) -> dict[str, Any]:
    """Run an entry, after filling the device up to ``room`` if that is not 0."""
    one = ENTRIES[symbol]
    with filled(room, one.alone) if room else nullcontext():
        answer = one.run()
    library = nvml if symbol.startswith("nvml") else cuda
    return {"answer": answer, "called": symbol in called, "owner": library.owner(symbol)}


def in_child(job: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a job in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        if job["tenant"]:
            os.environ["VGPU_TENANT"] = job["tenant"]
        try:
            said = outcome(job["symbol"], job["room"])
        except BaseException:
            said = {"error": traceback.format_exc()}
        with os.fdopen(write, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"error": f"the process ended with status {status}"}


def main() -> int:
    """Run the jobs on stdin, and print what came of each."""
    from tests.shim import rows  # not as __main__, where the pieces do not enter theirs

    rows.load()
    rows.declarations()
    print(json.dumps([rows.in_child(job) for job in json.load(sys.stdin)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
