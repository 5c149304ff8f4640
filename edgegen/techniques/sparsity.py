"""Weights set to zero one by one, and what that does to bytes on the wire.

Three ways to choose them and, of those that stay, their values:

- `magnitude`: the smallest of a matrix;
- `wanda`: the smallest |w| √E[x²] of each output's row (Sun et al. 2024);
- `sparsegpt`: the least w² / [H⁻¹]_cc with H = E[x xᵀ], column by column, the error of each handed on to the columns
  that follow (Frantar & Alistarh 2023).

None of the runtimes has kernels that skip zeros, and all of them store a zero like any other weight: neither file nor
memory nor time gets smaller. What can is the file when it is compressed for sending, on grids that have a level at
zero (`keeps_zeros`; `wire_bytes` says how much). So the obstacle stands everywhere unless a caller says that bytes on
the wire count.

*Weight rewinding* (Renda et al. 2020): where a checkpoint from early in the model's training is at hand, what survives
is set back to its values there and trained again, zeros held (`hold_zeros`). Until then such a model is as bad as the
early one was.

R outputs, C inputs.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import ConfigError
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import stored_names
from edgegen.modeling.pooling import ENCODER_FAMILIES
from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.factors import damped
from edgegen.techniques.linear import linear_layers, moments_of, set_weight, weight_of

NAME = "sparsity"
TITLE = "single weights set to zero"

METHODS = ("magnitude", "wanda", "sparsegpt")
REWIND = "rewind"

_PERCENT = (30, 50, 60)
_DAMPING = 1e-2
_BLOCK_COLUMNS = 128
"""Whose zeros are chosen together before their errors are handed on."""


def obstacle(config: Any, target: Target, *, wire: bool = False) -> str:
    """See `technique.Technique`.

    Args:
        wire: whether bytes of a compressed transfer count for the caller.
    """
    if config.model_type in ENCODER_FAMILIES:
        return "zeros are chosen for models that continue text; sentence encoders keep all weights"
    if not wire:
        return "no runtime here skips zeros: files, memory and speed stay as they are"
    if not any(keeps_zeros(grid.name) for grid in target.grids if grid.planned and grid.bits_per_weight < 16):
        return "none of this runtime's grids has a level at zero"
    return ""


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """30, 50 and 60 % zeros, also rewound where there is an early checkpoint; see `technique.Technique`."""
    changes = []
    for percent in _PERCENT:
        values: dict[str, tuple[int, ...]] = {METHODS[-1]: (percent,)}
        words = f"{percent} % of the linear layers' weights set to zero"
        changes.append(Change(technique=NAME, values=values, words=words))
        if calibration.early is not None:
            again = f"{words}, the others back at their early values, to be trained again"
            changes.append(Change(technique=NAME, values=values | {REWIND: ()}, words=again))
    return changes


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Set weights to zero; see `technique.Technique`. `values`: a method → percent of zeros; perhaps `rewind`.

    Raises:
        ConfigError: an unknown method, or rewinding without an early checkpoint of this model.
    """
    ((method, (percent,)),) = ((name, value) for name, value in change.values.items() if name != REWIND)
    if method not in METHODS:
        raise ConfigError(f"unknown way to choose zeros {method!r}", hint="Known: " + ", ".join(METHODS) + ".")
    layers = linear_layers(calibration.model, calibration.summary)
    for tensor, moment in moments_of(calibration, layers):
        set_weight(model, tensor, pruned(weight_of(calibration.model, tensor), moment, percent / 100, method))
    if REWIND in change.values:
        if calibration.early is None:
            raise ConfigError("weights can only be rewound to an early checkpoint", hint="Name its folder.")
        rewind(model, calibration.early, [tensor.name for tensor in layers])


def pruned(weight: torch.Tensor, moment: torch.Tensor, share: float, method: str) -> torch.Tensor:
    """A matrix (R, C) with a share of zeros, float32.

    Args:
        moment: (C, C), E[x xᵀ] of its inputs.
        share: 0 to 1.
        method: of `METHODS`.
    """
    if method == "sparsegpt":
        return _handed_on(weight, moment, share)
    if method == "wanda":
        scores = weight.abs() * moment.diagonal().clamp(min=0).sqrt().float()
        return weight.masked_fill(torch.stack([_least(row, share) for row in scores]), 0.0)
    return weight.masked_fill(_least(weight.abs(), share), 0.0)


def _least(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Where the share of lowest scores is."""
    found = torch.zeros(scores.numel(), dtype=torch.bool)
    found[scores.flatten().argsort(stable=True)[: round(share * scores.numel())]] = True
    return found.reshape(scores.shape)


def _handed_on(weight: torch.Tensor, moment: torch.Tensor, share: float) -> torch.Tensor:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(moment, _DAMPING)))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = weight.double().clone()
    for start in range(0, left.shape[1], _BLOCK_COLUMNS):
        stop = min(start + _BLOCK_COLUMNS, left.shape[1])
        zeros = _least(left[:, start:stop].square() / upper.diagonal()[start:stop].square(), share)
        errors = torch.zeros(left.shape[0], stop - start, dtype=torch.float64)
        for column in range(start, stop):
            kept = left[:, column].masked_fill(zeros[:, column - start], 0.0)
            errors[:, column - start] = (left[:, column] - kept) / upper[column, column]
            left[:, column:stop] -= errors[:, column - start, None] * upper[column, column:stop]
            left[:, column] = kept
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return left.float()


def rewind(model: Any, early: Path, pruned_names: Iterable[str]) -> None:
    """Give all of a model's parameters the values of an early checkpoint, zeros of the pruned ones excepted.

    Raises:
        ConfigError: the checkpoint is of another model.
    """
    checkpoint, zeroed = Checkpoint(early), set(pruned_names)
    names = stored_names(model, checkpoint)
    for name, parameter in model.named_parameters():
        if name not in names or checkpoint.shapes[names[name]] != tuple(parameter.shape):
            raise ConfigError(
                f"{early}: no tensor {name!r} of shape {list(parameter.shape)}",
                hint="Give a checkpoint from the training of this very model.",
            )
        values = checkpoint.read(names[name]).to(parameter.dtype)
        with torch.no_grad():
            parameter.copy_(values.masked_fill(parameter == 0, 0.0) if name in zeroed else values)


def hold_zeros(model: Any, names: Iterable[str]) -> list[Any]:
    """Keep zeros of named parameters zero while a model is trained: their gradients are dropped.

    Args:
        model: its named parameters want gradients.

    Returns:
        Hooks to remove afterwards.
    """

    def holder(kept: torch.Tensor) -> Any:
        return lambda gradient: gradient * kept

    parameters = [model.get_parameter(name) for name in names]
    return [parameter.register_hook(holder(parameter.detach() != 0)) for parameter in parameters]


@functools.cache
def keeps_zeros(grid: str) -> bool:
    """Whether a grid has a level at zero in every block, so that zeros survive rounding."""
    values = (np.random.default_rng(0).standard_normal((2, 256)) - 0.5).astype(np.float32)
    values[:, ::2] = 0
    found = grids.unpack(grids.pack(values, grid, np.ones(256, np.float32)), grid, 256)
    return not found[:, ::2].any()


def wire_bytes(
    weights: NDArray[np.float32], grid: str, importance: NDArray[np.float32] | None = None
) -> tuple[int, int]:
    """What a matrix (R, C) takes packed, and what zlib's best makes of that."""
    packed = grids.pack(weights, grid, importance).tobytes()
    return len(packed), len(zlib.compress(packed, 9))
