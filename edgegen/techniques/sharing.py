"""Adjacent blocks that use one copy of each linear layer's weights, each with a low-rank residual of its own.

Relaxed recursive transformers (Bae et al. 2025) without their training. Of the layers W_l with input moments
H_l = E[x xᵀ] the shared weights are those with the least sum of errors at all outputs, Σ_l |(W - W_l) S_l|², which is
W = (Σ W_l H_l) (Σ H_l)⁻¹; what a block loses by it comes back as far as rank r can bring it (`factors.whiten` of
W_l - W). Norms and biases stay each block's own.

Before that, the feed-forward channels of each block are put into the order in which they are most like the first
block's, which changes nothing of what the block computes.

Which blocks: adjacent ones, by the Fisher KL of going to the mean of their weights. After a change this large the
quadratic only ranks; the planner measures. Without training afterwards sharing costs far more than it saves in all but
the largest models, so it is proposed for healing.

Only files in which two layers may name the same tensor get smaller. R outputs, C inputs.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import torch

from edgegen.modeling.pooling import ENCODER_FAMILIES
from edgegen.modeling.statistics import fisher_kl
from edgegen.modeling.structure import relax
from edgegen.records.model import TensorInfo
from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.factors import damped, whiten
from edgegen.techniques.linear import linear_layers, module_name, moments_of, set_weight, weight_of

NAME = "sharing"
TITLE = "adjacent blocks that use the same weights"

RANKS = (32, 0)
"""Of residuals, as proposed; 0: none."""


def obstacle(config: Any, target: Target) -> str:
    """See `technique.Technique`."""
    if config.model_type in ENCODER_FAMILIES:
        return "sharing is fitted to models that continue text; sentence encoders keep a copy for each block"
    if target.file_suffix == ".gguf":
        return "GGUF stores a copy for each use, so nothing is saved"
    return ""


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """One pair of blocks, half of all blocks and all, with residuals and without; see `technique.Technique`."""
    costs = pair_costs(calibration)
    blocks = calibration.summary.layers
    changes: dict[int, Change] = {}
    for count in sorted({1, blocks // 4, blocks // 2} - {0}):
        runs = _disjoint(costs, count)
        for rank in RANKS if runs else ():
            values: dict[str, tuple[int, ...]] = {f"run.{number}": run for number, run in enumerate(runs)}
            residual = f"residuals of rank {rank}" if rank else "no residuals"
            words = f"{2 * count} of {blocks} blocks share weights in pairs, {residual}"
            change = Change(technique=NAME, values=values | {"rank": (rank,)}, words=words)
            saved = sum(max(0, _saved(group, rank)) for run in runs for group in _groups(calibration, run))
            changes.setdefault(saved, change)
    return [changes[saved] for saved in sorted(changes) if saved]


def pair_costs(calibration: Calibration) -> dict[tuple[int, int], float]:
    """Adjacent blocks with layers of like shapes → Fisher KL of both going half way to each other."""
    statistics, model = calibration.statistics, calibration.model
    found = {}
    for first in range(calibration.summary.layers - 1):
        total = 0.0
        groups = _groups(calibration, (first, first + 1))
        orders = channel_orders(model, groups)
        for group in groups:
            weights = [weight_of(model, tensor) for tensor in group]
            places = [_places(tensor, orders[tensor.layer]) for tensor in group]
            mean = torch.stack([w[rows][:, columns] for w, (rows, columns) in zip(weights, places, strict=True)]).mean(
                0
            )
            for tensor, weight, (rows, columns) in zip(group, weights, places, strict=True):
                own = mean[rows.argsort()][:, columns.argsort()]
                total += fisher_kl(statistics.samples[tensor.name], own - weight, statistics.weight)
        if groups:
            found[first, first + 1] = total
    return found


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Share; see `technique.Technique`. `values`: `run.0`, `run.1` …: adjacent blocks; `rank`: of their residuals."""
    (rank,) = change.values["rank"]
    for name, run in change.values.items():
        if name != "rank":
            _share_run(model, run, rank, calibration)


def _share_run(model: Any, run: tuple[int, ...], rank: int, calibration: Calibration) -> None:
    groups = _groups(calibration, run)
    orders = channel_orders(model, groups)
    for group in groups:
        for tensor in group:
            reorder(model, tensor, orders[tensor.layer])
    moments = moments_of(calibration, [tensor for group in groups for tensor in group])
    for group in groups:
        weights = [weight_of(model, tensor).double() for tensor in group]
        known = [moment for _, moment in itertools.islice(moments, len(group))]
        if group[0].role == "ffn_out":
            known = [m[orders[t.layer]][:, orders[t.layer]] for t, m in zip(group, known, strict=True)]
        if _saved(group, rank) <= 0:
            continue
        shared = mean_weights(weights, known)
        for tensor, weight, moment in zip(group, weights, known, strict=True):
            if rank:
                rows, _ = _places(tensor, orders[tensor.layer])
                gradients = calibration.statistics.samples[tensor.name].gradients[..., rows]
                relax(model, module_name(tensor), whiten(weight - shared, moment, gradients).factors(rank))
        owner = model.get_submodule(module_name(group[0]))
        set_weight(model, group[0], shared.float())
        for tensor in group[1:]:
            model.get_submodule(module_name(tensor)).weight = owner.weight


def channel_orders(model: Any, groups: list[tuple[TensorInfo, ...]]) -> dict[int, torch.Tensor]:
    """Block of a run → (F,) its feed-forward channels in the order of the first block's that they are most like.

    Args:
        groups: the run's layers, those of one place together.
    """
    from scipy.optimize import linear_sum_assignment

    out = next((group for group in groups if group[0].role == "ffn_out"), None)
    if out is None:
        return {tensor.layer: torch.arange(0) for group in groups for tensor in group}
    width, found = out[0].columns, {}
    for index, tensor in enumerate(out):
        alike = weight_of(model, out[0]).T @ weight_of(model, tensor)
        for group in groups:
            if group[0].role == "ffn_in":
                first, own = (weight_of(model, group[i]).unflatten(0, (-1, width)) for i in (0, index))
                alike = alike + torch.einsum("kfc,kgc->fg", first, own)
        found[tensor.layer] = torch.from_numpy(linear_sum_assignment(alike.numpy(), maximize=True)[1])
    return found


def reorder(model: Any, tensor: TensorInfo, order: torch.Tensor) -> None:
    """Put the feed-forward channels of a layer into another order: rows and biases of those in, columns of that out."""
    rows, columns = _places(tensor, order)
    set_weight(model, tensor, weight_of(model, tensor)[rows][:, columns])
    bias = model.get_submodule(module_name(tensor)).bias
    if bias is not None:
        with torch.no_grad():
            bias.copy_(bias[rows])


def _places(tensor: TensorInfo, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which (R,) rows and (C,) columns of a layer go where, if channels take this order."""
    rows, columns = torch.arange(tensor.rows), torch.arange(tensor.columns)
    if tensor.role == "ffn_in" and len(order):  # gate and up may be halves of one matrix
        rows = (rows[:: len(order), None] + order).flatten()
    return rows, order if tensor.role == "ffn_out" and len(order) else columns


def mean_weights(weights: list[torch.Tensor], moments: list[torch.Tensor]) -> torch.Tensor:
    """The (R, C) weights with the least summed error at the outputs of layers with these weights and E[x xᵀ]."""
    mean = torch.stack(weights).mean(0)
    pull = sum(((w - mean) @ moment for w, moment in zip(weights, moments, strict=True)), torch.zeros(()))
    total = damped(torch.stack(moments).sum(0))
    return mean + torch.linalg.solve(total, pull.T).T


def _groups(calibration: Calibration, run: tuple[int, ...]) -> list[tuple[TensorInfo, ...]]:
    """The linear layers of like name and shape in all of a run's blocks."""
    found: dict[tuple[str, int, int], list[TensorInfo]] = {}
    for tensor in linear_layers(calibration.model, calibration.summary):
        if tensor.layer in run:
            place = re.sub(r"\.(layers|h)\.\d+\.", ".", tensor.name)
            found.setdefault((place, tensor.rows, tensor.columns), []).append(tensor)
    return [tuple(group) for group in found.values() if len(group) == len(run)]


def _saved(group: tuple[TensorInfo, ...], rank: int) -> int:
    """Weights fewer than before, if a group shares."""
    tensor = group[0]
    return (len(group) - 1) * tensor.weights - len(group) * rank * (tensor.rows + tensor.columns)


def _disjoint(costs: dict[tuple[int, int], float], count: int) -> list[tuple[int, int]]:
    """The `count` pairs without a common block whose costs sum to the least; fewer if there are not so many."""
    best: dict[tuple[int, int], tuple[float, tuple[tuple[int, int], ...]]] = {}

    def least(start: int, left: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        if left == 0:
            return 0.0, ()
        if (start, left) not in best:
            options = [
                (cost + rest, (pair, *others))
                for pair, cost in costs.items()
                if pair[0] >= start
                for rest, others in [least(pair[1] + 1, left - 1)]
            ]
            best[start, left] = min(options, default=(float("inf"), ()))
        return best[start, left]

    total, pairs = least(0, count)
    return list(pairs) if total < float("inf") else []
