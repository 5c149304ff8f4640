"""How far apart two samples of the same distribution get by chance.

The folk rule "a stability index above 0.1 is a shift" ignores sample sizes: without any shift ten bins reach 0.09 at
n = 100. And a release's reference is itself a sample of some tens or hundreds of answers. To draw windows from the
reference as if it were the truth is worse than no statistics: at 1 % meant, 13 to 100 % of windows without a shift
alarmed in a simulation with references of 30 to 300 answers. So both are drawn:

- `chance_threshold`: the 99th percentile of the index between a reference drawn anew and a window of n, both from the
  smoothed reference; never less than a floor below which a shift does not matter. It depends on the reference and n
  only, so it is kept for each (reference, n rounded down to a quarter of a doubling).
- `permutation_p`: the p-value of this very window, from dealing the answers of both samples out anew. It is exact
  whatever the distribution is; the threshold is not where the reference has bins that are truly empty.

A window is beyond only if both say so. Draws are seeded: the same question has the same answer.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from edgegen.fleet.drift.measures import SMOOTHING, psi_rows, two_proportions

LEAST_N = 200
"""Answers in a window below which there is no verdict."""
LEAST_REFERENCE = 30
"""And in the reference."""
ALPHA = 0.01
"""Chance that a window without a shift goes beyond, for all metrics of a release in a group together."""
PSI_FLOOR = 0.1
RATE_FLOOR = 0.01
"""Of metrics with two bins: from 1 % to 2.3 %, from 10 % to 13.4 %, from 50 % to 55 %."""

_DRAWS = 2_499
_FEW, _MANY = 499, 9_999
_SEED = 20_210_707
_STEPS = 4
"""Of a doubling of n that share a threshold."""


def chance_threshold(reference: tuple[int, ...], n: int) -> float:
    """The index beyond which a window of n answers is not chance, or matters: see above.

    Args:
        reference: (B,) counts.
        n: of the window, 1 or more.
    """
    return max(floor_of(reference), _percentile(reference, n_bucket(n)))


def floor_of(reference: tuple[int, ...]) -> float:
    """The index below which a shift does not matter."""
    return RATE_FLOOR if len(reference) == 2 else PSI_FLOOR


def n_bucket(n: int) -> int:
    """n rounded down to 2^(k/4): a smaller n has a larger threshold, so rounding makes no false alarm."""
    step = math.floor(math.log2(max(1, n)) * _STEPS + 1e-9)
    return max(1, math.floor(2 ** (step / _STEPS)))


def permutation_p(reference: tuple[int, ...], current: tuple[int, ...]) -> float:
    """The chance of an index at least this large between two samples of one distribution.

    Two bins have an exact answer (`two_proportions`). Few permutations are drawn first, and many where those leave a
    p of 5 % or less; the smallest p is 1 / 10,000.
    """
    if len(reference) == 2:
        return two_proportions(reference[1], sum(reference), current[1], sum(current))[1]
    if not sum(reference) or not sum(current):
        return 1.0
    first = _permuted(reference, current, _FEW)
    return first if first > 0.05 else _permuted(reference, current, _MANY)


def _permuted(reference: tuple[int, ...], current: tuple[int, ...], draws: int) -> float:
    counts, window = np.asarray(reference), np.asarray(current)
    seen = psi_rows(counts[None], window[None])[0]
    pooled = counts + window
    dealt = np.random.default_rng(_SEED).multivariate_hypergeometric(pooled, int(window.sum()), size=draws)
    chance = psi_rows(pooled - dealt, dealt)
    return float((1 + np.count_nonzero(chance >= seen * (1 - 1e-9))) / (draws + 1))


@lru_cache(maxsize=4096)
def _percentile(reference: tuple[int, ...], n: int) -> float:
    counts = np.asarray(reference, dtype=np.float64)
    shares = (counts + SMOOTHING) / (counts.sum() + SMOOTHING * len(counts))
    dice = np.random.default_rng(_SEED)
    again = dice.multinomial(max(1, int(counts.sum())), shares, size=_DRAWS)
    window = dice.multinomial(n, shares, size=_DRAWS)
    return float(np.quantile(psi_rows(again, window), 1 - ALPHA))
