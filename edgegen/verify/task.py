"""Score answers by what they are for: the whole text, and the function call in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgegen.records.report import Interval, TaskScore
from edgegen.verify.quality import ratio_interval


def call_in(answer: str) -> Any:
    """The first JSON object in an answer, or None."""
    decoder = json.JSONDecoder()
    start = answer.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(answer, start)
        except ValueError:
            start = answer.find("{", start + 1)
            continue
        return value
    return None


def score_answers(expected: Sequence[str], original: Sequence[str], found: Sequence[str]) -> TaskScore:
    """Exact matches, and matches of the JSON object where at least half of the expected answers hold one.

    Args:
        expected: the data's own answers, at least one.
        original: the original model's, in the same order.
        found: the artifact's.
    """
    exact = [_fraction(expected, answers, lambda a: a.strip()) for answers in (found, original)]
    calls = [call_in(answer) is not None for answer in expected]
    call: list[Interval] | list[None] = [None, None]
    if 2 * sum(calls) >= len(calls):
        call = [_fraction(expected, answers, call_in) for answers in (found, original)]
    return TaskScore(
        requests=len(expected),
        exact_fraction=exact[0],
        call_fraction=call[0],
        original_exact_fraction=exact[1].value,
        original_call_fraction=call[1].value if call[1] else None,
    )


def _fraction(expected: Sequence[str], answers: Sequence[str], part: Any) -> Interval:
    hits = np.array([float(part(a) is not None and part(a) == part(e)) for e, a in zip(expected, answers, strict=True)])
    return ratio_interval(hits, np.ones(len(hits)))


def looks_sane(
    original: Sequence[Sequence[Any]],
    found: Sequence[Sequence[Any]],
    texts: Sequence[str],
    original_texts: Sequence[str] = (),
) -> tuple[bool, str]:
    """Whether greedy text is still text, judged against the original's own.

    A broken build answers nothing, one token for ever, or bytes that are no text. A weak original may do so too, so
    the artifact has to be at least half as varied as it, and may be undecodable in a fifth more of its characters.
    Answers are given as sequences of words or ids; `texts` and `original_texts` are the same as strings.

    Returns:
        (sane, what was seen).
    """
    if not found:
        return True, "no prompts"
    varied = [_variety(answers) for answers in (original, found)]
    garbled = _garbled(texts)
    silent = sum(not answer for answer in found) - sum(not answer for answer in original)
    seen = f"distinct-token share {varied[1]:.2f} (original {varied[0]:.2f}), {garbled:.1%} undecodable characters"
    return varied[1] >= 0.5 * varied[0] and garbled <= 0.2 + _garbled(original_texts) and silent <= len(found) / 2, seen


def _garbled(texts: Sequence[str]) -> float:
    return sum(text.count("\ufffd") for text in texts) / max(1, sum(len(text) for text in texts))


def _variety(answers: Sequence[Sequence[Any]]) -> float:
    shares = [len(set(answer)) / len(answer) for answer in answers if answer]
    return float(np.mean(shares)) if shares else 0.0
