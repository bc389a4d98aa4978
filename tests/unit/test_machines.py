# SPDX-License-Identifier: Apache-2.0
"""The directory that is a simulated machine's driver."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vgpu_runtime import machines
from vgpu_runtime.errors import ConfigError, NodeError

MIB = 2**20


def mutable_offset(machine: machines.Machine) -> int:
    """Where the first device's memory counter is: a part that only the simulator writes."""
    from vgpu_runtime._native._machine import ffi

    return int(ffi.offsetof("struct sim_machine", "devices", 0, "memory_used"))


def test_a_directory_holds_the_libraries_and_files_that_all_users_can_open(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        machine = machines.create("t4", tmp_path / "state" / "t4")
    finally:
        os.umask(before)
    names = {path.name for path in machine.directory.iterdir()}
    assert names == {"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "machine", "machine.shared"}
    for name in ("machine", "machine.shared"):
        assert (machine.directory / name).stat().st_mode & 0o777 == 0o666
    for name in machines.LINKS:
        assert (machine.directory / name).resolve().parent == machines.LIBRARIES.resolve()


def test_the_file_is_sparse_and_holds_what_was_described(tmp_path: Path) -> None:
    from vgpu_runtime._native._machine import ffi

    machine = machines.create("2xl40s", tmp_path / "m")
    status = machine.file.stat()
    assert status.st_size == ffi.sizeof("struct sim_machine")
    assert status.st_blocks * 512 < 2**20
    image = ffi.from_buffer("struct sim_machine *", machine.file.read_bytes())
    assert image.magic == ffi.integer_const("SIM_MAGIC")
    assert image.device_count == 2
    assert ffi.string(image.devices[1].identity.name) == b"NVIDIA L40S"
    assert image.devices[1].identity.memory_total == 46068 * MIB
    assert image.knobs.queue_depth == 1024
    assert image.boot == 0
    assert ffi.string(image.devices[2].identity.name) == b""


def test_a_machine_that_is_there_is_taken_with_its_state(tmp_path: Path) -> None:
    machine = machines.create("t4", tmp_path / "m")
    with machine.file.open("r+b") as file:
        os.pwrite(file.fileno(), b"\x2a", mutable_offset(machine))
    inode = machine.file.stat().st_ino
    assert machines.create("t4", tmp_path / "m") == machine
    assert machine.file.stat().st_ino == inode
    with machine.file.open("rb") as file:
        assert os.pread(file.fileno(), 1, mutable_offset(machine)) == b"\x2a"


def test_another_machine_in_its_place_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    machine = machines.create("t4", tmp_path / "m")
    content = machine.file.read_bytes()
    with pytest.raises(ConfigError) as error:
        machines.create("2xt4", tmp_path / "m")
    assert str(tmp_path / "m") in str(error.value)
    assert "remove" in error.value.hint
    assert machine.file.read_bytes() == content


def test_a_file_of_another_layout_or_a_torn_one_is_replaced(tmp_path: Path) -> None:
    machine = machines.create("t4", tmp_path / "m")
    content = machine.file.read_bytes()
    for torn in (b"", content[:100], b"\0" * len(content), content[:8] + b"\xff\xff\0\0" + content[12:]):
        machine.file.write_bytes(torn)
        machines.create("t4", tmp_path / "m")
        assert machine.file.read_bytes() == content


def test_links_that_lead_elsewhere_are_turned(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    (directory / "libcuda.so.1").symlink_to("/nonexistent/libcuda.so.1")
    machines.create("t4", directory)
    assert (directory / "libcuda.so.1").exists()


def test_many_commands_that_make_one_machine_at_once_make_one(tmp_path: Path) -> None:
    inodes: list[int] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        inodes.append(machines.create("h200", tmp_path / "m").file.stat().st_ino)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inodes) == 8
    assert len(set(inodes)) == 1
    assert not list((tmp_path / "m").glob(".*"))


def test_a_place_that_cannot_be_written_is_an_error_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError) as error:
        machines.create("t4", tmp_path / "file" / "m")
    assert "VGPU_STATE_DIR" in error.value.hint


def test_an_unbuilt_simulator_is_an_error_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "LIBRARIES", tmp_path / "nothing")
    with pytest.raises(NodeError) as error:
        machines.create("t4", tmp_path / "m")
    assert "make build" in error.value.hint
    assert not (tmp_path / "m").exists()


def test_an_environment_puts_the_machine_first_and_names_no_other(tmp_path: Path) -> None:
    machine = machines.create("t4", tmp_path / "m")
    environment = machine.environment({"LD_LIBRARY_PATH": "/elsewhere", "VGPU_SIM_FILE": "/old", "HOME": "/root"})
    assert environment == {"LD_LIBRARY_PATH": f"{tmp_path / 'm'}:/elsewhere", "HOME": "/root"}
    assert machine.environment({}) == {"LD_LIBRARY_PATH": str(tmp_path / "m")}
