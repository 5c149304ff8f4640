"""Small pictures: sparks, curves, histograms, word diffs, numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from edgegen.monitor import shown
from edgegen.monitor.plain import plain
from edgegen.monitor.widgets.braille import curve, scatter
from edgegen.monitor.widgets.histogram import histogram
from edgegen.monitor.widgets.spark import bar, spark
from edgegen.monitor.widgets.worddiff import diff_lines, word_diff

maybe = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


def test_spark() -> None:
    assert spark([0, 1, 2, 4]) == "▁▃▅█"
    assert spark([None, 1.0, math.nan]) == "·█·"
    assert spark([8, 9, 10]) == "▅▇█", "from half of the largest on"
    assert spark([]) == ""
    assert spark([0, 0]) == "▁▁"


@given(st.lists(maybe, max_size=20), st.integers(1, 30))
def test_pictures_have_their_size_whatever_the_values(values: list[float | None], width: int) -> None:
    assert len(spark(values)) == len(values)
    lines = curve(values, width, 3, 0.0, 10.0)
    assert [len(line) for line in lines] == [width] * 3
    assert len(bar(values[0] if values else None, width)) == width


def test_bar() -> None:
    assert bar(0.5, 4) == "██  "
    assert bar(1 / 8, 1) == "▏"
    assert bar(None, 3) == "–  "
    assert bar(7.0, 2) == "██"


def test_curve_goes_from_corner_to_corner() -> None:
    lines = curve([0, 1, 2, 3, 4, 5, 6, 7], 4, 2, 0, 7)
    assert lines[0][0] == " " and lines[0][3] != " "
    assert lines[1][0] != " " and lines[1][3] == " "
    gap = curve([1, None, None, 1], 4, 1, 0, 1)[0]
    assert gap[1:3] == "  ", "unknown is a gap, not a line"
    assert curve([], 3, 1, 0, 1) == ["   "]


def test_scatter() -> None:
    lines = scatter([(0, 0), (1, 1), (math.nan, 1)], 4, 2, (0, 1, 0, 1))
    assert lines[1][0] != " " and lines[0][3] != " " and lines[0][1] == " "


def test_histogram_shows_shares_and_what_moved() -> None:
    lines = histogram((0, 1, 2), (50, 50), (10, 90), 60)
    words = ["".join(text for text, _ in line) for line in lines]
    assert "50%" in words[1] and "10%" in words[1] and "90%" in words[2]
    empty = histogram((0, 1, 2), (50, 50), (), 60)
    assert "–" in "".join(text for text, _ in empty[1]), "no answers is not 0%"
    assert len(histogram((1.0,), (1, 2), (2, 1), 40)) == 3, "open bins at both ends"


def test_word_diff() -> None:
    assert word_diff("the cat sat", "the dog sat") == [
        ("same", "the "),
        ("gone", "cat "),
        ("new", "dog "),
        ("same", "sat"),
    ]
    assert word_diff("", "") == []
    assert word_diff("same", "same") == [("same", "same")]
    long = "word " * 5000
    assert word_diff(long, long)


@given(st.text(max_size=80), st.text(max_size=80), st.integers(8, 40))
def test_diff_lines_fit_and_mark_without_colour(old: str, new: str, width: int) -> None:
    left, right = diff_lines(old, new, width)
    for line in (*left, *right):
        assert cell_len("".join(plain(text) for text, _ in line)) <= width + 1
    both = "".join(text for line in left for text, _ in line)
    if old.split() and not new.split():
        assert "[-" in both and "-]" in both


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (math.nan, "–"), (0.0, "0.00"), (7, "7"), (1234, "1.23k"), (9.996, "10.0"), (2.5e6, "2.50M")],
)
def test_numbers(value: float | None, words: str) -> None:
    assert shown.number(value) == words


def test_unknown_is_never_nought() -> None:
    for form in (shown.number, shown.percent, shown.size, shown.seconds, shown.age, shown.clock, shown.moment):
        assert form(None) == "–"
    assert shown.percent(0.0) == "0%" and shown.percent(0.0001) == "<.1%" and shown.percent(0.25) == "25%"
    assert shown.seconds(0.85) == "850ms" and shown.seconds(245) == "4m05" and shown.seconds(11_520) == "3h12"
    assert shown.age(0.2) == "now" and shown.age(59.9) == "59s" and shown.age(90_000) == "1d"
    assert shown.clock(1e300) == "–", "a clock that is very wrong"
    assert [shown.window(s) for s in (300.0, 3600.0, 86400.0, 604800.0)] == ["5m", "1h", "24h", "7d"]
