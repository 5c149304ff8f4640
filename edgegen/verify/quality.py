"""Distances between two distributions over many tokens, with intervals.

Definitions are those of llama.cpp's perplexity tool: mean KL(P_original || Q_artifact) in nats per token, same top-1,
ln(PPL(Q)/PPL(base)). Intervals are 95 % percentile bootstraps over windows (Efron 1979), because tokens of one window
depend on each other.

T counted tokens, W windows, K vocabulary entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.records.reference import Reference, ReferenceWindow
from edgegen.records.report import Interval, Parity, Quality

Floats = NDArray[np.float64]
_RESAMPLES = 1000


class TokenScores(msgspec.Struct):
    """Per counted token; arrays grow window by window."""

    kl: list[Floats]
    top1: list[Floats]
    nats: list[Floats]
    original_nats: list[Floats]
    lost_nats: list[Floats]
    bytes: list[int]


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """(T, K) logits → log-probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def counted_positions(window: ReferenceWindow) -> NDArray[np.int64]:
    """Positions whose next-token prediction counts, ascending."""
    return np.concatenate([np.arange(start, end) for start, end in window.counts])


def empty_scores() -> TokenScores:
    """Nothing scored yet."""
    return TokenScores(kl=[], top1=[], nats=[], original_nats=[], lost_nats=[], bytes=[])


def add_window(
    scores: TokenScores, window: ReferenceWindow, original: NDArray[np.floating], logits: NDArray[np.float32]
) -> None:
    """Compare one window.

    Args:
        scores: mutated.
        original: (T, K) log-probabilities of the original at the counted positions, not renormalised.
        logits: (L, K) of the artifact at all positions.
    """
    positions = counted_positions(window)
    targets = np.asarray(window.ids)[positions + 1]
    reference = original.astype(np.float64)
    kept = np.logaddexp.reduce(reference, axis=1)
    p = reference - kept[:, None]
    q = log_softmax(logits[positions])
    rows = np.arange(len(positions))
    scores.kl.append(np.maximum(0.0, (np.exp(p) * (p - q)).sum(axis=1)))
    scores.top1.append((p.argmax(axis=1) == q.argmax(axis=1)).astype(np.float64))
    scores.nats.append(-q[rows, targets])
    scores.original_nats.append(-reference[rows, targets])
    # float16 storage leaves the whole mass a few ten-thousandths off 1 even when nothing was dropped.
    scores.lost_nats.append(np.maximum(0.0, -kept))
    scores.bytes.append(window.bytes)


def summarize_quality(scores: TokenScores, reference: Reference) -> Quality:
    """All windows together."""
    sizes = np.array([len(part) for part in scores.kl], dtype=np.float64)
    spelled = np.array(scores.bytes, dtype=np.float64)
    every = np.concatenate(scores.kl)
    nats = np.array([part.sum() for part in scores.nats])
    original = np.array([part.sum() for part in scores.original_nats])
    lost = np.concatenate(scores.lost_nats).mean() if reference.trimmed else 0.0
    return Quality(
        tokens=int(sizes.sum()),
        windows=len(sizes),
        kl=ratio_interval(np.array([part.sum() for part in scores.kl]), sizes),
        kl_median=float(np.median(every)),
        kl_p99=float(np.quantile(every, 0.99)),
        kl_p999=float(np.quantile(every, 0.999)),
        top1_fraction=ratio_interval(np.array([part.sum() for part in scores.top1]), sizes),
        ln_ppl_ratio=ratio_interval(nats - original, sizes),
        bits_per_byte=ratio_interval(nats / math.log(2), spelled),
        original_bits_per_byte=reference.original_bits_per_byte,
        renormalised=reference.trimmed,
        lost_mass_nats=float(lost),
    )


def ratio_interval(totals: Floats, sizes: Floats, *, seed: int = 0) -> Interval:
    """Σ totals / Σ sizes with a 95 % percentile bootstrap over the entries.

    Args:
        totals, sizes: (W,); sizes > 0. One entry gives an interval of no width.
    """
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(totals), size=(_RESAMPLES, len(totals)))
    means = totals[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(value=float(totals.sum() / sizes.sum()), low=float(low), high=float(high))


def compare_parity(pairs: Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Parity:
    """The artifact's logits against the torch model's with the same rounded weights; (L, K) pairs."""
    tokens = same = 0
    largest = kl = 0.0
    for expected, found in pairs:
        p, q = log_softmax(expected), log_softmax(found)
        kl += float((np.exp(p) * (p - q)).sum())
        # Logits are defined up to a constant per position, so their means are taken out first.
        centred = (expected - expected.mean(-1, keepdims=True)) - (found - found.mean(-1, keepdims=True))
        largest = max(largest, float(np.abs(centred).max()))
        same += int((expected.argmax(-1) == found.argmax(-1)).sum())
        tokens += len(expected)
    return Parity(
        tokens=tokens,
        top1_fraction=same / max(1, tokens),
        max_abs_logit_difference=largest,
        kl=max(0.0, kl / max(1, tokens)),
    )
