# SPDX-License-Identifier: Apache-2.0
"""Programs of old, new and other libcs; the versions under which libcs have ``dlsym``."""

from __future__ import annotations

import platform
from pathlib import Path

import build
import pytest
from tools.tenants import PROGRAMS, Driver, Tenant, compile_c

MUSL = Path(f"/lib/ld-musl-{platform.machine()}.so.1")


def compile_for(glibc: str, target: Path) -> Path:
    """The program as a distribution of that time would have built it."""
    command = build.compiler()
    if "-target" not in command:
        pytest.skip("the compiler has one libc only: pip install ziglang")
    command[command.index("-target") + 1] = f"{platform.machine()}-linux-gnu.{glibc}"
    build.run([*command, "-Wall", "-Wextra", "-Werror", "-o", str(target), str(PROGRAMS / "versions.c"), "-ldl"])
    return target


@pytest.mark.parametrize("glibc", ["2.17", "2.34"])
def test_every_version_of_dlsym_leads_to_the_shim(driver: Driver, tmp_path: Path, glibc: str) -> None:
    """Also for who fetches dlsym by dlvsym, past a name without a version."""
    program = compile_for(glibc, tmp_path / "versions")
    theirs = [line.split() for line in Tenant(driver, preload="").run(program).splitlines()]
    ours = [line.split() for line in Tenant(driver).run(program).splitlines()]
    asked = [name for name, owner, _ in theirs[:-1] if owner != "-"]
    assert len(asked) == 3
    assert all(found == "libcuda.so.1" for name, _, found in theirs if name in asked)
    assert [row for row in ours if row[0] in asked] == [[name, "libvgpu.so", "libvgpu.so"] for name in asked]


def test_dlvsym_finds_no_driver_function_with_us_or_without(driver: Driver, tmp_path: Path) -> None:
    program = compile_for("2.34", tmp_path / "versions")
    for preload in (Tenant(driver, preload=""), Tenant(driver)):
        assert preload.run(program).splitlines()[-1] == "dlvsym - -"


def test_programs_of_musl_start_and_look_up_as_without_us(driver: Driver, tmp_path: Path) -> None:
    """No driver runs there; a preload that applies to everything must not break them."""
    if not MUSL.exists():
        pytest.skip("needs musl: apt-get install musl")
    program = compile_c(tmp_path / "program", PROGRAMS / "musl.c",
                        flags=["-nostdlib", "-fno-builtin", "-fno-stack-protector", "-no-pie"],
                        link=[str(MUSL.resolve()), f"-Wl,-dynamic-linker,{MUSL}"])  # fmt: skip
    assert Tenant(driver, preload="").run(program, "7") == "1 0 7\n"
    assert Tenant(driver).run(program, "7") == "1 0 7\n"
