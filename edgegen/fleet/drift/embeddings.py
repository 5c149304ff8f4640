"""Whether vectors of hashed features moved: an option, for devices that report at privacy P1 or above.

Each report is the mean and variance of one window's vectors on one device. Two sets of reports are compared by the
cosine distance of their means and by a Mahalanobis distance over the diagonal variance. What chance does is found by
dealing the reports out anew: all of a report moves together, so what its answers have in common (one user, one
afternoon) is not mistaken for a shift. At least `LEAST_REPORTS` on each side are needed.

D numbers of a vector, R reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgegen.fleet.drift.thresholds import ALPHA, LEAST_N
from edgegen.records.monitor import Verdict
from edgegen.records.telemetry import Embedding

LEAST_REPORTS = 8
"""On each side: fewer leave too few ways to deal them for a p of 1 %."""

_DRAWS = 4_999
_SEED = 20_210_707


@dataclass(frozen=True, slots=True)
class Moved:
    """Two sets of reports compared. Numbers are None where there are too few."""

    verdict: Verdict
    """OK, WATCH or n too small."""
    n: int
    cosine: float | None = None
    """Distance of the means, 0 … 2."""
    mahalanobis: float | None = None
    """Root mean square over D of the difference of means in standard deviations."""
    threshold: float | None = None
    """Of the Mahalanobis distance: 99 % of dealings stay below."""
    p: float | None = None


def compare_embeddings(reference: Sequence[Embedding], current: Sequence[Embedding]) -> Moved:
    """Whether the current windows' vectors lie elsewhere than the reference's.

    Reports whose vectors have another length than most are left out.
    """
    size = _commonest_size([*reference, *current])
    before = [item for item in reference if len(item.mean) == len(item.variance) == size and item.n > 0]
    now = [item for item in current if len(item.mean) == len(item.variance) == size and item.n > 0]
    n = sum(item.n for item in now)
    if min(len(before), len(now)) < LEAST_REPORTS or n < LEAST_N:
        return Moved(Verdict.TOO_FEW, n)
    means = np.array([item.mean for item in (*before, *now)])  # (R, D)
    weights = np.array([item.n for item in (*before, *now)], dtype=np.float64)
    variance = _pooled_variance(means, np.array([item.variance for item in (*before, *now)]), weights)
    flags = np.arange(len(means)) >= len(before)
    dice = np.random.default_rng(_SEED)
    dealt = np.array([flags, *(dice.permutation(flags) for _ in range(_DRAWS))])
    distances = _mahalanobis(means, weights, variance, dealt)
    seen, chance = float(distances[0]), distances[1:]
    threshold = float(np.quantile(chance, 1 - ALPHA))
    p = float((1 + np.count_nonzero(chance >= seen * (1 - 1e-9))) / (_DRAWS + 1))
    first, second = (np.average(means[side], axis=0, weights=weights[side]) for side in (~flags, flags))
    verdict = Verdict.WATCH if seen > threshold and p <= ALPHA else Verdict.OK
    return Moved(verdict, n, _cosine_distance(first, second), seen, threshold, p)


def _mahalanobis(
    means: NDArray[np.float64], weights: NDArray[np.float64], variance: NDArray[np.float64], flags: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """For each row of (N, R) flags, the distance between flagged and other reports."""
    inside, outside = flags * weights, ~flags * weights  # (N, R)
    difference = (inside @ means) / inside.sum(axis=1, keepdims=True) - (outside @ means) / outside.sum(
        axis=1, keepdims=True
    )
    found: NDArray[np.float64] = np.sqrt((difference**2 / variance).mean(axis=1))
    return found


def _pooled_variance(
    means: NDArray[np.float64], variances: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(D,) variance over all answers: within the reports and between them. Numbers that never vary get the least one
    that does, or 1."""
    centre = np.average(means, axis=0, weights=weights)
    total = np.average(np.maximum(variances, 0) + (means - centre) ** 2, axis=0, weights=weights)
    alive = total[total > 1e-12]
    return np.maximum(total, alive.min() if alive.size else 1.0)


def _cosine_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1 - float(a @ b) / size if size > 0 else None


def _commonest_size(items: Sequence[Embedding]) -> int:
    sizes = [len(item.mean) for item in items]
    return max(set(sizes), key=lambda size: (sizes.count(size), size), default=0)
