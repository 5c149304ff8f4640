"""Changes within streams of single answers."""

import math

import numpy as np
import pytest
from scipy import stats

from edgegen.fleet.drift.simulate import simulate_stream
from edgegen.fleet.drift.streams import ARL0, BASELINE, Cusum, PageHinkley, Scores, find_change


def test_scores_are_normal_whatever_the_values_are() -> None:
    dice = np.random.default_rng(0)
    scores = Scores(dice.exponential(size=BASELINE).tolist())
    found = [scores.score(value) for value in dice.exponential(size=4000)]
    assert abs(float(np.mean(found))) < 0.2 and abs(float(np.std(found)) - 1) < 0.1
    assert scores.score(1e300) == pytest.approx(-scores.score(-1e300)) and scores.score(1e300) < 4


def test_ties_get_the_middle_score() -> None:
    scores = Scores([1.0] * 10)
    assert scores.score(1.0) == pytest.approx(0)
    assert scores.score(0.0) < 0 < scores.score(2.0)


def test_cusum_in_closed_form() -> None:
    """A constant score s above the allowance alarms after limit / (s - allowance) answers."""
    watch = Cusum(allowance=0.25, limit=5)
    found = [watch.add(1.25) for _ in range(6)]
    assert found[:5] == [None] * 5 and found[5] == (True, 0)
    watch = Cusum(allowance=0.25, limit=5)
    calm = [watch.add(0.0) for _ in range(100)]
    assert not any(calm)
    assert [watch.add(-1.25) for _ in range(6)][-1] == (False, 100)


def test_page_hinkley_forgets_a_constant_level() -> None:
    watch = PageHinkley()
    assert all(watch.add(2.0) is None for _ in range(1000))
    found = next(alarm for _ in range(200) if (alarm := watch.add(0.0)) is not None)
    assert found == (False, 1000)


@pytest.mark.parametrize("detector", [Cusum.name, PageHinkley.name])
def test_false_alarms_come_at_the_stated_rate(detector: str) -> None:
    answers = ARL0 // 10
    found = simulate_stream(detector, shift=0, trials=150, answers=answers, seed=1)
    stated = 1 - math.exp(-answers / ARL0)
    assert found.found <= stats.binom.ppf(0.9999, found.trials, stated)


@pytest.mark.parametrize(("detector", "most"), [(Cusum.name, 90), (PageHinkley.name, 110)])
def test_half_a_deviation_is_found_within_its_stated_delay(detector: str, most: int) -> None:
    found = simulate_stream(detector, shift=0.5, trials=40, seed=2)
    assert found.found >= 39 and found.delay is not None and found.delay < most


def test_a_slower_device_is_found_and_said_when() -> None:
    dice = np.random.default_rng(3)
    speeds = [*dice.normal(12, 1, 900), *dice.normal(11, 1, 600)]
    change = find_change(speeds)
    assert change is not None and not change.upwards
    assert 600 <= change.began < change.found and 900 < change.found < 1000


def test_short_streams_and_calm_ones_have_no_change() -> None:
    assert find_change([1.0] * BASELINE) is None and find_change([]) is None
    assert find_change([5.0] * 2000) is None
