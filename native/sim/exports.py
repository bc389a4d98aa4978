# SPDX-License-Identifier: Apache-2.0
"""
Write the tables of what a driver exports: ``cuda_exports.def``, ``nvml_exports.def``.

Clients choose code paths and structure layouts by which names exist, so the
simulated libraries must export a driver's names and no others. Those names, and
the versions by which ``cuGetProcAddress`` finds them, are facts of NVIDIA's
public headers. This program takes them out of the header wheels on PyPI; only
names and version numbers reach the tables, which are committed.

Newer headers drop old names and drivers do not, hence several toolkits at once::

    pip download --no-deps -d wheels $(python exports.py --requirements)
    python exports.py wheels/*.whl            # write the tables
    python exports.py --check wheels/*.whl    # say how they differ; 1 if they do

The version rows come from the headers' ``PFN_<name>_v<version>`` types. For one
name, versions in ascending order belong to the exported suffixes in ascending
order (none, ``_v2``, ``_v3`` ...); a name where the two counts differ stops us,
because a wrong pair would be a wrong function.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

REQUIREMENTS = (
    "nvidia-cuda-runtime-cu12==12.9.79",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-nvml-dev-cu11==11.8.86",
    "nvidia-nvml-dev==13.4.92",
)
"""The wheels that the committed tables are made from; older ones add no name to them."""

PLAIN, PER_THREAD = 0, 2
"""The ``flags`` of ``cuGetProcAddress`` that select a row."""

NOT_EXPORTED = {
    # Static inline functions of the headers; no driver has them.
    "cuGetProcAddress_ptsz",
    "cuGetProcAddress_v2_ptsz",
}

CUDA_ELSEWHERE = (
    # Declared in cudaProfiler.h, which is in another wheel than its types.
    "cuProfilerInitialize",
    "cuProfilerStart",
    "cuProfilerStop",
)

CUDA_UNDECLARED = {
    # Drivers export a few names that no header declares. One of them, so that
    # an interposer meets a name that its table cannot know.
    "cuMemGetAttribute",
}

NVML_UNDECLARED = {
    # The door that nvidia-smi uses.
    "nvmlInternalGetExportTable",
}


@dataclass(frozen=True, slots=True, order=True)
class Abi:
    """One row that ``cuGetProcAddress`` chooses from."""

    base: str
    per_thread: int
    version: int
    symbol: str


class ExportsError(Exception):
    """The headers do not say what this program needs; the message says which."""


def headers(wheels: Iterable[Path], pattern: str) -> Iterator[str]:
    """Yield the text of each header in the wheels whose file name matches."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if re.fullmatch(pattern, name.rpartition("/")[2]):
                    yield linux_text(archive.read(name).decode("utf-8", "replace"))


def linux_text(text: str) -> str:
    """Return a header's text without comments and without what is for Windows only."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    windows = r"^[ \t]*#[ \t]*if(?:def[ \t]+_WIN32|[ \t]+defined\(_WIN32\))[ \t]*\n.*?^[ \t]*#[ \t]*(?:else|endif)"
    return re.sub(windows, "", text, flags=re.DOTALL | re.MULTILINE)


def cuda_exports(texts: Iterable[str]) -> set[str]:
    """Return the names that libcuda exports, by declarations and by the headers' renaming."""
    names = set(CUDA_ELSEWHERE)
    for text in texts:
        names.update(re.findall(r"\bCUDAAPI\s+(cu[A-Z]\w*)\s*\(", text))
        for renamed in re.findall(r"^[ \t]*#[ \t]*define[ \t]+cu[A-Z]\w*[ \t]+(cu[A-Z]\w*)[ \t]*$", text, re.M):
            names.add(renamed)
        for kind, renamed in re.findall(r"__CUDA_API_(PTDS|PTSZ)\(\s*(cu[A-Z]\w*)\s*\)", text):
            names.update((renamed, f"{renamed}_{kind.lower()}"))
    return names - NOT_EXPORTED


def versions(texts: Iterable[str]) -> dict[tuple[str, str], set[int]]:
    """Return the versions of each (base name, ``""`` or ``ptds`` or ``ptsz``)."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for text in texts:
        for base, version, kind in re.findall(r"\*\s*PFN_(cu[A-Z]\w*?)_v(\d+)(?:_(ptds|ptsz))?\s*\)", text):
            found[base, kind].add(int(version))
    return found


def split(symbol: str) -> tuple[str, str, int]:
    """Return the base name, kind and suffix number of an exported symbol.

    >>> split("cuMemcpyHtoD_v2_ptds")
    ('cuMemcpyHtoD', 'ptds', 2)
    """
    match = re.fullmatch(r"(cu\w+?)(?:_v(\d+))?(?:_(ptds|ptsz))?", symbol)
    assert match is not None
    return match[1], match[3] or "", int(match[2] or 1)


def pair(exports: Iterable[str], rows: dict[tuple[str, str], set[int]]) -> list[Abi]:
    """Match versions with exported symbols.

    Raises
        ExportsError: a name has other numbers of versions and of symbols.
    """
    symbols: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for symbol in exports:
        base, kind, suffix = split(symbol)
        symbols[base, kind].append((suffix, symbol))
    wrong = [key for key in {*symbols, *rows} if len(symbols.get(key, ())) != len(rows.get(key, ()))]
    if wrong:
        detail = "; ".join(
            f"{base} {kind}: {sorted(symbols.get((base, kind), ()))} for {sorted(rows.get((base, kind), ()))}"
            for base, kind in sorted(wrong)
        )
        raise ExportsError(f"versions and symbols do not pair: {detail}")
    return sorted(
        Abi(base, PER_THREAD if kind else PLAIN, version, symbol)
        for (base, kind), named in symbols.items()
        for version, (_, symbol) in zip(sorted(rows[base, kind]), sorted(named), strict=True)
    )


def nvml_exports(texts: Iterable[str]) -> set[str]:
    """Return the names that libnvidia-ml exports."""
    names = set(NVML_UNDECLARED)
    for text in texts:
        declared = set(re.findall(r"\bDECLDIR\s+(?:char\s*\*\s*)?(nvml[A-Z]\w*)\s*\(", text))
        renamed = re.findall(r"^[ \t]*#[ \t]*define[ \t]+(nvml[A-Z]\w*)[ \t]+(nvml[A-Z]\w*)[ \t]*$", text, re.M)
        names |= declared
        for pair_of_names in renamed:
            if declared.intersection(pair_of_names):
                names.update(pair_of_names)
    return names


def cuda_table(wheels: list[Path]) -> str:
    """Return the text of ``cuda_exports.def``."""
    declarations = list(headers(wheels, r"cuda(GL|EGL|VDPAU)?\.h"))
    types = list(headers(wheels, r"cuda\w*Typedefs\.h"))
    if not declarations or not types:
        raise ExportsError("no cuda.h or no cudaTypedefs.h in these wheels; give the nvidia-cuda-runtime wheels")
    exports = cuda_exports(declarations)
    lines = [f"EXPORT({name})" for name in sorted(exports | CUDA_UNDECLARED)]
    lines += [
        f'ABI("{row.base}", {row.version}, {row.per_thread}, {row.symbol})' for row in pair(exports, versions(types))
    ]
    return head("libcuda.so.1") + ABI_HEAD + "\n".join(lines) + ABI_TAIL


def nvml_table(wheels: list[Path]) -> str:
    """Return the text of ``nvml_exports.def``."""
    texts = list(headers(wheels, r"nvml\.h"))
    if not texts:
        raise ExportsError("no nvml.h in these wheels; give the nvidia-nvml-dev wheels")
    lines = [f"EXPORT({name})" for name in sorted(nvml_exports(texts))]
    return head("libnvidia-ml.so.1") + "\n".join(lines) + "\n#undef EXPORT\n"


def head(library: str) -> str:
    """Return the comment at the top of a table."""
    return (
        "/* SPDX-License-Identifier: Apache-2.0\n"
        f" * What {library} exports: names and versions, taken from public headers.\n"
        " * Written by exports.py; do not edit. */\n"
    )


ABI_HEAD = """\
#ifndef EXPORT
#define EXPORT(symbol)
#endif
/* ABI(name asked for, since version, flags of cuGetProcAddress, symbol) */
#ifndef ABI
#define ABI(name, version, flags, symbol)
#endif
"""

ABI_TAIL = """
#undef EXPORT
#undef ABI
"""


def difference(old: str, new: str) -> list[str]:
    """Return the rows that only one of two tables has, marked ``-`` and ``+``."""
    rows = re.compile(r"^(?:EXPORT|ABI)\(.*\)$", re.M)
    before, after = set(rows.findall(old)), set(rows.findall(new))
    return [f"-{row}" for row in sorted(before - after)] + [f"+{row}" for row in sorted(after - before)]


def main(arguments: list[str] | None = None) -> int:
    """Write or check the two tables; the exit status of the program."""
    parser = argparse.ArgumentParser(description="Write the tables of what a driver exports.")
    parser.add_argument(
        "wheels", nargs="*", type=Path, metavar="WHEEL", help="NVIDIA's header wheels, several toolkits"
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; print the rows that differ, exit 1 if any"
    )
    parser.add_argument("--directory", type=Path, default=HERE, help="where the tables are (default: beside this)")
    parser.add_argument("--requirements", action="store_true", help="print which wheels to download, and end")
    options = parser.parse_args(arguments)
    if options.requirements:
        print(*REQUIREMENTS)
        return 0
    try:
        tables = {"cuda_exports.def": cuda_table(options.wheels), "nvml_exports.def": nvml_table(options.wheels)}
    except (ExportsError, OSError, zipfile.BadZipFile) as error:
        print(f"exports.py: {error}", file=sys.stderr)
        return 2
    differs = False
    for name, text in tables.items():
        path: Path = options.directory / name
        if not options.check:
            path.write_text(text)
            continue
        for row in difference(path.read_text() if path.exists() else "", text):
            print(f"{name}: {row}")
            differs = True
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
