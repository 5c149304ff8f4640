"""Depth: a run of neighbouring blocks is left out.

Which one is scored jointly, not block by block: the angle between a run's input and its output, mean over tokens, says
how little it turns the residual stream (ShortGPT, Men et al. 2024; Gromov et al. 2024). The runs with the smallest
angles are nominated, and the measured KL divergence without them decides. Afterwards the block before the gap and those
behind it are refitted (see `refit`).

`Change.values["removed"]`: the blocks that go, counted from 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.layout import attention, blocks, blocks_name, copy_structure, is_plain, unknown_family
from edgegen.techniques.refit import refit

NAME = "depth"
TITLE = "fewer blocks"

_NOMINATED = 3
"""Runs of each length whose KL divergence is measured."""
_LENGTHS = 5
"""Most proposals."""


def obstacle(config: Any, target: Target) -> str:
    """Every runtime takes any depth."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return "its attention is scaled by the number of the block, so blocks cannot move up"
    return unknown_family(config)


def propose(calibration: Calibration, target: Target) -> list[Change]:
    """The best run of each of up to five lengths, at most half of the blocks."""
    total = len(blocks(calibration.model))
    if total < 2 or not is_plain(calibration.model):
        return []
    angles = angular_distances(calibration)
    judge = calibration.parts[1]
    proposals = []
    for length in _lengths(total // 2):
        starts = sorted(range(total - length + 1), key=lambda start: float(angles[start, start + length]))
        measured = {}
        for start in starts[:_NOMINATED]:
            trial = copy_structure(calibration.model)
            remove_blocks(trial, range(start, start + length))
            measured[start] = judge.distance(trial)
        start = min(measured, key=lambda candidate: measured[candidate])
        proposals.append(
            Change(
                technique=NAME,
                values={"removed": tuple(range(start, start + length))},
                words=_words(start, length, total),
            )
        )
    return proposals


def apply(model: Any, change: Change, calibration: Calibration) -> None:
    """Leave the blocks out and refit those around the gap."""
    removed = change.values["removed"]
    origins = [layer for layer in range(len(blocks(model))) if layer not in removed]
    remove_blocks(model, removed)
    refit(model, calibration, origins, first=max(0, min(removed) - 1))


def angular_distances(calibration: Calibration) -> torch.Tensor:
    """(L + 1, L + 1): at [i, j], arccos(cosine) / π between the hidden states before block i and before block j.

    Means over the text's tokens; row and column L stand for the output of the last block.
    """
    model = calibration.model
    total = len(blocks(model))
    names = [f"{blocks_name(model)}.{layer}" for layer in range(total)]
    parent = model.get_submodule(blocks_name(model).rpartition(".")[0])
    last = next(name for name in ("norm", "final_layernorm", "ln_f") if hasattr(parent, name))
    names.append(f"{blocks_name(model).rpartition('.')[0]}.{last}")
    sums = torch.zeros(total + 1, total + 1, dtype=torch.float64)
    states: list[torch.Tensor] = []

    def see(name: str, x: torch.Tensor) -> None:
        states.append(torch.nn.functional.normalize(x, dim=-1))
        if name == names[-1]:
            for i, before in enumerate(states):
                for j, after in enumerate(states[i + 1 :], i + 1):
                    cosines = (before * after).sum(-1).clamp(-1, 1)
                    sums[i, j] += cosines.acos().sum(dtype=torch.float64) / math.pi
            states.clear()

    count = calibration.watch(names, see)
    return sums / count


def remove_blocks(model: Any, removed: Any) -> None:
    """Leave blocks out, in place: a model of its own afterwards, with and without cache.

    Args:
        removed: numbers of blocks.
    """
    gone = set(removed)
    kept = [layer for layer in range(len(blocks(model))) if layer not in gone]
    config = model.config
    kinds = getattr(config, "layer_types", None)
    owner, _, leaf = blocks_name(model).rpartition(".")
    parent = model.get_submodule(owner)
    setattr(parent, leaf, torch.nn.ModuleList(blocks(model)[layer] for layer in kept))
    config.num_hidden_layers = len(kept)
    if kinds:
        config.layer_types = [kinds[layer] for layer in kept]
        if hasattr(parent, "has_sliding_layers"):
            parent.has_sliding_layers = "sliding_attention" in config.layer_types
    for layer, block in enumerate(blocks(model)):
        for module in (block, attention(model, layer).module):
            if hasattr(module, "layer_idx"):
                module.layer_idx = layer


def _lengths(longest: int) -> list[int]:
    """At even distances from 1 to the longest."""
    if longest <= _LENGTHS:
        return list(range(1, longest + 1))
    return [round(1 + number * (longest - 1) / (_LENGTHS - 1)) for number in range(_LENGTHS)]


def _words(start: int, length: int, total: int) -> str:
    if length == 1:
        return f"layer {start + 1} of {total} removed"
    return f"layers {start + 1} to {start + length} of {total} removed"
