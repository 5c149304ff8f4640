"""Nothing that devices say reaches the terminal as anything but text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style

from edgegen.monitor.ink import Ink, fit
from edgegen.monitor.mock_outputs import HOSTILE
from edgegen.monitor.plain import MOST_CHARACTERS, fold, plain

BAD_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Characters that matter more often than chance has it.
nasty = st.sampled_from(
    list("\x1b\x9b\x07\x00\r\n\t[]/\\a1é\u0301\u0488\u200d\u202e\u2066\ufe0f\ufeff\u3000\u2028表👩\U0001f3fd\ud800")
)
texts = st.text(alphabet=st.one_of(nasty, st.characters()), max_size=200)


@given(texts)
def test_plain_text_has_nothing_in_it_that_acts(text: str) -> None:
    shown = plain(text)
    assert not {unicodedata.category(c) for c in shown} & BAD_CATEGORIES
    assert not shown or not unicodedata.category(shown[0]).startswith("M"), "it would join what stands before it"
    marks = 0
    for character in shown:
        marks = marks + 1 if unicodedata.category(character).startswith("M") else 0
        assert marks <= 2
    shown.encode()
    assert plain(shown) == shown


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=MOST_CHARACTERS))
def test_ordinary_text_stays(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
        ("a\x9b31mb", "a�31mb"),
        ("two\nlines\r\x00", "two␊lines␍␀"),
        ("left\u202eright", "left�right"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("👩\u200d👧", "👩👧"),
        ("e\u0301", "é"),
        ("a" + "\u0308" * 50, "ä\u0308\u0308"),
        ("\u0301begins", "begins"),
        ("\ud800", "�"),
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("naïve Größe 表示", "naïve Größe 表示"),
    ],
)
def test_what_becomes_of_it(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_huge_line_is_cut() -> None:
    assert len(plain("x" * 10**7)) == MOST_CHARACTERS
    assert plain("x" * 10**7).endswith("…")
    assert plain("abcdef", 4) == "abc…"


@given(texts, st.integers(1, 60))
def test_folded_lines_fit(text: str, width: int) -> None:
    for line in fold(text, width):
        assert cell_len(line) <= max(width, 2), "a wide character needs two cells"
        assert plain(line) == line


def test_folding_keeps_words() -> None:
    assert fold("one two  three", 8) == ["one two", "three"]
    assert fold("a\nb", 8) == ["a", "b"]
    assert fold("x" * 10, 4) == ["xxxx", "xxxx", "xx"]
    assert fold("", 4) == [""]
    assert fold("word " * 5000, 10, most_lines=7)[-1] == "…"
    assert len(fold("word " * 5000, 10, most_lines=7)) == 7


@given(texts, st.integers(0, 40))
def test_a_fitted_text_has_its_width(text: str, width: int) -> None:
    assert cell_len(fit(plain(text), width)) == width
    assert cell_len(fit(plain(text), width, right=True)) == width


@given(st.lists(texts, max_size=6), st.integers(1, 120))
def test_a_drawn_line_has_its_width_and_no_escapes(pieces: list[str], width: int) -> None:
    strip = Ink({}).strip([(text, "bad") for text in pieces], width, Style())
    assert cell_len(strip.text) == width == strip.cell_length
    assert not any(unicodedata.category(c) in BAD_CATEGORIES for c in strip.text)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_simulated_fleet_is_hostile(text: str) -> None:
    assert plain(text) != text or "[" in text, "worth having"
