"""Each limit against what was measured, or, for another device's speed, against what was predicted."""

from __future__ import annotations

from edgegen.records.plan import Plan
from edgegen.records.report import Check, Memory, Parity, Quality, Speed, VectorParity, VectorQuality
from edgegen.records.target import Target


def parity_checks(parity: Parity | None, target: Target) -> list[Check]:
    """Is the file what was planned? Larger differences than the runtime's own arithmetic mean a build fault."""
    kl = parity.kl if parity else None
    top1 = parity.top1_fraction if parity else None
    return [
        Check(
            name="parity_kl",
            limit=target.parity_max_kl,
            measured=kl,
            predicted=None,
            unit="nats/token",
            passed=kl is not None and kl <= target.parity_max_kl,
            detail="against the torch model with the same rounded weights",
        ),
        Check(
            name="parity_top1",
            limit=target.parity_min_top1_fraction,
            measured=top1,
            predicted=None,
            unit="fraction",
            passed=top1 is not None and top1 >= target.parity_min_top1_fraction,
            detail="same most likely token",
        ),
    ]


def strict_check(strict: Parity | None, target: Target) -> Check:
    """Without rounding of activations, nothing but the order of additions may differ."""
    kl = strict.kl if strict else None
    return Check(
        name="strict_kl",
        limit=target.strict_max_kl,
        measured=kl,
        predicted=None,
        unit="nats/token",
        passed=kl is not None and kl <= target.strict_max_kl,
        detail="in strict-accuracy mode, against the torch model with the same rounded weights",
    )


MIN_RANK_CORRELATION = 0.95
"""Spearman's correlation of an encoder's similarities with the original's; below, search results differ visibly."""
_SAME_WEIGHTS = "against the torch model with the same rounded weights"


def vector_checks(
    parity: VectorParity | None, quality: VectorQuality | None, target: Target, *, is_strict: bool = False
) -> list[Check]:
    """The same for encoders; in strict mode only the file is judged."""
    if is_strict:
        limit, detail = target.strict_max_distance, f"in strict-accuracy mode, {_SAME_WEIGHTS}"
        return [_distance("strict_distance", limit, parity, detail)]
    ranked = quality.rank_correlation.value if quality else None
    return [
        _distance("parity_distance", target.parity_max_distance, parity, _SAME_WEIGHTS),
        Check(
            name="rank_correlation",
            limit=MIN_RANK_CORRELATION,
            measured=ranked,
            predicted=None,
            unit="correlation",
            passed=ranked is not None and ranked >= MIN_RANK_CORRELATION,
            detail="of the similarities of all pairs of texts with the original's",
        ),
    ]


def _distance(name: str, limit: float, parity: VectorParity | None, detail: str) -> Check:
    found = parity.distance if parity else None
    return Check(
        name=name,
        limit=limit,
        measured=found,
        predicted=None,
        unit="1 - cosine",
        passed=found is not None and found <= limit,
        detail=detail,
    )


def budget_checks(
    plan: Plan,
    *,
    artifact_bytes: int,
    quality: Quality | None,
    speed: Speed | None,
    memory: Memory | None,
    is_device: bool,
    vectors: VectorQuality | None = None,
) -> list[Check]:
    """One check a budget that the plan has."""
    budgets, expected = plan.budgets, plan.prediction
    checks = []
    if budgets.max_bytes is not None:
        checks.append(_at_most("max_bytes", budgets.max_bytes, artifact_bytes, expected.bytes, "bytes"))
    if budgets.max_rss_bytes is not None:
        peak = memory.peak_rss_bytes if memory else None
        checks.append(_at_most("max_rss", budgets.max_rss_bytes, peak, expected.rss_bytes, "bytes"))
    if budgets.max_kl is not None:
        kl = quality.kl.value + quality.lost_mass_nats if quality else None
        predicted = expected.kl + plan.vocabulary.kl
        checks.append(_at_most("max_kl", budgets.max_kl, kl, predicted, "nats/token"))
    if budgets.min_cosine is not None:
        cosine = vectors.cosine.value if vectors else None
        checks.append(
            Check(
                name="min_cosine",
                limit=budgets.min_cosine,
                measured=cosine,
                predicted=1 - expected.kl,
                unit="cosine",
                passed=cosine is not None and cosine >= budgets.min_cosine,
            )
        )
    if budgets.min_tokens_per_s is not None:
        rate = speed.decode_tokens_per_s if speed else None
        checks.append(
            _speed(
                "min_tok_s",
                budgets.min_tokens_per_s,
                rate,
                expected.decode_tokens_per_s,
                "tok/s",
                is_device,
                1,
            )
        )
    if budgets.max_ttft_ms is not None:
        first = speed.ttft_ms if speed else None
        checks.append(_speed("max_ttft", budgets.max_ttft_ms, first, expected.ttft_ms, "ms", is_device, -1))
    return checks


def _at_most(name: str, limit: float, measured: float | None, predicted: float, unit: str) -> Check:
    passed = measured is not None and measured <= limit
    return Check(name=name, limit=limit, measured=measured, predicted=predicted, unit=unit, passed=passed)


def _speed(
    name: str, limit: float, measured: float | None, predicted: float, unit: str, is_device: bool, sign: int
) -> Check:
    """On the device itself the measurement decides; elsewhere the prediction, if the artifact ran at all."""
    judged = measured if is_device else predicted
    return Check(
        name=name,
        limit=limit,
        measured=measured,
        predicted=predicted,
        unit=unit,
        passed=measured is not None and judged is not None and sign * judged >= sign * limit,
        basis="measured" if is_device else "predicted",
        detail="" if is_device else "measured on this machine, judged by the prediction for the device",
    )
