# SPDX-License-Identifier: Apache-2.0
"""
Fixtures of the tests on the simulated GPU: machines, and somewhere to keep programs that use them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tools.simulated import Make, Simulated

from vgpu_runtime import machines


@pytest.fixture
def make_machine(tmp_path: Path) -> Make:
    """Make a machine from a preset's name or from the text of a machine file."""

    def make(spec: str) -> Simulated:
        if "\n" in spec:
            file = tmp_path / "machine.yaml"
            file.write_text(textwrap.dedent(spec))
            spec = str(file)
        return Simulated(machines.create(spec, tmp_path / f"driver-{Path(spec).stem}"))

    return make


@pytest.fixture
def h200(make_machine: Make) -> Simulated:
    """One simulated H200."""
    return make_machine("h200")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Somewhere to keep users until the test ends."""
    with ExitStack() as held:
        yield held


@pytest.fixture
def contained() -> list[str]:
    """Return the words before a command that give it a pid namespace of its own, as a container has."""
    unshare = shutil.which("unshare") or "unshare"
    if os.geteuid() or subprocess.run([unshare, "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("only root may make a pid namespace")
    return [unshare, "--pid", "--fork", "--kill-child", "--mount-proc"]
