# SPDX-License-Identifier: Apache-2.0
"""`vgpu run`: what stays the program's own, and programs that are none."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import build
import pytest

# ---- what stays the program's own --------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 77, 255])
def test_the_exit_code_is_the_programs(vgpu: Any, code: int) -> None:
    done = vgpu.run("--memory", "1GiB", program=["sh", "-c", f"exit {code}"])
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_death_by_signal_is_the_programs(vgpu: Any, number: signal.Signals) -> None:
    assert vgpu.run(program=["sh", "-c", f"kill -{int(number)} $$"]).returncode == -number


def test_the_program_has_the_pid_of_the_command_and_takes_its_signals(vgpu: Any) -> None:
    process = vgpu.start("run", "--sim", "h200", "--", "sh", "-c", "trap 'echo got; exit 9' USR1; echo $$; read x")
    assert int(process.stdout.readline()) == process.pid
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "got\n"
    assert process.wait(10) == 9


def test_input_and_output_pass_untouched(vgpu: Any) -> None:
    content = bytes(range(256)) * 5000
    done = vgpu("run", "--sim", "h200", "--memory", "1GiB", "--", "cat", input=content, text=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, content, b"")


def test_open_files_and_the_working_directory_are_inherited(vgpu: Any, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        tell = ["bash", "-c", f"pwd >&{writer}"]
        done = vgpu("run", "--sim", "h200", "--", *tell, pass_fds=[writer], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert os.read(reader, 1000).decode().strip() == str(tmp_path)
    finally:
        os.close(reader)
        os.close(writer)


def test_no_file_of_ours_stays_open_in_the_program(vgpu: Any) -> None:
    listing = ["sh", "-c", "ls -l /proc/$$/fd"]
    ours = vgpu.run("--memory", "1GiB", program=listing).stdout
    theirs = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert len(ours.splitlines()) == len(theirs.splitlines()), ours


def test_signals_are_blocked_and_ignored_as_without_us(vgpu: Any) -> None:
    masks = ["grep", "-E", "^Sig(Blk|Ign)|^ShdPnd", "/proc/self/status"]
    without = subprocess.run(["env", *masks], capture_output=True, text=True, check=True)
    assert vgpu.run(program=masks).stdout == without.stdout


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LANG": "C.UTF-8"}], ids=str)
def test_only_the_named_variables_of_the_environment_change(vgpu: Any, locale: dict[str, str]) -> None:
    python = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    given = {**python, "VGPU_STATE_DIR": str(vgpu.state), "MINE": "ä=b\nc", **locale}
    show = ["env", "-0"]
    done = subprocess.run(vgpu.command("run", "--sim", "h200", "--", *show), env=given, capture_output=True, check=True)
    got = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    ours = {"VGPU_TENANT", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "LD_LIBRARY_PATH"}
    assert got.keys() == given.keys() | ours
    assert {name: got[name] for name in given} == given


def test_libraries_that_were_preloaded_before_stay_behind_ours(vgpu: Any) -> None:
    given = {"LD_PRELOAD": "libm.so.6", "LD_LIBRARY_PATH": "/opt/mine"}
    show = ["sh", "-c", 'echo "$LD_PRELOAD"; echo "$LD_LIBRARY_PATH"']
    done = vgpu("run", "--sim", "h200", "--", *show, env=given)
    assert done.stdout.splitlines() == [
        f"{build.OUTPUT / 'libvgpu.so'}:libm.so.6",
        f"{vgpu.state / 'sim' / 'h200'}:/opt/mine",
    ]


def test_what_follows_the_program_is_the_programs(vgpu: Any) -> None:
    done = vgpu("run", "--sim", "h200", "echo", "--memory", "8 gigs", "--", "--help")
    assert done.stdout == "--memory 8 gigs -- --help\n"


# ---- programs that are none ----------------------------------------------------------------------------


def test_a_program_that_is_not_there_gives_127(vgpu: Any) -> None:
    for program in ("no-such-program", "/no/such/program", "./no-such"):
        done = vgpu.run("--memory", "1GiB", program=[program])
        assert done.returncode == 127
        assert f"vgpu: {program}: there is no such program" in done.stderr
        assert "hint:" in done.stderr
    assert vgpu.tenants() == []


def test_a_program_that_cannot_be_executed_gives_126(vgpu: Any, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("echo no\n")
    for program in (tmp_path / "plain", tmp_path):
        done = vgpu.run("--memory", "1GiB", program=[program])
        assert done.returncode == 126, done.stderr
        assert str(program) in done.stderr


@pytest.mark.parametrize("content", ["", "\x7fELF nonsense", "#!/no/such/interpreter\n"])
def test_a_file_that_the_kernel_refuses_gives_126_and_leaves_no_tenant(vgpu: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "program"
    path.write_text(content)
    path.chmod(0o755)
    done = vgpu.run("--name", "a", "--memory", "1GiB", program=[path])
    assert done.returncode == 126
    assert f"vgpu: {path}: " in done.stderr
    assert not (vgpu.state / "tenants" / "a").exists()


def test_a_program_is_found_in_the_path_that_it_is_given(vgpu: Any, tmp_path: Path) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine").write_text(f"#!/bin/sh\necho {folder}\n")
        (tmp_path / folder / "mine").chmod(mode)
    path = f"{tmp_path / 'first'}:{tmp_path / 'second'}:{os.environ['PATH']}"
    done = vgpu("run", "--sim", "h200", "--", "mine", env={"PATH": path})
    assert done.stdout == "second\n"
