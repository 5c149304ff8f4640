"""How a release's answers look when it is packed: histograms that are signed with it, the baseline of drift.

Every metric is computed the same way on the machine that packs a release and, of each answer, on the device
(`runtime.features`, `runtime.likelihood`). The prompts are answered as the device's API answers by default, sampled at
temperature 1 from a seed, not greedily: greedy answers are much likelier, so every window of a real device would differ
from them. They are cut after `edgegen.bundle.golden.PROFILE_TOKENS`; longer answers of devices fall into the last bin
of `answer_tokens`.

What only a device can know (errors, feedback, speed) is not in it; neither are JSON answers, which nobody asks for
here. Those are compared between a new release and the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgegen.records.base import Record
from edgegen.records.bundle import ReferenceProfile
from edgegen.records.telemetry import Features

EDGES: dict[str, tuple[float, ...]] = {
    "prompt_tokens": (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048),
    "byte_fraction": (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4),
    "answer_tokens": (1, 2, 4, 8, 16, 32, 64, 96),
    "characters_per_token": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0),
    "mean_log_prob": (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.75, -0.5, -0.25, -0.1),
    "mean_entropy": (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "distinct_fraction": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "distinct2": (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99),
    "repetition": (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    "non_letter_fraction": (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8),
    "empty": (0.5,),
    "refusal": (0.5,),
    "leaked": (0.5,),
}
"""Metric of an answer → edges of its histogram: tokens; characters a token; nats a token; fractions; 0 or 1."""
INPUTS = ("prompt_tokens", "byte_fraction")
"""What is about the prompt and not the answer."""


class Answer(Record, frozen=True):
    """One answer in numbers; None where the metric has no value, as for an answer without tokens."""

    prompt_tokens: int
    answer_tokens: int
    features: Features
    mean_log_prob: float | None = None
    mean_entropy: float | None = None
    distinct_fraction: float | None = None
    byte_fraction: float | None = None


def metrics_of(answer: Answer) -> dict[str, float | None]:
    """Metric → its value, for every metric of `EDGES`."""
    text, tokens = answer.features, answer.answer_tokens
    return {
        "prompt_tokens": answer.prompt_tokens,
        "byte_fraction": answer.byte_fraction,
        "answer_tokens": tokens,
        "characters_per_token": text.characters / tokens if tokens else None,
        "mean_log_prob": answer.mean_log_prob,
        "mean_entropy": answer.mean_entropy,
        "distinct_fraction": answer.distinct_fraction,
        "distinct2": text.distinct2,
        "repetition": None if text.empty else text.repetition,
        "non_letter_fraction": text.non_letter_fraction,
        "empty": float(text.empty),
        "refusal": float(text.refusal),
        "leaked": float(text.leaked),
    }


def profile(answers: Sequence[Answer]) -> ReferenceProfile:
    """Histograms of the metrics that any of the answers has."""
    rows = [metrics_of(answer) for answer in answers]
    counts: dict[str, tuple[int, ...]] = {}
    for metric, edges in EDGES.items():
        values = [value for row in rows if (value := row[metric]) is not None]
        if values:
            places = np.searchsorted(edges, values, side="right")
            counts[metric] = tuple(int(count) for count in np.bincount(places, minlength=len(edges) + 1))
    return ReferenceProfile(edges={metric: EDGES[metric] for metric in counts}, counts=counts)
