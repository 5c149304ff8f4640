"""What was seen of one answer while it was made: times, tokens, how sure the model was."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import EdgegenError
from edgegen.runtime.likelihood import token_likelihood


@dataclass(eq=False)
class Seen:
    """One answer, written by the model's thread and then handed on."""

    id: str
    prompt: tuple[int, ...]
    wants_json: bool = False
    likelihood_fraction: float = 0.0
    """Most of the time since the first token that likelihoods may take; what is above skips tokens."""
    queue_s: float = 0.0
    begun_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    stop: str = ""
    """`stop`, `length`, `canceled` or `error`."""
    error: EdgegenError | None = None
    foreign: str = ""
    """Name of the exception if it was nobody's of ours; its words may quote the text."""
    _spent_s: float = 0.0
    _measured: int = 0
    _log_prob: float = 0.0
    _entropy: float = 0.0

    def token(self, token: int, logits: NDArray[np.float32]) -> None:
        """A token was chosen from the model's own (V,) logits."""
        now = time.perf_counter()
        if self.first_s is None:
            self.first_s = now
        self.last_s = now
        self.tokens.append(token)
        if self.likelihood_fraction > 0 and self._spent_s <= self.likelihood_fraction * (now - self.first_s):
            log_prob, entropy = token_likelihood(logits, token)
            self._log_prob += log_prob
            self._entropy += entropy
            self._measured += 1
            self._spent_s += time.perf_counter() - now

    @property
    def ttft_s(self) -> float | None:
        """From the model's begin to the first token; None without one."""
        return None if self.first_s is None or self.begun_s is None else self.first_s - self.begun_s

    @property
    def tokens_per_s(self) -> float | None:
        """Of the tokens after the first; None with fewer than two."""
        if self.first_s is None or self.last_s is None or len(self.tokens) < 2 or self.last_s <= self.first_s:
            return None
        return (len(self.tokens) - 1) / (self.last_s - self.first_s)

    @property
    def mean_log_prob(self) -> float | None:
        """Of the tokens that were measured, nats; None if none was."""
        return self._log_prob / self._measured if self._measured else None

    @property
    def mean_entropy(self) -> float | None:
        """Of the distributions that were measured, nats; None if none was."""
        return self._entropy / self._measured if self._measured else None
