"""The text that a model is calibrated and judged on."""

from __future__ import annotations

from edgegen.records.base import Record


class Example(Record, frozen=True):
    """One row after reading: plain text, or a conversation that ends with an answer."""

    text: str = ""
    """Plain text; empty when `messages` is used."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) pairs."""
    completion: bool = False
    """True when the last message is an answer that a task score can compare with."""
    weight: float = 1.0
    """How much it counts in training."""


class DataRef(Record, frozen=True):
    """A data set as it was read and split."""

    source: str
    """A path, a hub id, or `generic` for edgegen's own text."""
    digest: str
    """`sha256:` over the rows' contents, in order."""
    rows: int
    """After exact duplicates and empty rows were left out."""
    calibration_rows: int
    heldout_rows: int
    characters: int
    kind: str
    """text, completion or chat."""
    duplicates: int = 0
    empty: int = 0
    generic: bool = False
    """True when the user gave no data: quality on their own text is unknown."""
