# SPDX-License-Identifier: Apache-2.0
"""The program that asks NVML for a tenant's figure from outside, on a machine whose figures are known."""

from __future__ import annotations

import subprocess
import sys

from tools.simulated import GPU_USER, MIB, Make, Simulated
from tools.watch import watching

OVERHEAD = 300 * MIB
"""What a context takes on a simulated machine, unless its file says otherwise."""


def test_it_names_the_processes_that_it_follows_and_no_others(h200: Simulated) -> None:
    with watching(h200.environment()) as watch, h200.user(memory=64 * MIB) as own, h200.user(memory=32 * MIB):
        before = watch.ask()
        assert (before.now, before.peak) == (None, None)
        watch.follow(own.pid)
        figure = watch.ask()
        assert (figure.now, figure.peak) == (64 * MIB + OVERHEAD, 64 * MIB + OVERHEAD)
        assert figure.peak_of_tenant == figure.peak
        assert figure.samples > before.samples
        assert figure.device_peak == 96 * MIB + 2 * OVERHEAD


def test_what_processes_start_counts_and_the_peak_stays(h200: Simulated) -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, {str(GPU_USER)!r}, '--memory={MIB * 64}'])"
    with (
        watching(h200.environment()) as watch,
        subprocess.Popen([sys.executable, "-c", parent], env=h200.environment(), text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):  # fmt: skip
        watch.follow(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{")
        assert watch.ask().now == 64 * MIB + OVERHEAD
        process.communicate("")
        after = watch.ask()
    assert (after.now, after.peak) == (None, 64 * MIB + OVERHEAD)


def test_where_nvml_counts_processes_otherwise_the_device_is_what_can_be_seen(make_machine: Make) -> None:
    machine = make_machine("name: other\ndevices:\n  - model: h200\nknobs:\n  pid_offset: 1000000\n")
    with watching(machine.environment()) as watch, machine.user(memory=64 * MIB) as own:
        watch.follow(own.pid)
        figure = watch.ask()
    assert figure.peak is None
    assert figure.peak_of_tenant == figure.device_peak == 64 * MIB + OVERHEAD
