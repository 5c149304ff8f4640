"""Hold an evaluation against the limits that it must keep.

A limit on something that was not measured is missed, not kept: an evaluation that left it out proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgegen.common.codec import load_toml
from edgegen.errors import ConfigError, VerificationError
from edgegen.records.evaluation import Evaluation, Gate, GateLimits, Gates, Metric
from edgegen.records.report import Interval

BIAS_SCORES = (
    "crows_pairs_bias",
    "winobias_bias",
    "stereoset_bias",
    "bbq_bias_ambiguous",
    "bbq_bias_disambiguated",
)
"""Sizes of biases over all categories: 0 is none."""


def load_gates(path: str | Path) -> Gates:
    """Limits from a file.

    Raises:
        ConfigError: no such file, an unknown key, or not one limit in it.
    """
    found = load_toml(Path(path).expanduser(), Gates)
    limits = [value for value in msgspec.to_builtins(found.gates).values() if isinstance(value, float)]
    limits += [v for one in found.metrics.values() for v in msgspec.to_builtins(one).values() if v is not None]
    if not limits:
        raise ConfigError(f"{path}: no limit in it", hint="Like `max_bias_rise = 0.05` under [gates].")
    return found


def judge(evaluation: Evaluation, gates: Gates) -> Evaluation:
    """The same evaluation with its gates, each kept or missed."""
    found = (*_usual(evaluation, gates.gates), *_named(evaluation, gates))
    return msgspec.structs.replace(evaluation, gates=found, passed=all(gate.passed for gate in found))


def require_gates(evaluation: Evaluation, gates: Gates) -> None:
    """Stop where a limit is missed: what `compress` and `deploy` can call.

    Raises:
        VerificationError: one is; the message names the first and says how many.
    """
    missed = [gate for gate in judge(evaluation, gates).gates if not gate.passed]
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
