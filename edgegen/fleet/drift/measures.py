"""How far apart two histograms over the same edges are, or two rates. Pure functions of counts.

B bins; a histogram over ascending edges has one bin more than edges: below the first … at or above the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMOOTHING = 0.5
"""Added to each bin before shares are compared (Jeffreys' prior), so that an empty bin makes no infinite index."""
_LEAST_EXPECTED = 5.0
"""Where a two-by-two table expects fewer in a cell, the normal approximation is left for Fisher's exact test."""


def psi(reference: ArrayLike, current: ArrayLike) -> float:
    """Population stability index of (B,) counts: Σ (q - p) ln(q / p) over smoothed shares. 0 for equal ones."""
    return float(psi_rows(np.atleast_2d(reference), np.atleast_2d(current))[0])


def psi_rows(reference: NDArray[np.generic], current: NDArray[np.generic]) -> NDArray[np.float64]:
    """`psi` of each row of (N, B) counts; one of the two may have a single row."""
    p, q = _smoothed(reference), _smoothed(current)
    found: NDArray[np.float64] = ((q - p) * np.log(q / p)).sum(axis=1)
    return found


def jensen_shannon(reference: ArrayLike, current: ArrayLike) -> float | None:
    """Jensen-Shannon distance of (B,) counts, 0 … 1 (the root of the divergence in bits); None if one is empty."""
    p, q = _shares(reference), _shares(current)
    if p is None or q is None:
        return None
    middle = (p + q) / 2
    return math.sqrt(max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2 / math.log(2)))


def wasserstein(reference: ArrayLike, current: ArrayLike, edges: Sequence[float]) -> float | None:
    """Wasserstein-1 distance in standard deviations of the reference; None if one is empty.

    A bin's answers count as lying in its middle; the outer bins are taken as wide as their neighbours. Where the
    reference lies in one bin, its deviation is taken as half the width of the narrowest.
    """
    p, q = _shares(reference), _shares(current)
    if p is None or q is None:
        return None
    points = bin_middles(edges)
    if len(points) < 2:
        return 0.0
    gaps = np.diff(points)
    moved = float((np.abs(np.cumsum(p - q)[:-1]) * gaps).sum())
    deviation = math.sqrt(max(0.0, float(p @ points**2) - float(p @ points) ** 2))
    least = float(gaps.min()) / 2
    return moved / max(deviation, least)


def bin_middles(edges: Sequence[float]) -> NDArray[np.float64]:
    """(B,) a point in each bin."""
    if len(edges) < 2:
        return np.array([edge + half for edge in edges[:1] for half in (-0.5, 0.5)])
    bounds = np.array([2 * edges[0] - edges[1], *edges, 2 * edges[-1] - edges[-2]], dtype=np.float64)
    return (bounds[:-1] + bounds[1:]) / 2


def two_proportions(hits_a: int, n_a: int, hits_b: int, n_b: int) -> tuple[float, float]:
    """Whether two rates differ: z of b against a, and the two-sided p.

    z is the pooled two-proportion statistic; p is the normal one, or Fisher's exact where a cell of the table expects
    fewer than five. Without trials on a side nothing is known: (0, 1).
    """
    if not n_a or not n_b:
        return 0.0, 1.0
    pooled = (hits_a + hits_b) / (n_a + n_b)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    if not spread:
        return 0.0, 1.0
    z = (hits_b / n_b - hits_a / n_a) / spread
    if min(pooled, 1 - pooled) * min(n_a, n_b) < _LEAST_EXPECTED:
        return z, _fisher(hits_a, n_a, hits_b, n_b)
    return z, math.erfc(abs(z) / math.sqrt(2))


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: those at or below a rate are the discoveries at that false discovery rate."""
    if not p:
        return []
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return [float(value) for value in adjusted]


def _fisher(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """Two-sided p of Fisher's exact test: the tables with these margins that are no likelier than this one."""
    hits = hits_a + hits_b
    low, high = max(0, hits - n_a), min(hits, n_b)
    b = np.arange(low, high + 1)
    logs = np.array([_log_choose(n_b, k) + _log_choose(n_a, hits - k) for k in b.tolist()])
    weights = np.exp(logs - logs.max())
    here = weights[hits_b - low]
    return min(1.0, float(weights[weights <= here * (1 + 1e-7)].sum() / weights.sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _smoothed(counts: NDArray[np.generic]) -> NDArray[np.float64]:
    values = counts.astype(np.float64) + SMOOTHING
    shares: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
    return shares


def _shares(counts: ArrayLike) -> NDArray[np.float64] | None:
    values = np.asarray(counts, dtype=np.float64)
    total = values.sum()
    return values / total if total > 0 else None


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())
