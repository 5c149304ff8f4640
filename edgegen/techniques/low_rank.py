"""Linear layers as two thin ones in a row: W ≈ B A with A (r, C) and B (R, r).

Factors are `factors.whiten`'s. Ranks are multiples of 32, so that every grid's blocks fit, and only such with fewer
weights than the matrix has, r (R + C) < R C. Which matrix gets which is decided for all together: the Fisher KL of
every rank of every matrix, then the least sum within a share of all linear layers' weights. A matrix stays whole
where its weights are better spent so.

All ranks of a matrix are priced at once. What rank r leaves out answers a sampled pair (x, g) with

    gᵀ (W - W_r) x = Σ_{i > r} (gᵀ u_i) σ_i (v_i x),

whose partial sums from the far end are the quadratic of every r.

Near lossless down to some nine tenths of the weights (ASVD's and SVD-LLM's own tables); below, fewer bits cost less.
R outputs, C inputs.
"""

from __future__ import annotations

from typing import Any

import torch

from edgegen.modeling.pooling import ENCODER_FAMILIES
from edgegen.modeling.statistics import LayerSample
from edgegen.modeling.structure import replace_module
from edgegen.records.model import TensorInfo
from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.factors import Whitened, whiten
from edgegen.techniques.linear import linear_layers, module_name, moments_of, weight_of
from edgegen.techniques.shares import cheapest

NAME = "low_rank"
TITLE = "linear layers as two thin ones"

RANK_STEP = 32
_SHARES = (0.9, 0.8, 0.7, 0.6)
"""Of the linear layers' weights that proposals keep."""


def obstacle(config: Any, target: Target) -> str:
    """See `technique.Technique`."""
    if config.model_type in ENCODER_FAMILIES:
        return "factors are fitted to models that continue text; sentence encoders keep whole matrices"
    if target.file_suffix == ".gguf":
        return "llama.cpp multiplies whole matrices only; low rank only as an adapter beside the stored base"
    return ""


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """Ranks for 90, 80, 70 and 60 % of the linear layers' weights; see `technique.Technique`."""
    layers = linear_layers(calibration.model, calibration.summary)
    ranks = [paying_ranks(tensor) for tensor in layers]
    if not any(ranks):
        return []
    statistics = calibration.statistics
    options: list[list[tuple[int, float]]] = []
    for (tensor, moment), paying in zip(moments_of(calibration, layers), ranks, strict=True):
        sizes = [(tensor.weights, 0.0)]
        if paying:
            sample = statistics.samples[tensor.name]
            parts = whiten(weight_of(calibration.model, tensor), moment, sample.gradients)
            prices = rank_prices(sample, parts, statistics.weight)
            sizes += [(rank * (tensor.rows + tensor.columns), float(prices[rank])) for rank in paying]
        options.append(sizes)
    total = sum(tensor.weights for tensor in layers)
    changes = []
    for share, chosen in zip(_SHARES, cheapest(options, [share * total for share in _SHARES]), strict=True):
        if chosen is None:
            break
        values: dict[str, tuple[int, ...]] = {
            module_name(tensor): (paying[index - 1],)
            for tensor, paying, index in zip(layers, ranks, chosen, strict=True)
            if index
        }
        words = f"{len(values)} of {len(layers)} linear layers as two factors, {share:.0%} of their weights in all"
        changes.append(Change(technique=NAME, values=values, words=words))
    return changes


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Cut each named layer into two; see `technique.Technique`. `values`: layer → its rank."""
    layers = [t for t in linear_layers(calibration.model, calibration.summary) if module_name(t) in change.values]
    for tensor, moment in moments_of(calibration, layers):
        (rank,) = change.values[module_name(tensor)]
        gradients = calibration.statistics.samples[tensor.name].gradients
        parts = whiten(weight_of(calibration.model, tensor), moment, gradients)
        cut_in_two(model, tensor, parts.factors(rank))


def paying_ranks(tensor: TensorInfo) -> list[int]:
    """Multiples of 32 whose two factors have fewer weights than the matrix, largest first."""
    most = (tensor.weights - 1) // (tensor.rows + tensor.columns)
    return list(range(most // RANK_STEP * RANK_STEP, 0, -RANK_STEP))


def rank_prices(sample: LayerSample, parts: Whitened, weight: float) -> torch.Tensor:
    """(k + 1,) Fisher KL of keeping the first 0 … k directions; as `statistics.fisher_kl` of each difference.

    Args:
        weight: see `Statistics.weight`.
    """
    inputs = sample.inputs.double() @ parts.right.T * parts.sizes
    terms = inputs * (sample.gradients.double() @ parts.left)
    if sample.groups is not None:
        tokens = int(sample.groups.max()) + 1
        terms = terms.new_zeros(tokens, terms.shape[1]).index_add_(0, sample.groups, terms)
    left_out = torch.nn.functional.pad(terms.flip(1).cumsum(1).flip(1), (0, 1))
    return 0.5 * weight * left_out.square().mean(0)


def cut_in_two(model: Any, tensor: TensorInfo, factors: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Put two linear layers with weights A (r, C), B (R, r) in a layer's place; its bias stays with the second."""
    name = module_name(tensor)
    whole = model.get_submodule(name)
    first, second = factors
    pair = torch.nn.Sequential(
        torch.nn.Linear(first.shape[1], first.shape[0], bias=False),
        torch.nn.Linear(second.shape[1], second.shape[0], bias=whole.bias is not None),
    ).to(whole.weight.dtype)
    with torch.no_grad():
        pair[0].weight.copy_(first)
        pair[1].weight.copy_(second)
        if whole.bias is not None:
            pair[1].bias.copy_(whole.bias)
    replace_module(model, name, pair.requires_grad_(False).train(whole.training))
