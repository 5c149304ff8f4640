"""Plan: model + device + data → a plan, or why there is none.

python examples/01_plan.py [FOLDER]

A plan says which number grid each tensor takes, what that should cost and what else was on the trade-off curve.
A budget that no plan can keep is a value too, which names the budget and the nearest plan.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_checkpoint import make_checkpoint, make_data

import edgegen
from edgegen.common.codec import save_json
from edgegen.common.units import format_bytes


def main(folder: str = "build-examples/plan") -> int:
    """Print a plan with its front, then ask for the impossible."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    model = str(make_checkpoint(place / "model"))
    data = str(make_data(place / "data.jsonl"))
    grids = ("q2_k", "q4_k", "q8_0")

    plan = edgegen.plan(
        model, profile="raspberry-pi-4-4gb", data=data, grids=grids, max_bytes=800_000, vocab="keep", out=place / "out"
    )
    if isinstance(plan, edgegen.Infeasible):
        print(plan.message)
        return 1
    for tensor in plan.tensors[:4]:
        print(f"{tensor.name:<40} {tensor.grid:<5} {format_bytes(tensor.bytes):>9}  {tensor.kl:.2g} nats")
    print("      … trade-off: " + ", ".join(f"{format_bytes(p.bytes)} at KL {p.kl:.2g}" for p in plan.front))
    print(f"predicted: {format_bytes(plan.prediction.bytes)}, {plan.prediction.decode_tokens_per_s:.0f} tok/s")
    save_json(place / "plan.json", plan)

    # The measurements are kept beside the output, so another budget is planned at once.
    nothing = edgegen.plan(
        model, profile="raspberry-pi-4-4gb", data=data, grids=grids, max_bytes=10_000, vocab="keep", out=place / "out"
    )
    if not isinstance(nothing, edgegen.Infeasible):
        return 1
    print(f"10 kB: {nothing.message}")
    save_json(place / "infeasible.json", nothing)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
