"""A golden prompt asked again: before a release serves, and now and then while it does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgegen.records.base import Record
from edgegen.records.bundle import Golden

if TYPE_CHECKING:
    from edgegen.runtime.base import Session


class Answered(Record, frozen=True):
    """One golden prompt."""

    prefix: int
    """Tokens that agree from the start."""
    log_prob: float
    """Mean of the expected tokens, nats; -1e9 where the runtime computes no number."""
    tokens: tuple[int, ...] = ()
    """What came."""
    tokens_per_s: float | None = None
    """Of the tokens after the first; None with fewer than two."""


def ask_golden(session: Session, golden: Golden) -> Answered:
    """Answer a golden prompt and score the answer that is expected.

    Raises:
        ConfigError: it does not fit this model.
        DeviceError: the runtime could not compute.
    """
    import numpy as np  # not in the agent's own process, which stays small

    made, times = list[int](), list[float]()
    for token in session.generate(golden.ids, max_tokens=len(golden.tokens)):
        made.append(token)
        times.append(time.perf_counter())
    logits = session.score([*golden.ids, *golden.tokens])[len(golden.ids) - 1 : -1].astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(golden.tokens)), list(golden.tokens)]
    mean = float((chosen - np.log(np.exp(shifted).sum(axis=1))).mean()) if golden.tokens else 0.0
    speed = (len(made) - 1) / (times[-1] - times[0]) if len(made) > 1 and times[-1] > times[0] else None
    return Answered(
        prefix=agreement(made, golden.tokens),
        log_prob=mean if np.isfinite(mean) else -1e9,
        tokens=tuple(made),
        tokens_per_s=speed,
    )


def agreement(made: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens from the start that are the same."""
    same = [a == b for a, b in zip(made, expected, strict=False)]
    return same.index(False) if False in same else len(same)
