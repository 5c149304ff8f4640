"""Intervals hold what they should, pairing narrows, and nothing measured is None."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.evaluate.statistics import exp_ratio, mean_columns, measure, measure_whole


def test_a_mean_and_its_interval() -> None:
    dice = np.random.default_rng(0)
    hits = 0
    for trial in range(100):
        values = list(dice.normal(0.3, 1.0, size=80))
        found = measure("m", "quality", "higher", mean_columns(values), seed=trial)
        assert found.model is not None and found.model.value == pytest.approx(np.mean(values))
        hits += found.model.low <= 0.3 <= found.model.high
    assert hits >= 85


def test_pairs_narrow_the_difference() -> None:
    dice = np.random.default_rng(1)
    hard = dice.normal(0, 5, size=60)
    mine, its = mean_columns(list(hard + 1 + dice.normal(0, 0.1, 60))), mean_columns(list(hard))
    found = measure("m", "quality", "lower", mine, its)
    assert found.difference is not None and found.model is not None
    assert 0.9 < found.difference.low < 1 < found.difference.high < 1.1
    assert found.model.high - found.model.low > 5 * (found.difference.high - found.difference.low)


def test_rows_that_do_not_apply_weigh_nothing() -> None:
    found = measure("m", "quality", "higher", mean_columns([1.0, None, 0.0, None]))
    assert found.count == 2 and found.model is not None and found.model.value == 0.5
    empty = measure("m", "quality", "higher", mean_columns([None, None]))
    assert empty.model is None and empty.count == 0 and empty.note
    perplexity = measure("p", "quality", "lower", np.array([[2.0, 1.0], [2.0, 1.0]]), value=exp_ratio)
    assert perplexity.model is not None and perplexity.model.value == pytest.approx(np.e**2)


def test_no_row_is_no_certainty() -> None:
    none = measure("m", "safety", "lower", mean_columns([0.0] * 40), mean_columns([1.0] * 40))
    assert none.model is not None and none.teacher is not None
    assert none.model.low == 0 and none.model.high == pytest.approx(0.0876, abs=1e-3)
    assert none.teacher.high == 1 and none.teacher.low == pytest.approx(1 - none.model.high)


def test_the_jackknife_of_a_mean_is_the_normal_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 9.0]
    found = measure_whole("m", "quality", "higher", values, None, lambda rows: float(np.mean(rows)))
    width = 1.959964 * np.std(values, ddof=1) / len(values) ** 0.5
    assert found.model is not None and found.model.high - found.model.value == pytest.approx(width)
