"""What was changed of a model's structure before its weights are rounded."""

from __future__ import annotations

from edgegen.records.base import Record


class Change(Record, frozen=True):
    """One step of one technique."""

    technique: str
    """A registered technique's name."""
    values: dict[str, tuple[int, ...]]
    """What the technique needs to carry it out, in its own words: removed layers, widths, ranks."""
    words: str
    """For people: `layers 3 to 4 of 8 removed`."""


class Structure(Record, frozen=True):
    """`structure.json` of a derived checkpoint: a folder like any other, but for shapes that its configuration does not
    say and weights that several layers use.

    A linear layer `X.weight` that was cut into two is stored as `X.0.weight` (r, inputs) and `X.1.weight` (outputs, r);
    feed-forward widths are what the stored tensors have.
    """

    schema: int
    base: str
    """Digest of the original."""
    changes: tuple[Change, ...]
    """In the order in which they were made."""
    shared: dict[str, str] = {}
    """Parameter that is not stored → the stored parameter whose weights it uses too."""
    healed_tokens: int = 0
    """Predictions that it was trained on afterwards, to say what the original says."""
