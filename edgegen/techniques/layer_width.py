"""Width by layer: each feed-forward network gets a width of its own, at a given total.

Widths are chosen together, exactly, by dynamic programming over the layers: the least sum of what each layer's repaired
cut costs by the Fisher quadratic (see `channels`), at no more channels in all than a uniform width would have.

`Change.values["widths"]`: the width of every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.channels import SHARES, cuts, fitting_widths, narrow, widths_of
from edgegen.techniques.layout import blocks, is_plain, unknown_family
from edgegen.techniques.refit import refit

NAME = "layer_width"
TITLE = "fewer feed-forward channels, layer by layer"

_SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Of its width, that a layer may keep."""


def obstacle(config: Any, target: Target) -> str:
    """llama.cpp has an architecture with per-layer widths for some families only; GPT-2's layers follow its config."""
    if config.model_type in target.families and config.model_type not in target.layered_families:
        return f"{target.name} has one feed-forward width for all layers of a {config.model_type}"
    return unknown_family(config)


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """The best widths at the totals that uniform widths have; none where they come out uniform."""
    if not is_plain(calibration.model):
        return []
    whole = widths_of(calibration.model)
    menu = fitting_widths(max(whole), target, _SHARES)
    costs = [
        {width: cut.kl for width, cut in found.items()} | {own: 0.0}
        for found, own in zip(cuts(calibration, menu), whole, strict=True)
    ]
    proposals = []
    for share in fitting_widths(max(whole), target, SHARES):
        total = int(share / max(whole) * sum(whole))
        widths = allocate(costs, total)
        if widths and len(set(widths)) > 1 and widths != tuple(whole):
            proposals.append(
                Change(
                    technique=NAME,
                    values={"widths": widths},
                    words=f"feed-forward widths {min(widths)} to {max(widths)}, {sum(widths):,} channels in all "
                    f"instead of {sum(whole):,}",
                )
            )
    return proposals


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Cut each layer to its width and refit what they write."""
    narrow(model, change.values["widths"], calibration)
    refit(model, calibration, range(len(blocks(model))))


def allocate(costs: Sequence[dict[int, float]], total: int) -> tuple[int, ...]:
    """One width for each layer, at most `total` in all, with the least sum of costs; empty if nothing fits.

    Args:
        costs: of each layer: width → cost.
    """
    unit = math.gcd(*(width for options in costs for width in options))
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for options in costs:
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (cost, widths) in best.items():
            for width, more in options.items():
                sum_used, sum_cost = used + width // unit, cost + more
                if sum_used * unit <= total and (sum_used not in reached or sum_cost < reached[sum_used][0]):
                    reached[sum_used] = (sum_cost, (*widths, width))
        best = reached
    return min(best.values(), default=(0.0, ()))[1]
