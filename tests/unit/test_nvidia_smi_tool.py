# SPDX-License-Identifier: Apache-2.0
"""How the tool that fetches nvidia-smi reads what this machine's apt trusts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import nvidia_smi
from tools.nvidia_smi import Source

DEB822 = """\
# a comment
Types: deb
URIs: http://mirror/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://mirror/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://other/tools
Suites: nodistro
Components: main
Enabled: no

Types: deb deb-src
URIs: http://first/ubuntu
 http://second/ubuntu
Suites: noble
Components: universe main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_paragraphs_give_one_source_for_each_place_and_suite() -> None:
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert nvidia_smi.deb822_sources(DEB822) == [
        Source(signed, "http://mirror/debian", "bookworm"),
        Source(signed, "http://mirror/debian", "bookworm-updates"),
        Source("", "http://first/ubuntu", "noble"),
        Source("", "http://second/ubuntu", "noble"),
    ]


def test_lines_give_a_source_each_but_for_comments_sources_and_other_components() -> None:
    text = """
# deb http://old/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian  bookworm main contrib # why
deb-src http://mirror/debian bookworm main
deb http://vendor/apt stable extra
"""
    assert nvidia_smi.one_line_sources(text) == [
        Source("[arch=amd64 signed-by=/k.gpg]", "http://mirror/debian", "bookworm")
    ]


def test_a_source_is_written_with_the_component_switched_on() -> None:
    line = Source("[signed-by=/k.gpg]", "http://mirror/debian", "trixie").line("main non-free")
    assert line == "deb [signed-by=/k.gpg] http://mirror/debian trixie main non-free"
    assert nvidia_smi.one_line_sources(line) == [Source("[signed-by=/k.gpg]", "http://mirror/debian", "trixie")]


def test_another_distribution_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_smi, "os_release", lambda: {"ID": "fedora"})
    with pytest.raises(nvidia_smi.Unavailable, match="fedora"):
        nvidia_smi.find(tmp_path)


def test_a_program_is_an_elf_file_and_no_script_of_its_name(tmp_path: Path) -> None:
    script, program, link = tmp_path / "script", tmp_path / "program", tmp_path / "link"
    script.write_text("#!/bin/sh\n")
    program.write_bytes(b"\x7fELF...")
    link.symlink_to(program)
    assert [nvidia_smi.is_program(path) for path in (script, program, link, tmp_path)] == [False, True, False, False]


def test_without_a_package_the_reason_is_said_and_the_status_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvidia_smi, "apt_sources", lambda: [])
    assert nvidia_smi.main(["--cache", str(tmp_path)]) == 1
    assert "not available: " in capsys.readouterr().err
    assert not list(tmp_path.rglob("nvidia-smi"))
