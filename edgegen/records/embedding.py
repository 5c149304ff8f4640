"""One text as an encoder's artifact encoded it."""

from __future__ import annotations

from edgegen.records.base import Record


class Similarity(Record, frozen=True):
    """Another text, and how close it is."""

    text: str
    cosine: float


class Embedding(Record, frozen=True):
    """What `edgegen run` prints for an encoder with `--json`."""

    text: str
    tokens: int
    """Special tokens included."""
    was_cut: bool
    """Whether the text was longer than the encoder reads."""
    vector: tuple[float, ...]
    norm: float
    """Length of the vector; 1 where the encoder normalises."""
    ms: float
    """Wall time for this text, without loading."""
    runtime: str
    similar: tuple[Similarity, ...] = ()
    """Other texts that were given, the closest first."""
