# SPDX-License-Identifier: Apache-2.0
"""The load that the simulated NVML shows, to programs that ask once as well."""

from __future__ import annotations

import time
from contextlib import ExitStack

from tools.simulated import MIB, NOT_FOUND, Simulated

LOAD = """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
def attempt(function, *arguments):
    try:
        return function(*arguments)
    except n.NVMLError as error:
        return error.value
samples = attempt(n.nvmlDeviceGetProcessUtilization, h, 0)
kind, values = attempt(n.nvmlDeviceGetSamples, h, n.NVML_GPU_UTILIZATION_SAMPLES, 0)
newest = values[-1].timeStamp
answer({
    "device": n.nvmlDeviceGetUtilizationRates(h).gpu,
    "processes": samples if isinstance(samples, int) else [(s.pid, s.smUtil, s.timeStamp) for s in samples],
    "samples": [(v.timeStamp, v.sampleValue.uiVal) for v in values],
    "after": attempt(n.nvmlDeviceGetProcessUtilization, h, newest + 10**9),
    "now_us": time.time_ns() // 1000,
    "power": n.nvmlDeviceGetPowerUsage(h),
    "clock": n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM),
})
"""


def test_a_program_that_asks_once_sees_the_load(h200: Simulated) -> None:
    fields = h200.machine.devices[0].fields
    with h200.user(busy=60) as user:
        time.sleep(1)
        load = h200.ask(LOAD)
    # One process at 60 % of the time; a sample is a sixth of a second, its phases a tenth.
    assert 20 <= load["device"] <= 90
    assert [pid for pid, _, _ in load["processes"]] == [user.pid]
    assert 20 <= load["processes"][0][1] <= 90
    assert abs(load["processes"][0][2] - load["now_us"]) < 1_000_000
    assert load["after"] == NOT_FOUND
    stamps = [stamp for stamp, _ in load["samples"]]
    assert stamps == sorted(stamps)
    assert {value > 0 for _, value in load["samples"][-3:]} == {True}
    assert int(fields["power_idle_mw"]) < load["power"] < int(fields["power_limit_mw"])
    assert load["clock"] == fields["sm_clock_mhz"]


def test_an_idle_device_shows_no_load_and_no_process_sample(h200: Simulated) -> None:
    with h200.user(memory=2 * MIB):
        load = h200.ask(LOAD)
    assert load["device"] == 0
    assert load["processes"] == NOT_FOUND


def test_two_busy_processes_are_told_apart(h200: Simulated, stack: ExitStack) -> None:
    users = [stack.enter_context(h200.user(busy=percent)) for percent in (15, 60)]
    time.sleep(1)
    # One sample each is short beside the users' own rhythm: add up a second's worth.
    sums = h200.ask(
        """
import pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
sums, seen = {}, 0
for _ in range(6):
    for sample in n.nvmlDeviceGetProcessUtilization(h, seen):
        sums[sample.pid] = sums.get(sample.pid, 0) + sample.smUtil
        newest = sample.timeStamp
    seen = newest
    time.sleep(0.35)
answer(sums)
"""
    )
    idle, busy = (sums[str(user.pid)] for user in users)
    assert 0 < idle < busy
