"""How a model is trained."""

from __future__ import annotations

from edgegen.records.base import Record


class Options(Record, frozen=True):
    """Of one run. Whatever decides the result is part of what a resumed run must share."""

    steps: int
    batch: int = 16
    """Sequences a step, all processes together."""
    micro_batch: int = 0
    """Sequences that are in memory at once, for each process; 0: all of its part. The result does not depend on it."""
    rate: float = 2e-4
    """Highest learning rate."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises."""
    least_rate: float = 0.05
    """Share of `rate` that the cosine ends at."""
    weight_decay: float = 0.01
    """Of matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Longest gradient."""
    max_tokens: int = 512
    """Longest sequence."""
    packed: bool = False
    """Several short examples share a sequence; they do not see each other."""
    seed: int = 0
    evaluate_every: int = 0
    """Steps between looks at the held-out loss; 0: ten times in the run."""
    patience: int = 0
    """Looks without a better held-out loss before it stops; 0: it does not stop early."""
    save_every: int = 0
    """Steps between checkpoints; 0: with each look."""
    bf16: bool | None = None
    """Compute in bfloat16; None: on GPUs."""
    max_seconds: float = 0.0
    """Stop after this time; 0: no limit."""

    @property
    def look_every(self) -> int:
        """Steps between looks at the held-out loss."""
        return self.evaluate_every or max(1, self.steps // 10)

    @property
    def keep_every(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or self.look_every
