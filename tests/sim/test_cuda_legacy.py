# SPDX-License-Identifier: Apache-2.0
"""The driver's 32-bit functions, which old programs link to, on the simulated GPU."""

from __future__ import annotations

from sim.programs import ask, state
from tools.simulated import Simulated

MIB = 2**20

PRELUDE = """
context()
lib, U, R = raw(), ctypes.c_uint, ctypes.byref
def free(): return ok(cu.cuMemGetInfo())[0]
"""


def legacy(machine: Simulated, body: str) -> object:
    return ask(machine, PRELUDE + body)


def test_memory_by_32_bits_lies_below_4_gib_and_is_counted_like_any_other(h200: Simulated) -> None:
    body = """
before, pointers, codes = free(), [U() for _ in range(3)], []
for p in pointers:
    codes.append(lib.cuMemAlloc(R(p), U(3 * MIB)))
taken = before - free()
data, back = os.urandom(3 * MIB), ctypes.create_string_buffer(3 * MIB)
codes.append(lib.cuMemcpyHtoD(pointers[1], data, U(len(data))))
codes.append(lib.cuMemcpyDtoH(back, pointers[1], U(len(data))))
base, size = U(), U()
codes.append(lib.cuMemGetAddressRange(R(base), R(size), U(pointers[1].value + 5)))
wide = bytearray(16)
codes.append(rc(cu.cuMemcpyDtoH(wide, pointers[1].value, 16)))      # the same memory for the newer functions
codes += [lib.cuMemFree(p) for p in pointers]
answer([codes, taken, len({p.value for p in pointers}), back.raw == data, bytes(wide) == data[:16],
        base.value == pointers[1].value, size.value, before - free(), lib.cuMemFree(pointers[0])])
"""
    assert legacy(h200, body) == [[0] * 10, 12 * MIB, 3, True, True, True, 3 * MIB, 0, 1]


def test_memory_by_32_bits_ends_with_the_addresses_of_32_bits(h200: Simulated) -> None:
    body = """
p, count = U(), 0
while not (code := lib.cuMemAlloc(R(p), U(512 * MIB))):
    count += 1
answer([code, 4 <= count <= 7, rc(cu.cuMemAlloc(GIB)), lib.cuMemAlloc(None, U(1)), lib.cuMemAlloc(R(p), U(0))])
"""
    assert legacy(h200, body) == [2, True, 0, 1, 1]


def test_a_pitch_by_32_bits(h200: Simulated) -> None:
    body = """
p, pitch, before = U(), U(), free()
codes = [lib.cuMemAllocPitch(R(p), R(pitch), U(1000), U(5000), U(w)) for w in (4, 3)]
answer([codes, pitch.value, before - free(), lib.cuMemAllocPitch(R(p), R(pitch), U(2**31), U(3), U(4))])
"""
    assert legacy(h200, body) == [[0, 1], 1024, 6 * MIB, 2]


def test_a_figure_beyond_32_bits_reads_as_the_largest(h200: Simulated) -> None:
    body = """
available, total, whole = U(), U(), U()
codes = [lib.cuMemGetInfo(R(available), R(total)), lib.cuDeviceTotalMem(R(whole), 0)]
rest = free() - 100 * MIB
ok(cu.cuMemAlloc(rest))
codes.append(lib.cuMemGetInfo(R(available), R(total)))
answer([codes, total.value, whole.value, available.value == free(), lib.cuDeviceTotalMem(R(whole), 9)])
"""
    assert legacy(h200, body) == [[0, 0, 0], 2**32 - 1, 2**32 - 1, True, 101]


def test_host_memory_by_the_old_names(h200: Simulated) -> None:
    body = """
p, own, before = ctypes.c_void_p(), ctypes.create_string_buffer(8192), free()
codes = [lib.cuMemAllocHost(R(p), U(4096)), lib.cuMemHostRegister(own, ctypes.c_size_t(8192), 0)]
again = lib.cuMemHostRegister(own, ctypes.c_size_t(8192), 0)
answer([codes, again, lib.cuMemHostUnregister(own), lib.cuMemFreeHost(p), before - free()])
"""
    assert legacy(h200, body) == [[0, 0], 712, 0, 0, 0]


def test_a_context_by_the_old_name_takes_its_overhead(h200: Simulated) -> None:
    body = """
ok(cu.cuInit(0))
lib, c, version = raw(), ctypes.c_void_p(), ctypes.c_uint()
codes = [lib.cuCtxCreate(ctypes.byref(c), 0, 0), lib.cuCtxGetApiVersion(c, ctypes.byref(version))]
answer([codes, version.value, ok(cu.cuDeviceTotalMem(0)) - ok(cu.cuMemGetInfo())[0]])
"""
    assert ask(h200, body) == [[0, 0], 3010, state(h200).knobs.context_overhead]
