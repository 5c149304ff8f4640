"""Compensated against plain rounding, grid by grid, at the same bytes.

    python tools/bench_rounding.py MODEL... --data FILE [--target gguf] [--grids q4_0,q4_k] [--tokens 8192] [--out FILE]

All linear layers inside the blocks take one grid; embedding and head stay as they are. Plain is what the runtime's own
quantizer does with importance data (for GGUF ggml's, for the others edgegen's search); compensated is what edgegen
writes. Both know the same calibration text, and both are judged on other rows: mean KL to the original in nats per
token, in torch with exact activations. "best plain" is the lowest KL of any plain grid with at most as many bits.

Prints a Markdown table and writes rounding.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.catalog import load_target
from edgegen.errors import EdgegenError
from edgegen.modeling.hessians import Hessians
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.source import TensorSource
from edgegen.records.model import TensorInfo
from edgegen.records.target import Target
from edgegen.sdk.subject import Subject


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="checkpoint folders")
    parser.add_argument("--data", required=True, help="text that is calibrated and, on other rows, judged on")
    parser.add_argument("--target", default="gguf", help="runtime whose grids are compared")
    parser.add_argument("--grids", default="", help="only these; else all that the target plans with below 8 bits")
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens")
    parser.add_argument("--out", default="rounding.json", help="file for the numbers")
    given = parser.parse_args()
    target = load_target(given.target)
    chosen = tuple(given.grids.split(",")) if given.grids else planned(target)
    rows: list[dict[str, Any]] = []
    for model in given.models:
        rows += bench(model, given.data, target, chosen, given.tokens)
    Path(given.out).write_text(json.dumps(rows, indent=2))
    print("\n".join(table(rows)))
    return 0


def planned(target: Target) -> tuple[str, ...]:
    """The grids that a target plans with below 8 bits, smallest first."""
    below = [grid for grid in target.grids if grid.planned and grid.bits_per_weight < 8]
    return tuple(grid.name for grid in sorted(below, key=lambda grid: grid.bits_per_weight))


def bench(model: str, data: str, target: Target, grids: tuple[str, ...], tokens: int) -> list[dict[str, Any]]:
    """One row for each grid that fits all layers."""
    subject = Subject(model, data, [target])
    source = TensorSource(subject.empty, subject.checkpoint, subject.summary)
    layers = [t for t in source.summary.tensors if t.quantizable and t.layer >= 0]
    windows = subject.task.windows(
        subject.tokenizer, subject.split.heldout, max_tokens=tokens, window_tokens=subject.window_tokens
    )
    original = subject.task.outputs(subject.model, subject.summary, windows)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        subject.save_hessians(subject, Path(scratch) / "hessians")
        gathering = time.monotonic() - started
        hessians = Hessians(Path(scratch) / "hessians")
        source.use_importance(
            {t.name: np.ascontiguousarray(hessians.read(hessians.file_of(t.name)).diagonal()) for t in layers}
        )

        def score(grid: str) -> float:
            with rounded_model(subject.model, source, {t.name: grid for t in layers}, {}):
                return subject.task.distance(original, subject.task.outputs(subject.model, subject.summary, windows))

        for grid in grids:
            facts = target.grid(grid)
            if not facts.partial and any(t.columns % facts.block for t in layers):
                continue
            row: dict[str, Any] = {
                "model": Path(model).name,
                "grid": grid,
                "bits_per_weight": facts.bits_per_weight,
                "gathering_s": gathering,
            }
            for way in ("plain", "compensated"):
                source.use_hessians(hessians if way == "compensated" else None)
                if way == "compensated" and not source.compensates(layers[0].name, grid):
                    continue
                row[f"{way}_bytes"], row[f"{way}_s"], row[f"{way}_cpu_s"] = rounding(source, layers, grid)
                row[f"{way}_kl"] = score(grid)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    for row in rows:
        within = [r for r in rows if r["bits_per_weight"] <= row["bits_per_weight"]]
        best = min(within, key=lambda r: float(r["plain_kl"]))
        row["best_plain"], row["best_plain_kl"] = best["grid"], best["plain_kl"]
    return rows


def rounding(source: TensorSource, layers: list[TensorInfo], grid: str) -> tuple[int, float, float]:
    """Packed bytes, wall and CPU seconds of rounding all layers once."""
    wall, cpu = time.monotonic(), time.process_time()
    size = sum(source.packed(t.name, grid).nbytes for t in layers)
    return size, time.monotonic() - wall, time.process_time() - cpu


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| model | grid | bits | plain KL | compensated KL | ratio | best plain at most as large | ratio to it | "
        "seconds plain / compensated (CPU) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = row.get("compensated_kl")
        mine = f"**{ours:.5f}** | {ours / row['plain_kl']:.2f}" if ours is not None else "– | –"
        against = f"{ours / row['best_plain_kl']:.2f}" if ours is not None else "–"
        seconds = f"{row['plain_cpu_s']:.1f} / {row['compensated_cpu_s']:.1f}" if ours is not None else "–"
        lines.append(
            f"| {row['model']} | {row['grid']} | {row['bits_per_weight']:g} | {row['plain_kl']:.5f} | {mine} | "
            f"{row['best_plain']} {row['best_plain_kl']:.5f} | {against} | {seconds} |"
        )
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgegenError as error:
        sys.exit(f"bench_rounding: {error} {error.hint}")
