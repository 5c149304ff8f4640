"""An encoder's vectors against the original's, with intervals.

Cosine similarity says how far each vector moved. What encoders are used for is telling which texts are close, so the
similarities of all pairs of texts are compared too, by Spearman's rank correlation (1904).

Intervals are 95 % percentile bootstraps over texts (Efron 1979). For the rank correlation, pairs are weighted by how
often their two texts were drawn and ranks stay those of all pairs: ranking anew a thousand times changes the third
digit of the interval's width and takes minutes.

W texts, D numbers of a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgegen.records.report import Interval, VectorParity, VectorQuality
from edgegen.verify.quality import ratio_interval

Floats = NDArray[np.float64]
_RESAMPLES = 500


def cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """(W,) cosine similarity of each pair of rows of (W, D) arrays, exact near 1; a zero vector gives 0."""
    difference = _unit(a) - _unit(b)
    zero = ~(np.any(a, axis=-1) & np.any(b, axis=-1))
    found: Floats = np.where(zero, 0.0, 1 - 0.5 * np.square(difference).sum(-1))
    return found


def similarities(vectors: NDArray[np.floating]) -> Floats:
    """(W, W) cosine similarities of all pairs of rows."""
    unit = _unit(vectors)
    found: Floats = unit @ unit.T
    return found


def vector_quality(original: NDArray[np.floating], found: NDArray[np.floating], *, seed: int = 0) -> VectorQuality:
    """Compare (W, D) vectors of the same texts, W >= 1. With fewer than 3 texts there is nothing to rank: 1."""
    each = cosines(original, found)
    count = len(each)
    ranked = rank_correlation(original, found, seed=seed) if count >= 3 else Interval(value=1.0, low=1.0, high=1.0)
    return VectorQuality(
        texts=count,
        cosine=ratio_interval(each, np.ones(count)),
        cosine_p01=float(np.quantile(each, 0.01)),
        cosine_min=float(each.min()),
        rank_correlation=ranked,
        pairs=count * (count - 1) // 2,
    )


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating], *, seed: int = 0) -> Interval:
    """Spearman's correlation of the pairs' similarities, (W, D) each, W >= 3."""
    count = len(a)
    upper = np.triu_indices(count, 1)
    x, y = (_symmetric(ranks(similarities(v)[upper]), count, upper) for v in (a, b))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)
    value = _correlation(np.ones((1, count)), x, y)[0]
    low, high = np.quantile(_correlation(drawn, x, y), [0.025, 0.975])
    return Interval(value=float(value), low=float(low), high=float(high))


def ranks(values: Floats) -> Floats:
    """Rank of each value from 0, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Floats = (last - (counts + 1) / 2)[inverse]
    return found


def vector_parity(expected: NDArray[np.floating], found: NDArray[np.floating]) -> VectorParity:
    """The artifact's (W, D) vectors against the torch model's with the same rounded weights."""
    distances = 1 - cosines(expected, found)
    return VectorParity(
        texts=len(distances),
        distance=float(distances.mean()),
        max_distance=float(distances.max()),
        max_abs_difference=float(np.abs(np.asarray(expected, np.float64) - found).max()),
    )


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """(N,) Pearson's correlation over pairs, each weighted with the product of its two texts' (N, W) weights."""

    def total(values: Floats) -> Floats:
        found: Floats = np.einsum("nw,nw->n", weights @ values, weights)
        return found

    number = total(1.0 - np.eye(len(x)))
    mean_x, mean_y = total(x) / number, total(y) / number
    covariance = total(x * y) / number - mean_x * mean_y
    spread = (total(x * x) / number - mean_x**2) * (total(y * y) / number - mean_y**2)
    found: Floats = np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)
    return found


def _symmetric(values: Floats, count: int, upper: tuple[NDArray[np.intp], NDArray[np.intp]]) -> Floats:
    """Pairs' values, brought to 0 mean and 1 spread, as a (W, W) matrix with a 0 diagonal."""
    spread = values.std()
    matrix = np.zeros((count, count))
    matrix[upper] = (values - values.mean()) / (spread if spread > 0 else 1)
    return matrix + matrix.T


def _unit(vectors: NDArray[np.floating]) -> Floats:
    values = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    found: Floats = values / np.where(length > 0, length, 1)
    return found
