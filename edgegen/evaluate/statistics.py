"""Metrics with intervals: means, ratios and whole-text measures, of a model, of its teacher, and of their difference.

Intervals are 95 % percentile bootstraps over rows (Efron 1979); a difference resamples the same rows for both sides,
so that hard rows do not widen it. What duplicates distort, as counts of distinct n-grams, gets a delete-one jackknife
(Tukey 1958) with normal quantiles instead. Where every row of a share says the same, resampling would claim certainty:
then the interval is Wilson's (1927), so none of 40 is [0, 0.09].

N rows, K sums a metric is made of, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgegen.records.evaluation import Better, Metric
from edgegen.records.report import Interval

Floats = NDArray[np.float64]
Sums = Callable[[Floats], Floats]
"""(B, K) sums over rows → (B,) values."""

RESAMPLES = 1000
_Z95 = 1.959963984540054
_T = TypeVar("_T")


def ratio(sums: Floats) -> Floats:
    """Σ of the first column over Σ of the second; NaN where the second is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)
    return result


def exp_ratio(sums: Floats) -> Floats:
    """exp of `ratio`: perplexity of nats and tokens."""
    result: Floats = np.exp(np.minimum(ratio(sums), 700.0))
    return result


def mean_columns(values: Sequence[float | None]) -> Floats:
    """(N, 2) value and weight of each row; None weighs nothing."""
    return np.array([(0.0, 0.0) if value is None else (float(value), 1.0) for value in values]).reshape(-1, 2)


def measure(
    name: str,
    suite: str,
    better: Better,
    model: Floats,
    teacher: Floats | None = None,
    *,
    value: Sums = ratio,
    seed: int = 0,
    note: str = "",
) -> Metric:
    """A metric that is a function of sums over rows.

    Args:
        model, teacher: (N, K), the same rows in the same order.
        value: (B, K) → (B,).
        note: what the number rests on.
    """
    count = int((model[:, -1] > 0).sum()) if len(model) else 0
    if not count:
        return Metric(name, suite, better, 0, None, note=note or "no row to measure it on")
    picks = np.random.default_rng(seed).integers(0, len(model), size=(RESAMPLES, len(model)))
    mine = _resampled(model, picks, value)
    at = float(value(model.sum(0)[None])[0])
    same = value is ratio
    shown = _same_everywhere(model) if same else None
    found = Metric(name, suite, better, count, shown or _interval(at, mine), note=note)
    if teacher is None:
        return found
    its = _resampled(teacher, picks, value)
    at_teacher = float(value(teacher.sum(0)[None])[0])
    return Metric(
        name,
        suite,
        better,
        count,
        found.model,
        (_same_everywhere(teacher) if same else None) or _interval(at_teacher, its),
        _interval(at - at_teacher, mine - its),
        note,
    )


def measure_whole(
    name: str,
    suite: str,
    better: Better,
    model: Sequence[_T],
    teacher: Sequence[_T] | None,
    value: Callable[[Sequence[_T]], float],
    *,
    note: str = "",
) -> Metric:
    """A metric of all rows together, with a delete-one jackknife.

    Args:
        value: of at least one row.
    """
    if not model:
        return Metric(name, suite, better, 0, None, note=note or "no row to measure it on")
    at, without = value(model), _without_each(model, value)
    if teacher is None:
        return Metric(name, suite, better, len(model), _jackknifed(at, without), note=note)
    at_teacher, its = value(teacher), _without_each(teacher, value)
    return Metric(
        name,
        suite,
        better,
        len(model),
        _jackknifed(at, without),
        _jackknifed(at_teacher, its),
        _jackknifed(at - at_teacher, without - its),
        note,
    )


def _resampled(rows: Floats, picks: NDArray[np.int64], value: Sums) -> Floats:
    return value(np.stack([rows[:, k][picks].sum(axis=1) for k in range(rows.shape[1])], axis=1))


def _interval(at: float, resampled: Floats) -> Interval | None:
    kept = resampled[np.isfinite(resampled)]
    if not np.isfinite(at) or not len(kept):
        return None
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(at, float(low), float(high))


def _same_everywhere(rows: Floats) -> Interval | None:
    """Wilson's interval where each row says 0, or each says 1; None otherwise."""
    kept = rows[rows[:, 1] > 0]
    if not len(kept) or not (kept[:, 1] == 1).all() or not np.isin(kept[:, 0], (0.0, 1.0)).all():
        return None
    if kept[:, 0].min() != kept[:, 0].max():
        return None
    rest = _Z95**2 / (len(kept) + _Z95**2)
    return Interval(1.0, 1 - rest, 1.0) if kept[0, 0] == 1 else Interval(0.0, 0.0, rest)


def _without_each(rows: Sequence[_T], value: Callable[[Sequence[_T]], float]) -> Floats:
    if len(rows) < 2:
        return np.array([value(rows)])
    return np.array([value([*rows[:i], *rows[i + 1 :]]) for i in range(len(rows))])


def _jackknifed(at: float, without: Floats) -> Interval:
    count = len(without)
    error = float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())) if count > 1 else 0.0
    return Interval(at, at - _Z95 * error, at + _Z95 * error)
