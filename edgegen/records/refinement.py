"""What tuning rounded weights as a whole took and gave."""

from __future__ import annotations

from edgegen.records.base import Record


class Refinement(Record, frozen=True):
    """Of one plan's weights. Divergences are the mean KL of the original's predictions to the rounded model's on text
    that neither learning nor stopping saw, with the runtime's rounding of activations, nats per token.
    """

    steps: int
    tokens: int
    """Counted predictions that were learnt from, with repetitions."""
    seconds: float
    """All that was spent, with what calls that were cut off did."""
    tensors: int
    """That learnt."""
    kl_before: float
    kl_after: float
    """Of the weights that are used; `kl_before` if none better were found."""
    kept: bool
    """Whether other weights than before are used."""
    digest: str = ""
    """Of those weights: `sha256:…`."""


class Refined(Record, frozen=True):
    """`refinement.json` in a folder of tuned weights."""

    schema: int
    refinement: Refinement
    grids: dict[str, str]
    """Tensor name → grid, of the tensors that are kept in the folder."""
