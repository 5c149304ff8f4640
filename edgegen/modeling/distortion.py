"""How much rounding a matrix cost, beside the least that any code of as many bits could.

With inputs x of the layer, H = E[x xᵀ] and weights of which each row is Gaussian with mean square σ², what the outputs
lose is at least

    E‖(W - Q) x‖²  ≥  Σ_rows C σ² · det(H)^(1/C) · 4^(-bits a weight)

(Shannon's lower bound, which reverse water-filling over H's eigenvalues reaches at high rates; Cover and Thomas,
Elements of Information Theory, 10.3.3). The quotient of both in decibels is the gap: 6.02 dB are one bit a weight. Real
weights are not quite Gaussian, so a gap of some tenths of a decibel says nothing.

R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.modeling.compensation import Factored
from edgegen.records.compressed import Rounding

Floats = NDArray[np.float32]
_DB_PER_BIT = 10 * math.log10(4)
_LEAST_SHARE = 1e-6
"""Of the mean importance, that an input counts with at least."""


class Distortion(NamedTuple):
    """Of one matrix."""

    weights: int
    bytes: int
    error: float
    """E‖(W - Q) x‖², in the units of `signal`."""
    signal: float
    """E‖W x‖²."""
    least: float
    """The bound at 0 bits a weight."""


def distortion_of(
    original: Floats, rounded: Floats, size: int, factors: Factored | None, importance: Floats | None
) -> Distortion:
    """What rounding (R, C) weights did.

    Args:
        size: bytes that the rounded ones take.
        factors: of H; None: `importance` is its diagonal.
        importance: (C,) mean square of each input; None: all the same.
    """
    weights = torch.from_numpy(original).double()
    change = torch.from_numpy(rounded).double() - weights
    if factors is not None:
        hessian, logs = factors.hessian, -2 * factors.upper.diagonal().log()
        error, signal = (float(((some @ hessian) * some).sum()) for some in (change, weights))
    else:
        diagonal = torch.ones(original.shape[1]) if importance is None else torch.from_numpy(importance)
        diagonal = diagonal.double().clamp(min=max(_LEAST_SHARE * float(diagonal.mean()), 1e-30))
        logs = diagonal.log()
        error, signal = (float((some.square() @ diagonal).sum()) for some in (change, weights))
    least = float(weights.square().sum() * logs.mean().exp())
    return Distortion(original.size, size, error, signal, least)


def in_other_bytes(rounding: Rounding, ratio: float) -> Rounding:
    """The same weights in another format, which takes `ratio` times the bytes."""
    more = (ratio - 1) * rounding.bits_per_weight
    return Rounding(
        bits_per_weight=rounding.bits_per_weight + more,
        error_fraction=rounding.error_fraction,
        gap_db=rounding.gap_db + _DB_PER_BIT * more,
    )


def rounding_of(found: Iterable[Distortion]) -> Rounding | None:
    """All matrices together, in means by weights; None where there are none, or none lost anything."""
    lossy = [one for one in found if one.error > 0 and one.least > 0]
    weights = sum(one.weights for one in lossy)
    if not weights:
        return None
    gaps = [one.weights * 10 * math.log10(one.error / one.least) + _DB_PER_BIT * 8 * one.bytes for one in lossy]
    return Rounding(
        bits_per_weight=8 * sum(one.bytes for one in lossy) / weights,
        error_fraction=sum(one.weights * one.error / one.signal for one in lossy) / weights,
        gap_db=sum(gaps) / weights,
    )
