"""Fit factors on the parts of a time to measured times: robust, held by a prior, honest about what it cannot tell.

Of measurement i, part j takes T[i, j] seconds by the coefficients of before. With a factor for each part,

    t_i = max(bandwidth, Σ kernels) + Σ other parts,    factor_j = exp(Σ_k M[j, k] θ_k)

and θ minimises Σ ρ((ln t_i - ln y_i) / σ_i) + Σ φ(θ_k / prior_k). ρ is Huber's (1964): a measurement that is far off
pulls with bounded force. φ is Cauchy's, φ(r) = c²/2 ln(1 + r²/c²): a number that is far off was wrong, and the further
it is, the less it pulls.

The maximum has a kink, so the search starts from several points. A parameter is *identified* when the measurements take
`_NARROWED` of its prior variance away, or when nothing else explains them: the least narrowed is set to 0 and the
others are fitted again; it comes back if that is worse by more than `_MISSED`. So a parameter that nothing was learned
about moves by exactly nothing.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_HUBER, _CAUCHY = 1.5, 1.5
"""In standard deviations: from here on the pull no longer grows, or falls."""
_NARROWED = 0.5
_SHARPNESS = 50.0
"""How near the two sides of the maximum must be for both to count when asking what is identified."""
_LARGEST = math.log(32.0)
"""No factor is larger, nor smaller than its inverse: more is a fault of the reports, not of a coefficient."""
_MISSED = 1.0
"""Rise of the cost from which a parameter was needed: Akaike's criterion."""
_AS_GOOD = 2.0
"""Another explanation whose cost is not higher by more is as good."""


class Parts(msgspec.Struct, frozen=True):
    """N measurements of a time that has J parts."""

    seconds: Floats
    """(N, J) as predicted before."""
    sides: NDArray[np.int64]
    """(J,) 0: bandwidth, 1: kernels, 2: added to the longer of the two."""
    mixing: Floats
    """(J, K) which parameters scale a part."""
    priors: Floats
    """(K,) standard deviations of ln(factor)."""
    measured_s: Floats
    """(N,) above 0."""
    sigmas: Floats
    """(N,) of ln(measured)."""


class Fit(msgspec.Struct, frozen=True):
    """What was found."""

    theta: Floats
    """(K,) ln of factors; exactly 0 where not identified."""
    identified: NDArray[np.bool_]
    """(K,)"""
    rivals: tuple[tuple[int, int], ...]
    """(identified parameter, other parameter that alone explains the measurements as well)."""


def fit(parts: Parts) -> Fit:
    """The factors that fit best."""
    free = np.ones(len(parts.priors), dtype=bool)
    needed = np.zeros_like(free)
    theta, cost = _solve(parts, free)
    while free.any():
        narrowed = np.where(free & ~needed, _narrowed(parts, theta, free), np.inf)
        least = int(np.argmin(narrowed))
        if narrowed[least] >= _NARROWED:
            return Fit(theta, free, _rivals(parts, theta, free, cost))
        fewer = free.copy()
        fewer[least] = False
        without = _solve(parts, fewer)
        if without[1] > cost + _MISSED:
            needed[least] = True
        else:
            free, (theta, cost) = fewer, without
    return Fit(np.zeros(len(free)), free, ())


def predicted_s(parts: Parts, theta: Floats) -> Floats:
    """(N,) times with factors exp(theta)."""
    return _sides(parts, theta)[0]


def _sides(parts: Parts, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """(N,) total, (N,) bandwidth, (N,) kernels, (N, J) scaled parts."""
    scaled = parts.seconds * np.exp(parts.mixing @ theta)
    reading, kernels, rest = (scaled[:, parts.sides == side].sum(axis=1) for side in (0, 1, 2))
    return np.maximum(reading, kernels) + rest, reading, kernels, scaled


def _shares(parts: Parts, theta: Floats, *, sharpness: float = math.inf) -> Floats:
    """(N, K) d ln(t) / d θ."""
    total, reading, kernels, scaled = _sides(parts, theta)
    if math.isinf(sharpness):
        by_reading = (reading >= kernels).astype(float)
    else:
        with np.errstate(divide="ignore", over="ignore"):
            by_reading = 1 / (1 + np.exp(np.clip(sharpness * (np.log(kernels) - np.log(reading)), -700, 700)))
    weight = np.ones_like(scaled)
    weight[:, parts.sides == 0] = by_reading[:, None]
    weight[:, parts.sides == 1] = 1 - by_reading[:, None]
    shares: Floats = (weight * scaled / total[:, None]) @ parts.mixing
    return shares


def _solve(parts: Parts, free: NDArray[np.bool_]) -> tuple[Floats, float]:
    """θ and its cost, best of several starts."""
    if not free.any():
        data = (np.log(predicted_s(parts, np.zeros(len(free)))) - np.log(parts.measured_s)) / parts.sigmas
        return np.zeros(len(free)), 0.5 * float((_bent(data)[0] ** 2).sum())
    from scipy.optimize import least_squares

    def whole(some: Floats) -> Floats:
        theta = np.zeros(len(free))
        theta[free] = some
        return theta

    def residuals(some: Floats) -> tuple[Floats, Floats]:
        theta = whole(some)
        data = (np.log(predicted_s(parts, theta)) - np.log(parts.measured_s)) / parts.sigmas
        return data, some / parts.priors[free]

    def value(some: Floats) -> Floats:
        data, prior = residuals(some)
        return np.concatenate([_bent(data)[0], _held(prior)[0]])

    def slope(some: Floats) -> Floats:
        data, prior = residuals(some)
        shares = _shares(parts, whole(some))[:, free] / parts.sigmas[:, None]
        return np.concatenate(
            [
                _bent(data)[1][:, None] * shares,
                np.diag(_held(prior)[1] / parts.priors[free]),
            ]
        )

    starts = _starts(parts, free)
    best, least = starts[0], math.inf
    for start in starts:
        found = least_squares(value, start, jac=slope, bounds=(-_LARGEST, _LARGEST), method="trf")
        if found.cost < least - 1e-9:
            best, least = found.x, float(found.cost)
    return whole(best), least


def _starts(parts: Parts, free: NDArray[np.bool_]) -> list[Floats]:
    """Where to begin: nothing changed; each side of the maximum as the longer one; both; everything by one factor; and
    each grid's kernel alone, as the measurements want it in which it is most of the kernels' time."""
    total, reading, kernels, scaled = _sides(parts, np.zeros(len(free)))
    rest = total - np.maximum(reading, kernels)
    room = np.log(np.maximum(parts.measured_s - rest, 0.01 * parts.measured_s))

    def off(side_s: Floats, where: NDArray[np.bool_] | slice = slice(None)) -> float:
        with np.errstate(divide="ignore"):
            found = np.median((room - np.log(side_s))[where])
        return float(np.clip(np.nan_to_num(found), -0.9 * _LARGEST, 0.9 * _LARGEST))

    on_reading = np.asarray((parts.mixing[parts.sides == 0] > 0).any(axis=0), dtype=float)
    counts = (parts.mixing[parts.sides == 1] > 0).sum(axis=0)
    # A parameter that all kernels share, where there is one, else each grid's own.
    least = 1 if (counts[free] > 1).any() else 0
    on_kernels = np.asarray(counts > least, dtype=float)
    by_reading, by_kernels = off(reading) * on_reading, off(kernels) * on_kernels
    everything = off(np.maximum(reading, kernels)) * (on_reading + on_kernels)
    starts = [np.zeros(len(free)), by_reading, by_kernels, by_reading + by_kernels, everything]
    for k in np.flatnonzero(free & (counts == 1)):
        where = scaled @ parts.mixing[:, k] > 0.5 * kernels
        if where.any():
            starts.append(off(kernels, where) * np.eye(len(free))[k])
    return [start[free] for start in starts]


def _bent(values: Floats) -> tuple[Floats, Floats]:
    """Residuals whose squares are twice Huber's ρ, and their derivatives."""
    size = np.abs(values)
    beyond = size > _HUBER
    bent = np.where(beyond, np.sqrt(np.maximum(2 * _HUBER * size - _HUBER**2, 0.0)), size)
    return np.sign(values) * bent, np.where(beyond, _HUBER / np.where(beyond, bent, 1.0), 1.0)


def _held(values: Floats) -> tuple[Floats, Floats]:
    """The same with Cauchy's φ."""
    scaled = (values / _CAUCHY) ** 2
    held = _CAUCHY * np.sqrt(np.log1p(scaled))
    slope = np.where(held > 0, np.abs(values) / (1 + scaled) / np.where(held > 0, held, 1.0), 1.0)
    return np.sign(values) * held, slope


def _narrowed(parts: Parts, theta: Floats, free: NDArray[np.bool_]) -> Floats:
    """(K,) 1 - variance with the measurements / variance of the prior; 0 of parameters that are not free."""
    shares = _shares(parts, theta, sharpness=_SHARPNESS)[:, free] / parts.sigmas[:, None]
    information = shares.T @ shares + np.diag(parts.priors[free] ** -2)
    result = np.zeros(len(free))
    result[free] = 1 - np.diag(np.linalg.inv(information)) * parts.priors[free] ** -2
    return result


def _rivals(parts: Parts, theta: Floats, free: NDArray[np.bool_], cost: float) -> tuple[tuple[int, int], ...]:
    """For each identified factor that matters: parameters of the maximum's other side that could stand for it."""
    sides = [{int(parts.sides[j]) for j in np.flatnonzero(parts.mixing[:, k])} for k in range(len(free))]
    found = []
    for k in np.flatnonzero(free & (np.abs(theta) > 0.1)):
        for other in np.flatnonzero(~free):
            if not (sides[k] <= {0, 1} and sides[other] <= {0, 1} and sides[k] != sides[other]):
                continue
            instead = free.copy()
            instead[k], instead[other] = False, True
            if _solve(parts, instead)[1] <= cost + _AS_GOOD:
                found.append((int(k), int(other)))
    return tuple(found)
