"""Scores of answers, and what counts as sane text."""

from typing import Any

import pytest

from edgegen.verify.task import call_in, looks_sane, score_answers


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure! {"a": {"b": [1, {"c": 2}]}} done', {"a": {"b": [1, {"c": 2}]}}),
        ('{broken {"a": 1}', {"a": 1}),
        ('{"a": 1} {"b": 2}', {"a": 1}),
        ('{"a": "}{"}', {"a": "}{"}),
        ("{}", {}),
        ("no call", None),
        ("", None),
        ('{"a": 1', None),
        ("[1, 2]", None),
        ("{{{{", None),
    ],
)
def test_call_in(answer: str, found: Any) -> None:
    assert call_in(answer) == found


def test_key_order_and_spaces_do_not_matter_in_a_call() -> None:
    scores = score_answers(['{"a": 1, "b": 2}'], ["nothing"], ['{"b":2,"a":1}'])
    assert scores.exact_fraction.value == 0
    assert scores.call_fraction is not None and scores.call_fraction.value == 1
    assert (scores.original_exact_fraction, scores.original_call_fraction) == (0, 0)


def test_exact_matches_ignore_space_around() -> None:
    scores = score_answers(["yes", "no"], ["yes", "yes"], [" yes\n", "no"])
    assert scores.requests == 2
    assert scores.exact_fraction.value == 1 and scores.original_exact_fraction == 0.5
    assert scores.call_fraction is None and scores.original_call_fraction is None


def test_an_answer_without_the_call_is_a_miss_not_a_match() -> None:
    """Also where the expected one has none: no call equals no call would be free points."""
    scores = score_answers(['{"a": 1}', "words"], ["", ""], ["words", "words"])
    assert scores.call_fraction is not None and scores.call_fraction.value == 0


@pytest.mark.parametrize(
    ("original", "found", "sane"),
    [
        ("the cat sat on a mat", "a dog ran to the house", True),
        ("the cat sat on a mat", "the the the the the the", False),
        ("the the the the", "cat cat cat cat", True),
        ("the cat sat", "", False),
        ("the cat sat", "\ufffd\ufffd\ufffd\ufffd a", False),
    ],
)
def test_looks_sane(original: str, found: str, sane: bool) -> None:
    verdict, seen = looks_sane([original.split()] * 3, [found.split()] * 3, [found] * 3)
    assert verdict == sane
    assert "distinct-token share" in seen


def test_undecodable_characters_are_judged_against_the_originals() -> None:
    words = [["a", "b"]]
    assert not looks_sane(words, words, ["ab\ufffd"], ["abc"])[0]
    assert looks_sane(words, words, ["ab\ufffd"], ["\ufffdab"])[0]


def test_a_silent_original_may_stay_silent() -> None:
    assert looks_sane([[], []], [[], []], ["", ""])[0]
    assert looks_sane([], [], []) == (True, "no prompts")
