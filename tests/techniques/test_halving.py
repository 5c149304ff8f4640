"""Successive halving: rankings that flip, equal budgets, what falls."""

from __future__ import annotations

import math

import pytest

from edgegen.errors import ConfigError
from edgegen.techniques.halving import halve


class Field:
    """Candidates whose score falls from a start to a floor with what they learnt."""

    def __init__(self, **candidates: tuple[float, float]) -> None:
        self.candidates = candidates
        self.learnt = dict.fromkeys(candidates, 0)
        self.calls: list[tuple[str, int, int]] = []

    def heal(self, name: str, number: int, tokens: int) -> None:
        self.calls.append((name, number, tokens))
        self.learnt[name] += tokens

    def score(self, name: str) -> float:
        start, floor = self.candidates[name]
        return floor + (start - floor) * math.exp(-self.learnt[name] / 100)


def test_the_one_that_heals_best_wins_over_the_one_that_began_best() -> None:
    field = Field(mild=(0.2, 0.19), deep=(0.9, 0.05), wide=(0.5, 0.1), thin=(0.3, 0.25), low=(0.4, 0.35))
    said: list[str] = []
    found = halve(
        list(field.candidates), field.heal, field.score, 3000, progress=lambda d, n, w: said.append(f"{d}/{n} {w}")
    )
    assert min(found.rounds[0].scores, key=lambda name: found.rounds[0].scores[name] or 0.0) == "mild"
    assert found.ranking[0] == "deep"
    assert [len(r.scores) for r in found.rounds] == [5, 5, 3, 2]
    assert [r.tokens for r in found.rounds] == [0, 200, 333, 500]
    assert found.tokens == 5 * 200 + 3 * 333 + 2 * 500 == sum(tokens for _, _, tokens in field.calls)
    assert set(found.ranking) == set(field.candidates)
    assert found.ranking[-2:] == ("thin", "low")
    assert said[-1].startswith("10/10 round 3 of 3")


def test_scores_decide_who_falls_and_order_decides_between_equals() -> None:
    same = Field(b=(1.0, 0.5), a=(1.0, 0.5), c=(1.0, 0.5))
    assert halve(["b", "a", "c"], same.heal, same.score, 60).ranking == ("b", "a", "c")
    broken = Field(good=(1.0, 0.5), bad=(math.nan, math.nan))
    found = halve(["bad", "good"], broken.heal, broken.score, 60)
    assert found.ranking == ("good", "bad") and found.rounds[-1].scores["bad"] is None
    alone = Field(one=(1.0, 0.5))
    assert [r.tokens for r in halve(["one"], alone.heal, alone.score, 60).rounds] == [0, 60]


def test_a_call_that_was_cut_off_is_repeated() -> None:
    class Cut(Exception):  # noqa: N818
        pass

    candidates = {"mild": (0.2, 0.19), "deep": (0.9, 0.05), "wide": (0.5, 0.1)}
    whole = Field(**candidates)
    expected = halve(list(candidates), whole.heal, whole.score, 1200)
    field, kept = Field(**candidates), set()
    left = 3

    def resumable(name: str, number: int, tokens: int) -> None:
        nonlocal left
        if (name, number) not in kept:
            if left == 0:
                raise Cut
            left -= 1
            kept.add((name, number))
        field.heal(name, number, tokens)

    with pytest.raises(Cut):
        halve(list(candidates), resumable, field.score, 1200)
    left, field = 99, Field(**candidates)
    assert halve(list(candidates), resumable, field.score, 1200) == expected


def test_wrong_arguments_are_named() -> None:
    field = Field(a=(1.0, 0.5), b=(1.0, 0.5))
    for names, tokens, said in (
        ([], 10, "different names"),
        (["a", "a"], 10, "different names"),
        (["a", "b"], 1, "shared among 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            halve(names, field.heal, field.score, tokens)
