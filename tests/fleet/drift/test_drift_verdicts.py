"""Thresholds and verdicts: false alarms without a shift at their stated rate, planted shifts found."""

import numpy as np
import pytest
from scipy import stats

from edgegen.bundle.profile import EDGES
from edgegen.fleet.drift.simulate import RATES, SHAPES, shares, simulate_planted, simulate_quiet
from edgegen.fleet.drift.thresholds import (
    ALPHA,
    LEAST_N,
    PSI_FLOOR,
    RATE_FLOOR,
    chance_threshold,
    n_bucket,
    permutation_p,
)
from edgegen.fleet.drift.verdicts import judge_window, judge_windows, worst
from edgegen.records.monitor import Verdict

REFERENCE = (3, 10, 30, 80, 120, 80, 30, 10, 3)


def draw(dice: np.random.Generator, n: int, metric: str, shift: float = 0.0) -> tuple[int, ...]:
    return tuple(dice.multinomial(n, shares(metric, shift=shift)).tolist())


def test_a_threshold_falls_with_n_to_its_floor() -> None:
    found = [chance_threshold(REFERENCE, n) for n in (50, 200, 1000, 10**6)]
    assert found == sorted(found, reverse=True) and found[0] > 0.2 and found[-1] == PSI_FLOOR
    large = tuple(100 * count for count in REFERENCE)
    assert chance_threshold(large, 200) < found[1]
    assert chance_threshold((90_000, 10_000), 10**6) == RATE_FLOOR


def test_sizes_are_rounded_down_so_that_thresholds_are_kept() -> None:
    assert n_bucket(200) <= 200 < 200 * 2**0.25 and n_bucket(1) == 1 and n_bucket(1024) == 1024
    assert all(n / 2**0.26 - 1 <= n_bucket(n) <= n for n in range(1, 5000, 7))
    assert chance_threshold(REFERENCE, 1024) == chance_threshold(REFERENCE, 1100)


def test_p_values_are_uniform_without_a_shift_even_of_small_references() -> None:
    dice = np.random.default_rng(4)
    p = [permutation_p(draw(dice, 40, "mean_log_prob"), draw(dice, 2000, "mean_log_prob")) for _ in range(300)]
    hits = sum(value <= 0.05 for value in p)
    assert hits <= stats.binom.ppf(0.999, 300, 0.05)
    assert 0.4 < float(np.mean(p)) < 0.6


def test_p_values_of_empty_histograms_say_nothing() -> None:
    assert permutation_p((0, 0, 0), (1, 2, 3)) == 1 and permutation_p((0, 0), (0, 0)) == 1
    assert permutation_p((5, 0, 0), (9, 0, 0)) == 1


def test_too_few_answers_are_no_verdict() -> None:
    edges = {"mean_log_prob": EDGES["mean_log_prob"]}
    dice = np.random.default_rng(0)
    kept = {"mean_log_prob": draw(dice, 100, "mean_log_prob")}
    (few,) = judge_window(edges, kept, {"mean_log_prob": draw(dice, LEAST_N - 1, "mean_log_prob", -3)}).values()
    assert few.verdict is Verdict.TOO_FEW and few.psi is None and few.n == LEAST_N - 1
    (none,) = judge_window(edges, kept, {}).values()
    assert none.verdict is Verdict.TOO_FEW and none.n == 0
    small = {"mean_log_prob": draw(dice, 29, "mean_log_prob")}
    (unknown,) = judge_window(edges, small, {"mean_log_prob": draw(dice, 900, "mean_log_prob", -3)}).values()
    assert unknown.verdict is Verdict.TOO_FEW
    assert judge_window(edges, {}, {}) == {}  # an older manifest without the metric


def test_a_second_window_makes_a_watch_a_drift() -> None:
    metrics = ("mean_log_prob", "refusal")
    edges = {metric: EDGES[metric] for metric in metrics}
    dice = np.random.default_rng(1)
    kept = {metric: draw(dice, 300, metric) for metric in metrics}
    calm = {metric: draw(dice, 800, metric) for metric in metrics}
    moved = {**calm, "mean_log_prob": draw(dice, 800, "mean_log_prob", -0.8)}
    watch = judge_windows(edges, kept, moved, calm)
    assert watch["mean_log_prob"].verdict is Verdict.WATCH and watch["refusal"].verdict is Verdict.OK
    drift = judge_windows(edges, kept, moved, moved)
    assert drift["mean_log_prob"].verdict is Verdict.DRIFT and drift["refusal"].verdict is Verdict.OK
    assert judge_windows(edges, kept, calm, moved)["mean_log_prob"].verdict is Verdict.OK
    assert worst([finding.verdict for finding in drift.values()]) is Verdict.DRIFT and worst([]) is None


def test_brief_verdicts_are_the_same() -> None:
    dice = np.random.default_rng(2)
    for shift in (0.0, 0.3, 0.6):
        kept = {metric: draw(dice, 200, metric) for metric in SHAPES}
        now = {metric: draw(dice, 400, metric, shift if metric == "mean_entropy" else 0) for metric in SHAPES}
        whole, brief = judge_window(EDGES, kept, now), judge_window(EDGES, kept, now, brief=True)
        assert {m: f.verdict for m, f in whole.items()} == {m: f.verdict for m, f in brief.items()}


@pytest.mark.slow
def test_windows_without_a_shift_go_beyond_at_most_at_the_stated_rate() -> None:
    """One window to a reference, so that windows are independent."""
    found = simulate_quiet(n=500, reference=60, windows=1, references=150, windows_a_year=365, seed=3)
    assert found.watched <= stats.binom.ppf(0.9999, found.windows, ALPHA)


def test_a_quiet_quarter_has_no_alarm() -> None:
    found = simulate_quiet(n=1000, reference=300, windows=90, references=2, windows_a_year=365, seed=1)
    assert found.windows == 180 and found.alarmed == 0 and found.alarms_a_year == 0


@pytest.mark.parametrize(
    ("metric", "shift", "n", "least"),
    [("mean_entropy", 0.8, 500, 9), ("mean_log_prob", -0.75, 500, 9), ("refusal", 0.09, 2000, 9)],
)
def test_a_planted_shift_is_found_in_its_second_window(metric: str, shift: float, n: int, least: int) -> None:
    found = simulate_planted(metric, shift=shift, words="planted", n=n, reference=300, trials=10, windows=5)
    assert found.found >= least and found.delay == 2


def test_shapes_are_distributions() -> None:
    for metric in (*SHAPES, *RATES):
        assert sum(shares(metric)) == pytest.approx(1) and min(shares(metric)) >= 0
        assert len(shares(metric)) == len(EDGES[metric]) + 1
