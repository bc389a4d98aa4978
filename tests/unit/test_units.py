# SPDX-License-Identifier: Apache-2.0
"""Quantities: what is taken, what is refused, and how the refusal helps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vgpu_runtime.errors import EXIT_USAGE, ConfigError
from vgpu_runtime.units import (
    MAX_BYTES,
    format_memory,
    parse_cores,
    parse_host_memory,
    parse_memory,
    parse_spill,
)

DEVICE = 143_771 * 2**20
UNITS = {
    "": 1,
    "B": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "gib": 2**30,
    "GIB": 2**30,
}

GOOD_MEMORY = {
    "8GiB": 8 * 2**30,
    "8Gi": 8 * 2**30,
    "8192MiB": 8 * 2**30,
    "8G": 8 * 10**9,
    "8GB": 8 * 10**9,
    "8589934592": 8 * 2**30,
    "8 GiB": 8 * 2**30,
    " 8GiB\n": 8 * 2**30,
    "1.5GiB": 3 * 2**29,
    "0.5KiB": 512,
    "0.001k": 1,
    "08GiB": 8 * 2**30,
    "25%": DEVICE // 4,
    "25 %": DEVICE // 4,
    "12.5%": DEVICE // 8,
    "100%": DEVICE,
    "0.0000001%": 150,  # rounded down
    "1": 1,
}

BAD_MEMORY = {
    "": "whole number",
    " ": "whole number",
    "GiB": "whole number",
    "8 gigs": "no unit 'gigs'",
    "8g": "no unit 'g'",
    "8m": "no unit 'm'",
    "8Gib8": "whole number",
    "-8GiB": "whole number",
    "+8GiB": "whole number",
    "8,5GiB": "whole number",
    "8_000": "whole number",
    "0x10": "whole number",
    "1e9": "whole number",
    "1e9999999": "whole number",
    "nan": "whole number",
    "inf": "whole number",
    ".5GiB": "whole number",
    "5.GiB": "whole number",
    "8  GiB": "whole number",
    "٨GiB": "whole number",
    "８GiB": "whole number",
    "8GiB\0": "whole number",
    "0": "whole number",
    "0GiB": "whole number",
    "0.3": "whole bytes",
    "1.0000000000001GiB": "whole bytes",
    "0%": "percentage",
    "101%": "percentage",
    "100.1%": "percentage",
    "-1%": "whole number",
    "25%%": "whole number",
    "8193PiB": "more than any device",
    "9" * 30: "more than any device",
    "9" * 40: "whole number",
    "9" * 100_000: "whole number",
}


@pytest.mark.parametrize(("text", "size"), GOOD_MEMORY.items())
def test_memory_is_read_to_the_byte(text: str, size: int) -> None:
    assert parse_memory(text, DEVICE) == size


@pytest.mark.parametrize(("text", "why"), BAD_MEMORY.items(), ids=lambda value: repr(value)[:20])
def test_memory_that_is_none_is_refused_with_the_value_the_rule_and_an_example(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_memory(text, DEVICE)
    message = str(caught.value)
    assert repr(text)[1:-1][:40] in message
    assert why in message
    assert "8GiB" in caught.value.hint
    assert "25%" in caught.value.hint
    assert caught.value.exit_code == EXIT_USAGE
    assert len(message) < 250, "a value of any length must leave the message readable"


@given(number=st.integers(1, 2**40), unit=st.sampled_from(sorted(UNITS)), blank=st.sampled_from(["", " "]))
def test_a_number_and_a_unit_are_their_product(number: int, unit: str, blank: str) -> None:
    size = number * UNITS[unit]
    text = f"{number}{blank if unit else ''}{unit}"
    if size <= MAX_BYTES:
        assert parse_memory(text, DEVICE) == size
    else:
        with pytest.raises(ConfigError):
            parse_memory(text, DEVICE)


@given(size=st.integers(1, MAX_BYTES), places=st.integers(0, 20))
def test_shifting_the_point_and_the_unit_together_changes_nothing(size: int, places: int) -> None:
    text = f"{size // 1000}.{size % 1000:03d}{'0' * places}k"
    assert parse_memory(text, DEVICE) == size


@given(percent=st.decimals("0.001", 100, places=3), device=st.integers(100_000, 2**50))
def test_a_percentage_never_gives_more_than_it_says(percent: object, device: int) -> None:
    thousandths = int(str(percent).replace(".", ""))
    size = parse_memory(f"{percent}%", device)
    assert size * 100_000 <= thousandths * device < (size + 1) * 100_000


@given(st.text())
@example("8GiB" * 1000)
def test_any_text_gives_a_size_or_a_config_error(text: str) -> None:
    try:
        size = parse_memory(text, DEVICE)
    except ConfigError:
        return
    assert 0 < size <= MAX_BYTES


@pytest.mark.parametrize("text", [text for text in BAD_MEMORY if "%" not in text], ids=lambda text: repr(text)[:20])
@pytest.mark.parametrize(
    ("what", "parse"),
    {"spill": lambda text: parse_spill(text, DEVICE, DEVICE), "host memory": parse_host_memory}.items(),
    ids=["spill", "host memory"],
)
def test_what_is_no_memory_is_no_other_size_either_and_is_called_by_its_name(
    what: str, parse: Callable[[str], int], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"{what} {repr(text)[:-1][:40]}")
    assert "8GiB" in caught.value.hint


@pytest.mark.parametrize(("text", "size"), [(text, size) for text, size in GOOD_MEMORY.items() if "%" not in text])
def test_host_memory_is_read_to_the_byte(text: str, size: int) -> None:
    assert parse_host_memory(text) == size


def test_host_memory_is_no_part_of_a_device() -> None:
    with pytest.raises(ConfigError, match=r"'25%'.*cannot be a percentage") as caught:
        parse_host_memory("25%")
    assert "8GiB" in caught.value.hint
    assert "%" not in caught.value.hint, "an example that would be refused"


@pytest.mark.parametrize(("text", "size"), {"2GiB": 2 * 2**30, "1": 1, "0.5%": 5, "79.9%": 799}.items())
def test_spill_is_read_as_memory_is(text: str, size: int) -> None:
    assert parse_spill(text, 3 * 2**30 if text == "2GiB" else 800, 1000) == size


@pytest.mark.parametrize("text", ["800", "801", "80%", "100%", "9GiB"])
def test_a_spill_that_leaves_the_device_nothing_is_refused_with_the_value_the_rule_and_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=f"spill '{text}': it must be less than the memory .*800 bytes") as caught:
        parse_spill(text, 800, 1000)
    assert "2GiB" in caught.value.hint


@pytest.mark.parametrize("text", ["0%", "101%"])
def test_a_percentage_that_is_none_is_no_spill(text: str) -> None:
    with pytest.raises(ConfigError, match=f"spill '{text}': a percentage of the device"):
        parse_spill(text, 800, 1000)


@pytest.mark.parametrize(("text", "cores"), {"30": 30, "30%": 30, "1": 1, "100": 100, " 007 ": 7}.items())
def test_cores_are_read(text: str, cores: int) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize(
    "text", ["", "0", "101", "-1", "+5", "30.5", "30 %", "30%%", "%", "thirty", "1e1", "0x1e", "٣٠", "9" * 50_000]
)
def test_cores_that_are_none_are_refused_with_the_value_the_rule_and_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cores(text)
    assert repr(text)[1:-1][:40] in str(caught.value)
    assert "from 1 to 100" in str(caught.value)
    assert "30" in caught.value.hint


@given(st.integers(0, 200))
def test_every_percent_from_1_to_100_is_a_number_of_cores(number: int) -> None:
    if 1 <= number <= 100:
        assert parse_cores(str(number)) == number
    else:
        with pytest.raises(ConfigError):
            parse_cores(str(number))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * 2**30, "10 GiB"),
        (2**30 - 1, "1 GiB"),
        (143_771 * 2**20, "140.4 GiB"),
        (2**62, "4 EiB"),
    ],
)
def test_sizes_are_shown_short(size: int, text: str) -> None:
    assert format_memory(size) == text


@given(st.integers(1, 2**60))
def test_what_is_shown_can_be_typed_and_is_near(size: int) -> None:
    shown = format_memory(size)
    number, unit = shown.split()
    assert len(number) <= 6
    if unit == "EiB":
        return
    tenth = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}[unit] / 10
    assert abs(float(number) * tenth * 10 - size) <= tenth / 2 + 1


def test_a_negative_size_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_memory(-1)
