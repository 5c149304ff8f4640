"""A technique of your own: one module (here a class) and one registration, and the planner tries it like the others.

This one sends the values of the last block's attention through a pair of matrices of rank 32. It is measured, healed
and planned like what comes with edgegen; the plan says whether it was taken, and why.

python examples/06_own_technique.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoint import make_checkpoint, make_data

import edgegen
from edgegen.common.codec import save_json
from edgegen.modeling.structure import replace_module
from edgegen.records.structure import Change
from edgegen.records.target import Target
from edgegen.techniques.calibration import Calibration
from edgegen.techniques.registry import register

RANK = 32


class LateValues:
    """Values of the last block's attention through a narrow pair of matrices."""

    NAME = "late_values"
    TITLE = "narrow values in the last block"

    def obstacle(self, config: Any, target: Target) -> str:
        """GGUF's matrices are whole."""
        if target.name == "gguf":
            return "llama.cpp multiplies with whole matrices only"
        return "" if config.model_type == "llama" else f"not tried on a {config.model_type}"

    def propose(self, calibration: Calibration, target: Target) -> list[Change]:
        """One change: there is nothing to choose."""
        last = calibration.summary.layers - 1
        words = f"values of layer {last + 1} through rank {RANK}"
        return [Change(technique=self.NAME, values={"layer": (last,), "rank": (RANK,)}, words=words)]

    def apply(self, model: Any, change: Change, calibration: Calibration) -> None:
        """The best pair by singular values."""
        name = f"model.layers.{change.values['layer'][0]}.self_attn.v_proj"
        left, values, right = torch.linalg.svd(model.get_submodule(name).weight, full_matrices=False)
        rank = min(change.values["rank"][0], len(values))
        pair = torch.nn.Sequential(
            torch.nn.Linear(right.shape[1], rank, bias=False), torch.nn.Linear(rank, left.shape[0], bias=False)
        ).requires_grad_(False)
        pair[0].weight.copy_(right[:rank])
        pair[1].weight.copy_(left[:, :rank] * values[:rank])
        replace_module(model, name, pair)


def main(folder: str = "build-examples/own_technique") -> int:
    """Plan with the technique within a few seconds, and say what became of it."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    register(LateValues())
    found = edgegen.plan(
        str(make_checkpoint(place / "model")),
        profile="laptop-x86-16gb",
        data=str(make_data(place / "data.jsonl")),
        target="onnx",
        max_bytes=2_000_000,
        vocab="keep",
        budget="10s",
        techniques=("late_values",),
        out=place / "out",
    )
    if isinstance(found, edgegen.Infeasible):
        print(found.message)
        return 4
    save_json(place / "plan.json", found)
    for considered in found.considered:
        print(f"{considered.technique}: {'taken' if considered.taken else 'not taken'}: {considered.why}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
