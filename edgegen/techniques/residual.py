"""Linear layers rounded to three bits or fewer, with a low-rank repair beside them: W ≈ Q + B A.

Q is what compensated rounding makes of W on one of the target's coarsest grids, so rounding it there again changes
nothing. B A is the best repair of what is missing at the layer's outputs (QERA, see `factors.residual_factors`), and is
planned like any other matrix.

A rank of 32 costs 8.5 · 32 (R + C) bits with 8-bit factors. A layer is proposed where that and its coarse weights are
less than its weights in four bits: in layers of some hundred inputs and outputs a finer grid is the better use of bits,
in wide ones the repair is nearly free.

R outputs, C inputs.
"""

from __future__ import annotations

from typing import Any

import torch

from edgegen import grids
from edgegen.modeling import compensation
from edgegen.modeling.pooling import ENCODER_FAMILIES
from edgegen.modeling.statistics import fisher_kl
from edgegen.modeling.structure import relax
from edgegen.records.model import TensorInfo
from edgegen.records.structure import Change, rounded_key, rounded_layers
from edgegen.records.target import GridFacts, Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.factors import residual_factors
from edgegen.techniques.linear import linear_layers, module_name, moments_of, set_weight, weight_of

NAME = "residual"
TITLE = "layers in two or three bits with a low-rank repair"

RANK = 32
_COARSE_BITS, _FACTOR_BITS, _FINER_BITS = 3.1, 8.5, 4.5


def obstacle(config: Any, target: Target) -> str:
    """See `technique.Technique`."""
    if config.model_type in ENCODER_FAMILIES:
        return "repairs are fitted to models that continue text; sentence encoders keep whole matrices"
    if target.file_suffix == ".gguf":
        return "llama.cpp adds factors only as an adapter beside the stored base, in 16 bits and at every token"
    if not coarse_grids(target):
        return "the runtime has no grid of three bits or fewer, and finer ones cost less than a repair"
    return ""


def coarse_grids(target: Target) -> list[GridFacts]:
    """Grids of at most three bits whose errors can be compensated, smallest first."""
    known = [g for g in target.grids if g.planned and g.bits_per_weight <= _COARSE_BITS]
    return sorted(
        (g for g in known if compensation.can_compensate(g.name)), key=lambda grid: (grid.bits_per_weight, grid.name)
    )


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """The half of the layers where it may pay that bear noise of their weights' size best, and all; finest coarse grid.

    See `technique.Technique`.
    """
    grid = coarse_grids(target)[-1]
    layers = [
        tensor
        for tensor in linear_layers(calibration.model, calibration.summary)
        if _FACTOR_BITS * RANK * (tensor.rows + tensor.columns) + grid.bits_per_weight * tensor.weights
        < _FINER_BITS * tensor.weights
    ]
    if not layers:
        return []

    generator = torch.Generator().manual_seed(0)

    def loss(tensor: TensorInfo) -> float:
        weight, statistics = weight_of(calibration.model, tensor), calibration.statistics
        noise = torch.randn(weight.shape, generator=generator) * weight.square().mean(1, keepdim=True).sqrt()
        return fisher_kl(statistics.samples[tensor.name], noise, statistics.weight) / tensor.weights

    mild = sorted(layers, key=loss)[: -(-len(layers) // 2)]
    return [_change(some, len(layers), grid) for some in ((mild, layers) if len(layers) > 1 else (layers,))]


def _change(layers: list[TensorInfo], number: int, grid: GridFacts) -> Change:
    return Change(
        technique=NAME,
        values={rounded_key(grid.name, module_name(tensor)): (RANK,) for tensor in layers},
        words=f"{len(layers)} of {number} wide layers in {grid.name} with a repair of rank {RANK}",
    )


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Round and repair each named layer; see `technique.Technique`. `values`: `rounded_key`: rank."""
    chosen = rounded_layers((change,))
    layers = [t for t in linear_layers(calibration.model, calibration.summary) if module_name(t) in chosen]
    for tensor, moment in moments_of(calibration, layers):
        name = module_name(tensor)
        (rank,) = change.values[rounded_key(chosen[name], name)]
        rounded, factors = repaired(weight_of(calibration.model, tensor), moment, chosen[name], rank)
        relax(model, name, factors)
        set_weight(model, tensor, rounded)


def repaired(
    weight: torch.Tensor, moment: torch.Tensor, grid: str, rank: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Q (R, C), and A (r, C) and B (R, r) that repair it; float32."""
    factored = compensation.factored(moment.float().numpy())
    values = grids.unpack(compensation.pack_compensated(weight.numpy(), grid, factored), grid, weight.shape[1])
    rounded = torch.from_numpy(values)
    return rounded, residual_factors(weight - rounded, moment, rank)
