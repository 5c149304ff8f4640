"""One model made for several runtimes of one device, side by side. `bakeoff.json`."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record
from edgegen.records.model import Task


class Contender(Record, frozen=True):
    """What one target came to."""

    target: str
    passed: bool
    """Whether an artifact was made that keeps every limit."""
    failure: str = ""
    """Why there is no artifact, or which limits it misses; empty when it passed."""
    exit_code: int = 0
    """What compressing for this target alone would have exited with."""
    runtime: str = ""
    bytes: int | None = None
    kl: float | None = None
    """Measured mean KL to the original, a trimmed vocabulary's lost mass included, nats per token; of an encoder, 1 -
    mean cosine similarity."""
    rss_bytes: int | None = None
    """Measured peak resident memory on the machine that verified."""
    predicted_tokens_per_s: float | None = None
    """On the profile's device."""
    measured_tokens_per_s: float | None = None
    """On the machine that verified."""
    load_ms: float | None = None
    ttft_ms: float | None = None


class SameWeights(Record, frozen=True):
    """What several targets have in common after `--common-grid`."""

    targets: tuple[str, ...]
    tensors: int
    """All of the model's."""
    digest: str
    """`sha256:` of the float32 numbers that every target's packed tensors stand for."""


class ParityPair(Record, frozen=True):
    """Two ways to compute the same prompts, compared position by position."""

    first: str
    """`torch` (with the second's rounded weights) or a target."""
    second: str
    mode: Literal["strict", "shipped"]
    """`strict`: no rounding of activations; `shipped`: as a device runs it."""
    tokens: int = 0
    kl: float | None = None
    """Mean KL of the second to the first, nats per token; of encoders, 1 - mean cosine similarity."""
    top1_fraction: float | None = None
    greedy_prefix: int | None = None
    """Tokens of a greedy continuation that agree, the least over the prompts."""
    greedy_tokens: int | None = None
    logit_difference: float | None = None
    """Largest difference of one logit; of two targets only, and not of encoders."""
    missing: str = ""
    """Why the two were not compared."""


class BakeOff(Record, frozen=True):
    """The result of `edgegen compress --target A,B,C`."""

    schema: int
    model: str
    profile: str
    created: str
    """UTC, ISO 8601."""
    command: str
    contenders: tuple[Contender, ...]
    pairs: tuple[ParityPair, ...]
    recommended: str
    """The target to ship, empty if none passed."""
    why: str
    fastest: str
    """Among those that passed, by the speed that counts: measured on the device itself, else predicted for it."""
    smallest: str
    best_quality: str
    task: Task = "causal"
    same_weights: SameWeights | None = None
    """None: each target was rounded by itself."""

    @property
    def logit_difference(self) -> float | None:
        """Largest difference of one logit between two targets in strict mode; None where none were compared."""
        found = [p.logit_difference for p in self.pairs if p.mode == "strict" and p.logit_difference is not None]
        return max(found, default=None)
