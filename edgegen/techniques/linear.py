"""The linear layers that techniques change: which there are, what flows into them, and their weights either way round.

C inputs, R outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from edgegen.modeling.structure import Relaxed, users_of, whole_name
from edgegen.modeling.summary import is_transposed
from edgegen.records.model import ModelSummary, TensorInfo
from edgegen.techniques.calibration import Calibration

_MOMENT_BYTES = 400_000_000
"""Of E[x xᵀ] held at once: more layers take another pass over the text."""

_ONE_INPUT = frozenset({"attention_in", "ffn_in"})
"""Roles whose layers in one block all read the same numbers."""


def linear_layers(model: Any, summary: ModelSummary) -> list[TensorInfo]:
    """Linear layers inside the blocks that are whole, alone and used once: no factors, none beside them, not shared.

    Args:
        summary: the model's.
    """
    users = users_of(model)
    return [
        tensor
        for tensor in summary.tensors
        if tensor.quantizable
        and tensor.layer >= 0
        and whole_name(tensor.name) == tensor.name
        and not isinstance(model.get_submodule(module_name(tensor)), Relaxed)
        and len(users[id(model.get_parameter(tensor.name))]) == 1
    ]


def module_name(tensor: TensorInfo) -> str:
    """`model.layers.0.mlp.up_proj` of `model.layers.0.mlp.up_proj.weight`."""
    return tensor.name.removesuffix(".weight")


def weight_of(model: Any, tensor: TensorInfo) -> torch.Tensor:
    """(R, C) float32, whichever way the module stores it."""
    weight: torch.Tensor = model.get_parameter(tensor.name).detach().float()
    return weight.T if is_transposed(model, tensor.name) else weight


def set_weight(model: Any, tensor: TensorInfo, weight: torch.Tensor) -> None:
    """Write (R, C) values into a layer."""
    parameter = model.get_parameter(tensor.name)
    with torch.no_grad():
        parameter.copy_(weight.T if is_transposed(model, tensor.name) else weight)


def moments_of(calibration: Calibration, tensors: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, torch.Tensor]]:
    """E[x xᵀ], (C, C) float64, of each layer, in the given order; a few at a time are in memory.

    Layers that read the same numbers share one.
    """
    reader: dict[tuple[int, str], TensorInfo] = {}
    sources = [reader.setdefault((t.layer, t.role), t) if t.role in _ONE_INPUT else t for t in tensors]
    start = 0
    while start < len(tensors):
        wanted: dict[str, int] = {}
        stop = start
        while stop < len(tensors):
            more = {module_name(sources[stop]): 8 * tensors[stop].columns ** 2}
            if wanted and sum((wanted | more).values()) > _MOMENT_BYTES:
                break
            wanted |= more
            stop += 1
        found = calibration.moments(wanted)
        for index in range(start, stop):
            yield tensors[index], found[module_name(sources[index])]
        start = stop
