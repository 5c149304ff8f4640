"""What measuring a model on calibration text gave: everything a plan needs besides wishes. `measured.json`."""

from __future__ import annotations

from edgegen.records.base import Record
from edgegen.records.plan import VocabularyChoice


class Measured(Record, frozen=True):
    """Prices of every grid of every tensor, and of smaller vocabularies. Independent of budgets.

    `importance.npz` beside it holds the importance weights, `vocabularies.npz` the kept ids of each trimmed choice.
    """

    schema: int
    kl: dict[str, dict[str, float]]
    """Tensor name → grid → nats per token; of an encoder, fall of the cosine similarity. The same unit throughout."""
    factors: dict[str, float]
    """Grid → whole-model KL over the sum of its tensors'; already in `kl`."""
    floor: float
    """KL of the runtime's int8 activations alone."""
    vocabularies: tuple[VocabularyChoice, ...]
    """The whole vocabulary first."""
    calibration_tokens: int
    scored_tokens: int
    notes: tuple[str, ...] = ()
