# SPDX-License-Identifier: Apache-2.0
"""The demonstration keeps its word, fits its screen and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import build
import pytest

from vgpu_runtime.demo.places import why_no_containers


@pytest.fixture
def demo(vgpu: Any, tmp_path: Path) -> Any:
    """Start the demonstration with a temporary directory of its own."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        env = {**vgpu.environment, "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-m", "vgpu_runtime.demo", *arguments]
        process = subprocess.Popen(
            command,
            cwd=build.ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        vgpu.running.append(process)
        return process

    return start


def leftovers(tmp_path: Path, pid: int) -> list[str]:
    """What is left of the demonstration that had this pid: files, programs, control groups."""
    left = [str(path) for path in tmp_path.glob("vgpu-demo-*")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            in_state = os.fsencode(f"{tmp_path}/vgpu-demo-") in (process / "environ").read_bytes()
            in_container = f"vgpu-demo-{pid}-" in (process / "cgroup").read_text()
            if in_state or in_container:
                left.append(f"process {process.name}")
    return left + [str(path) for path in Path("/sys/fs/cgroup").rglob(f"vgpu-demo-{pid}-*")]


PLACES = ["processes", "containers"]


def skip_what_cannot_run(place: str) -> None:
    missing = why_no_containers()
    if place == "containers" and missing:
        pytest.skip(missing)


@pytest.mark.parametrize("place", PLACES)
def test_all_is_as_promised_on_one_screen(demo: Any, tmp_path: Path, place: str) -> None:
    skip_what_cannot_run(place)
    process = demo("--seconds", "4", "--place", place)
    screen, progress = process.communicate(timeout=100)
    assert process.returncode == 0, screen + progress
    lines = screen.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert place in lines[1]
    assert screen.count("CUDA_ERROR_OUT_OF_MEMORY") == 2
    assert "All as promised" in screen
    assert f"tenants are {place}" in progress
    assert leftovers(tmp_path, process.pid) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["a simulated", "starting tenant b", "both are ready"])
def test_an_interrupted_demonstration_leaves_nothing(
    demo: Any, tmp_path: Path, place: str, number: signal.Signals, after: str
) -> None:
    skip_what_cannot_run(place)
    process = demo("--place", place)
    for line in process.stderr:
        if after in line:
            break
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert leftovers(tmp_path, process.pid) == []
