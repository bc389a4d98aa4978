# SPDX-License-Identifier: Apache-2.0
"""Which simulated machine a name or a file means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vgpu_runtime import machine_files
from vgpu_runtime.errors import ConfigError

MIB, GIB = 2**20, 2**30


def field(device: machine_files.Device, name: str) -> int:
    return int(device.fields[name])


# ---- presets -------------------------------------------------------------------------------------------


def test_a_preset_is_one_device() -> None:
    machine = machine_files.describe("h200")
    (device,) = machine.devices
    assert (machine.name, device.name, device.memory) == ("h200", "NVIDIA H200", 143771 * MIB)
    assert (field(device, "sm_count"), field(device, "capability_major"), field(device, "capability_minor")) == (
        132,
        9,
        0,
    )


@pytest.mark.parametrize("name", ["h200", "h100-80g", "a100-80g", "a100-40g", "l40s", "l4", "a10", "t4", "v100-32g"])
def test_every_preset_says_all_that_a_device_is(name: str) -> None:
    (device,) = machine_files.describe(name).devices
    said = set(device.fields)
    assert said >= set(machine_files.Identity.__struct_fields__)
    zero = {key for key, value in device.fields.items() if value == 0}
    assert zero <= {"pci_domain", "pci_device", "minor_number", "mig_capable", "capability_minor"}
    assert field(device, "memory_reserved") < device.memory
    assert (
        field(device, "shared_per_block") <= field(device, "shared_per_block_optin") <= field(device, "shared_per_sm")
    )
    assert field(device, "power_idle_mw") < field(device, "power_limit_mw")
    assert field(device, "sm_clock_idle_mhz") < field(device, "sm_clock_mhz")


def test_names_and_pci_numbers_of_models_differ() -> None:
    devices = [machine_files.describe(name).devices[0] for name in machine_files.presets()]
    assert len({device.name for device in devices}) == len(devices)
    assert len({device.fields["pci_device_id"] for device in devices}) == len(devices)


def test_a_count_gives_devices_that_can_be_told_apart() -> None:
    machine = machine_files.describe("8xa100-80g")
    assert len(machine.devices) == 8
    for key in ("serial", "pci_bus", "minor_number"):
        assert len({device.fields[key] for device in machine.devices}) == 8
    assert len({device.uuid for device in machine.devices}) == 8


def test_uuids_follow_from_the_machines_name_and_the_index() -> None:
    assert machine_files.describe("2xh200").devices == machine_files.describe("2xh200").devices
    assert machine_files.describe("2xh200").devices[0].uuid != machine_files.describe("h200").devices[0].uuid
    assert machine_files.describe("h200").devices[0].uuid == "GPU-8c2a281d-ea0f-5001-8895-878271c64e9d"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("h300", "h300"),
        ("", "''"),
        ("H200", "H200"),
        ("0xh200", "1 to 16"),
        ("17xt4", "1 to 16"),
        ("2x", "2x"),
        ("2 x h200", "2 x h200"),
        ("-1xh200", "-1xh200"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_the_rule(spec: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        machine_files.describe(spec)
    assert words in str(error.value)
    assert error.value.hint
    assert error.value.exit_code == 2


# ---- machine files -------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Write a machine file; give its path."""

    def write(text: str) -> str:
        path = tmp_path / "lab.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_file_mixes_models_and_changes_what_it_names(file: Callable[[str], str]) -> None:
    machine = machine_files.describe(
        file(
            """
driver_version: 550.163.01
cuda_version: 12040
devices:
  - model: h200
    count: 2
  - model: t4
    name: Half a T4
    memory_total: 8GiB
    sm_count: 20
    ecc: false
knobs:
  context_overhead: 500MiB
  quantum_ns: 1000000
  sharing: processor-sharing
  pid_offset: -5
"""
        )
    )
    assert (machine.name, machine.driver_version, machine.cuda_version) == ("lab", "550.163.01", 12040)
    assert [device.name for device in machine.devices] == ["NVIDIA H200", "NVIDIA H200", "Half a T4"]
    changed = machine.devices[2]
    assert changed.memory == 8 * GIB
    assert [field(changed, key) for key in ("sm_count", "ecc", "capability_minor", "minor_number")] == [20, 0, 5, 2]
    assert machine.knobs["context_overhead"] == 500 * MIB
    assert machine.knobs["sharing"] == 1
    assert machine.knobs["pid_offset"] == -5
    assert machine.knobs["queue_depth"] == 1024


def test_a_file_may_name_its_machine(file: Callable[[str], str]) -> None:
    one = machine_files.describe(file("name: rack-7\ndevices: [{model: t4}]\n"))
    assert one.name == "rack-7"
    assert one.devices != machine_files.describe(file("devices: [{model: t4}]\n")).devices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devices: [{model: t4}]\nspeed: 3\n", ["unknown field `speed`"]),
        ("devices: [{model: t4, memory: 8GiB}]\n", ["unknown field `memory`", "$.devices[0]"]),
        ("devices: [{model: t4}]\nknobs: {kernel_us: 3}\n", ["unknown field `kernel_us`", "$.knobs"]),
        ("devices: [{model: t4}, {count: 2}]\n", ["required field `model`", "$.devices[1]"]),
        ("devices: [{model: t9}]\n", ["t9", "$.devices[0].model"]),
        ("devices: [{model: t4, memory_total: 8 bananas}]\n", ["8 bananas", "$.devices[0].memory_total"]),
        ("devices: [{model: t4, memory_total: 25%}]\n", ["25%", "$.devices[0].memory_total"]),
        ("devices: [{model: t4, memory_total: 100MiB}]\n", ["100 MiB", "$.devices[0].memory_reserved"]),
        ("devices: [{model: t4, memory_total: -1}]\n", ["$.devices[0].memory_total"]),
        ("devices: [{model: t4, sm_count: many}]\n", ["$.devices[0].sm_count"]),
        ("devices: [{model: t4, count: 17}]\n", ["$.devices[0].count"]),
        ("devices: [{model: t4, count: 9}, {model: l4, count: 9}]\n", ["18 devices"]),
        ("devices: []\n", ["$.devices"]),
        ("devices: [{model: t4}]\nknobs: {sharing: fair}\n", ["$.knobs.sharing"]),
        ("devices: [{model: t4}]\nknobs: {quantum_ns: 0}\n", ["$.knobs.quantum_ns"]),
        ("devices: [{model: t4}]\nknobs: {context_overhead: lots}\n", ["lots", "$.knobs.context_overhead"]),
        ("devices: [{model: t4}]\ndriver_version: 580.95\n", ["$.driver_version"]),
        ("devices: [{model: t4}]\ndriver_version: newest\n", ["$.driver_version"]),
        ("name: ../up\ndevices: [{model: t4}]\n", ["../up"]),
        ("just text\n", ["Expected `object`"]),
        ("", ["Expected `object`"]),
        ("devices: [{model: t4\n", ["not YAML"]),
    ],
)
def test_a_wrong_file_is_refused_with_the_path_of_the_key(
    file: Callable[[str], str], text: str, words: list[str]
) -> None:
    path = file(text)
    with pytest.raises(ConfigError) as error:
        machine_files.describe(path)
    for word in [path, *words]:
        assert word in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        machine_files.describe(str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text"):
        machine_files.describe(str(tmp_path / "binary.yaml"))
