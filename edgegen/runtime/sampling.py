"""Choose the next token from logits: once, for every runtime.

In this order, as llama.cpp does: repetition penalty (Keskar et al. 2019), top-k, top-p (Holtzman et al. 2020), min-p
(Nguyen et al. 2024), temperature. (transformers divides by the temperature first, so its top-p keeps other tokens.)
Temperature 0 is greedy. Where equal logits stand at a limit, lower ids are kept.

A draw adds up probabilities in the order of ids, not of likeliness: runtimes' logits differ in their last digits, and
two tokens that change places must not change what a seed draws.

V vocabulary entries, K of them kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError, DeviceError
from edgegen.records.base import Record


class Sampling(Record, frozen=True):
    """How tokens are chosen. The defaults are greedy."""

    temperature: float = 0.0
    """0: the most likely token; 1: the model's own distribution."""
    top_k: int = 0
    """Only the k most likely; 0: all."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this probability, in (0, 1]."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the most likely, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive logits, multiplies negative ones, of tokens seen in prompt or answer; 1: off."""
    seed: int | None = None
    """Of the draws; None: a new one each time."""


GREEDY = Sampling()

_NUCLEUS = 512
"""Most likely tokens that are looked at first for top-p: sorting a whole vocabulary takes a small board longer than
running a small model."""


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        """Begin an answer.

        Raises:
            ConfigError: a number outside its range.
        """
        _check(sampling)
        self._sampling = sampling
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else set()
        self._dice = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token of (V,) logits, which are not changed.

        Raises:
            DeviceError: the largest logit is not finite.
        """
        wish = self._sampling
        if wish.repetition_penalty != 1:
            logits = logits.astype(np.float32, copy=True)
            seen = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / wish.repetition_penalty, values * wish.repetition_penalty)
        token = int(logits.argmax())
        if not np.isfinite(logits[token]):  # argmax stops at the first NaN
            raise DeviceError(f"the runtime computes {logits[token]} from these weights")
        if wish.temperature > 0:
            token = self._draw(logits, float(logits[token]))
        if wish.repetition_penalty != 1:
            self._seen.add(token)
        return token

    def _draw(self, logits: NDArray[np.float32], largest: float) -> int:
        wish = self._sampling
        kept = _largest(logits, wish.top_k) if 0 < wish.top_k < len(logits) else np.arange(len(logits))
        shifted = logits[kept].astype(np.float64) - largest
        if wish.top_p < 1:
            cut = _nucleus(np.exp(shifted), wish.top_p)
            kept, shifted = kept[cut], shifted[cut]
        if wish.min_p > 0:
            cut = np.flatnonzero(shifted >= np.log(wish.min_p))
            kept, shifted = kept[cut], shifted[cut]
        total = np.cumsum(np.exp(shifted / wish.temperature))
        index = int(np.searchsorted(total, self._dice.random() * total[-1], side="right"))
        return int(kept[min(index, len(kept) - 1)])


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest, in ascending order; of equal ones the first."""
    limit = np.partition(values, len(values) - count)[len(values) - count]
    above, equal = np.flatnonzero(values > limit), np.flatnonzero(values == limit)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _nucleus(share: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Places, in ascending order, of the fewest and largest shares that together reach `top_p` of all."""
    wanted = top_p * share.sum()
    places = _largest(share, min(_NUCLEUS, len(share)))
    if share[places].sum() < wanted:
        places = np.arange(len(share))
    order = places[np.argsort(-share[places], kind="stable")]
    before = np.cumsum(share[order]) - share[order]
    return np.sort(order[before < wanted])


def _check(sampling: Sampling) -> None:
    rules = {
        "temperature": (0 <= sampling.temperature < np.inf, "0 or more"),
        "top_k": (sampling.top_k >= 0, "0 or more"),
        "top_p": (0 < sampling.top_p <= 1, "above 0 and at most 1"),
        "min_p": (0 <= sampling.min_p <= 1, "from 0 to 1"),
        "repetition_penalty": (0.01 <= sampling.repetition_penalty <= 100, "from 0.01 to 100"),
        "seed": (sampling.seed is None or sampling.seed >= 0, "0 or more"),
    }
    for name, (holds, words) in rules.items():
        if not holds:  # NaN holds nowhere
            raise ConfigError(f"{name} is {getattr(sampling, name)}; it must be {words}")
