"""Scores of answers, against what they are by hand."""

from __future__ import annotations

import pytest

from edgegen.evaluate.answers import (
    chrf,
    compression_ratio,
    distinct,
    exact_match,
    function_calls,
    function_match,
    function_name_match,
    json_valid,
    repetition,
    self_bleu,
    token_f1,
)

_CALL = '{"name": "light", "arguments": {"room": "hall", "on": true}}'


def test_same_answers() -> None:
    assert exact_match(" The  Lamp ", "the lamp") == 1 and exact_match("lamp", "the lamp") == 0
    assert exact_match('{"b":1, "a":2}', '{"a": 2, "b": 1}') == 1
    assert exact_match("{", '{"a": 2}') == 0
    assert token_f1("the red lamp", "the lamp") == pytest.approx(0.8)
    assert token_f1("", "") == 1 and token_f1("", "lamp") == 0
    assert json_valid("[1]", "{}") == 1 and json_valid("[1", "{}") == 0 and json_valid("{}", "lamp") is None
    assert json_valid('```json\n{"a": 1}\n```', "{}") == 1


@pytest.mark.parametrize(
    "said",
    [
        '{"arguments": {"on": true, "room": "hall"}, "name": "light"}',
        '{"function": "light", "parameters": {"room": "hall", "on": true}}',
        '{"function": {"name": "light", "arguments": "{\\"room\\": \\"hall\\", \\"on\\": true}"}}',
        f'{{"tool_calls": [{{"type": "function", "function": {_CALL}}}]}}',
        f"<tool_call>\n{_CALL}\n</tool_call>",
        f"```\n{_CALL}\n```",
        f"Sure, it is on.\n{_CALL}",
    ],
)
def test_the_same_call_in_other_forms(said: str) -> None:
    assert function_match(said, _CALL) == 1


def test_other_calls() -> None:
    other = _CALL.replace("hall", "bath")
    assert function_match(other, _CALL) == 0 and function_name_match(other, _CALL) == 1
    assert function_match("turn it on", _CALL) == 0 and function_match(_CALL, "on") is None
    assert function_calls('{"name": "f", "arguments": "{"}') is None
    assert function_match(f"Yes {_CALL} {_CALL}", _CALL) == 0 and json_valid("Yes {", _CALL) == 0
    assert json_valid(f"No [1] {_CALL}", _CALL) == 1
    assert function_calls('{"rooms": 3}') is None and function_calls("[]") is None


def test_variety() -> None:
    assert distinct(["a b a b"], 1) == 0.5 and distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct([], 1) == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5) and repetition("a b") is None
    assert compression_ratio(["on and on " * 50]) > 5 > compression_ratio(["a lamp in the hall"])
    same, different = self_bleu(["the lamp is on now"] * 3), self_bleu(["the lamp is on now", "cats sleep by a river"])
    assert all(score == pytest.approx(1) for score in same) and max(s for s in different if s is not None) < 0.2
    assert self_bleu(["alone"]) == [None] and self_bleu(["", "a b"]) == [None, None]
    assert chrf("the lamp", "the lamp") == pytest.approx(1) and chrf("", "") == 1 and chrf("", "lamp") == 0
