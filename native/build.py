"""Build everything that is C, and what Python needs to call it.

One run makes, in ``vgpu_runtime/_native/``:

* ``libvgpu.so``       the shim, with exactly the exports of ``intercepts.def`` and ``shim/vgpu.h``
* ``libvgpu_abi.so``   the contract's decisions for Python, from the same C files
* ``sim/``             the simulated ``libcuda.so.1`` and ``libnvidia-ml.so.1``
* ``_abi.py``          the declarations of ``abi.h`` for cffi
* ``_machine.py``      the declarations of ``sim/machine.h`` for cffi

cffi works in its ABI mode: the extension is a plain shared object, so that neither a compiler's
Python headers nor one build for each Python version is needed.

The compiler is ``$VGPU_CC``, else ``ziglang`` when it is installed (it brings every target's libc, so
the result runs on glibc 2.17 and later), else ``cc``.  ``--target`` takes an architecture, for
``ziglang`` only.  A file is compiled again only when something that it is made of has changed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import importlib.util
import io
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
SHIM = ROOT / "shim"
SIM = NATIVE / "sim"
OUTPUT = ROOT / "vgpu_runtime" / "_native"

GLIBC_FLOOR = "2.17"
DECISIONS = tuple(NATIVE / f"{name}.c" for name in ("grant", "ledger", "bucket", "process", "state", "tenant"))
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",  # structs of the shared files are also copied word by word
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # an intercept has the driver's parameters, used or not
    "-Werror",
    f"-I{NATIVE}",
)


class BuildError(Exception):
    """The build cannot go on; the text says what is missing and where it comes from."""


@dataclass(frozen=True, slots=True)
class Library:
    """One shared object: its file under the output folder, its parts, and what it exports."""

    path: str
    sources: tuple[Path, ...]
    exports: tuple[str, ...]
    soname: str
    link: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    """Symbol versions that it defines; the assembly says of which symbols."""
    hidden: tuple[str, ...] = ()
    """What its parts would export and it does not; where there are versions, that has to be said."""


# ---- what is exported, read from the files that say so ---------------------------------------


def intercepted() -> tuple[str, ...]:
    """Symbols of ``intercepts.def``."""
    return tuple(re.findall(r"^INTERCEPT\(\w+, (\w+),", (NATIVE / "intercepts.def").read_text(), re.M))


def prototypes(header: Path) -> tuple[str, ...]:
    """Names of the ``vgpu_*`` functions that a header declares."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
    return tuple(re.findall(r"\b(vgpu_\w+)\([^;{]*\);", text))


def simulated(table: Path) -> tuple[str, ...]:
    """Symbols of an export table of the simulated GPU."""
    return tuple(re.findall(r"^EXPORT\((\w+)\)", table.read_text(), re.M))


BASE_VERSIONS = {"x86_64": "GLIBC_2.2.5", "aarch64": "GLIBC_2.17"}
"""The oldest version that glibc's symbols have on a machine."""


def version_script(library: Library) -> str:
    """What the linker is told of exports and their versions.

    Beside versions there cannot be a list of what has none: there, what is hidden is listed.
    """
    if not library.versions:
        return "{ global: " + " ".join(f"{name};" for name in library.exports) + " local: *; };\n"
    first, *others = library.versions
    hidden = " ".join(f"{name};" for name in library.hidden)
    return "".join([f"{first} {{ local: {hidden} }};\n", *(f"{name} {{ }};\n" for name in others)])


def libraries(machine: str | None = None) -> list[Library]:
    """Everything that is compiled for a machine (default: this one), in no particular order."""
    base = BASE_VERSIONS[machine or platform.machine()]
    shared = tuple(sorted(SIM.glob("machine*.c")))
    return [
        Library(
            "libvgpu_abi.so",
            DECISIONS,
            prototypes(NATIVE / "abi.h"),
            "libvgpu_abi.so",
        ),
        Library(
            "libvgpu.so",
            (*sorted(SHIM.glob("*.c")), *DECISIONS),
            (*intercepted(), "dlsym", *prototypes(SHIM / "vgpu.h")),
            "libvgpu.so",
            # A tail jump to dlsym keeps its caller; our own functions are never looked up by name.
            ("-Wl,-Bsymbolic", "-ldl"),
            (base, "GLIBC_2.34"),
            prototypes(NATIVE / "abi.h"),
        ),
        Library(
            "sim/libcuda.so.1",
            (*sorted(SIM.glob("cuda*.c")), *shared),
            simulated(SIM / "cuda_exports.def"),
            "libcuda.so.1",
            ("-Wl,-Bsymbolic", "-lpthread", "-ldl", "-lrt", "-lm"),
        ),
        # Without -Bsymbolic, as the real one is: it calls itself through symbols that can be
        # interposed, and the shim has to bear that.
        Library(
            "sim/libnvidia-ml.so.1",
            (*sorted(SIM.glob("nvml*.c")), *shared),
            simulated(SIM / "nvml_exports.def"),
            "libnvidia-ml.so.1",
            ("-lpthread", "-ldl", "-lrt", "-lm"),
        ),
    ]


# ---- compiling -----------------------------------------------------------------------------------


def compiler(target: str | None = None) -> list[str]:
    """The C compiler as a command."""
    chosen = os.environ.get("VGPU_CC")
    if chosen:
        return shlex.split(chosen)
    if importlib.util.find_spec("ziglang"):
        machine = target or platform.machine()
        # zig switches a trapping sanitizer on unless told not to.
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.{GLIBC_FLOOR}",
                "-fno-sanitize=all"]  # fmt: skip
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found:
        return [found]
    raise BuildError("no C compiler: `pip install ziglang`, or install gcc, or set VGPU_CC")


def run(command: list[str]) -> None:
    """Run a compiler; its own words are the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def fingerprint(parts: list[str], files: list[Path]) -> str:
    """Changes when a command or the content of a file does."""
    digest = hashlib.sha256("\0".join(parts).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def headers() -> list[Path]:
    """What any C file may include."""
    return sorted(file for folder in (NATIVE, SIM, SHIM) for file in folder.glob("*") if file.suffix in {".h", ".def"})


@dataclass(frozen=True, slots=True)
class Builder:
    """Compiles into an output folder, with objects and fingerprints beside it."""

    output: Path
    cc: list[str]

    def build(self, library: Library) -> bool:
        """Make one library when it is out of date; whether it was."""
        if not library.exports:
            raise BuildError(f"{library.path} would export nothing: is its table empty?")
        target = self.output / library.path
        work = self.output / "build" / library.soname
        flags = [*FLAGS, f"-I{SIM}", f"-I{SHIM}"]
        mark = fingerprint([*self.cc, *flags, *library.link, version_script(library), *library.exports, library.path],
                           [*headers(), *library.sources])  # fmt: skip
        stamp = work / "fingerprint"
        if target.exists() and stamp.exists() and stamp.read_text() == mark:
            return False
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = [work / f"{source.parent.name}_{source.stem}.o" for source in library.sources]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, ([*self.cc, *flags, "-c", str(source), "-o", str(made)]
                                for source, made in zip(library.sources, objects, strict=True))))  # fmt: skip
        script = work / "exports.map"
        script.write_text(version_script(library))
        fresh = target.with_suffix(".fresh")
        run([*self.cc, "-shared", "-o", str(fresh), *map(str, objects), f"-Wl,-soname,{library.soname}",
             f"-Wl,--version-script={script}", "-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,--no-undefined", "-s",
             *library.link])  # fmt: skip
        # By rename: a running program keeps the file that it has mapped.
        fresh.replace(target)
        stamp.write_text(mark)
        return True


# ---- declarations for cffi -------------------------------------------------------------------------


def declarations(header: Path) -> str:
    """A contract header as cffi reads it: no comments, no directives but integer macros."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
    kept = [
        line
        for line in text.splitlines()
        if not line.lstrip().startswith("#") or re.match(r"#define \w+\s+(0x)?[0-9A-Fa-f]+\s*$", line)
    ]
    return "\n".join(kept)


def declare(header: Path, target: Path) -> None:
    """Write the cffi module of a contract header."""
    import cffi

    builder = cffi.FFI()
    builder.cdef(declarations(header))
    builder.set_source(f"vgpu_runtime._native.{target.stem}", None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # cffi says what it does
        builder.emit_python_code(str(target))


def build(output: Path = OUTPUT, target: str | None = None) -> list[str]:
    """Build all of it; the paths that were made anew."""
    made = []
    builder = Builder(output, compiler(target))
    for library in libraries(target):
        if builder.build(library):
            made.append(library.path)
    link = output / "sim" / "libcuda.so"  # numba asks for this name first
    if not link.is_symlink():
        link.symlink_to("libcuda.so.1")
    declare(NATIVE / "abi.h", output / "_abi.py")
    declare(SIM / "machine.h", output / "_machine.py")
    (output / "__init__.py").touch()
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to build into (default: %(default)s)")
    parser.add_argument("--target", metavar="ARCH", help="x86_64 or aarch64, with ziglang (default: this machine)")
    options = parser.parse_args()
    try:
        made = build(options.output, options.target)
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    print("build:", ", ".join(made) if made else "everything is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
