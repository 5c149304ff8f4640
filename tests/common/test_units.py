"""Sizes and numbers as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegen.common.units import format_bytes, format_seconds, parse_bytes, parse_positive
from edgegen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("3k", 3000),
        ("3kB", 3000),
        ("60MB", 60_000_000),
        ("60m", 60_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2g", 2_000_000_000),
        ("1TB", 10**12),
        ("1t", 10**12),
        ("1KiB", 1024),
        ("512MiB", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("1tib", 2**40),
        ("  .5  MB ", 500_000),
    ],
)
def test_every_suffix(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "12 parsecs", "-3MB", "0", "0.2", "1e6", "nan", "1,5MB", "5.MB", "9" * 400])
def test_what_is_no_size_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-bytes") as caught:
        parse_bytes(text, what="--max-bytes")
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf", "1e999"])
def test_what_is_not_above_zero_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-kl"):
        parse_positive(text, what="--max-kl")


def test_positive_numbers() -> None:
    assert parse_positive(" 1e-3 ", what="x") == 0.001


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (4_990_000, "4.99 MB"),
        (999_499_999, "999 MB"),
        (12_345_678_901, "12.3 GB"),
        (2e12, "2.00 TB"),
        (-1500, "-1.50 kB"),
    ],
)
def test_three_figures(count: float, expected: str) -> None:
    assert format_bytes(count) == expected


@given(st.integers(1, 10**14))
def test_what_is_shown_reads_back_within_half_a_percent(count: int) -> None:
    assert math.isclose(parse_bytes(format_bytes(count)), count, rel_tol=5.1e-3)


def test_numbers_without_a_value_are_shown() -> None:
    assert format_bytes(math.inf) == "inf TB"
    assert "nan" in format_bytes(math.nan)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 ms"), (0.85, "850 ms"), (0.00123, "1.23 ms"), (12.34, "12.3 s"), (245.9, "4 min 05 s")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected
