# SPDX-License-Identifier: Apache-2.0
"""Run the demonstration: `python -m vgpu_runtime.demo`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from vgpu_runtime.demo import places
from vgpu_runtime.demo.screen import Report, draw
from vgpu_runtime.errors import EXIT_FAILED, NodeError, VgpuError

TENANTS = {"a": places.Quota("10GiB", "25"), "b": places.Quota("40GiB", "50")}
PROGRAM = Path(__file__).resolve().parent / "tenant.py"
KERNEL_NS = 1_000_000
MOST_MEMORY = 48 * 2**30  # above every quota here, below the device
UNCAPPED_SECONDS = 1.0
GPUSTAT = [sys.executable, "-m", "gpustat", "--no-color", "--no-header"]
PATIENCE_S = 60.0


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def program(seconds: float) -> list[str]:
    """The CUDA program, with what it is to do."""
    return [sys.executable, str(PROGRAM), str(seconds), str(KERNEL_NS), str(MOST_MEMORY)]


def listen(process: subprocess.Popen[str], complaints: Path) -> dict[str, Any]:
    """The next line of JSON that a program prints. NodeError with its complaint when it ends instead."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    line = process.stdout.readline() if ready else ""
    if not line:
        last = complaints.read_text(errors="replace").strip().splitlines()[-3:] if complaints.exists() else []
        what = "ended early" if ready else f"said nothing for {PATIENCE_S:.0f} s"
        raise NodeError(f"the program {what}: {' / '.join(last) or 'without a word'}")
    report = json.loads(line)
    assert isinstance(report, dict)
    return report


def go(process: subprocess.Popen[str]) -> None:
    """Tell a program that is ready to begin."""
    assert process.stdin is not None
    # One that has ended meanwhile is noticed by whoever listens to it next.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("go\n")
        process.stdin.flush()


@contextlib.contextmanager
def private_state() -> Iterator[Path]:
    """A state directory of our own, gone afterwards."""
    state = Path(tempfile.mkdtemp(prefix="vgpu-demo-"))
    try:
        yield state
    finally:
        # Containers mount in a namespace of their own. Should one ever be visible here, what is mounted is not
        # ours to delete.
        if f" {state}/" in Path("/proc/self/mountinfo").read_text():
            say(f"something is mounted in {state}; it is left as it is")
        else:
            shutil.rmtree(state, ignore_errors=True)


def choose_place(stack: contextlib.ExitStack, state: Path, driver: Path, wanted: str) -> places.Place:
    """Containers when they can be made and nothing else is wanted."""
    missing = places.why_no_containers()
    if wanted == "processes" or (wanted == "auto" and missing):
        say(f"tenants are processes under `vgpu run`{f': {missing}' if missing else ''}")
        return stack.enter_context(places.processes(state))
    if missing:
        raise NodeError(f"no containers here: {missing}", hint="--place processes")
    say("tenants are containers: runc, capped by the OCI hook alone")
    return stack.enter_context(places.containers(state, driver))


def run_tenants(place: places.Place, state: Path, seconds: float) -> list[Report]:
    """Both tenants at the same time; what they saw and got."""
    started, first, clients = {}, {}, {}
    for name, quota in TENANTS.items():
        say(f"starting tenant {name}: {quota.memory} of memory, {quota.cores}% of compute")
        started[name] = place.start(name, quota, program(seconds))
    for name, process in started.items():
        first[name] = listen(process, state / f"{name}.stderr")
    say(f"both are ready; each allocates until it is refused, then launches kernels for {seconds:g} s")
    for process in started.values():
        go(process)
    time.sleep(min(2.0, seconds / 2))
    for name in TENANTS:
        clients[name] = gpustat(place.look(name, GPUSTAT))
        say(f"gpustat in tenant {name}: {clients[name]}")
    return [
        report(f"tenant {name}", quota, first[name] | listen(started[name], state / f"{name}.stderr"), clients[name])
        for name, quota in TENANTS.items()
    ]


def run_uncapped(state: Path, driver: Path) -> Report:
    """The same program on the same machine, without us."""
    say("the same program once more, without a tenant")
    env = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
    complaints = state / "uncapped.stderr"
    process = places.start_process(["env", f"LD_LIBRARY_PATH={driver}", *program(UNCAPPED_SECONDS)], complaints)
    try:
        seen = listen(process, complaints)
        go(process)
        time.sleep(UNCAPPED_SECONDS / 2)
        client = gpustat(places.run(GPUSTAT, env))
        seen |= listen(process, complaints)
    finally:
        places.end_process(process)
    return report("no tenant", None, seen, client)


def gpustat(text: str) -> str:
    """The one line that matters, without its padding."""
    return " ".join(text.strip().splitlines()[-1].split())


def report(title: str, quota: places.Quota | None, said: dict[str, Any], client: str) -> Report:
    """Put together what a program said in its two lines."""
    return Report(
        title=title,
        memory=quota.memory if quota else None,
        cores=quota.cores if quota else None,
        cuda_total=said["cuda_total"],
        nvml_total=said["nvml_total"],
        allocated=said["allocated"],
        refusal=said["refusal"],
        kernels=said["kernels"],
        kernel_ns=KERNEL_NS,
        elapsed_ns=said["elapsed_ns"],
        client=client,
    )


def demonstrate(seconds: float, wanted: str) -> bool:
    """All of it; whether everything is as promised."""
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(private_state())
        driver = Path(places.run(places.vgpu(state, "sim", places.MACHINE)).strip())
        say(f"a simulated {places.MACHINE.upper()} is ready")
        place = choose_place(stack, state, driver, wanted)
        reports = run_tenants(place, state, seconds)
        reports.append(run_uncapped(state, driver))
        title = f"One simulated NVIDIA H200, two tenants at once: {place.title}."
    device_memory = reports[-1].nvml_total
    screen, kept = draw(title, reports, device_memory, time.monotonic() - begin)
    print(f"\n{screen}", flush=True)
    return kept


def stop(number: int, _: object) -> NoReturn:
    """End as by Ctrl-C, so that everything is cleaned up."""
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vgpu_runtime.demo", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the tenants work (default: %(default)s)")
    parser.add_argument(
        "--place",
        choices=("auto", "containers", "processes"),
        default="auto",
        help="what the tenants are (default: containers where they can be made)",
    )
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        return 0 if demonstrate(options.seconds, options.place) else EXIT_FAILED
    except VgpuError as error:
        say(str(error))
        if error.hint:
            say(f"hint: {error.hint}")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
