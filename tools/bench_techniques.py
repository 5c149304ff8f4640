"""Quantization alone, each other technique alone, and all of them chosen together, at the same bytes.

    python tools/bench_techniques.py MODEL... --data FILE [--target onnx] [--shares 50,35,25] [--singles 90,50]
        [--only depth,width] [--budget 3m]

For each model and each share of its 16-bit bytes:

- *quantization*: grids only, the whole vocabulary;
- *tuned*: the same with the time budget for exchanging grids and tuning the rounded weights;
- *together*: structure, healing, grids and tuning, planned within the time budget;
- *a technique alone* (at `--singles`): its changes with 16-bit weights, healed within the same time budget.

KL is the mean over held-out tokens, nats per token, of the artifact on its runtime; bytes are the artifact's, tok/s
this machine's. What the change that was taken cost before and after healing, as the search measured it on calibration
rows, stands beside it.

Prints Markdown tables and writes techniques.json. A row that is done is read back from `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgegen.common.codec import load_json
from edgegen.common.units import format_bytes, parse_seconds
from edgegen.errors import EdgegenError, InfeasibleError
from edgegen.records.plan import Plan
from edgegen.records.structure import Search, Tried
from edgegen.sdk import pipeline
from edgegen.sdk.wishes import LOCAL_SEARCH, REFINEMENT
from edgegen.techniques.registry import technique_named, techniques
from edgegen.techniques.technique import Technique

PROFILE = "laptop-x86-16gb"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="checkpoint folders")
    parser.add_argument("--data", required=True, help="text that is calibrated and, on other rows, judged on")
    parser.add_argument("--target", default="onnx", help="runtime (default onnx, which can express the most)")
    parser.add_argument("--out", default="build-bench", help="working folder")
    parser.add_argument("--shares", default="50,35,25", help="percent of the 16-bit bytes")
    parser.add_argument("--budget", default="3m", help="time for structures and healing, each run")
    parser.add_argument("--singles", default="90,50", help="shares at which techniques are tried alone")
    parser.add_argument("--only", default=",".join(t.NAME for t in techniques()), help="techniques tried alone")
    given = parser.parse_args()
    alone = [technique_named(name) for name in given.only.split(",")]
    found = [bench(Path(model), given, alone) for model in given.models]
    place = Path(given.out) / "techniques.json"
    place.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write("\n\n".join("\n".join(table(result)) for result in found) + f"\n\nwritten {place}\n")
    return 0


def bench(model: Path, given: argparse.Namespace, alone: Sequence[Technique]) -> dict[str, Any]:
    """All rows of one model."""
    out = Path(given.out) / f"{model.name}-{given.target}"
    seconds = parse_seconds(given.budget, what="--budget")
    plan = pipeline.plan(
        str(model), profile=PROFILE, data=given.data, target=given.target, out=out / "whole", vocab="keep", max_kl=1.0
    )
    assert isinstance(plan, Plan), "a limit of 1 nat can be kept"
    whole = plan.baseline.bytes
    place = out / "rows.json"
    known: dict[str, dict[str, Any]] = json.loads(place.read_text()) if place.exists() else {}

    def add(name: str, share: float, **wishes: Any) -> None:
        key = f"{name} {share:g} {wishes}"
        if key not in known:
            known[key] = _made(name, model, given, out / name, int(whole * share / 100), share, **wishes)
            place.write_text(json.dumps(known, indent=2))
        rows.append(known[key])

    rows: list[dict[str, Any]] = []
    for share in (float(share) for share in given.shares.split(",") if share):
        add("quantization", share)
        add("tuned", share, budget=seconds, techniques=(LOCAL_SEARCH, REFINEMENT))
        add("together", share, budget=seconds)
    for share in (float(share) for share in given.singles.split(",") if share):
        for technique in alone:
            add(technique.NAME, share, budget=seconds, techniques=(technique.NAME,), grids=("f16", "f32"))
    return {"model": model.name, "target": given.target, "bytes_16_bits": whole, "rows": rows}


def _made(
    name: str, model: Path, given: argparse.Namespace, out: Path, limit: int, share: float, **wishes: Any
) -> dict[str, Any]:
    """One compression to a size; without a result where no plan fits."""
    started = time.monotonic()
    sys.stderr.write(f"{model.name}: {name} at {share:g} % …\n")
    row: dict[str, Any] = {"technique": name, "share": share, "limit": limit, "structure": None}
    try:
        result = pipeline.compress(
            str(model),
            profile=PROFILE,
            data=given.data,
            target=given.target,
            out=out,
            vocab="keep",
            max_bytes=limit,
            **wishes,
        )
    except InfeasibleError:
        return {**row, "kl": None, "words": "cannot become so small"}
    except EdgegenError as error:
        return {**row, "kl": None, "words": str(error)}
    report = result.report
    assert report.quality is not None, "a model that continues text has one"
    speed, taken = report.speed, result.plan.structure_name
    tried = load_json(out / "structures.json", Search).tried if taken else ()
    return {
        **row,
        "bytes": report.artifact_bytes,
        "kl": report.quality.kl.value,
        "predicted_kl": result.plan.prediction.kl,
        "bits_per_byte": report.quality.bits_per_byte.value,
        "tok_s": speed.decode_tokens_per_s if speed else None,
        "structure": next((_tried(one) for one in tried if one.name == taken), None),
        "seconds": time.monotonic() - started,
    }


def _tried(tried: Tried) -> dict[str, Any]:
    return {
        "words": "; ".join(change.words for change in tried.changes),
        "parameters": tried.parameters,
        "kl": tried.kl,
        "healed_kl": tried.healed_kl,
        "healed_tokens": tried.healed_tokens,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines."""
    lines = [
        f"{result['model']} for {result['target']}, {format_bytes(result['bytes_16_bits'])} at 16 bits",
        "",
        "| bytes | technique | size | KL | predicted | tok/s | structure | its KL: made / healed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        begin = f"| {row['share']:g} % | {row['technique']} |"
        if row["kl"] is None:
            lines.append(f"{begin} | | | | {row['words']} | |")
            continue
        speed = "" if row["tok_s"] is None else f"{row['tok_s']:,.0f}"
        words, healing = "the original's", ""
        if taken := row["structure"]:
            words, healing = taken["words"], f"{taken['kl']:.4f}"
            if taken["healed_kl"] is not None:
                healing += f" / {taken['healed_kl']:.4f}"
        lines.append(
            f"{begin} {format_bytes(row['bytes'])} | {row['kl']:.4f} | {row['predicted_kl']:.4f} | {speed} "
            f"| {words} | {healing} |"
        )
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgegenError as error:
        sys.exit(f"bench_techniques: {error} {error.hint}")
