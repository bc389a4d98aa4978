# SPDX-License-Identifier: Apache-2.0
"""What the hook understands of an engine's words, and whose limits count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.oci import Container, device_names, limits_of, read_container, read_state, tenant_name
from vgpu_runtime.errors import ConfigError, NodeError


def container(bundle: Path, config: dict[str, Any], **more: Any) -> Container:
    (bundle / "config.json").write_text(json.dumps(config))
    state = {"id": "c1", "status": "creating", "pid": 7, "bundle": str(bundle), **more}
    return read_container(read_state(json.dumps(state)))


def test_a_relative_root_is_in_the_bundle(tmp_path: Path) -> None:
    assert container(tmp_path, {"root": {"path": "rootfs"}}).rootfs == tmp_path / "rootfs"


def test_an_absolute_root_is_taken_as_it_is(tmp_path: Path) -> None:
    assert container(tmp_path, {"root": {"path": "/merged"}}).rootfs == Path("/merged")


def test_a_root_in_the_state_counts_first(tmp_path: Path) -> None:
    told = container(tmp_path, {"root": {"path": "rootfs"}}, root="/as/crun/says")
    assert told.rootfs == Path("/as/crun/says")


@pytest.mark.parametrize("config", [{}, {"root": {}}, {"root": {"path": 3}}, {"root": 7}])
def test_a_bundle_without_a_root_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(NodeError):
        container(tmp_path, config)


def limits(tmp_path: Path, env: list[str], annotations: dict[str, str]) -> Any:
    config = {"root": {"path": "r"}, "process": {"env": env}, "annotations": annotations}
    return limits_of(container(tmp_path, config))


def test_without_a_word_of_ours_there_are_no_limits(tmp_path: Path) -> None:
    assert limits(tmp_path, ["PATH=/bin", "VGPU_STATE_DIR=/x", "XVGPU_MEMORY=1"], {"vgpu.io/other": "1"}) is None


def test_one_annotation_silences_the_environment(tmp_path: Path) -> None:
    found = limits(tmp_path, ["VGPU_MEMORY=1GiB", "VGPU_POLICY=none"], {"vgpu.io/cores": "30"})
    assert (found.memory, found.cores, found.policy) == (None, "30", None)
    assert found.source == "annotations"


@pytest.mark.parametrize(
    ("annotation", "variable", "limit"),
    [
        ("vgpu.io/memory", "VGPU_MEMORY", "memory"),
        ("vgpu.io/spill", "VGPU_SPILL", "spill"),
        ("vgpu.io/host-memory", "VGPU_HOST_MEMORY", "host_memory"),
        ("vgpu.io/cores", "VGPU_CORES", "cores"),
        ("vgpu.io/policy", "VGPU_POLICY", "policy"),
        ("vgpu.io/devices", "VGPU_DEVICES", "devices"),
    ],
)
def test_every_limit_has_an_annotation_and_a_variable(
    tmp_path: Path, annotation: str, variable: str, limit: str
) -> None:
    for found, source in (
        (limits(tmp_path, [], {annotation: "x"}), "annotations"),
        (limits(tmp_path, [f"{variable}=x"], {}), "variables"),
    ):
        assert {name: getattr(found, name) for name in found.names} == {**dict.fromkeys(found.names), limit: "x"}
        assert found.source == source


def test_the_last_of_a_repeated_variable_counts(tmp_path: Path) -> None:
    assert limits(tmp_path, ["VGPU_MEMORY=1GiB", "VGPU_MEMORY=a=b"], {}).memory == "a=b"


def test_an_empty_value_is_a_value(tmp_path: Path) -> None:
    assert limits(tmp_path, ["VGPU_MEMORY="], {}).memory == ""


@pytest.mark.parametrize("identity", ["c1", "0123456789abcdef" * 3, "web.1_b-2", "x" * 63])
def test_an_id_that_can_be_a_name_is_the_name(identity: str) -> None:
    assert tenant_name(identity) == identity


@given(st.text(min_size=1, max_size=200))
def test_every_id_gives_a_valid_name(identity: str) -> None:
    name = tenant_name(identity)
    assert 0 < len(name) <= 63
    assert name[0] not in ".-"
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_ids_that_would_become_alike_stay_apart() -> None:
    ids = ["a:b", "a/b", "a_b", "x" * 64, "x" * 65, ".a", "-a", "é", "è"]
    assert len({tenant_name(identity) for identity in ids}) == len(ids)


@pytest.mark.parametrize("text", ["", ",", "0,", "0,0", " , "])
def test_a_list_with_an_empty_or_repeated_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="VGPU_DEVICES"):
        device_names(text, "VGPU_DEVICES")


def test_blanks_around_devices_do_not_matter() -> None:
    assert device_names(" 0, GPU-1 ", "VGPU_DEVICES") == ["0", "GPU-1"]
