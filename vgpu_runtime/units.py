# SPDX-License-Identifier: Apache-2.0
"""
Quantities as people write them: `8GiB`, `25%`, `30`.

This is the one place where such text exists; everything behind it is bytes and percent of a device, as
whole numbers. Parsing is exact: a quantity is computed in fractions and must come out in whole bytes, so
`1.5GiB` is a quantity and `0.3MB` is (300,000 bytes), but `1.5` is not. The one rounding is that of a
percentage of a device, which goes down to a whole byte: a slice is never larger than was said.

No I/O, standard library only: the OCI hook uses the same words through the same code.
"""

from __future__ import annotations

import re
from fractions import Fraction

from vgpu_runtime.errors import ConfigError

MAX_BYTES = 2**63 - 1

_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
# A lone letter must be a capital, `k` apart: `8m` is thousandths to some and `8g` is binary to others.
_SIZES = {
    "": 1,
    "B": 1,
    "k": 10**3,
    **_DECIMAL,
    **{f"{letter}B": size for letter, size in _DECIMAL.items()},
    **{f"{letter}{end}": size for letter, size in _BINARY.items() for end in ("I", "IB")},
}
# Long enough for any quantity, short enough that a hostile one costs nothing. ASCII only: `\d` alone would
# also take digits of other scripts.
_QUANTITY = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))? ?([A-Za-z]{0,12}|%)", re.ASCII)

_SIZE_RULE = "a whole number of bytes above 0, with a unit"
_SIZE_HINT = "write for example 8GiB or 8Gi (binary), 8192MiB, 8G (decimal), 8589934592"
_MEMORY_RULE = f"{_SIZE_RULE} or as a percentage of the device"
_MEMORY_HINT = f"{_SIZE_HINT}, or 25%"
_CORES_RULE = "a whole percentage of the device's compute, from 1 to 100"
_CORES_HINT = "write for example 30 or 30%"


def _refuse(what: str, value: str, why: str, hint: str) -> ConfigError:
    shown = value if len(value) <= 60 else value[:57] + "..."
    return ConfigError(f"{what} {shown!r}: {why}", hint=hint)


def parse_memory(text: str, device_memory: int, what: str = "memory") -> int:
    """Bytes of memory that `text` asks for on a device of `device_memory` bytes.

    Takes `8GiB`, `8Gi`, `8192MiB`, `8G` and `8GB` (decimal), plain bytes, and `25%` of the device; blanks
    around it are ignored, and one before the unit. A part after the point is fine when the result is a
    whole number of bytes. Raises ConfigError with the value (called `what`), the rule and an example. Whether
    the result fits the device is not judged here.
    """
    return _parse(what, text, device_memory, _MEMORY_RULE, _MEMORY_HINT)


def parse_spill(text: str, memory: int, device_memory: int) -> int:
    """Bytes of a slice's `memory` that may lie in host memory, as parse_memory() reads them.

    Raises ConfigError also when no byte of `memory` would be left in the device: every context needs some.
    """
    size = parse_memory(text, device_memory, "spill")
    if size >= memory:
        raise _refuse(
            "spill",
            text,
            f"it must be less than the memory of which it is a part, {format_memory(memory)} ({memory} bytes)",
            "write for example a memory of 8GiB and a spill of 2GiB: 6GiB then lie in the device's memory",
        )
    return size


def parse_host_memory(text: str) -> int:
    """Bytes of page-locked host memory that `text` asks for: as parse_memory(), but no percentage.

    There is no device of which it could be one. Raises ConfigError with the value, the rule and an example.
    """
    return _parse("host memory", text, None, _SIZE_RULE, _SIZE_HINT)


def _parse(what: str, text: str, device_memory: int | None, rule: str, hint: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise _refuse(what, text, f"it must be {rule}", hint)
    whole, part, unit = match.group(1), match.group(2) or "", match.group(3)
    if len(unit) > 1:
        unit = unit.upper()
    number = Fraction(int(whole + part), 10 ** len(part))
    if unit == "%":
        if device_memory is None:
            raise _refuse(
                what, text, f"it is no part of a device, so it cannot be a percentage: it must be {rule}", hint
            )
        if not 0 < number <= 100:
            raise _refuse(what, text, "a percentage of the device lies above 0 and up to 100", hint)
        size = int(number * device_memory / 100)
    elif unit in _SIZES:
        exact = number * _SIZES[unit]
        if exact.denominator != 1:
            raise _refuse(what, text, "it does not come out in whole bytes", hint)
        size = int(exact)
    else:
        raise _refuse(what, text, f"there is no unit {match.group(3)!r}", hint)
    if size <= 0:
        raise _refuse(what, text, f"it must be {rule}", hint)
    if size > MAX_BYTES:
        holder = "machine" if device_memory is None else "device"
        raise _refuse(what, text, f"it is more than any {holder} has", hint)
    return size


def parse_cores(text: str) -> int:
    """Percent of a device's compute that `text` asks for: `30` or `30%`, 1 to 100.

    Raises ConfigError with the value, the rule and an example.
    """
    match = re.fullmatch(r"([0-9]{1,9})%?", text.strip(), re.ASCII)
    if match is None or not 1 <= int(match.group(1)) <= 100:
        raise _refuse("cores", text, f"it must be {_CORES_RULE}", _CORES_HINT)
    return int(match.group(1))


def format_memory(size: int) -> str:
    """`size` bytes for people: `10 GiB`, `35.1 GiB`, `512 B`; at most one digit after the point.

    For reading only: it rounds, and parse_memory() need not take it back.
    """
    if size < 0:
        raise ValueError(f"a size is not negative: {size}")
    value, unit = Fraction(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        # 1023.95 would be shown as 1024.0: the next unit says it better.
        if round(value * 10) < 10240:
            break
        value, unit = value / 1024, larger
    tenths = round(value * 10)
    return f"{tenths // 10} {unit}" if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10} {unit}"
