# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with real containers, and an account of the traces that these leave.

When a test ends, its containers, its cgroups and its mounts must be gone from the host, or it fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from container.nodes import Containers, Engine, engine_named, mounts_of, remove_cgroup

from vgpu_runtime import machines


@pytest.fixture(params=["runc", "crun"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both engines: they differ in what they tell a hook, and when."""
    return engine_named(request.param)


@pytest.fixture
def make_node(engine: Engine, tmp_path: Path) -> Iterator[Callable[[str], Containers]]:
    """A node with a simulated machine of the test's choice."""
    made: list[Containers] = []

    def make(machine: str) -> Containers:
        node = Containers(engine, tmp_path / "node", f"/vgpu-test-{os.getpid()}", machine=machine)
        machines.create(machine, node.driver)
        made.append(node)
        return node

    yield make
    for node in made:
        for identity in node.bundles:
            node.delete(identity)
        remove_cgroup(node.cgroup)
        assert not list((node.directory / "engine").glob("*")), "a container is left"
    assert mounts_of(tmp_path) == [], "a mount is left on the host"


@pytest.fixture
def node(make_node: Callable[[str], Containers]) -> Containers:
    """A node with one simulated H200."""
    return make_node("h200")
