"""How a model is trained."""

from __future__ import annotations

import math

from edgegen.errors import ConfigError
from edgegen.records.base import Record

_LARGEST = 2**63 - 1


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
    worst: float = 0.0
    """Held-out loss, as a multiple of that before the first step, above which it stops; 0: it does not."""
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


def require_options(options: Options) -> None:
    """
    Raises:
        ConfigError: a number out of its range.
    """
    for name, count, least in (
        ("--steps", options.steps, 1),
        ("--batch", options.batch, 1),
        ("--max-tokens", options.max_tokens, 1),
        ("--micro-batch", options.micro_batch, 0),
        ("--patience", options.patience, 0),
        ("evaluate_every", options.evaluate_every, 0),
        ("save_every", options.save_every, 0),
    ):
        if count < least:
            raise ConfigError(f"{name} must be {f'at least {least}' if least else '0 or more'}, not {count}")
        if count > _LARGEST:
            raise ConfigError(f"{name} {count} is too large")
    if not 0 <= options.seed <= _LARGEST:
        raise ConfigError(f"--seed must lie between 0 and {_LARGEST}, not {options.seed}")
    if not (math.isfinite(options.rate) and options.rate > 0):
        raise ConfigError(f"--rate must be a number above 0, not {options.rate:g}")
    if not (math.isfinite(options.max_seconds) and options.max_seconds >= 0):
        raise ConfigError(f"--max-minutes must be 0 or more, not {options.max_seconds / 60:g}")
