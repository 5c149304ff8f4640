"""What each part of planning is worth, and how far its predictions are from measurements.

    python tools/bench_planning.py MODEL... --data FILE [--target gguf] [--shares 40,30,20] [--budget 5m]

For each model and each share of its 16-bit bytes, the best plan by

- *sum*: the Fisher quadratic of each tensor, added up;
- *by type*: the same with each grid's sum corrected to what the whole model in that grid costs (what planning uses);
- *whole*: the plan as it is made, measured as a whole, compressed, and measured on its runtime;
- *searched*: the same with the time of `--budget` for exchanging grids;
- *tuned*: with that time for exchanging grids and for tuning the rounded weights;
- *healed*: with that time for both and for structures and their healing.

The first two are scored in torch on calibration rows that the sums were not made from; the others are the artifact's,
on held-out rows. KL in nats per token. Prints a Markdown table and writes planning.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from edgegen.catalog import load_profile, load_target
from edgegen.common.codec import load_json
from edgegen.common.units import format_bytes, parse_seconds
from edgegen.errors import EdgegenError
from edgegen.modeling.sensitivity import factor_among
from edgegen.planner.solve import expected_kl, solve
from edgegen.records.measured import Measured
from edgegen.records.plan import Plan
from edgegen.records.profile import Budgets
from edgegen.sdk import pipeline
from edgegen.sdk.job import Job
from edgegen.sdk.output import Result
from edgegen.sdk.planning import SolutionScorer, build_problem, read_vocabularies
from edgegen.sdk.subject import Subject
from edgegen.sdk.wishes import LOCAL_SEARCH, REFINEMENT

PROFILE = "laptop-x86-16gb"
TIMED = {"searched": (LOCAL_SEARCH,), "tuned": (LOCAL_SEARCH, REFINEMENT), "healed": None}
"""Row → what its time may be spent on."""


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="checkpoint folders")
    parser.add_argument("--data", required=True, help="text that is calibrated and, on other rows, judged on")
    parser.add_argument("--target", default="gguf", help="runtime (default gguf)")
    parser.add_argument("--out", default="build-bench", help="working folder")
    parser.add_argument("--shares", default="40,30,20", help="percent of the 16-bit bytes")
    parser.add_argument("--budget", default="5m", help="time for each of the last three; empty: without them")
    given = parser.parse_args()
    seconds = parse_seconds(given.budget, what="--budget") if given.budget else 0.0
    rows: list[dict[str, Any]] = []
    for model in given.models:
        rows += bench(Path(model), given, seconds)
    place = Path(given.out) / "planning.json"
    place.write_text(json.dumps(rows, indent=2) + "\n")
    sys.stdout.write("\n".join(table(rows)) + f"\n\nwritten {place}\n")
    return 0


def bench(model: Path, given: argparse.Namespace, seconds: float) -> list[dict[str, Any]]:
    """All rows of one model; the last three with some seconds each, if any."""
    out = Path(given.out) / f"{model.name}-{given.target}-planning"
    wishes: dict[str, Any] = {"profile": PROFILE, "data": given.data, "target": given.target, "vocab": "keep"}
    whole = pipeline.plan(str(model), out=out / "whole", max_kl=1.0, **wishes)
    assert isinstance(whole, Plan), "a limit of 1 nat can be kept"
    rows = []
    for share in (float(share) for share in given.shares.split(",")):
        limit = int(whole.baseline.bytes * share / 100)
        sys.stderr.write(f"{model.name}: {share:g} % …\n")
        try:
            made = pipeline.compress(str(model), out=out / "made", max_bytes=limit, **wishes)
        except EdgegenError as error:
            rows.append({"model": model.name, "share": share, "words": str(error)})
            continue
        sums = _sums(model, given, made, limit)
        row: dict[str, Any] = {"model": model.name, "share": share, "limit": limit, **sums, "whole": _artifact(made)}
        for name, names in TIMED.items() if seconds else ():
            more: dict[str, Any] = {"budget": seconds, "techniques": names}
            row[name] = _artifact(pipeline.compress(str(model), out=out / name, max_bytes=limit, **more, **wishes))
        rows.append(row)
    return rows


def _sums(model: Path, given: argparse.Namespace, made: Result, limit: int) -> dict[str, Any]:
    """Plans by sums alone, scored."""
    target, folder = load_target(given.target), made.out
    job = Job(Subject(str(model), given.data, [target]), load_profile(PROFILE), target)
    job.use_statistics(folder, compensated=True)
    measured, kept = load_json(folder / "measured.json", Measured), read_vocabularies(folder)
    blocks = {t.name for t in job.source.summary.tensors if t.quantizable and t.layer >= 0}
    compensated = {g for name in blocks for g in measured.kl[name] if job.source.compensates(name, g)}
    plain = {
        name: {
            grid: kl / (factor_among(measured.factors, grid, target, compensated) if name in blocks else 1.0)
            for grid, kl in prices.items()
        }
        for name, prices in measured.kl.items()
    }
    scorer = SolutionScorer(job, kept, None)
    found = {}
    for name, prices in (("sum", plain), ("by_type", measured.kl)):
        problem = build_problem(
            job,
            msgspec.structs.replace(measured, kl=prices),
            kept,
            Budgets(max_bytes=limit),
            "quality",
            None,
        )
        solution = solve(problem)
        assert solution is not None, "the plan that was made fits"
        found[name] = {"predicted": expected_kl(problem, solution), "kl": scorer(solution), "bytes": solution.bytes}
    return found


def _artifact(made: Result) -> dict[str, Any]:
    quality = made.report.quality
    assert quality is not None, "a model that continues text has one"
    return {
        "predicted": made.plan.prediction.kl,
        "kl": quality.kl.value,
        "bytes": made.report.artifact_bytes,
        "structure": [change.words for change in made.plan.structure],
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines."""
    names = ("sum", "by_type", "whole", *TIMED)
    titles = ("sum: predicted → scored", "by type", "whole: predicted → artifact", *TIMED)
    lines = [f"| model | bytes | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    for row in rows:
        cells = []
        for name in names:
            one = row.get(name)
            cells.append("" if one is None else f"{one['predicted']:.4f} → {one['kl']:.4f}")
        size = format_bytes(row["whole"]["bytes"]) if "whole" in row else row["words"]
        lines.append(f"| {row['model']} | {row['share']:g} %, {size} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgegenError as error:
        sys.exit(f"bench_planning: {error} {error.hint}")
