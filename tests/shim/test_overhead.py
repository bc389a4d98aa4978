# SPDX-License-Identifier: Apache-2.0
"""Refuse: what contexts, modules and limits take for themselves is part of the quota, and never more than it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools.tenants import MIB, Driver, Peer, Tenant, set_knobs

Make = Callable[..., Tenant]
MakeMachine = Callable[[str], Driver]

OUT_OF_MEMORY = 2
CONTEXT = 96 * MIB
MODULE = 3 * MIB

PRELUDE = """
from client import *
import judge
check(cuda.cuInit(0))
context = ctypes.c_void_p()
def create_context(function="cuCtxCreate_v2"):
    middle = {"cuCtxCreate_v3": [None, 0], "cuCtxCreate_v4": [None]}.get(function, [])
    return getattr(cuda, function)(ctypes.byref(context), *middle, 0, 0)
def retain_primary():
    return cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
def primary_is_active():
    flags, active = ctypes.c_uint(), ctypes.c_int()
    check(cuda.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)))
    return bool(active.value)
def current():
    check(cuda.cuCtxGetCurrent(ctypes.byref(context)))
    return bool(context.value)
"""


@pytest.fixture
def driver(make_machine: MakeMachine) -> Driver:
    """The simulated GPU in any case: its books are read here."""
    return make_machine("h200")


@pytest.fixture
def costly(make_machine: MakeMachine) -> Driver:
    """An H200 where contexts and modules take memory."""
    return costly_machine(make_machine)


def costly_machine(make_machine: MakeMachine, spec: str = "h200", **knobs: int) -> Driver:
    driver = make_machine(spec)
    assert driver.machine is not None
    set_knobs(driver.machine, **{"context_overhead": CONTEXT, "module_overhead": MODULE, **knobs})
    return driver


def capacity(driver: Driver) -> int:
    """What CUDA can give of a device: without what the driver keeps."""
    return int(Tenant(driver, preload="").ask("from client import *\nup()\nanswer(info()[1])"))


# ---- contexts -------------------------------------------------------------------------------------------------

MAKES = ["create_context('cuCtxCreate')", "create_context()", "create_context('cuCtxCreate_v3')",
         "create_context('cuCtxCreate_v4')", "retain_primary()"]  # fmt: skip


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("is_learnt", [False, True], ids=["unknown", "known"])
def test_a_context_without_room_is_refused_and_none_is_left(
    costly: Driver, make_tenant: Make, make: str, is_learnt: bool
) -> None:
    script = f"""{PRELUDE}
code = {make}
said = [code, current(), primary_is_active()]
answer([*said, judge.held(), {make}, *([judge.charged()] if "VGPU_TENANT" in os.environ else [])])
"""
    tenant, bare = make_tenant(2 * CONTEXT, on=costly), Tenant(costly, preload="")
    if is_learnt:
        assert tenant.ask(f"{PRELUDE}answer(create_context())") == 0
    tenant.change(0, memory=CONTEXT - 1)
    assert tenant.ask(script) == [OUT_OF_MEMORY, False, False, 0, OUT_OF_MEMORY, 0]
    assert tenant.usage()[0].refusals == 2
    primary = make.startswith("retain")
    assert bare.ask(script) == [0, not primary, primary, CONTEXT, 0]


@pytest.mark.parametrize("make", MAKES)
def test_a_context_is_charged_what_it_takes_and_the_tenant_learns_it(
    costly: Driver, make_tenant: Make, make: str
) -> None:
    tenant = make_tenant(2 * CONTEXT + 10 * MIB, on=costly)
    first, second, third = (tenant.peer(PRELUDE) for _ in range(3))
    ask = f"answer([{make}, judge.charged(), judge.held(), int(judge.ledger().slices[0].context_memory)])"
    assert first.do(ask) == [0, CONTEXT, CONTEXT, CONTEXT + 1]
    assert second.do(ask) == [0, 2 * CONTEXT, CONTEXT, CONTEXT + 1]
    assert third.do(ask) == [OUT_OF_MEMORY, 2 * CONTEXT, 0, CONTEXT + 1]
    assert third.do("answer(judge.taken())") == 2 * CONTEXT
    end = "cuda.cuDevicePrimaryCtxReset_v2(0)" if make.startswith("retain") else "cuda.cuCtxDestroy_v2(context)"
    assert first.do(f"answer([{end}, judge.charged(), judge.held()])") == [0, CONTEXT, 0]
    assert third.do(ask) == [0, 2 * CONTEXT, CONTEXT, CONTEXT + 1]
    assert [peer.end() for peer in (first, second, third)] == [0] * 3


def test_further_contexts_of_a_process_are_charged_what_they_take(costly: Driver, make_tenant: Make) -> None:
    """On the simulated GPU, as on real ones, the first is the dear one."""
    script = f"""{PRELUDE}
made = []
for _ in range(4):
    made.append((create_context(), context.value, judge.charged() == judge.held()))
check(alloc(6 << 20)[0])
said = [code for code, _, _ in made] + [equal for _, _, equal in made]
for _, value, _ in made:
    check(cuda.cuCtxDestroy_v2(ctypes.c_void_p(value)))
    said.append(judge.charged() == judge.held())
answer([*said, judge.charged(), judge.held()])
"""
    assert make_tenant(CONTEXT + 600 * MIB, on=costly).ask(script) == [0] * 4 + [True] * 8 + [0, 0]


def test_a_primary_context_is_charged_with_the_first_use_and_given_back_with_the_last(
    costly: Driver, make_tenant: Make
) -> None:
    script = f"""{PRELUDE}
said = []
for _ in range(3):
    said.append([retain_primary(), judge.charged()])
for _ in range(4):
    said.append([bool(cuda.cuDevicePrimaryCtxRelease_v2(0)), judge.charged()])
said.append([retain_primary(), judge.charged()])
answer([*said, [cuda.cuDevicePrimaryCtxReset_v2(0), judge.charged()], judge.held()])
"""
    assert make_tenant(CONTEXT, on=costly).ask(script) == [
        *[[0, CONTEXT]] * 3, *[[False, CONTEXT]] * 2, [False, 0], [True, 0], [0, CONTEXT], [0, 0], 0]  # fmt: skip


def test_threads_that_retain_a_primary_context_at_once_are_charged_one(costly: Driver, make_tenant: Make) -> None:
    script = f"""{PRELUDE}
import threading
codes, gate = [], threading.Barrier(8)
def body():
    made = ctypes.c_void_p()
    gate.wait()
    codes.append(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(made), 0))
said = []
for _ in range(20):
    threads = [threading.Thread(target=body) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * len(codes), codes
    said.append(judge.charged())
    for _ in range(8):
        check(cuda.cuDevicePrimaryCtxRelease_v2(0))
    said.append(judge.charged())
answer([sorted(set(codes)), sorted(set(said))])
"""
    assert make_tenant(CONTEXT, on=costly).ask(script) == [[0], [0, CONTEXT]]


@pytest.mark.parametrize("room", [8, 5])
def test_processes_that_start_at_once_get_as_many_contexts_as_fit(costly: Driver, make_tenant: Make, room: int) -> None:
    """None of them is refused by what another is charged only until its context is measured."""
    tenant = make_tenant(room * CONTEXT, on=costly)
    peers = [tenant.peer(PRELUDE) for _ in range(8)]
    for peer in peers:
        peer.tell("answer(create_context())")
    codes = sorted(peer.heard() for peer in peers)
    assert codes == [0] * room + [OUT_OF_MEMORY] * (8 - room)
    assert peers[0].do("answer([judge.charged(), judge.taken()])") == [room * CONTEXT, room * CONTEXT]


def guess(tenant: Tenant, end_ns: int) -> None:
    """Have every process of the tenant hold a guess, as if it were making a context."""
    from vgpu_runtime._native._abi import ffi

    assert tenant.directory is not None
    with (tenant.directory / "ledger").open("r+b") as file:
        ledger = ffi.from_buffer("struct vgpu_ledger *", content := bytearray(file.read()), require_writable=True)
        for row in ledger.rows:
            if row.owner:
                row.guesses = 1
        ledger.slices[0].guess_end_ns = end_ns
        file.seek(0)
        file.write(content)


def test_an_allocation_waits_for_a_guess_instead_of_being_refused_by_it(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    holder, asker = (tenant.peer("from client import *\nimport judge\nup()") for _ in range(2))
    assert holder.do(f"code, made = alloc({quota})\nanswer(code)") == 0
    guess(tenant, time.monotonic_ns() + 60 * 10**9)
    asker.tell(f"answer(alloc({quota // 2})[0])")
    assert holder.do("answer([free(made), judge.refused()])") == [0, 0]
    assert asker.heard() == 0
    guess(tenant, time.monotonic_ns() - 1)
    assert asker.do(f"answer([alloc({quota})[0], judge.refused()])") == [OUT_OF_MEMORY, 1]


# ---- where NVML is of no help ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WithoutNvml(Driver):
    """A driver of which NVML was not installed."""

    folder: Path = Path()

    def environment(self, **more: str) -> dict[str, str]:
        return {**Driver.environment(self, **more), "LD_LIBRARY_PATH": str(self.folder)}


def without_nvml(driver: Driver, folder: Path) -> Driver:
    folder.mkdir()
    assert driver.machine is not None
    for name in ("libcuda.so.1", "machine", "machine.shared"):
        (folder / name).symlink_to(driver.machine.directory / name)
    return WithoutNvml(driver.devices, driver.machine, folder=folder)


KINDS = ["without NVML", "foreign pids", "without a list"]


@pytest.fixture(params=KINDS)
def strange(request: pytest.FixtureRequest, make_machine: MakeMachine, tmp_path: Path) -> Driver:
    """A machine whose NVML does not know processes by their pids, or that has none."""
    knobs = {"foreign pids": {"pid_offset": 100_000}, "without a list": {"process_view": 0}}
    driver = costly_machine(make_machine, **knobs.get(request.param, {}))
    return without_nvml(driver, tmp_path / "bare-driver") if request.param == "without NVML" else driver


def test_contexts_are_charged_what_they_take_whatever_nvml_knows(strange: Driver, make_tenant: Make) -> None:
    tenant = make_tenant(4 * CONTEXT, on=strange)
    first, second = tenant.peer(PRELUDE), tenant.peer(PRELUDE)
    ask = "answer([create_context(), judge.charged(), judge.held()])"
    assert first.do(ask) == [0, CONTEXT, CONTEXT]
    assert first.do("answer([alloc(8 << 20)[0], judge.charged() - (8 << 20)])") == [0, CONTEXT]
    assert second.do("answer([create_context(), judge.held()])") == [0, CONTEXT]
    charged = second.do("answer(judge.charged() - (8 << 20))")
    assert 2 * CONTEXT <= charged <= 2 * CONTEXT + 1 * MIB, "no more than the block that a small request is rounded to"
    assert first.do("answer(cuda.cuCtxDestroy_v2(context))") == 0
    assert second.do("answer([cuda.cuCtxDestroy_v2(context), judge.charged(), judge.taken()])") == [0, 0, 0]


def test_a_context_that_fits_exactly_is_not_refused_whatever_nvml_knows(strange: Driver, make_tenant: Make) -> None:
    tenant = make_tenant(CONTEXT + 4 * MIB, on=strange)
    script = f"""{PRELUDE}
codes = [create_context(), alloc(2 << 20)[0], alloc(2 << 20)[0]]
"""
    assert tenant.ask(script + "answer([*codes, alloc(1)[0]])") == [0, 0, 0, OUT_OF_MEMORY]


def test_a_context_that_does_not_fit_is_refused_whatever_nvml_knows(strange: Driver, make_tenant: Make) -> None:
    tenant = make_tenant(CONTEXT - 1, on=strange)
    assert tenant.ask(f"{PRELUDE}answer([create_context(), current(), judge.charged(), judge.held()])") == [
        OUT_OF_MEMORY, False, 0, 0]  # fmt: skip


# ---- modules and libraries -------------------------------------------------------------------------------------------

LOADS = {
    "cuModuleLoad": "cuda.cuModuleLoad(ctypes.byref(module), PTX)",
    "cuModuleLoadData": "cuda.cuModuleLoadData(ctypes.byref(module), SPIN)",
    "cuModuleLoadDataEx": "cuda.cuModuleLoadDataEx(ctypes.byref(module), SPIN, 0, None, None)",
    "cuModuleLoadFatBinary": "cuda.cuModuleLoadFatBinary(ctypes.byref(module), SPIN)",
    "cuLibraryLoadData": "cuda.cuLibraryLoadData(ctypes.byref(module), SPIN, None, None, 0, None, None, 0)",
    "cuLibraryLoadFromFile": "cuda.cuLibraryLoadFromFile(ctypes.byref(module), PTX, None, None, 0, None, None, 0)",
}


def loading(function: str) -> str:
    unload = "cuLibraryUnload" if "Library" in function else "cuModuleUnload"
    return f"""{PRELUDE}
PTX = {str(Path(__file__).parents[2] / "vgpu_runtime" / "demo" / "spin.ptx").encode()!r}
def load():
    module = ctypes.c_void_p()
    return {LOADS[function]}, module
def unload(module):
    return cuda.{unload}(module)
"""


@pytest.mark.parametrize("size", [0, MODULE, 100 * MIB], ids=["nothing", "little", "much"])
@pytest.mark.parametrize("function", LOADS)
def test_a_module_is_charged_what_it_takes_until_it_is_unloaded(
    make_machine: MakeMachine, make_tenant: Make, function: str, size: int
) -> None:
    tenant = make_tenant(CONTEXT + 2 * size + 1, on=costly_machine(make_machine, module_overhead=size))
    script = f"""{loading(function)}
check(create_context())
said = []
made = [load(), load()]
said.append([[code for code, _ in made], judge.charged(), judge.held()])
third = load()
said.append([third[0], judge.charged(), judge.held()])
for _, module in (made if third[0] else [*made, third]):
    check(unload(module))
said.append([judge.charged(), judge.held(), bool(unload(made[0][1]))])
check(load()[0])
said.append([cuda.cuCtxDestroy_v2(context), judge.charged(), judge.held()])
answer(said)
"""
    loaded = CONTEXT + 2 * size
    third = [OUT_OF_MEMORY if size else 0, loaded, loaded]
    assert tenant.ask(script) == [[[0, 0], loaded, loaded], third, [CONTEXT, CONTEXT, True], [0, 0, 0]]


def test_modules_exceed_a_quota_without_us(costly: Driver, make_tenant: Make) -> None:
    script = f"""{loading("cuModuleLoadData")}
check(create_context())
answer([sum(load()[0] == 0 for _ in range(20)), judge.held()])
"""
    assert make_tenant(CONTEXT + 5 * MODULE, on=costly).ask(script) == [5, CONTEXT + 5 * MODULE]
    assert Tenant(costly, preload="").ask(script) == [20, CONTEXT + 20 * MODULE]


def test_a_library_that_is_loaded_without_a_context_takes_nothing_yet(costly: Driver, make_tenant: Make) -> None:
    script = f"""{loading("cuLibraryLoadData")}
code, module = load()
answer([code, judge.charged(), unload(module), judge.charged()])
"""
    assert make_tenant(CONTEXT, on=costly).ask(script) == [0, 0, 0, 0]


# ---- limits of contexts -------------------------------------------------------------------------------------

LIMITS = {"stacks": (0, 1 << 10, 3 << 10), "printing": (1, 1 << 20, 65 << 20), "heap": (2, 8 << 20, 72 << 20)}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_is_raised_is_charged_and_one_that_is_lowered_given_back(
    costly: Driver, make_tenant: Make, limit: str
) -> None:
    number, usual, more = LIMITS[limit]
    script = f"""{PRELUDE}
def limit(value):
    return cuda.cuCtxSetLimit({number}, size(value))
def limited():
    value = ctypes.c_size_t()
    check(cuda.cuCtxGetLimit(ctypes.byref(value), {number}))
    return value.value
check(create_context())
before = judge.held()
said = [limit({more}), judge.charged() == judge.held(), judge.held() > before]
raised = judge.held()
check(alloc(info()[0])[0])
said += [limit({2 * more}), limited(), judge.held() - raised == judge.charged() - raised]
said += [limit({usual}), judge.charged() == judge.held(), judge.held() < raised + info()[1]]
answer([*said, cuda.cuCtxDestroy_v2(context), judge.charged(), judge.held()])
"""
    tenant, bare = make_tenant(CONTEXT + 1024 * MIB, on=costly), Tenant(costly, preload="")
    assert tenant.ask(script) == [0, True, True, OUT_OF_MEMORY, more, True, 0, True, True, 0, 0, 0]
    plain = f"{PRELUDE}check(create_context())\nanswer(cuda.cuCtxSetLimit({number}, size({64 * more})))"
    assert bare.ask(plain) == 0
    assert tenant.ask(plain) == OUT_OF_MEMORY


# ---- all together -----------------------------------------------------------------------------------------


def test_all_that_a_tenant_is_told_is_one_number(costly: Driver, make_tenant: Make) -> None:
    script = f"""{loading("cuModuleLoadData")}
nvml = ctypes.CDLL("libnvidia-ml.so.1")
check(nvml.nvmlInit_v2())
handle, memory, device = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)(), ctypes.c_size_t()
check(nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)))
def ask():
    check(nvml.nvmlDeviceGetMemoryInfo(handle, memory))
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(device), 0))
    free, total = info()
    return [total == device.value == memory[0], free == memory[1] == total - judge.charged(),
            memory[2] == judge.charged() == judge.held()]
check(create_context())
said = [ask()]
check(load()[0])
said.append(ask())
check(create(8 << 20)[0])
check(cuda.cuCtxSetLimit(2, size(64 << 20)))
said.append(ask())
free = info()[0]
answer([said, info()[1], alloc(free + 1)[0], alloc(free)[0], info()[0], judge.held() == judge.charged()])
"""
    quota = 513 * MIB
    told = [[[True] * 3] * 3, quota, OUT_OF_MEMORY, 0, 0, True]
    assert make_tenant(quota, on=costly).ask(script) == told


FILL = """
def fill(most):
    codes, held, step = [], 0, 64 << 20
    while step >= 2 << 20:
        code = alloc(step)[0] if held + step <= most else 2
        codes.append(code)
        held += 0 if code else step
        step //= 2 if code else 1
    return held, sum(code == 2 for code in codes)
"""


def test_tenants_that_fill_the_device_between_them_meet_no_real_shortage(
    make_machine: MakeMachine, make_tenant: Make
) -> None:
    """Each takes all that its quota allows, context, module and all; every refusal is ours."""
    driver = costly_machine(make_machine, "t4")
    share = capacity(driver) // 4 // (2 * MIB) * (2 * MIB)
    tenants = [make_tenant(share, on=driver) for _ in range(4)]
    prelude = loading("cuModuleLoadData") + FILL
    peers = [tenant.peer(prelude) for tenant in tenants]
    for peer in peers:
        peer.tell("answer([create_context(), load()[0]])")
    assert [peer.heard() for peer in peers] == [[0, 0]] * 4
    for peer in peers:
        peer.tell(
            """
        held, short = fill(2**62)
        answer([short - judge.refused(), judge.charged() - judge.held(), judge.charged()])
        """
        )
    filled = [peer.heard() for peer in peers]
    assert [found[:2] for found in filled] == [[0, 0]] * 4
    assert all(share - 2 * MIB < charged <= share for _, _, charged in filled)


def test_the_same_programs_meet_a_real_shortage_without_us(make_machine: MakeMachine) -> None:
    """Each keeps to a quarter of the device by its own count, which knows nothing of contexts and modules."""
    driver = costly_machine(make_machine, "t4")
    share = capacity(driver) // 4 // (2 * MIB) * (2 * MIB)
    bare = Tenant(driver, preload="")
    peers: list[Peer] = [bare.peer(loading("cuModuleLoadData") + FILL) for _ in range(4)]
    for peer in peers:
        assert peer.do("answer([create_context(), load()[0]])") == [0, 0]
    held = [peer.do(f"answer(fill({share})[0])") for peer in peers]
    bare.stop()
    assert held[:2] == [share] * 2
    assert held[3] < share
