"""What training a restructured model back towards its original took and gave."""

from __future__ import annotations

from edgegen.records.base import Record


class HealedLayers(Record, frozen=True):
    """Layers that learnt together, each what the original gives at its place."""

    layers: tuple[int, ...]
    """Of the restructured model."""
    steps: int
    before: float
    """Mean squared error of the held-out hidden states, as a share of their squared norm."""
    after: float
    """Of the weights that were kept, never above `before`."""


class Healed(Record, frozen=True):
    """One healing. Divergences are the mean KL of the original's predictions to the model's on held-out text, nats per
    token.
    """

    tokens: int
    """Counted predictions that were learnt from, with repetitions: `blockwise_tokens` and those of the whole model."""
    seconds: float
    """All that was spent, with what earlier calls did."""
    kl_before: float
    kl_after: float
    """Of the weights that the model has now; `kl_before` if none better were found."""
    kept: bool
    """Whether the model has other weights than before."""
    blockwise_tokens: int = 0
    """That every changed layer learnt from."""
    kl_blockwise: float | None = None
    """After layers had learnt by themselves; None: none did."""
    layers: tuple[HealedLayers, ...] = ()


class HalvingRound(Record, frozen=True):
    """A round of successive halving."""

    tokens: int
    """That each candidate was healed with in this round; 0: the scores before any healing."""
    scores: dict[str, float | None]
    """Candidate → score after the round; less is better, None: not a finite number."""


class Halving(Record, frozen=True):
    """Several candidates that were healed against each other."""

    ranking: tuple[str, ...]
    """Best first: by the scores of the last round that each was in."""
    rounds: tuple[HalvingRound, ...]
    tokens: int
    """Spent in all."""
