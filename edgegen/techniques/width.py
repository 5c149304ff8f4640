"""Width: the feed-forward networks of all layers get the same, smaller number of channels.

Every runtime takes that. Which channels stay is each layer's own matter (see `channels`).

`Change.values["width"]`: the width.
"""

from __future__ import annotations

from typing import Any

from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.channels import SHARES, fitting_widths, narrow, widths_of
from edgegen.techniques.layout import blocks, is_plain, unknown_family
from edgegen.techniques.refit import refit

NAME = "width"
TITLE = "fewer feed-forward channels, as many in every layer"


def obstacle(config: Any, target: Target) -> str:
    """Every runtime takes any width."""
    return unknown_family(config)


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """Widths down to half, none where layers differ already."""
    if not is_plain(calibration.model):
        return []
    widths = set(widths_of(calibration.model))
    if len(widths) > 1:
        return []
    (whole,) = widths
    return [
        Change(technique=NAME, values={"width": (width,)}, words=f"feed-forward width {width} instead of {whole}")
        for width in fitting_widths(whole, target, SHARES)
    ]


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Cut all layers to the width and refit what they write."""
    layers = len(blocks(model))
    narrow(model, change.values["width"] * layers, calibration)
    refit(model, calibration, range(layers))
