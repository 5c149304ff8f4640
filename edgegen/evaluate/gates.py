"""Hold an evaluation against the limits that it must keep.

A limit on something that was not measured is missed, not kept: an evaluation that left it out proves nothing. In a
receipt each gate is a check like any other, so whatever refuses a failing receipt refuses a missed gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgegen.common.codec import load_toml
from edgegen.errors import ConfigError, VerificationError
from edgegen.records.evaluation import Evaluation, Gate, GateLimits, Gates, Metric
from edgegen.records.report import GATE_CHECK, Check, Interval, Report

BIAS_SCORES = (
    "crows_pairs_bias",
    "winobias_bias",
    "stereoset_bias",
    "bbq_bias_ambiguous",
    "bbq_bias_disambiguated",
)
"""Sizes of biases over all categories: 0 is none."""


def load_gates(path: str | Path) -> Gates:
    """Limits from a file; the files that it names are looked for beside it, too.

    Raises:
        ConfigError: no such file, an unknown key, not one limit in it, or a file that it names is not there.
    """
    place = Path(path).expanduser()
    found = load_toml(place, Gates)
    limits = [value for value in msgspec.to_builtins(found.gates).values() if isinstance(value, float)]
    limits += [v for one in found.metrics.values() for v in msgspec.to_builtins(one).values() if v is not None]
    if not limits:
        raise ConfigError(f"{path}: no limit in it", hint="Like `max_bias_rise = 0.05` under [gates].")
    said = found.evaluate
    if said.limit is not None and said.limit < 1:
        raise ConfigError(f"{path}: limit in [evaluate] must be at least 1, not {said.limit}")
    said = msgspec.structs.replace(
        said,
        fairness=tuple(_beside(place, name) for name in said.fairness),
        unsafe=_beside(place, said.unsafe) if said.unsafe else "",
    )
    return msgspec.structs.replace(found, evaluate=said)


def _beside(gates: Path, name: str) -> str:
    for found in (gates.parent / Path(name).expanduser(), Path(name).expanduser()):
        if found.is_file():
            return str(found)
    raise ConfigError(f"{gates}: [evaluate] names {name}, and there is no such file")


def suites_of(gates: Gates) -> tuple[str, ...]:
    """The suites that have to run for the limits, and for what `[evaluate]` names."""
    limits, said = gates.gates, gates.evaluate
    limited = limits.max_toxicity_rise is not None or limits.max_refusal_change is not None
    safety = limited or bool(said.unsafe or said.toxicity_model or {"toxicity", "refusal"} & set(gates.metrics))
    chosen = {"fairness": bool(said.fairness), "safety": safety, "tasks": bool(said.tasks)}
    return ("quality", *(name for name, wanted in chosen.items() if wanted))


def with_gates(report: Report, evaluation: Evaluation | None) -> Report:
    """A receipt with the gates of an evaluation of its artifact as its last checks, in the place of earlier ones."""
    checks = [check for check in report.checks if not check.name.startswith(GATE_CHECK)]
    names = [gate.name for gate in evaluation.gates] if evaluation else []
    for gate in evaluation.gates if evaluation else ():
        more = f"/{gate.metric}" if names.count(gate.name) > 1 else ""
        checks.append(
            Check(
                name=f"{GATE_CHECK}{gate.name}{more}",
                limit=gate.limit,
                measured=gate.measured,
                predicted=None,
                unit="",
                passed=gate.passed,
                detail=gate.detail if gate.measured is None else f"{gate.metric} {gate.detail}",
            )
        )
    return msgspec.structs.replace(report, checks=tuple(checks), passed=all(check.passed for check in checks))


def judge(evaluation: Evaluation, gates: Gates) -> Evaluation:
    """The same evaluation with its gates, each kept or missed."""
    found = (*_usual(evaluation, gates.gates), *_named(evaluation, gates))
    return msgspec.structs.replace(evaluation, gates=found, passed=all(gate.passed for gate in found))


def require_gates(evaluation: Evaluation, gates: Gates | None = None) -> None:
    """Stop where a limit is missed.

    Args:
        gates: hold it against these; None: against those that it was held against when it was made.

    Raises:
        VerificationError: one is; the message names the first and says how many.
    """
    judged = evaluation if gates is None else judge(evaluation, gates)
    missed = [gate for gate in judged.gates if not gate.passed]
    if missed:
        first, source = missed[0], evaluation.model.source
        more = f" (and {len(missed) - 1} more)" if len(missed) > 1 else ""
        raise VerificationError(
            f"{source}: {first.name} {first.limit:g} is missed by {first.metric}: {first.detail}{more}",
            hint="evaluation.json has every number; change the model, or the limit if it is the wrong one.",
        )


def _usual(evaluation: Evaluation, limits: GateLimits) -> Iterator[Gate]:
    interval = limits.judge == "interval"
    if limits.max_bias_rise is not None:
        measured = [name for name in BIAS_SCORES if evaluation.find(name) is not None]
        for name in measured or ["fairness"]:
            yield _gate("max_bias_rise", name, limits.max_bias_rise, evaluation, interval, "rise")
    rises = (("max_toxicity_rise", limits.max_toxicity_rise, "toxicity", "rise"),)
    drops = (
        ("max_exact_match_drop", limits.max_exact_match_drop, "exact_match", "drop"),
        ("max_function_match_drop", limits.max_function_match_drop, "function_match", "drop"),
    )
    values = (
        ("max_refusal_change", limits.max_refusal_change, "refusal", "change"),
        ("max_perplexity_ratio", limits.max_perplexity_ratio, "perplexity", "ratio"),
        ("min_exact_match", limits.min_exact_match, "exact_match", "least"),
        ("min_token_f1", limits.min_token_f1, "token_f1", "least"),
        ("min_json_valid", limits.min_json_valid, "json_valid", "least"),
        ("min_function_match", limits.min_function_match, "function_match", "least"),
        ("min_top1_agreement", limits.min_top1_agreement, "top1_agreement", "least"),
    )
    for name, limit, metric, how in (*rises, *drops, *values):
        if limit is not None:
            yield _gate(name, metric, limit, evaluation, interval, how)


def _named(evaluation: Evaluation, gates: Gates) -> Iterator[Gate]:
    interval = gates.gates.judge == "interval"
    for metric, limits in gates.metrics.items():
        for key, how in (("min", "least"), ("max", "most"), ("max_rise", "rise"), ("max_drop", "drop")):
            limit = getattr(limits, key)
            if limit is not None:
                yield _gate(f"metrics.{metric}.{key}", metric, limit, evaluation, interval, how)


def _gate(name: str, metric: str, limit: float, evaluation: Evaluation, interval: bool, how: str) -> Gate:
    found = evaluation.find(metric)
    seen = _seen(found, how) if found is not None else None
    if seen is None:
        compared = how in ("rise", "drop", "change", "ratio")
        why = "has no teacher to compare with" if compared and evaluation.teacher is None else "was not measured"
        return Gate(name, metric, limit, None, False, f"{metric} {why}")
    if how == "least":
        measured = seen.low if interval else seen.value
        kept, straddles = measured >= limit, seen.low < limit <= seen.high
    else:
        measured = seen.high if interval else seen.value
        kept, straddles = measured <= limit, seen.low <= limit < seen.high
    detail = f"{seen.value:.4g} [{seen.low:.4g}, {seen.high:.4g}]"
    if straddles:
        detail += ", and the limit lies in the interval: more rows would tell"
    return Gate(name, metric, limit, measured, kept, detail)


def _seen(metric: Metric, how: str) -> Interval | None:
    """The interval that a limit is held against; larger is worse but for `least`."""
    if how in ("least", "most"):
        return metric.model
    if how == "ratio":
        mine, its, rise = metric.model, metric.teacher, metric.difference
        if mine is None or its is None or rise is None or its.value <= 0:
            return None
        # The difference's interval is the paired one; over the teacher's value it is that of the ratio less 1.
        return Interval(mine.value / its.value, 1 + rise.low / its.value, 1 + rise.high / its.value)
    rise = metric.difference
    if rise is None:
        return None
    if how == "rise":
        return rise
    if how == "drop":
        return Interval(-rise.value, -rise.high, -rise.low)
    sizes = sorted((abs(rise.low), abs(rise.high)))
    return Interval(abs(rise.value), 0.0 if rise.low <= 0 <= rise.high else sizes[0], sizes[1])
