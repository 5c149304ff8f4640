"""Markdown of what was found: each front with edgegen beside it, ratios against the goals, and every file."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from edgegen.common.units import format_bytes, format_seconds
from peers.points import OURS, Point

GOALS = {"llama.cpp": 0.45, "AutoRound": 0.7, "onnxruntime-genai": 0.5, "ai-edge-quantizer": 0.5}
"""Mean KL of edgegen's file over that of the tool's best file of at least as many bytes."""


def tables(points: Sequence[Point]) -> Iterator[str]:
    """All tables, with an empty line between two."""
    yield from beside(points)
    yield ""
    yield from ratios(points)
    yield ""
    yield from every(points)


def pairs(points: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    """(the other tool's file, edgegen's of at most its bytes)."""
    for ours in points:
        if ours.tool == OURS and ours.quality:
            for theirs in points:
                if (theirs.model, theirs.target, theirs.bytes) == (ours.model, ours.target, ours.limit) and (
                    ours.against == f"{theirs.tool} {theirs.name}" and theirs.quality
                ):
                    yield theirs, ours


def beside(points: Sequence[Point]) -> Iterator[str]:
    """A row for each file of a front."""
    yield (
        "| model | the other tool's file | bytes, its / edgegen's | mean KL, its | edgegen's | ratio | median KL | "
        "99 % | 99.9 % | same top token | ln PPL ratio |"
    )
    yield "|" + "---|" * 11
    model = ""
    for theirs, ours in pairs(points):
        a, b = theirs.quality, ours.quality
        assert a is not None and b is not None, "pairs were scored"
        tokens = f" ({ours.vocab_size:,} tokens)" if b.renormalised else ""
        tokens += f", {ours.time} of tuning" if ours.time else ""
        kls = f"{theirs.kl:.5f} | **{ours.kl:.5f}** | {ours.kl / theirs.kl:.2f}"
        yield (
            f"| {theirs.model if theirs.model != model else ''} | {theirs.tool} {theirs.name} | "
            f"{format_bytes(theirs.bytes)} / {format_bytes(ours.bytes)}{tokens} | {kls} | "
            f"{a.kl_median:.5f} / {b.kl_median:.5f} | {a.kl_p99:.4f} / {b.kl_p99:.4f} | "
            f"{a.kl_p999:.3f} / {b.kl_p999:.3f} | {a.top1_fraction.value:.1%} / {b.top1_fraction.value:.1%} | "
            f"{a.ln_ppl_ratio.value:+.4f} / {b.ln_ppl_ratio.value:+.4f} |"
        )
        model = theirs.model


def ratios(points: Sequence[Point]) -> Iterator[str]:
    """A row for each model and tool."""
    yield "| model | against | files | ratio of mean KL: best, median, worst | goal | kept by |"
    yield "|---|---|---|---|---|---|"
    found: dict[tuple[str, str, str], list[float]] = {}
    for theirs, ours in pairs(points):
        if ours.quality and not ours.quality.renormalised:
            found.setdefault((theirs.model, theirs.tool, ours.time), []).append(ours.kl / theirs.kl)
    for (model, tool, time), all_ratios in found.items():
        goal, spent = GOALS[tool], f", {time} of tuning" if time else ""
        spread = f"{min(all_ratios):.2f}, {statistics.median(all_ratios):.2f}, {max(all_ratios):.2f}"
        kept = f"{sum(r <= goal for r in all_ratios)} of {len(all_ratios)}"
        yield f"| {model} | {tool}{spent} | {len(all_ratios)} | {spread} | {goal} | {kept} |"


def every(points: Sequence[Point]) -> Iterator[str]:
    """A row for each file, and why there is none."""
    yield (
        "| model | runtime | tool | file | bytes | mean KL | median | 99 % | 99.9 % | same top token | ln PPL ratio | "
        "bits per byte | seconds, CPU seconds, memory |"
    )
    yield "|" + "---|" * 13
    for point in points:
        head = f"| {point.model} | {point.target} | {point.tool} | {point.name} |"
        if point.quality is None:
            yield f"{head} {' '.join(point.error.split())[-160:]} |" + " |" * 8
            continue
        quality = point.quality
        size = f"{point.bytes:,}" + (f" (as written {point.own_bytes:,})" if point.own_bytes else "")
        yield (
            f"{head} {size} | {point.kl:.5f} | {quality.kl_median:.5f} | {quality.kl_p99:.4f} | "
            f"{quality.kl_p999:.4f} | {quality.top1_fraction.value:.2%} | {quality.ln_ppl_ratio.value:+.5f} | "
            f"{quality.bits_per_byte.value:.4f} | {_cost(point)} |"
        )


def _cost(point: Point) -> str:
    if point.cost is None:
        return "–"
    cost = point.cost
    seconds = f"{format_seconds(cost.wall_s)}, {format_seconds(cost.cpu_s)}, {format_bytes(cost.peak_rss_bytes)}"
    return f"{seconds}, from the measurements on" if point.continued else seconds
