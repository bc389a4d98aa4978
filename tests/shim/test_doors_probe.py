# SPDX-License-Identifier: Apache-2.0
"""A driver whose cuGetProcAddress does not hand out its exports, and one that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vgpu_shim
from tools.tenants import GIB, MIB, PROGRAMS, Driver, Tenant, compile_c, intercepts

Make = Callable[..., Tenant]

ASK = """
cuda = ctypes.CDLL("libcuda.so.1")
def pointer(name, version, flags=0):
    address = ctypes.c_void_p()
    code = cuda.cuGetProcAddress_v2(name.encode(), ctypes.byref(address), version, ctypes.c_uint64(flags), None)
    assert code == 0
    return address.value
def call(address, *arguments):
    return ctypes.CFUNCTYPE(ctypes.c_int, *[type(one) for one in arguments])(address)(*arguments)
def owner(address):
    maps = [line.split() for line in open("/proc/self/maps")]
    return next(os.path.basename(line[-1]) for line in maps
                if int(line[0].split("-")[0], 16) <= address < int(line[0].split("-")[1], 16))
def alloc(address, bytes, *more):
    made = ctypes.c_uint64()
    code = call(address, ctypes.cast(ctypes.byref(made), ctypes.c_void_p), ctypes.c_size_t(bytes), *more)
    return [code, made.value]
assert cuda.cuInit(0) == 0
"""

NONE = "ctypes.c_void_p()"

STRAYS = {
    # name, version, flags: whose function the pointer is under the shim, arguments after the size, the driver's mark
    "the version of the table": ("cuMemAlloc", 3020, 0, "libvgpu.so", "", 0x1000000),
    "a later version with a trampoline of its own": ("cuMemAlloc", 12000, 0, "libvgpu.so", "", 0x1000000),
    "a later version that is a function unknown to us": (
        "cuMemAlloc", 13000, 0, "libcuda.so.1", "ctypes.c_int(5)", 0x9000000,
    ),
    "with a twin": ("cuMemAllocAsync", 11020, 0, "libvgpu.so", NONE, 0x2000000),
    "the twin": ("cuMemAllocAsync", 11020, 2, "libvgpu.so", NONE, 0x3000000),
    "one that has no export": ("cuMemAllocManaged", 6000, 0, "libvgpu.so", "ctypes.c_uint(1)", 0x4000000),
}  # fmt: skip


@pytest.fixture
def stray(make_driver: Callable[..., Driver]) -> Driver:
    """A driver that hands out trampolines."""
    uuid = "GPU-" + "-".join("1" * n for n in (8, 4, 4, 4, 12))
    return make_driver("stray_driver", vgpu_shim.Device(uuid, "", GIB))


@pytest.mark.parametrize("case", STRAYS)
def test_a_stray_is_found_by_name_version_and_flags(stray: Driver, case: str) -> None:
    name, version, flags, ours, more, mark = STRAYS[case]
    script = f"""{ASK}
address = pointer({name!r}, {version}, {flags})
answer([owner(address), alloc(address, 16, {more})])
"""
    size = 5 if version == 13000 else 16
    assert Tenant(stray, preload="").ask(script) == ["libcuda.so.1", [0, mark + size]]
    assert Tenant(stray).ask(script) == [ours, [0, mark + size]]


@pytest.mark.parametrize(
    ("name", "version", "more"), [("cuMemAlloc", 12000, ""), ("cuMemAllocManaged", 6000, "ctypes.c_uint(1)")]
)
def test_the_quota_holds_behind_a_trampoline(
    make_tenant: Make, stray: Driver, name: str, version: int, more: str
) -> None:
    script = f"""{ASK}
address = pointer({name!r}, {version})
answer([alloc(address, {64 * MIB}, {more})[0] for _ in range(2)])
"""
    assert Tenant(stray, preload="").ask(script) == [0, 0]
    tenant = make_tenant(100 * MIB, on=stray)
    done = tenant.attempt(*tenant.script(script))
    assert done.stdout == "[0, 2]\n"
    assert done.stderr.count("\n") == 1
    assert "cuGetProcAddress does not hand out its export of cuMemAlloc_v2 and others" in done.stderr


def test_a_function_that_is_not_exported_stays_so(stray: Driver) -> None:
    """Handing it out by cuGetProcAddress does not make it an export."""
    script = f"""{ASK}
libc = ctypes.CDLL(None)
libc.dlsym.restype, libc.dlsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
found = lambda: [libc.dlsym(handle, b"cuMemAllocManaged") for handle in (cuda._handle, None)]
before = found()
pointer("cuMemAllocManaged", 6000)
answer(before + found())
"""
    assert Tenant(stray).ask(script) == [None] * 4


DOORS = ("dlsym", "RTLD_DEFAULT", "RTLD_NEXT", "whole-program", "cuGetProcAddress", "cuGetProcAddress_v2")


@pytest.mark.parametrize("door", DOORS)
def test_every_door_has_what_the_driver_has_and_no_more(stray: Driver, tmp_path: Path, door: str) -> None:
    """Programs choose what they do by which names exist."""
    lookup = compile_c(tmp_path / "lookup", PROGRAMS / "lookup.c",
                       flags=["-O1"], link=["-Wl,--no-as-needed", f"-L{tmp_path / 'stray_driver'}",
                                            "-l:libcuda.so.1", "-ldl"])  # fmt: skip
    found = []
    for tenant in (Tenant(stray, preload=""), Tenant(stray)):
        lines = (line.split() for line in tenant.run(lookup, door).splitlines())
        found.append({symbol: owner for symbol, owner in lines if owner != "-"})
    bare, ours = found
    assert set(ours) == set(bare)
    assert set(ours.values()) <= {"libvgpu.so"}
    # It has but one of the two resolvers.
    assert bool(ours) == (door != "cuGetProcAddress")


def test_the_drivers_pointers_are_its_exports(bare: Tenant) -> None:
    """What the exchange by address rests on, asked of the driver itself.

    For a version that is newer than the driver it may be the export of an older line of that name.
    """
    rows = [[row.symbol, row.base, row.since, row.flags] for row in intercepts() if row.base]
    script = f"""{ASK}
rows, exports = {rows!r}, {{}}
for symbol, base, since, flags in rows:
    try:
        export = ctypes.cast(getattr(cuda, symbol), ctypes.c_void_p).value
    except AttributeError:
        continue
    exports.setdefault((base, flags), []).append((since, export))
answer([[base, since] for (base, flags), lines in exports.items() for since, export in lines
        if pointer(base, since, flags) not in [None, *(other for earlier, other in lines if earlier <= since)]])
"""
    said: Any = bare.ask(script)
    assert said == []
