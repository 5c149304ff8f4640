"""A compressed model on disk, before it is written for a runtime."""

from __future__ import annotations

from edgegen.records.base import Record
from edgegen.records.model import ModelSummary


class PackedTensor(Record, frozen=True):
    """One tensor in `weights.bin`: rows packed in a grid, in the checkpoint's own row order."""

    name: str
    grid: str
    rows: int
    columns: int
    offset: int
    """First byte in `weights.bin`."""
    bytes: int


class Rounding(Record, frozen=True):
    """How much rounding cost the matrices' outputs, beside the least that any code of as many bits could cost (see
    `modeling.distortion`). Matrices of 16 bits a weight and more are left out. Means are by weights."""

    bits_per_weight: float
    error_fraction: float
    """E‖(W - Q) x‖² over E‖W x‖²; where no inputs were seen, over weights alone."""
    gap_db: float
    """The error over its bound, in decibels; 6.02 are one bit a weight."""


class Compressed(Record, frozen=True):
    """A folder with `weights.bin`, the (possibly trimmed) tokenizer, the configuration and this record.

    Structure shows in the tensors: a linear layer `X.weight` that was factorised is stored as `X.0.weight` (r, inputs)
    and `X.1.weight` (outputs, r), applied one after the other; feed-forward widths may differ from layer to layer.
    """

    schema: int
    summary: ModelSummary
    tensors: tuple[PackedTensor, ...]
    digest: str
    """`sha256:` of `weights.bin`."""
    steps: tuple[str, ...]
    """What was done, in words, in order."""
    files: tuple[str, ...]
    """Files beside `weights.bin` that travel into the artifact."""
    notes: tuple[str, ...] = ()
    lineage: str = ""
    """The plan's."""
    rounding: Rounding | None = None
    """None: no matrix lost anything."""
    shared: dict[str, str] = {}
    """Tensor that is not stored → the stored tensor whose weights it uses too."""
