"""The receipt for a terminal: the checks as a table, the quality in three lines.

Two forms of the same rows: plain lines (pipes, logs) and rich renderables (rich is imported only when asked
for). Names and details may hold hostile text, so every cell passes through `visible` and none is parsed as
rich markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgegen.receipt.shown import Kind, kind_of, show, visible
from edgegen.receipt.view import all_notes, bound, check_title, verdict_line
from edgegen.records.model import Task
from edgegen.records.plan import Plan
from edgegen.records.report import Check, Interval, Report, VectorQuality

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEADS = ("check", "limit", "predicted", "measured", "verdict")
_SIGNS = {"at most": "≤", "at least": "≥"}
_BESIDE = "-"
"""In a table's cell where a check has no such number by its nature (`loads` has no limit)."""


def summary_lines(report: Report, plan: Plan | None) -> list[str]:
    """The receipt's essence as plain lines without colour; no line holds a character that acts."""
    rows = [_HEADS, *(_cells(check, report.model_task) for check in report.checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = [_headline(report, plan), verdict_line(report), ""]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4], strict=True)]
        lines.append("  ".join([*cells, row[4]]).rstrip())
    lines += ["", *_quality_lines(report), *_emulated_lines(report)]
    lines += [f"! {note}" for note in all_notes(report, plan)]
    return [visible(line).replace("\n", " ").replace("\t", " ") for line in lines]


def summary_table(report: Report, plan: Plan | None) -> RenderableType:
    """The same for a rich console: headline, table of checks, quality, notes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, head in enumerate(_HEADS):
        table.add_column(head, justify="right" if place in (1, 2, 3) else "left", no_wrap=place > 0)
    for check in report.checks:
        style = "" if check.passed else "bold red"
        table.add_row(*(Text(visible(cell), style=style) for cell in _cells(check, report.model_task)))
    colour = "bold green" if report.passed else "bold red"
    return Group(
        Text(visible(_headline(report, plan)), style=colour),
        Text(visible(verdict_line(report))),
        Text(""),
        table,
        Text(""),
        *(Text(visible(line)) for line in (*_quality_lines(report), *_emulated_lines(report))),
        *(Text(visible(f"! {note}"), style="yellow") for note in all_notes(report, plan)),
    )


def _headline(report: Report, plan: Plan | None) -> str:
    device = plan.profile.title if plan else report.profile
    verdict = "✓ PASS" if report.passed else "✗ FAIL"
    size = show(report.artifact_bytes, "bytes")
    if plan and report.artifact_bytes:
        size += f", {show(plan.baseline.bytes / report.artifact_bytes)}× smaller than 16 bits"
    return f"{verdict}  {report.model} on {device} ({report.target}), {size}"


def _cells(check: Check, task: Task) -> tuple[str, str, str, str, str]:
    kind, suffix = kind_of(check.unit)
    values = (check.limit, check.measured, check.predicted)
    numeric = bool(check.unit) or any(value is not None for value in values)
    limit = _BESIDE if check.limit is None else f"{_SIGNS[bound(check.name)]} {show(check.limit, kind, suffix)}"
    predicted = _BESIDE if check.predicted is None else show(check.predicted, kind, suffix)
    measured = show(check.measured, kind, suffix) if numeric else _BESIDE
    verdict = "✓ pass" if check.passed else "✗ FAIL"
    if check.basis == "predicted":
        verdict += " (predicted)"
    return check_title(check.name, task), limit, predicted, measured, verdict


def _quality_lines(report: Report) -> list[str]:
    quality = report.quality
    if report.vectors is not None:
        return _vector_lines(report, report.vectors)
    if quality is None:
        return ["Quality against the original: not measured."]
    kl = f"KL {_interval(quality.kl)} nats per token, 99th percentile {show(quality.kl_p99)}"
    same = f"Top-1 agreement {_interval(quality.top1_fraction, 'fraction')}"
    bits = f"bits per byte {show(quality.bits_per_byte.value)}, original {show(quality.original_bits_per_byte)}"
    lines = [f"{kl} ({quality.tokens:,} held-out tokens)", f"{same}; {bits}", *_parity_lines(report)]
    lines += _bound_lines(report)
    if report.task is not None:
        task = f"Task: exact match {_interval(report.task.exact_fraction, 'fraction')}"
        lines.append(f"{task}, original {show(report.task.original_exact_fraction, 'fraction')}")
    return lines


def _bound_lines(report: Report) -> list[str]:
    """How near decoding and rounding are to what is possible at best."""
    words = []
    bounds, rounding = report.bounds, report.rounding
    if bounds is not None:
        share = show(bounds.bandwidth_fraction, "fraction")
        words.append(f"decoding takes {share} of this machine's {show(bounds.bandwidth_bytes_per_s, 'bytes')}/s")
        if bounds.kernels_fraction is not None:
            words.append(f"{show(bounds.kernels_fraction, 'fraction')} of what its kernels alone could do")
    if rounding is not None:
        words.append(
            f"rounding to {show(rounding.bits_per_weight)} bits a weight is {show(rounding.gap_db)} dB above the "
            "rate–distortion bound"
        )
    return [f"Limits: {'; '.join(words)}"] if words else []


def _vector_lines(report: Report, vectors: VectorQuality) -> list[str]:
    cosine = f"Cosine similarity {_interval(vectors.cosine, 'cosine')}, least {show(vectors.cosine_min, 'cosine')}"
    ranked = f"Rank correlation {_interval(vectors.rank_correlation, 'cosine')} over {vectors.pairs:,} pairs"
    lines = [f"{cosine} ({vectors.texts:,} held-out texts)", ranked]
    if report.speed is not None:
        one = show(report.speed.ttft_ms, "ms")
        lines.append(f"One text of {report.speed.prompt_tokens} tokens takes {one} on this machine")
    modes = (("the file alone (strict accuracy)", report.vector_strict), ("as it ships", report.vector_parity))
    words = [
        f"{mode} 1 - cosine {show(parity.distance)}, largest difference {show(parity.max_abs_difference)}"
        for mode, parity in modes
        if parity is not None
    ]
    return [*lines, f"Against torch with the same rounded weights: {'; '.join(words)}"] if words else lines


def _parity_lines(report: Report) -> list[str]:
    """What the file and the runtime's arithmetic each add to the torch model with the same rounded weights."""
    modes = (("the file alone (strict accuracy)", report.strict), ("as it ships", report.parity))
    words = [
        f"{mode} KL {show(parity.kl)}, greedy text equal for {parity.greedy_prefix} of {parity.greedy_tokens} tokens"
        for mode, parity in modes
        if parity is not None
    ]
    return [f"Against torch with the same rounded weights: {'; '.join(words)}"] if words else []


def _emulated_lines(report: Report) -> list[str]:
    """Each run on an emulated core: how far it is from what was planned and from this machine, or why it failed."""
    lines = []
    for run in report.emulated:
        told = []
        for words, parity, vectors in (
            ("torch", run.planned, run.planned_vectors),
            ("this machine", run.host, run.host_vectors),
        ):
            if parity:
                same = f"greedy text equal for {parity.greedy_prefix} of {parity.greedy_tokens} tokens"
                told.append(f"KL {show(parity.kl)} to {words}, top-1 {show(parity.top1_fraction, 'fraction')}, {same}")
            elif vectors:
                told.append(f"1 - cosine {show(vectors.distance)} to {words}")
        if run.fault:
            told = [f"fails: {run.fault}" + (f" Remedy: {run.remedy}" if run.remedy else "")]
        what = f"{run.runtime} {run.version} {run.change or 'as published'}"
        lines.append(f"{'✓' if run.passed else '✗'} {run.cpu_model}, emulated, {what}: {'; '.join(told)}")
    return lines


def _interval(interval: Interval, kind: Kind = "number") -> str:
    return f"{show(interval.value, kind)} [{show(interval.low, kind)}, {show(interval.high, kind)}]"
