"""Quantization alone, each other technique alone, and all of them chosen together, at the same bytes.

    python tools/bench_techniques.py MODEL... --data FILE [--target onnx] [--shares 50,35,25] [--budget 3m]

For each model and each share of its 16-bit bytes:

- *quantization*: grids only, the whole vocabulary;
- *a technique alone*: its changes with 16-bit weights, healed within the same time budget;
- *together*: structure, healing and grids, planned within the time budget.

KL is the mean over held-out tokens, nats per token, of the artifact on its runtime; bytes are the artifact's. What a
technique's changes cost before and after healing is listed beside it, as the search saw it.

Prints Markdown tables and writes techniques.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from edgegen.common.codec import load_json
from edgegen.common.units import format_bytes, parse_seconds
from edgegen.errors import EdgegenError, InfeasibleError
from edgegen.records.plan import Plan
from edgegen.records.structure import Search
from edgegen.sdk import pipeline
from edgegen.techniques.registry import techniques

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
    parser.add_argument("--singles", default="50", help="shares at which techniques are tried alone")
    given = parser.parse_args()
    found = [bench(Path(model), given) for model in given.models]
    place = Path(given.out) / "techniques.json"
    place.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write("\n\n".join("\n".join(table(result)) for result in found) + f"\n\nwritten {place}\n")
    return 0


def bench(model: Path, given: argparse.Namespace) -> dict[str, Any]:
    """All rows of one model."""
    out = Path(given.out) / f"{model.name}-{given.target}"
    seconds = parse_seconds(given.budget, what="--budget")
    plan = pipeline.plan(
        str(model), profile=PROFILE, data=given.data, target=given.target, out=out / "whole", vocab="keep", max_kl=1.0
    )
    assert isinstance(plan, Plan), "a limit of 1 nat can be kept"
    whole = plan.baseline.bytes
    rows: list[dict[str, Any]] = []
    singles = {float(share) for share in given.singles.split(",") if share}
    for share in (float(share) for share in given.shares.split(",")):
        limit = int(whole * share / 100)
        rows.append(_made("quantization", model, given, out / "quantization", limit, share))
        rows.append(_made("together", model, given, out / "together", limit, share, budget=seconds))
        for technique in techniques() if share in singles else ():
            name = technique.NAME
            row = _made(
                name, model, given, out / name, limit, share, budget=seconds, techniques=(name,), grids=("f16", "f32")
            )
            rows.append(row)
    search = out / "together" / "structures.json"
    tried = [_tried(t) for t in load_json(search, Search).tried] if search.exists() else []
    return {"model": model.name, "target": given.target, "bytes_16_bits": whole, "rows": rows, "tried": tried}


def _made(
    name: str, model: Path, given: argparse.Namespace, out: Path, limit: int, share: float, **wishes: Any
) -> dict[str, Any]:
    """One compression to a size; without a result where no plan fits."""
    started = time.monotonic()
    sys.stderr.write(f"{model.name}: {name} at {share:g} % …\n")
    row: dict[str, Any] = {"technique": name, "share": share, "limit": limit}
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
    speed = report.speed
    return {
        **row,
        "bytes": report.artifact_bytes,
        "kl": report.quality.kl.value,
        "predicted_kl": result.plan.prediction.kl,
        "bits_per_byte": report.quality.bits_per_byte.value,
        "tok_s": speed.decode_tokens_per_s if speed else None,
        "structure": [change.words for change in result.plan.structure],
        "seconds": time.monotonic() - started,
    }


def _tried(tried: Any) -> dict[str, Any]:
    return {
        "name": tried.name,
        "words": "; ".join(change.words for change in tried.changes),
        "parameters": tried.parameters,
        "kl": tried.kl,
        "healed_kl": tried.healed_kl,
        "healed_tokens": tried.healed_tokens,
        "finalist": tried.finalist,
    }


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines."""
    lines = [
        f"{result['model']} for {result['target']}, {format_bytes(result['bytes_16_bits'])} at 16 bits",
        "",
        "| bytes | technique | size | KL | predicted | tok/s | what was done |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        begin = f"| {row['share']:g} % | {row['technique']} |"
        if row["kl"] is None:
            lines.append(f"{begin} | | | | {row['words']} |")
            continue
        speed = "" if row["tok_s"] is None else f"{row['tok_s']:.0f}"
        words = "; ".join(row["structure"]) or "grids only"
        lines.append(
            f"{begin} {format_bytes(row['bytes'])} | {row['kl']:.4f} | {row['predicted_kl']:.4f} | {speed} | {words} |"
        )
    if result["tried"]:
        lines += ["", "| change | parameters | KL | healed | tokens |", "|---|---|---|---|---|"]
        for tried in result["tried"]:
            healed = "" if tried["healed_kl"] is None else f"{tried['healed_kl']:.4f}"
            tokens = f"{tried['healed_tokens']:,}" if tried["healed_tokens"] else ""
            lines.append(f"| {tried['words']} | {tried['parameters']:,} | {tried['kl']:.4f} | {healed} | {tokens} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
