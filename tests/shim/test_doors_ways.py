# SPDX-License-Identifier: Apache-2.0
"""Unusual ways to the driver: several clients at once, namespaces, deep binding, sanitizers, other interposers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import build
import pytest
from tools.tenants import LIBRARY, MIB, NATIVE, PROGRAMS, Driver, Tenant, compile_c, intercepts

Make = Callable[..., Tenant]
Program = Callable[[str], Path]

SHARED = ["-O1", "-fPIC", "-shared", "-fvisibility=hidden"]
DRIVER = ["-Wl,--no-as-needed", f"-L{NATIVE / 'sim'}", "-l:libcuda.so.1", "-ldl", "-lpthread",
          "-Wl,--allow-shlib-undefined"]  # fmt: skip


# ---- several clients in one process ------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["later", "in constructors"])
def test_clients_that_load_at_the_same_time_all_meet_the_shim(driver: Driver, tmp_path: Path, when: str) -> None:
    """As a framework does with its own runtime and those inside of its libraries. A deadlock fails by time-out."""
    flags = ['-DEAGER="libvgpu.so"'] if when == "in constructors" else []
    first = compile_c(tmp_path / "runtime-0.so", PROGRAMS / "runtime.c", flags=[*SHARED, *flags], link=["-ldl"])
    copies = [first, *(Path(shutil.copy(first, tmp_path / f"runtime-{number}.so")) for number in range(1, 24))]
    crowd = compile_c(tmp_path / "crowd", PROGRAMS / "crowd.c", flags=["-O1"], link=["-ldl", "-lpthread"])
    for _ in range(10):
        assert Tenant(driver).run(crowd, "libvgpu.so", *copies) == "24 loaded, 0 strangers\n"
    alone = Tenant(driver, preload="").run(crowd, "libvgpu.so", first)
    assert alone.startswith("1 loaded, ")
    assert alone != "1 loaded, 0 strangers\n"


def test_the_quota_holds_over_two_namespaces(make_tenant: Make, driver: Driver, tmp_path: Path) -> None:
    program = compile_c(tmp_path / "namespaces", PROGRAMS / "namespaces.c", flags=["-O1"], link=["-ldl"])
    amounts = [str(mib * MIB) for mib in (64, 64, 16, 16, 32, 16)]
    alone = Tenant(driver, preload="").attempt(program, *amounts)
    if alone.returncode and not driver.machine:
        pytest.skip("this driver does not start a second time in one process")
    assert alone.stdout == "libcuda.so.1 libcuda.so.1 0 0 0 0 0 0\n"
    tenant = make_tenant(112 * MIB, processes=2)  # each copy of the driver has a context of its own
    # 64 here; there 64 more are too many and 16 are not; then 32 more are too many here, and 16 are not.
    assert tenant.run(program, *amounts) == "libvgpu.so libvgpu.so 0 2 0 0 2 0\n"
    assert tenant.usage()[0].memory_used == tenant.memory


# ---- what a preload catches of a library that binds deeply --------------------------------------------------


def test_a_preload_does_not_reach_a_library_that_binds_deeply(driver: Driver, tmp_path: Path) -> None:
    """It has the libc among its own dependencies, so dlsym is not ours there either. Opened plainly it is caught."""
    library = compile_c(tmp_path / "deep.so", PROGRAMS / "deep.c", flags=[*SHARED, "-DLIBRARY"], link=DRIVER)
    program = compile_c(tmp_path / "deep", PROGRAMS / "deep.c", flags=["-O1"], link=["-ldl"])
    found = {deep: Tenant(driver).run(program, library, deep).split() for deep in ("0", "1")}
    assert found["0"] == ["libvgpu.so"] * 3
    assert found["1"] == ["libcuda.so.1"] * 3


# ---- sanitizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("door", ["dlsym", "RTLD_NEXT", "cuGetProcAddress_v2"])
def test_a_program_under_a_sanitizer_meets_the_shim(driver: Driver, tmp_path: Path, sanitizer: str, door: str) -> None:
    """Its runtime has to come first, so the preload names it before us."""
    runtime = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    if not shutil.which("gcc"):
        pytest.skip("needs gcc with its sanitizers: apt-get install gcc")
    path = subprocess.run(["gcc", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True)
    if "/" not in path.stdout:
        pytest.skip(f"gcc has no {runtime}: apt-get install gcc")
    lookup = tmp_path / "lookup"
    build.run(["gcc", "-std=gnu11", "-O1", "-w", f"-fsanitize={sanitizer}", f"-I{build.NATIVE}", "-o", str(lookup),
               str(PROGRAMS / "lookup.c"), f"-L{NATIVE / 'sim'}", "-Wl,--no-as-needed", "-l:libcuda.so.1",
               "-l:libnvidia-ml.so.1", "-ldl", "-Wl,--allow-shlib-undefined"])  # fmt: skip
    options = {"ASAN_OPTIONS": "detect_leaks=0"}
    said = Tenant(driver, preload=f"{path.stdout.strip()} {LIBRARY}").run(lookup, door, **options)
    asked = [row for row in intercepts() if row.base or not door.startswith("cuGet")]
    assert said.count("libvgpu.so") == len(asked)


# ---- another interposer of dlsym ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["shim first", "shim last"])
@pytest.mark.parametrize("door", ["dlsym", "RTLD_DEFAULT", "cuGetProcAddress_v2"])
def test_another_interposer_of_dlsym_keeps_its_place(
    driver: Driver, program: Program, tmp_path: Path, order: str, door: str
) -> None:
    other = compile_c(tmp_path / "interposer.so", PROGRAMS / "interposer.c", flags=SHARED, link=["-ldl"])
    libraries = [str(LIBRARY), str(other)]
    if order == "shim last":
        libraries.reverse()
    tenant = Tenant(driver, preload=":".join(libraries))
    asked = [row for row in intercepts() if row.base or not door.startswith("cuGet")]
    assert tenant.run(program("lookup"), door).count("libvgpu.so") == len(asked)
    script = """
    libc = ctypes.CDLL(None)
    libc.dlsym.restype, libc.dlsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
    before = libc.interposed_lookups()
    found = libc.dlsym(None, b"answered_by_the_interposer")
    answer([bool(found), libc.interposed_lookups() > before])
    """
    assert tenant.ask(script) == [True, True]


# ---- what no preload catches ---------------------------------------------------------------------------------------


def test_a_static_program_is_left_alone(driver: Driver, tmp_path: Path) -> None:
    source = tmp_path / "static.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    command = build.compiler()
    if "-target" not in command:
        pytest.skip("needs a libc to link statically: pip install ziglang")
    command[command.index("-target") + 1] = f"{os.uname().machine}-linux-musl"
    build.run([*command, "-static", "-o", str(tmp_path / "static"), str(source)])
    assert Tenant(driver).run(tmp_path / "static") == "hello\n"


# ---- /etc/ld.so.preload --------------------------------------------------------------------------------------------


@pytest.fixture
def preloaded(tmp_path: Path) -> Callable[..., list[str]]:
    """Turns a command into one that runs where /etc/ld.so.preload names these libraries."""
    folders = {name: tmp_path / name for name in ("upper", "work")}
    for folder in folders.values():
        folder.mkdir()
    options = f"lowerdir=/etc,upperdir={folders['upper']},workdir={folders['work']}"
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
               f'mount -t overlay overlay -o {options} /etc && exec "$@"', "sh"]  # fmt: skip
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    probe = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"needs an overlay over /etc: {probe.stderr.strip()}")

    def wrap(libraries: list[str], *command: str | Path) -> list[str]:
        (folders["upper"] / "ld.so.preload").write_text(" ".join(libraries) + "\n")
        return [*unshare, *map(str, command)]

    return wrap


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_an_empty_environment_is_caught_by_the_preload_file(
    driver: Driver, program: Program, preloaded: Callable[..., list[str]]
) -> None:
    path = driver.environment().get("LD_LIBRARY_PATH", "")
    command = ["env", "-i", f"LD_LIBRARY_PATH={path}", program("lookup"), "dlsym"]
    everything = len(intercepts())
    assert Tenant(driver).run(*command).count("libvgpu.so") == 0
    assert Tenant(driver, preload="").run(*preloaded([str(LIBRARY)], *command)).count("libvgpu.so") == everything


def test_a_setuid_program_is_caught_by_the_preload_file(
    driver: Driver, preloaded: Callable[..., list[str]], open_folder: Path
) -> None:
    """The variable is dropped for it, whoever sets it."""
    if not driver.machine:
        pytest.skip("the program is linked to the place of a simulated driver")
    lookup = compile_c(open_folder / "lookup", PROGRAMS / "lookup.c", flags=["-O1"],
                       link=[*DRIVER, "-l:libnvidia-ml.so.1", f"-Wl,-rpath,{driver.machine.directory}"])  # fmt: skip
    lookup.chmod(0o4755)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", lookup, "dlsym"]
    assert Tenant(driver).run(*command).count("libvgpu.so") == 0
    done = Tenant(driver, preload="").run(*preloaded([str(LIBRARY)], *command))
    assert done.count("libvgpu.so") == len(intercepts())


def test_a_program_under_asan_needs_its_runtime_first_in_the_preload_file(
    driver: Driver, tmp_path: Path, preloaded: Callable[..., list[str]]
) -> None:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc with its sanitizers: apt-get install gcc")
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    source = tmp_path / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    build.run(["gcc", "-fsanitize=address", "-o", str(tmp_path / "hello"), str(source)])
    bare = Tenant(driver, preload="")
    wrong = bare.attempt(*preloaded([str(LIBRARY)], tmp_path / "hello"), ASAN_OPTIONS="detect_leaks=0")
    assert wrong.returncode != 0
    assert "does not come first" in wrong.stderr
    right = bare.attempt(*preloaded([str(LIBRARY)], tmp_path / "hello"),
                         LD_PRELOAD=runtime.stdout.strip(), ASAN_OPTIONS="detect_leaks=0")  # fmt: skip
    assert (right.returncode, right.stdout) == (0, "hello\n")
