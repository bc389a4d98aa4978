# SPDX-License-Identifier: Apache-2.0
"""
Random sequences of all memory calls: what is charged is what the device has given, at every step.

The program under test lives through all sequences; each ends with everything freed, and nothing charged.
Sizes are whole blocks of 2 MiB, in which devices count. ``VGPU_EXACTNESS=20`` tries 20 times as many sequences.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tools.conversation import Conversation
from tools.tenants import MIB, Driver, Tenant, set_knobs

Make = Callable[..., Tenant]

BLOCK = 2 * MIB
QUOTA = 64 * BLOCK
OUT_OF_MEMORY = 2
MORE = int(os.environ.get("VGPU_EXACTNESS", "1"))

AMOUNTS = st.integers(1, 40).map(lambda blocks: blocks * BLOCK)
WHICH = st.integers(0, 1000)


class Subject:
    """A tenant, its books, and a program in it that lives from sequence to sequence, unless one fails."""

    def __init__(
        self, make_tenant: Callable[[], Tenant], context_bytes: int, module_bytes: int, stack: ExitStack
    ) -> None:
        self.make_tenant, self.stack = make_tenant, stack
        self.context_bytes, self.module_bytes = context_bytes, module_bytes
        self.program: Conversation | None = None

    def begin(self) -> Conversation:
        """The program, holding nothing."""
        from vgpu_runtime._native import _abi, _machine

        if self.program:
            return self.program
        tenant = self.make_tenant()
        assert tenant.directory is not None
        assert tenant.driver.machine is not None
        self.ledger = self.stack.enter_context(mapped(_abi.ffi, "vgpu_ledger", tenant.directory / "ledger"))
        self.machine = self.stack.enter_context(mapped(_machine.ffi, "sim_machine", tenant.driver.machine.file))
        self.program = Conversation(tenant)
        self.program(PROGRAM)
        pid = self.program.process.pid
        self.slot = next(i for i, one in enumerate(self.machine.processes) if one.pid == pid and one.state == 1)
        return self.program

    def end(self, is_clean: bool) -> None:
        """What a failed sequence leaves behind is nothing to go on with."""
        if self.program and not is_clean:
            self.program.kill()
            self.program = None

    def read(self) -> tuple[int, int, int]:
        """Bytes of the device and of the host that the ledger says; of the device, that the machine says."""
        return (
            int(self.ledger.slices[0].memory_used),
            int(self.ledger.host_used),
            int(self.machine.devices[0].shares[self.slot].memory),
        )


@contextmanager
def mapped(ffi: Any, struct: str, path: Path) -> Iterator[Any]:
    """A shared file, to be read."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ffi.from_buffer(f"struct {struct} *", view) as content,
    ):
        yield content


@dataclass
class Thing:
    """Something that the program holds."""

    name: str
    """Under which the program knows it."""
    kind: str
    bytes: int
    context: str = ""
    """With whose end it ends; empty: it outlives contexts."""
    handles: list[str] = field(default_factory=list)
    mappings: list[str] = field(default_factory=list)
    """Of a block."""
    is_live: bool = True
    """Of a graph: it holds memory now."""


ALLOCATIONS = {
    "linear": ("alloc({n})", "free({o})"),
    "pitched": ("pitched({n})", "free({o})"),
    "managed": ("alloc_managed({n})", "free({o})"),
    "array": ("array({n})", "cuda.cuArrayDestroy({o})"),
    "mipmap": ("mipmap({n})", "cuda.cuMipmappedArrayDestroy({o})"),
}
HOST = {
    "allocated": ("host_alloc({n})", "cuda.cuMemFreeHost({o})"),
    "registered": ("host_register({n})", "cuda.cuMemHostUnregister({o})"),
}
PROGRAM = """
import mmap
o, contexts, area = {}, {}, mmap.mmap(-1, 64 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
def pitched(amount):
    made, pitch = address(), ctypes.c_size_t()
    code = cuda.cuMemAllocPitch_v2(ctypes.byref(made), ctypes.byref(pitch), size(1 << 19), size(amount >> 19), 4)
    return code, made
def host_alloc(amount):
    made = handle()
    return cuda.cuMemHostAlloc(ctypes.byref(made), size(amount), 0), made
def host_register(amount):
    made = ctypes.c_void_p(start)
    return cuda.cuMemHostRegister_v2(made, size(amount), 0), made
def new_context():
    made, popped = handle(), handle()
    code = cuda.cuCtxCreate_v2(ctypes.byref(made), 0, 0)
    if not code:
        check(cuda.cuCtxPopCurrent_v2(ctypes.byref(popped))), check(cuda.cuCtxSetCurrent(made))
    return code, made
def primary():
    made = handle()
    return cuda.cuDevicePrimaryCtxRetain(ctypes.byref(made), 0), made
def load():
    made = handle()
    return cuda.cuModuleLoadData(ctypes.byref(made), SPIN), made
def mapped(amount, block):
    at = reserve(amount)
    return map_at(at, amount, block), at
def figures():
    pools = [default_pool(), *(pool for name, pool in o.items() if name.startswith("pool"))]
    return [sum(pool_says(kind, pool) for pool in pools) for kind in (RESERVED, USED)]
check(cuda.cuInit(0))
"""


class Surface(RuleBasedStateMachine):
    """A program that calls the driver, and what it ought to hold."""

    subject: ClassVar[Subject]

    def __init__(self) -> None:
        super().__init__()
        self.tell = self.subject.begin()
        self.context_bytes, self.module_bytes = self.subject.context_bytes, self.subject.module_bytes
        self.things: list[Thing] = []
        self.contexts: list[str] = []
        self.count = 0
        self.retained = 0
        self.make_context()

    # ---- the model ----------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def of(self, *kinds: str) -> list[Thing]:
        return [thing for thing in self.things if thing.kind in kinds]

    def charged(self) -> int:
        """What it holds itself; pools and graphs aside."""
        held = sum(thing.bytes for thing in self.things if thing.kind not in ("ordered", "host", "graph", "pool"))
        return held + (self.context_bytes if self.contexts else 0)

    def needed(self) -> int:
        """What nobody can let go of."""
        graphs = sum(thing.bytes for thing in self.of("graph") if thing.is_live)
        return self.charged() + graphs + int(self.tell("answer(figures()[1])"))

    def do(self, call: str, name: str, wanted: int) -> bool:
        """Ask for something that takes so many bytes; whether the program has it."""
        fits = self.needed() + wanted <= QUOTA
        code = self.tell(f"code, made = {call}\nif not code: o[{name!r}] = made\nanswer(code)")
        assert code == (0 if fits else OUT_OF_MEMORY), (
            f"{call}: {code}, and {wanted} bytes do {'' if fits else 'not '}fit"
        )
        return fits

    def must(self, call: str) -> None:
        code = self.tell(f"answer({call})")
        assert code == 0, f"{call}: {code}"

    def drop(self, thing: Thing) -> None:
        self.things.remove(thing)
        self.tell(f"o.pop({thing.name!r}, None)")

    # ---- contexts -----------------------------------------------------------------------------------

    def make_context(self) -> None:
        name = self.name("context")
        if self.do("new_context()", name, 0 if self.contexts else self.context_bytes):
            self.contexts.append(name)

    @precondition(lambda self: len(self.contexts) < 3)
    @rule()
    def create_context(self) -> None:
        self.make_context()

    @precondition(lambda self: "primary" not in self.contexts)
    @rule()
    def retain_primary(self) -> None:
        if self.do("primary()", "primary", 0 if self.contexts else self.context_bytes):
            self.must("cuda.cuCtxSetCurrent(o['primary'])")
            self.contexts.append("primary")

    @precondition(lambda self: self.contexts)
    @rule(which=WHICH)
    def switch(self, which: int) -> None:
        self.contexts.append(self.contexts.pop(which % len(self.contexts)))
        self.must(f"cuda.cuCtxSetCurrent(o[{self.contexts[-1]!r}])")

    @precondition(lambda self: self.contexts)
    @rule(which=WHICH, reset=st.booleans())
    def end_context(self, which: int, reset: bool) -> None:
        if self.of("host"):
            self.unlock_host_memory()
        name = self.contexts.pop(which % len(self.contexts))
        if name == "primary":
            self.must("cuda.cuDevicePrimaryCtxReset_v2(0)" if reset else "cuda.cuDevicePrimaryCtxRelease_v2(0)")
            if reset:
                self.tell("cuda.cuDevicePrimaryCtxRelease_v2(0)")
        else:
            self.must(f"cuda.cuCtxDestroy_v2(o[{name!r}])")
        for thing in list(self.things):
            if thing.context == name or (not self.contexts and thing.kind in ("ordered", "graph")):
                self.drop(thing)
        if self.contexts:
            self.must(f"cuda.cuCtxSetCurrent(o[{self.contexts[-1]!r}])")

    @precondition(lambda self: self.contexts)
    @rule()
    def load_module(self) -> None:
        name = self.name("module")
        if self.do("load()", name, self.module_bytes):
            self.things.append(Thing(name, "module", self.module_bytes, self.contexts[-1]))

    @precondition(lambda self: self.of("module"))
    @rule(which=WHICH)
    def unload_module(self, which: int) -> None:
        thing = self.of("module")[which % len(self.of("module"))]
        self.must(f"cuda.cuModuleUnload(o[{thing.name!r}])")
        self.drop(thing)

    # ---- memory of contexts -------------------------------------------------------------------------

    @precondition(lambda self: self.contexts)
    @rule(kind=st.sampled_from(sorted(ALLOCATIONS)), amount=AMOUNTS)
    def allocate(self, kind: str, amount: int) -> None:
        name = self.name(kind)
        if self.do(ALLOCATIONS[kind][0].format(n=amount), name, amount):
            self.things.append(Thing(name, kind, amount, self.contexts[-1]))

    @precondition(lambda self: self.contexts and self.of(*ALLOCATIONS))
    @rule(which=WHICH)
    def free(self, which: int) -> None:
        thing = self.of(*ALLOCATIONS)[which % len(self.of(*ALLOCATIONS))]
        self.must(ALLOCATIONS[thing.kind][1].format(o=f"o[{thing.name!r}]"))
        self.drop(thing)

    @precondition(lambda self: self.contexts and not self.of("host"))
    @rule(way=st.sampled_from(sorted(HOST)), amount=st.integers(1, 30).map(lambda n: n * BLOCK))
    def lock_host_memory(self, way: str, amount: int) -> None:
        name = self.name("host")
        code = self.tell(f"code, o[{name!r}] = {HOST[way][0].format(n=amount)}\nanswer(code)")
        assert code == 0
        self.things.append(Thing(name, "host", amount, self.contexts[-1], handles=[HOST[way][1]]))

    @precondition(lambda self: self.contexts and self.of("host"))
    @rule()
    def unlock_host_memory(self) -> None:
        thing = self.of("host")[0]
        self.must(thing.handles[0].format(o=f"o[{thing.name!r}]"))
        self.drop(thing)

    # ---- stream-ordered memory ------------------------------------------------------------------------

    @precondition(lambda self: len(self.of("pool")) < 3)
    @rule()
    def make_pool(self) -> None:
        name = self.name("pool")
        assert self.do("make_pool()", name, 0)
        self.things.append(Thing(name, "pool", 0))

    def pool(self, which: int) -> str:
        """The device's pool, or one of the program's."""
        names = ["default_pool()", *(f"o[{thing.name!r}]" for thing in self.of("pool"))]
        return names[which % len(names)]

    @precondition(lambda self: self.contexts)
    @rule(amount=AMOUNTS, which=WHICH, ptsz=st.booleans(), is_named=st.booleans())
    def allocate_ordered(self, amount: int, which: int, ptsz: bool, is_named: bool) -> None:
        name = self.name("ordered")
        call = (
            f"from_pool({amount}, {self.pool(which)}, None, {ptsz})"
            if is_named
            else f"on_stream({amount}, None, {ptsz})"
        )
        if self.do(call, name, amount):
            self.things.append(Thing(name, "ordered", amount))

    @precondition(lambda self: self.contexts and self.of("ordered"))
    @rule(which=WHICH, way=st.sampled_from(["free_on({o})", "free_on({o}, None, True)", "free({o})"]))
    def free_ordered(self, which: int, way: str) -> None:
        thing = self.of("ordered")[which % len(self.of("ordered"))]
        self.must(way.format(o=f"o[{thing.name!r}]"))
        self.drop(thing)

    @rule(which=WHICH, keep=st.sampled_from([0, 8 * BLOCK, 2**64 - 1]))
    def set_threshold(self, which: int, keep: int) -> None:
        self.must(f"keep({keep}, {self.pool(which)})")

    @rule(which=WHICH, keep=st.sampled_from([0, 8 * BLOCK]))
    def trim_pool(self, which: int, keep: int) -> None:
        self.must(f"trim({keep}, {self.pool(which)})")

    @precondition(lambda self: self.of("pool"))
    @rule(which=WHICH)
    def use_pool(self, which: int) -> None:
        self.must(f"cuda.cuDeviceSetMemPool(0, {self.pool(which)})")

    @precondition(lambda self: self.of("pool") and not self.of("ordered"))
    @rule(which=WHICH)
    def end_pool(self, which: int) -> None:
        thing = self.of("pool")[which % len(self.of("pool"))]
        self.must(f"cuda.cuMemPoolDestroy(o[{thing.name!r}])")
        self.drop(thing)

    @precondition(lambda self: self.contexts)
    @rule(call=st.sampled_from(["cuda.cuCtxSynchronize()", "cuda.cuStreamSynchronize(None)",
                                "cuda.cuStreamQuery_ptsz(None)"]))  # fmt: skip
    def synchronise(self, call: str) -> None:
        self.must(call)

    # ---- physical memory --------------------------------------------------------------------------------

    @rule(amount=AMOUNTS)
    def make_block(self, amount: int) -> None:
        name = self.name("block")
        if self.do(f"create({amount})", name, amount):
            self.things.append(Thing(name, "block", amount, handles=[name]))

    def block(self, which: int, has: str) -> Thing | None:
        some = [thing for thing in self.of("block") if getattr(thing, has)]
        return some[which % len(some)] if some else None

    @rule(which=WHICH)
    def map_block(self, which: int) -> None:
        thing = self.block(which, "handles")
        if not thing:
            return
        name = self.name("at")
        code = self.tell(f"code, o[{name!r}] = mapped({thing.bytes}, o[{thing.handles[-1]!r}])\nanswer(code)")
        assert code == 0
        thing.mappings.append(name)

    @rule(which=WHICH)
    def retain_block(self, which: int) -> None:
        thing = self.block(which, "mappings")
        if not thing:
            return
        name = self.name("again")
        code = self.tell(f"code, o[{name!r}] = retain(o[{thing.mappings[-1]!r}])\nanswer(code)")
        assert code == 0
        thing.handles.append(name)

    def end_if_free(self, thing: Thing) -> None:
        if not thing.handles and not thing.mappings:
            self.drop(thing)

    @rule(which=WHICH)
    def release_block(self, which: int) -> None:
        thing = self.block(which, "handles")
        if thing:
            self.must(f"release(o[{thing.handles.pop()!r}])")
            self.end_if_free(thing)

    @rule(which=WHICH)
    def unmap_block(self, which: int) -> None:
        thing = self.block(which, "mappings")
        if thing:
            self.must(f"unmap(o[{thing.mappings.pop()!r}], {thing.bytes})")
            self.end_if_free(thing)

    # ---- graphs -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.contexts and len(self.of("graph")) < 4)
    @rule(amounts=st.lists(AMOUNTS, min_size=1, max_size=3), add=st.sampled_from(["graph_of", "capture_of"]))
    def make_graph(self, amounts: list[int], add: str) -> None:
        """Memory that it frees itself, all but the last."""
        name = self.name("graph")
        free = len(amounts) > 1
        self.tell(f"graph, made = {add}(*{amounts}, free={free})")
        fits = max(amounts) <= QUOTA
        code = self.tell(f"code, o[{name!r}] = instantiate(graph)\no[{name + 'at'!r}] = made[0]\nanswer(code)")
        assert code == (0 if fits else OUT_OF_MEMORY)
        if fits:
            thing = Thing(name, "graph", max(amounts), is_live=False)
            thing.mappings = [] if free else [name + "at"]
            self.things.append(thing)

    @precondition(lambda self: self.contexts and self.of("graph"))
    @rule(which=WHICH, ptsz=st.booleans())
    def launch_graph(self, which: int, ptsz: bool) -> None:
        thing = self.of("graph")[which % len(self.of("graph"))]
        if thing.is_live:
            return
        fits = self.needed() + thing.bytes <= QUOTA
        code = self.tell(f"answer(run(o[{thing.name!r}], None, {ptsz}))")
        assert code == (0 if fits else OUT_OF_MEMORY), f"{thing}: {code}"
        thing.is_live = fits and bool(thing.mappings)

    @precondition(lambda self: self.contexts and any(thing.is_live for thing in self.of("graph")))
    @rule(way=st.sampled_from(["free_on({o})", "free({o})"]))
    def free_graph_memory(self, way: str) -> None:
        thing = next(thing for thing in self.of("graph") if thing.is_live)
        self.must(way.format(o=f"o[{thing.mappings[0]!r}]"))
        thing.is_live = False

    @precondition(lambda self: any(not thing.is_live for thing in self.of("graph")))
    @rule()
    def end_graph(self) -> None:
        thing = next(thing for thing in self.of("graph") if not thing.is_live)
        self.must(f"cuda.cuGraphExecDestroy(o[{thing.name!r}])")
        self.drop(thing)

    @rule()
    def trim_graphs(self) -> None:
        self.must("cuda.cuDeviceGraphMemTrim(0)")

    # ---- what is always so ----------------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        charged, host, really = self.subject.read()
        pools = int(self.tell("answer(figures()[0])"))
        graphs = int(self.tell("answer(graphs_say(GRAPH_RESERVED))"))
        assert charged == really <= QUOTA
        assert charged == self.charged() + pools + graphs
        assert host == sum(thing.bytes for thing in self.of("host"))

    def teardown(self) -> None:
        is_clean = False
        try:
            self.free_everything()
            is_clean = self.subject.read() == (0, 0, 0)
            assert is_clean, f"{self.subject.read()} when everything is freed"
        finally:
            self.subject.end(is_clean)

    def free_everything(self) -> None:
        for thing in self.of("block"):
            for name in thing.handles:
                self.must(f"release(o[{name!r}])")
            for name in thing.mappings:
                self.must(f"unmap(o[{name!r}], {thing.bytes})")
        for thing in self.of("graph"):
            self.must(f"cuda.cuGraphExecDestroy(o[{thing.name!r}])")
        while self.contexts:
            self.end_context(0, False)
        for thing in self.of("pool"):
            self.must(f"cuda.cuMemPoolDestroy(o[{thing.name!r}])")
        self.must("keep(0)")
        self.tell("o.clear()")


def has_knob(name: str) -> bool:
    """Whether this build's machine can be told so."""
    from vgpu_runtime._native import _machine

    return name in dict(_machine.ffi.typeof("struct sim_knobs").fields)


@pytest.mark.parametrize("overhead", [0, 3 * BLOCK], ids=["bare contexts", "contexts and modules take memory"])
def test_what_is_charged_is_what_the_device_has_given(
    make_machine: Callable[[str], Driver], make_tenant: Make, overhead: int
) -> None:
    driver = make_machine("h200")
    assert driver.machine is not None
    modules = BLOCK if overhead and has_knob("module_overhead") else 0
    set_knobs(driver.machine, context_overhead=overhead, **({"module_overhead": modules} if modules else {}))
    with ExitStack() as stack:

        class Bound(Surface):
            subject = Subject(lambda: make_tenant(QUOTA, on=driver), overhead, modules, stack)

        chosen = settings(max_examples=60 * MORE, stateful_step_count=50, deadline=None, derandomize=MORE == 1,
                          suppress_health_check=list(HealthCheck), print_blob=False)  # fmt: skip
        run_state_machine_as_test(Bound, settings=chosen)
