"""What the page says about checks and metrics, arranged for the template: words, order and bars, no HTML.

The numbers themselves stay in the records; a row names the path of each (see `fields`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgegen.receipt.shown import Kind, kind_of
from edgegen.records.model import Task
from edgegen.records.plan import Plan
from edgegen.records.report import GATE_CHECK, Check, Report

CHECK_TITLES = {
    "max_bytes": "Artifact size",
    "max_rss": "Peak memory",
    "min_tok_s": "Decode speed",
    "max_ttft": "Time to first token",
    "max_kl": "KL to the original",
    "min_cosine": "Cosine similarity",
    "loads": "Opens in the runtime",
    "tokenizer": "Tokenizer agrees",
    "strict_kl": "File parity, KL",
    "parity_kl": "Shipped parity, KL",
    "parity_top1": "Shipped parity, top-1",
    "strict_distance": "File parity, vectors",
    "parity_distance": "Shipped parity, vectors",
    "rank_correlation": "Rank correlation",
    "sane_text": "Writes sane text",
    "litertlm": "Runs in LiteRT-LM",
    "intact": "Files are intact",
}
_RUNS_ON = "runs_on_"
"""A check's name goes on with a processor core."""
_ENCODER_TITLES = {"min_tok_s": "Reading speed", "max_ttft": "Time for one text"}
_BUDGETS = ("max_bytes", "max_rss", "min_tok_s", "max_ttft", "max_kl", "min_cosine")
_AT_LEAST = ("min_tok_s", "parity_top1", "tokenizer", "min_cosine", "rank_correlation")
_SAME_EVERYWHERE = ("max_bytes", "max_kl", "min_cosine")
"""Budgets whose measurement does not depend on the machine that makes it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A value against its limit; positions are percent of the bar's width, 0..100."""

    value: float
    limit: float | None
    predicted: float | None
    """Only beside a measured value; None otherwise."""


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A check and where its numbers stand."""

    path: str
    """`checks.3`."""
    check: Check
    title: str
    bound: str
    """`at most` or `at least`."""
    kind: Kind
    suffix: str
    judged: str
    """Name of the field that was held against the limit: `measured` or `predicted`."""
    bar: Bar | None
    basis: str
    """One sentence: where the judged number comes from."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the quality table."""

    title: str
    unit: str
    path: str
    kind: Kind
    meaning: str
    has_interval: bool = False
    """Whether the path holds an `Interval`, not a number."""


METRICS = (
    Metric(
        "KL divergence, mean",
        "nats per token",
        "quality.kl",
        "number",
        "How far next-token probabilities are from the original's, on average. 0 is identical.",
        has_interval=True,
    ),
    Metric(
        "KL, median",
        "nats per token",
        "quality.kl_median",
        "number",
        "Half of all tokens are closer than this.",
    ),
    Metric(
        "KL, 99th percentile",
        "nats per token",
        "quality.kl_p99",
        "number",
        "One token in 100 is further off.",
    ),
    Metric(
        "KL, 99.9th percentile",
        "nats per token",
        "quality.kl_p999",
        "number",
        "One token in 1,000 is further off.",
    ),
    Metric(
        "Top-1 agreement",
        "of tokens",
        "quality.top1_fraction",
        "fraction",
        "How often both models would choose the same next token.",
        has_interval=True,
    ),
    Metric(
        "ln perplexity ratio",
        "nats per token",
        "quality.ln_ppl_ratio",
        "number",
        "How much more the real text surprises the artifact than the original. 0 is equal.",
        has_interval=True,
    ),
    Metric(
        "Bits per byte",
        "bits",
        "quality.bits_per_byte",
        "number",
        "How many bits the artifact needs to encode one byte of the text; fewer is better.",
        has_interval=True,
    ),
)


VECTOR_METRICS = (
    Metric(
        "Cosine similarity, mean",
        "",
        "vectors.cosine",
        "cosine",
        "How far a text's vector points where the original's does. 1 is the same direction.",
        has_interval=True,
    ),
    Metric("Cosine, 1st percentile", "", "vectors.cosine_p01", "cosine", "One text in 100 is further off."),
    Metric("Cosine, least", "", "vectors.cosine_min", "cosine", "The text that is furthest off."),
    Metric(
        "Rank correlation",
        "Spearman's, over pairs",
        "vectors.rank_correlation",
        "cosine",
        "Whether the same pairs of texts are close as with the original. 1 is the same order.",
        has_interval=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Words:
    """What the page calls things that differ between a model that continues text and an encoder."""

    distance: str
    per: str
    """After a distance: its unit, or nothing."""
    speed: str
    reading: str
    first: str


WORDS: dict[Task, Words] = {
    "causal": Words("KL", " nats per token", "tokens per second", "Prefill", "Time to first token"),
    "encoder": Words("1 - cosine", "", "tokens read per second", "Reading", "One text of the workload's length"),
}


def check_rows(report: Report) -> tuple[list[CheckRow], list[CheckRow]]:
    """The budgets' rows and the other checks' rows, each in the report's order."""
    rows = [_row(index, check, report) for index, check in enumerate(report.checks)]
    budgets = [row for row in rows if row.check.name in _BUDGETS]
    return budgets, [row for row in rows if row.check.name not in _BUDGETS]


def verdict_line(report: Report) -> str:
    """One sentence after PASS or FAIL: how many checks, which failed, how many rest on a prediction."""
    checks = report.checks
    failed = [check_title(check.name, report.model_task) for check in checks if not check.passed]
    if failed:
        line = f"{len(failed)} of {_count(len(checks), 'check')} failed: {', '.join(failed)}."
    elif not checks:
        line = "Nothing was checked."
    else:
        line = f"{_count(len(checks), 'check')}, all passed." if len(checks) > 1 else "1 check, passed."
    predicted = sum(check.basis == "predicted" for check in checks)
    if predicted:
        line += f" {predicted} judged by the plan's prediction, not by a measurement."
    return line


def check_title(name: str, task: Task = "causal") -> str:
    """A check's name in words; an unknown one as it is."""
    if name.startswith(_RUNS_ON):
        return f"Runs on {name.removeprefix(_RUNS_ON)}"
    if name.startswith(GATE_CHECK):
        return f"Gate {name.removeprefix(GATE_CHECK)}"
    if task == "encoder":
        return _ENCODER_TITLES.get(name) or CHECK_TITLES.get(name, name)
    return CHECK_TITLES.get(name, name)


def bound(name: str) -> str:
    """`at least` for what must be large, `at most` for the rest."""
    if name.startswith(GATE_CHECK):
        gate = name.removeprefix(GATE_CHECK)
        return "at least" if gate.startswith("min_") or gate.endswith(".min") else "at most"
    return "at least" if name in _AT_LEAST else "at most"


def all_notes(report: Report, plan: Plan | None) -> list[str]:
    """Every note of the report and its plan, once, in order."""
    return list(dict.fromkeys([*report.notes, *(plan.notes if plan else ())]))


def _row(index: int, check: Check, report: Report) -> CheckRow:
    kind, suffix = kind_of(check.unit)
    return CheckRow(
        path=f"checks.{index}",
        check=check,
        title=check_title(check.name, report.model_task),
        bound=bound(check.name),
        kind=kind,
        suffix=suffix,
        judged=check.basis,
        bar=_bar(check),
        basis=_basis(check, report),
    )


def _basis(check: Check, report: Report) -> str:
    machine = report.machine
    if _judged(check) is None:
        return f"There is no {check.basis} value to hold against a limit."
    if check.basis == "predicted":
        return (
            f"Predicted for the profile's device. {machine.cpu or 'The machine that measured'} is another "
            "one, so its measurement is shown and not judged."
        )
    if machine.is_device:
        return "Measured on the profile's device."
    if check.name in _SAME_EVERYWHERE:
        return "Measured; the same on every machine."
    return f"Measured on {machine.cpu or 'another machine'}, which is not the profile's device."


def _judged(check: Check) -> float | None:
    return check.measured if check.basis == "measured" else check.predicted


def _bar(check: Check) -> Bar | None:
    """The judged value against the limit; None where there is no finite value to draw."""
    judged = _judged(check)
    if not _drawable(judged):
        return None
    predicted = check.predicted if check.basis == "measured" else None
    drawn = [value for value in (judged, check.limit, predicted) if value is not None and _drawable(value)]
    scale = 1.12 * max(drawn)
    if scale == 0:
        return None

    def place(value: float | None) -> float | None:
        return round(100 * value / scale, 2) if value is not None and _drawable(value) else None

    return Bar(value=place(judged) or 0.0, limit=place(check.limit), predicted=place(predicted))


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
