# SPDX-License-Identifier: Apache-2.0
"""Real CUDA programs, unmodified, on the simulated GPU."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from sim.programs import FOLDER, ask, compiled, start, state
from tools.simulated import Make, Simulated


def installed(beginning: str) -> bool:
    """Say whether there is a package whose name begins so: NVIDIA's end with the number of a toolkit, or not."""
    return any(package.name.lower().startswith(beginning) for package in metadata.distributions())


needs_compiler = pytest.mark.skipif(
    not installed("numba-cuda") or not installed("nvidia-cuda-nvrtc"),
    reason="numba compiles with NVIDIA's NVRTC: pip install 'numba-cuda[cu13]'",
)


@needs_compiler
def test_numba_compiles_and_launches_a_kernel(h200: Simulated) -> None:
    out = h200.run(sys.executable, FOLDER / "numba_program.py", PYTHONWARNINGS="ignore")
    assert out.split() == ["NVIDIA", "H200", "9", "0", "copied", "True", "streams", "True"]
    assert sum(state(h200).devices[0].shares[slot].launches for slot in range(4)) == 11


def test_cuda_core_allocates_launches_and_captures(h200: Simulated) -> None:
    pytest.importorskip("cuda.core", reason="pip install cuda-core")
    out = h200.run(sys.executable, FOLDER / "cuda_core_program.py", PYTHONWARNINGS="ignore")
    assert out.split() == ["NVIDIA", "H200", "132", "stream", "event", "graph"]


def test_several_clients_at_once_each_get_a_part(h200: Simulated) -> None:
    body = """
    context(int(sys.argv[1]))
    before = ok(cu.cuMemGetInfo())[0]
    ok(cu.cuMemAlloc(GIB))
    kernel = function("tick_100us")
    answer("on")
    line()
    [launch(kernel) for _ in range(500)]
    ok(cu.cuCtxSynchronize())
    answer("done")
    line()
    """
    programs = [start(h200, body, 0) for _ in range(4)]
    for program in programs:
        assert program.stdout is not None
        program.stdout.readline()
    image = state(h200)
    assert image.devices[0].memory_used == 4 * (2**30 + image.knobs.context_overhead)
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    for program in programs:
        out, _ = program.communicate("\n", timeout=60)
        assert out == '"done"\n'
    assert image.devices[0].timeline.busy_ns == 4 * 500 * 100_000
    assert image.devices[0].memory_used == 0


def test_devices_are_used_side_by_side(make_machine: Make) -> None:
    machine = make_machine("2xt4")
    body = """
    started = []
    for device in (0, 1):
        context(device)
        start, end = ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0))
        ok(cu.cuEventRecord(start, 0))
        launch(function("tick_200ms"))
        ok(cu.cuEventRecord(end, 0))
        started.append((device, start, end))
    times = []
    for device, start, end in started:
        context(device)
        ok(cu.cuCtxSynchronize())
        times.append(round(ok(cu.cuEventElapsedTime(start, end))))
    answer([times, ok(cu.cuDeviceCanAccessPeer(0, 1)), ok(cu.cuDeviceCanAccessPeer(0, 0))])
    """
    assert ask(machine, body) == [[200, 200], 1, 0]
    image = state(machine)
    assert [image.devices[i].timeline.busy_ns for i in range(2)] == [200_000_000] * 2


def test_a_program_linked_to_the_driver_runs(h200: Simulated, tmp_path: Path) -> None:
    out = h200.run(compiled(tmp_path, "linked.c", h200.directory / "libcuda.so.1"))
    assert out.split("\n")[0] == "NVIDIA H200: x[7] = 15"
