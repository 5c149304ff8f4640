"""The verdict on a rollout, case by case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegen.fleet.judge import Move, judge
from edgegen.records.deployment import ActionState, Thresholds, Wave

RULES = Thresholds(success_fraction=0.9, abort_fraction=0.2, min_executed=5, soak_s=60)


def wave(number: int, begun: float | None = 0.0, succeeded: float | None = None, **states: int) -> Wave:
    counts = {name.replace("_", "-"): count for name, count in states.items()}
    return Wave(number, number / 2, sum(counts.values()), counts, begun, succeeded)


def moves(*waves: Wave, now_s: float = 100.0) -> tuple[Move, int]:
    verdict = judge(waves, RULES, now_s)
    return verdict.move, verdict.wave


def test_nothing_has_begun() -> None:
    assert moves(wave(1, None, waiting=3), wave(2, None, waiting=3)) == (Move.BEGIN, 1)


@pytest.mark.parametrize(
    ("states", "move"),
    [
        ({"offered": 10}, Move.WAIT),
        ({"offered": 1, "confirmed": 9}, Move.SUCCEED),
        ({"running": 2, "confirmed": 8}, Move.WAIT),
        ({"confirmed": 10}, Move.SUCCEED),
        ({"confirmed": 8, "deferred": 20}, Move.SUCCEED),
        ({"confirmed": 86, "failed": 14}, Move.PAUSE),
        ({"confirmed": 8, "failed": 2}, Move.ABORT),
        ({"confirmed": 8, "timed_out": 2}, Move.ABORT),
        ({"failed": 4, "offered": 6}, Move.WAIT),
        ({"failed": 5, "offered": 5}, Move.ABORT),
        ({"failed": 1}, Move.ABORT),
        ({"failed": 1, "offered": 2}, Move.WAIT),
        ({"deferred": 3}, Move.WAIT),
        ({"canceled": 3}, Move.WAIT),
    ],
)
def test_the_first_of_two_waves(states: dict[str, int], move: Move) -> None:
    assert moves(wave(1, **states), wave(2, None, waiting=3))[0] == move


def test_the_next_wave_begins_after_soaking() -> None:
    waves = wave(1, succeeded=50.0, confirmed=2), wave(2, None, waiting=3)
    assert moves(*waves, now_s=109.0)[0] == Move.WAIT
    assert moves(*waves, now_s=110.0) == (Move.BEGIN, 2)


def test_failures_in_an_earlier_wave_still_count() -> None:
    assert moves(wave(1, succeeded=0.0, confirmed=4, failed=3), wave(2, offered=20))[0] == Move.ABORT


@pytest.mark.parametrize(
    ("states", "move"),
    [
        ({"confirmed": 9, "running": 1}, Move.WAIT),
        ({"confirmed": 10}, Move.FINISH),
        ({"confirmed": 10, "deferred": 5}, Move.FINISH),
        ({}, Move.FINISH),
    ],
)
def test_the_last_wave_ends_when_nobody_is_at_it(states: dict[str, int], move: Move) -> None:
    assert moves(wave(1, succeeded=0.0, confirmed=10), wave(2, succeeded=50.0, **states))[0] == move


def test_a_last_wave_that_falls_short_finishes_with_the_reason() -> None:
    verdict = judge((wave(1, confirmed=85, failed=15),), RULES, 0.0)
    assert verdict.move == Move.FINISH and "85 of 100" in verdict.reason


@given(st.lists(st.integers(0, 30), min_size=9, max_size=9))
def test_more_failures_never_turn_a_stop_into_going_on(counts: list[int]) -> None:
    states = {state: count for state, count in zip(ActionState, counts, strict=True) if count}
    more = states | {ActionState.FAILED: states.get(ActionState.FAILED, 0) + 1}
    later = wave(2, None, waiting=1)
    first = judge((Wave(1, 0.5, 1, dict(states), 0.0), later), RULES, 0.0).move
    second = judge((Wave(1, 0.5, 1, dict(more), 0.0), later), RULES, 0.0).move
    if first == Move.ABORT:
        assert second == Move.ABORT
