# SPDX-License-Identifier: Apache-2.0
"""Contexts of the simulated CUDA driver: overhead, lifetime, and each thread's stack."""

from __future__ import annotations

from sim.programs import ask, state
from tools.simulated import Make, Simulated


def test_the_first_context_of_a_process_on_a_device_is_charged_and_the_last_one_refunds(make_machine: Make) -> None:
    machine = make_machine("2xt4")
    body = """
    ok(cu.cuInit(0))
    total = ok(cu.cuDeviceTotalMem(0))
    def used():
        return total - ok(cu.cuMemGetInfo())[0]
    primary = context()
    steps = [used()]
    second = ok(cu.cuCtxCreate(None, 0, 0))
    steps.append(used())
    ok(cu.cuCtxDestroy(second))
    steps.append(used())
    other = ok(cu.cuCtxCreate(None, 0, 1))
    steps.append(used())
    ok(cu.cuCtxSetCurrent(primary))
    ok(cu.cuDevicePrimaryCtxRelease(0))
    ok(cu.cuCtxSetCurrent(other))
    answer(steps)
    line()
    """
    overhead = state(machine).knobs.context_overhead
    assert ask(machine, body) == [overhead] * 4
    image = state(machine)
    assert [image.devices[i].memory_used for i in range(2)] == [0, 0]


def test_the_primary_context_lives_as_long_as_it_is_retained(h200: Simulated) -> None:
    body = """
    first = context()
    again = ok(cu.cuDevicePrimaryCtxRetain(0))
    same = key(first) == key(again)
    ok(cu.cuMemAlloc(GIB))
    ok(cu.cuDevicePrimaryCtxRelease(0))
    held = ok(cu.cuDevicePrimaryCtxGetState(0))[1]
    ok(cu.cuDevicePrimaryCtxRelease(0))
    gone = ok(cu.cuDevicePrimaryCtxGetState(0))[1]
    code = rc(cu.cuMemAlloc(1))
    extra = rc(cu.cuDevicePrimaryCtxRelease(0))
    context()
    free, total = ok(cu.cuMemGetInfo())
    answer([same, held, gone, code, extra, total - free])
    """
    assert ask(h200, body) == [True, 1, 0, 709, 201, state(h200).knobs.context_overhead]


def test_destroying_a_context_frees_what_was_made_in_it(h200: Simulated) -> None:
    body = """
    primary = context()
    made = ok(cu.cuCtxCreate(None, 0, 0))
    big, small = ok(cu.cuMemAlloc(GIB)), ok(cu.cuMemAlloc(1000))
    stream, event = ok(cu.cuStreamCreate(0)), ok(cu.cuEventCreate(0))
    ok(cu.cuCtxDestroy(made))
    free, total = ok(cu.cuMemGetInfo())
    answer([total - free, rc(cu.cuMemFree(big)), rc(cu.cuMemFree(small)), rc(cu.cuStreamSynchronize(stream)),
            rc(cu.cuEventQuery(event)), rc(cu.cuCtxSetCurrent(made)), key(ok(cu.cuCtxGetCurrent())) == key(primary)])
    """
    assert ask(h200, body) == [state(h200).knobs.context_overhead, 1, 1, 400, 400, 201, True]


def test_a_context_destroyed_under_a_thread_is_noticed_there(h200: Simulated) -> None:
    body = """
    import threading
    ok(cu.cuInit(0))
    made = ok(cu.cuCtxCreate(None, 0, 0))
    current, gone, codes = threading.Event(), threading.Event(), []
    def other():
        ok(cu.cuCtxSetCurrent(made))
        current.set()
        gone.wait()
        codes.append(rc(cu.cuMemAlloc(1)))
    thread = threading.Thread(target=other)
    thread.start()
    current.wait()
    ok(cu.cuCtxDestroy(made))
    ok(cu.cuCtxCreate(None, 0, 0))   # in the same place, perhaps
    gone.set()
    thread.join()
    answer(codes)
    """
    assert ask(h200, body) == [709]


def test_contexts_are_stacked(h200: Simulated) -> None:
    body = """
    ok(cu.cuInit(0))
    one, two = ok(cu.cuCtxCreate(None, 0, 0)), ok(cu.cuCtxCreate(None, 0, 0))
    seen = [key(ok(cu.cuCtxGetCurrent())) == key(two), key(ok(cu.cuCtxPopCurrent())) == key(two),
            key(ok(cu.cuCtxGetCurrent())) == key(one)]
    ok(cu.cuCtxPushCurrent(two))
    ok(cu.cuCtxPopCurrent())
    ok(cu.cuCtxPopCurrent())
    answer([*seen, rc(cu.cuCtxPopCurrent())])
    """
    assert ask(h200, body) == [True, True, True, 201]


def test_any_value_can_be_given_as_a_handle(h200: Simulated) -> None:
    body = """
    context()
    lib = raw()
    codes = []
    for value in (0xdead, 0xdeadbeef00, 2**63, key(ok(cu.cuEventCreate(0))) + 8):
        v = ctypes.c_uint64(value)
        codes.append([lib.cuCtxSetCurrent(v), lib.cuStreamSynchronize(v), lib.cuEventQuery(v), lib.cuMemFree_v2(v),
                      lib.cuModuleUnload(v), lib.cuMemRelease(v), lib.cuGraphLaunch(v, None),
                      lib.cuLaunchKernel(v, 1, 1, 1, 1, 1, 1, 0, None, None, None)])
    answer(codes)
    """
    assert ask(h200, body) == [[201, 400, 400, 1, 400, 1, 1, 400]] * 4
