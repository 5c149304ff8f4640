"""How much each tensor's grid hurts: distance to the original (its task's), for every grid that fits.

Linear layers inside the blocks take the Fisher quadratic of `statistics`. Embedding and head are measured by running
the model with them rounded, because their errors are not small in the same sense; where many grids would take too
long, some are measured and the rest interpolated: ln KL is close to linear in ln(relative squared error).

Compensated rounding takes much longer than plain one, so a layer's grids are priced by plain rounding, times the part
of the error that is expected to remain; a few grids are then tried on the whole model with the rounding that will be
done, and the prices corrected by what they show.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
import numpy as np
import torch

from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.source import TensorSource
from edgegen.modeling.statistics import Statistics, fisher_kl
from edgegen.modeling.tasks import task_of
from edgegen.modeling.text import Window
from edgegen.records.model import TensorInfo
from edgegen.records.target import Target

_TABLE_SECONDS = 40.0
"""Time for measuring one table's grids; beyond it they are interpolated."""


class Sensitivity(msgspec.Struct, frozen=True):
    """Tensor name → grid → nats of KL per token, or 1 - cosine similarity; so are all numbers here."""

    kl: dict[str, dict[str, float]]
    factors: dict[str, float]
    """Grid → measured over summed KL when all linear layers take it; already applied to `kl`."""
    floor: float
    """KL to the original of rounding activations to int8 alone; a changed structure's own KL is in it."""


def fitting_grids(tensor: TensorInfo, target: Target, allowed: tuple[str, ...] | None) -> tuple[str, ...]:
    """Grids that a tensor may take, smallest first.

    A vector is f32 and a position table f16 as runtimes want them. Where no allowed grid fits the rows, f16 is
    offered, or f32 if that alone is allowed.
    """
    if not tensor.quantizable:
        return ("f16",) if tensor.role == "position" and allowed != ("f32",) else ("f32",)
    names = [g.name for g in target.grids if (g.planned if allowed is None else g.name in allowed)]
    facts = [target.grid(name) for name in names]
    fitting = [grid.name for grid in facts if grid.partial or tensor.columns % grid.block == 0]
    return tuple(sorted(fitting or ["f16"], key=lambda name: target.grid(name).bits_per_weight))


def measure_sensitivity(
    model: Any,
    source: TensorSource,
    statistics: Statistics,
    reference: torch.Tensor,
    windows: list[Window],
    target: Target,
    allowed: tuple[str, ...] | None,
    *,
    original: torch.Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Price every grid of every tensor.

    Args:
        model: whose weights are rounded; changed and restored.
        reference: its outputs on `windows`: (T, V) log-probabilities, or (W, D) vectors.
        original: what the model that it was derived from says there; None: it is the original.
        windows: text that `statistics` did not see.
        allowed: grids named by the user; None: those that the target plans with.
        progress: called with (steps done, steps in all).
    """
    tensors = [t for t in source.summary.tensors if t.quantizable]
    blocks = [t for t in tensors if t.layer >= 0]
    tables = [t for t in tensors if t.layer < 0]
    fits = {t.name: fitting_grids(t, target, allowed) for t in tensors}
    compensated = {g for t in blocks for g in fits[t.name] if source.compensates(t.name, g)}
    anchors = anchors_of(fits, blocks, target, compensated)
    task, summary = task_of(source.summary), source.summary

    def distance() -> float:
        return task.distance(reference, task.outputs(model, summary, windows))

    total = len(blocks) + len(tables) + len(anchors) + 1
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    prices: dict[str, dict[str, float]] = {}

    def price(tensor: TensorInfo) -> tuple[str, dict[str, float]]:
        original = source.matrix(tensor.name)
        sample = statistics.samples[tensor.name]
        shape = (sample.gradients.shape[-1], sample.inputs.shape[-1])
        found = {}
        for grid in fits[tensor.name]:
            rounded = source.rounded(tensor.name, grid, plain=True)
            change = torch.from_numpy((rounded - original)[: shape[0], : shape[1]])
            remains = source.compensation_gain(tensor.name) if source.compensates(tensor.name, grid) else 1.0
            found[grid] = remains * fisher_kl(sample, change, statistics.weight)
        return tensor.name, found

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, found in pool.map(price, blocks):
            prices[name] = found
            step()
    for tensor in tables:
        seconds = _TABLE_SECONDS if tensor.role in ("embedding", "head") else 0.0
        prices[tensor.name] = _measure_table(model, source, distance, tensor, fits[tensor.name], seconds)
        step()
    activation = {g.name: g.activation for g in target.grids}
    factors = {}
    for grid in anchors:
        chosen = {t.name: grid for t in blocks if grid in fits[t.name]}
        summed = sum(prices[name][grid] for name in chosen)
        with rounded_model(model, source, chosen, {}):
            measured = distance()
        if summed > 1e-6:
            factors[grid] = float(np.clip(measured / summed, 0.3, 5.0))
        step()
    for tensor in blocks:
        for grid in prices[tensor.name]:
            prices[tensor.name][grid] *= factor_among(factors, grid, target, compensated)
    finest = {t.name: fits[t.name][-1] for t in tensors}
    int8 = {name: next((g for g in fits[name] if activation[g] != "float"), "") for name in finest}
    with rounded_model(
        model, source, {n: "f32" for n, g in int8.items() if g}, {"f32": common_activation(int8, activation)}
    ):
        floor = task.distance(reference if original is None else original, task.outputs(model, summary, windows))
    step()
    return Sensitivity(kl=prices, factors=factors, floor=floor)


def common_activation(int8: dict[str, str], activation: Mapping[str, str]) -> str:
    kinds = [activation[g] for g in int8.values() if g]
    return max(set(kinds), key=kinds.count) if kinds else "float"


def anchors_of(
    fits: dict[str, tuple[str, ...]],
    blocks: list[TensorInfo],
    target: Target,
    compensated: set[str] | frozenset[str] = frozenset(),
) -> list[str]:
    """Grids that at least half of the layers can take, spread over the bits: up to four, or where only some grids are
    compensated four of those and two others."""
    counted = [g for g in target.grid_names if sum(g in fits[t.name] for t in blocks) * 2 >= len(blocks)]
    ranked = sorted(
        (g for g in counted if target.grid(g).bits_per_weight < 12),
        key=lambda g: target.grid(g).bits_per_weight,
    )
    some = [g for g in ranked if g in compensated]
    if not some:
        return _spread(ranked, 4)
    return _spread(some, 4) + _spread([g for g in ranked if g not in compensated], 2)


def _spread(ranked: list[str], number: int) -> list[str]:
    if len(ranked) <= number:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (number - 1))] for i in range(number)]


def factor_among(factors: dict[str, float], grid: str, target: Target, compensated: Collection[str]) -> float:
    """`factor_of` among the grids that are compensated, or not, as `grid` is; among all where none is like it."""
    alike = {name: value for name, value in factors.items() if (name in compensated) == (grid in compensated)}
    return factor_of(alike or factors, grid, target)


def factor_of(factors: dict[str, float], grid: str, target: Target) -> float:
    """Interpolated over bits per weight between measured grids; the ends are held."""
    if not factors:
        return 1.0
    points = sorted((target.grid(name).bits_per_weight, value) for name, value in factors.items())
    return float(np.interp(target.grid(grid).bits_per_weight, [p[0] for p in points], [p[1] for p in points]))


def _measure_table(
    model: Any,
    source: TensorSource,
    distance: Callable[[], float],
    tensor: TensorInfo,
    grids: tuple[str, ...],
    seconds: float,
) -> dict[str, float]:
    """KL of the grids of a tensor outside the blocks, coarse to fine order not assumed.

    Args:
        seconds: after which the grids that are left are interpolated, three at least being measured.
    """
    original = source.matrix(tensor.name)
    norm = float(np.square(original).mean()) or 1.0
    errors = {g: float(np.square(source.rounded(tensor.name, g) - original).mean()) / norm for g in grids}
    ranked = sorted(grids, key=lambda g: -errors[g])
    order = [ranked[0], ranked[-1], *ranked[len(ranked) // 2 : len(ranked) // 2 + 1], *ranked]
    measured: dict[str, float] = {}
    started = time.monotonic()
    for grid in dict.fromkeys(order):
        if len(measured) >= 3 and time.monotonic() - started > seconds:
            break
        with rounded_model(model, source, {tensor.name: grid}, {}):
            measured[grid] = distance()
    return {g: measured[g] if g in measured else interpolated(measured, errors, g) for g in grids}


def interpolated(measured: dict[str, float], errors: dict[str, float], grid: str) -> float:
    points = sorted((math.log(errors[g] + 1e-30), math.log(kl + 1e-12)) for g, kl in measured.items())
    return float(np.exp(np.interp(math.log(errors[grid] + 1e-30), [p[0] for p in points], [p[1] for p in points])))
