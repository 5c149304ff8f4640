"""Feed-forward channels: which of them to keep, what that costs, and cutting the others off.

Two orders are tried for each layer, and for each width the one whose *repaired* change costs less by the Fisher
quadratic on the samples (`modeling.statistics`) is taken:

- Fisher: ½ E[(x_c w_cᵀ g)²], the cost of channel c if it is removed alone and nothing is repaired;
- Fisher with repair: (w_cᵀ E[g gᵀ] w_c) / [H⁻¹]_cc with H = E[x xᵀ], the cost of channel c if all others make up for it
  (optimal brain surgeon, with the Fisher information of the outputs).

A kept channel's new weights are W_S + W_R H_RS (H_SS + λI)⁻¹, the least-squares optimum: what of the removed channels R
the kept ones S predict, they take over. If the removed ones are dead (x = 0), nothing changes. A layer with a bias has
a channel more that is always 1 and always kept, which is the compensation of means (FLAP, An et al. 2024); layers
without a bias get none, because not every format has a place for it.

C channels, R outputs of the down projection, S kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from edgegen.modeling.statistics import LayerSample, fisher_kl
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.layout import bias_of, blocks, feed_forward, select_columns, select_rows, weight_of

SHARES = (0.875, 0.75, 0.625, 0.5)
"""Of the width, that proposals keep on average."""
STEP = 32
"""Widths are multiples of this, so that rows fit the grids' blocks."""

_DAMPING = 1e-2
"""λ in units of the mean of H's diagonal."""
_MOMENT_BYTES = 1_000_000_000
"""Of the second moments held at once."""
_WIDTH_KEYS = ("n_inner", "intermediate_size")


class Cut(msgspec.Struct, frozen=True):
    """A layer at one width."""

    kept: torch.Tensor
    """(S,) numbers of the channels that stay, ascending."""
    kl: float
    """What the repaired change costs by the Fisher quadratic, nats per counted token."""


def widths_of(model: Any) -> list[int]:
    """Channels of every layer."""
    return [_down(model, layer).shape[1] for layer in range(len(blocks(model)))]


def fitting_widths(width: int, target: Target, shares: Sequence[float]) -> list[int]:
    """Widths near shares of one, largest first: multiples of the target's largest block (256 of the k-grids) where one
    is within a sixteenth of the whole, of 32 always."""
    block = max((grid.block for grid in target.grids if grid.planned and not grid.partial), default=STEP)
    found = []
    for share in shares:
        near = max(1, round(share * width / block)) * block
        if block < STEP or near >= width or abs(near - share * width) > width / 16:
            near = round(share * width / STEP) * STEP
        if 0 < near < width and near not in found:
            found.append(near)
    return sorted(found, reverse=True)


def cuts(calibration: Calibration, widths: Sequence[int]) -> list[dict[int, Cut]]:
    """For every layer: width → the channels to keep, for those of the widths that are below its own."""
    model = calibration.model
    layers = range(len(blocks(model)))
    wanted = [
        [width for width in widths if width < whole and f"cut {layer} {width}" not in calibration.remembered]
        for layer, whole in enumerate(widths_of(model))
    ]
    for group in _groups(model, [layer for layer in layers if wanted[layer]]):
        parts = {layer: feed_forward(model, layer) for layer in group}
        moments = calibration.moments([part.writer_name for part in parts.values()], constant=True)
        for layer, part in parts.items():
            found = _cut_layer(calibration, layer, moments[part.writer_name], wanted[layer])
            for width, cut in found.items():
                calibration.remembered[f"cut {layer} {width}"] = cut
    return [
        {width: calibration.remembered[f"cut {layer} {width}"] for width in widths if width < whole}
        for layer, whole in enumerate(widths_of(model))
    ]


def narrow(model: Any, widths: Sequence[int], calibration: Calibration) -> None:
    """Cut every layer to its width, in place; what is kept is not repaired yet.

    Args:
        widths: of every layer, at most what it has.
    """
    chosen = cuts(calibration, sorted(set(widths)))
    for layer, width in enumerate(widths):
        if width in chosen[layer]:
            keep_channels(model, layer, chosen[layer][width].kept)
    key = next(key for key in _WIDTH_KEYS if hasattr(model.config, key))
    setattr(model.config, key, max(widths_of(model)))


def keep_channels(model: Any, layer: int, kept: torch.Tensor) -> None:
    """Keep some channels of one layer, in place.

    Args:
        kept: (S,) numbers, ascending.
    """
    part = feed_forward(model, layer)
    whole = weight_of(getattr(part.module, part.writer)).shape[1]
    for leaf in part.readers:
        fused = weight_of(getattr(part.module, leaf)).shape[0] // whole
        select_rows(part.module, leaf, torch.cat([kept + whole * number for number in range(fused)]))
    select_columns(part.module, part.writer, kept)
    if hasattr(part.module, "intermediate_size"):
        part.module.intermediate_size = len(kept)


def absorb(weight: torch.Tensor, moments: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(R, S) the least-squares optimum of the kept channels' weights.

    Args:
        weight: (R, C) float64.
        moments: (C, C) float64, E[x xᵀ].
        kept: (S,) numbers.
    """
    rest = _others(kept, weight.shape[1])
    inner = moments[kept][:, kept]
    damped = inner + _DAMPING * inner.diagonal().mean() * torch.eye(len(kept), dtype=inner.dtype)
    taken = torch.linalg.solve(damped, moments[kept][:, rest] @ weight[:, rest].T)
    return weight[:, kept] + taken.T


def fisher_scores(sample: LayerSample, weight: torch.Tensor) -> torch.Tensor:
    """(C,) ½ E[(x_c w_cᵀ g)²]: what removing each channel alone costs, in nats up to the statistics' weight."""
    return 0.5 * (sample.inputs * (sample.gradients @ weight)).square().mean(0)


def _cut_layer(calibration: Calibration, layer: int, moments: torch.Tensor, widths: list[int]) -> dict[int, Cut]:
    part = feed_forward(calibration.model, layer)
    statistics = calibration.statistics
    sample = statistics.samples[f"{part.writer_name}.weight"]
    module = getattr(part.module, part.writer)
    weight = weight_of(module).double()
    channels = weight.shape[1]
    bias = bias_of(module)
    if bias is None:
        moments, inputs = moments[:channels, :channels], sample.inputs
    else:
        weight = torch.cat([weight, bias.double()[:, None]], 1)
        inputs = torch.cat([sample.inputs, torch.ones(len(sample.inputs), 1)], 1)
    sample = LayerSample(inputs=inputs, gradients=sample.gradients)
    found: dict[int, Cut] = {}
    for order in _orders(sample, weight, moments, channels):
        for width in widths:
            kept = order[:width].sort().values
            stays = kept if bias is None else torch.cat([kept, torch.tensor([channels])])
            change = -weight
            change[:, stays] += absorb(weight, moments, stays)
            kl = fisher_kl(sample, change.float(), statistics.weight)
            if width not in found or kl < found[width].kl:
                found[width] = Cut(kept=kept, kl=kl)
    return found


def _orders(
    sample: LayerSample, weight: torch.Tensor, moments: torch.Tensor, channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(C,) channels, the most important first, in two ways."""
    alone = fisher_scores(sample, weight.float())[:channels]
    size = len(moments)
    damped = moments + _DAMPING * moments.diagonal()[:channels].mean() * torch.eye(size, dtype=moments.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).diagonal()[:channels]
    information = (sample.gradients.T @ sample.gradients).double() / len(sample.gradients)
    mended = ((information @ weight) * weight).sum(0)[:channels] / inverse
    return alone.argsort(descending=True, stable=True), mended.argsort(descending=True, stable=True)


def _groups(model: Any, layers: list[int]) -> list[list[int]]:
    """Layers whose second moments fit into the memory meant for them; each group is one pass over the text."""
    groups: list[list[int]] = []
    held = 0
    for layer in layers:
        size = 8 * (_down(model, layer).shape[1] + 1) ** 2
        if not groups or held + size > _MOMENT_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += size
    return groups


def _down(model: Any, layer: int) -> torch.Tensor:
    part = feed_forward(model, layer)
    return weight_of(getattr(part.module, part.writer))


def _others(kept: torch.Tensor, count: int) -> torch.Tensor:
    mask = torch.ones(count, dtype=torch.bool)
    mask[kept] = False
    return mask.nonzero().squeeze(1)
