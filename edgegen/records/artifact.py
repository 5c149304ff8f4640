"""A file that a runtime opens, and what travels with it."""

from __future__ import annotations

from edgegen.records.base import Record
from edgegen.records.plan import Settings


class ArtifactFile(Record, frozen=True):
    path: str
    """Relative to the artifact's folder."""
    bytes: int
    digest: str


class Artifact(Record, frozen=True):
    """The folder that a device needs: model file, tokenizer, chat template, licence, this record."""

    schema: int
    target: str
    model: str
    """Relative path of the model file."""
    files: tuple[ArtifactFile, ...]
    family: str
    parameters: int
    vocab_size: int
    context_tokens: int
    settings: Settings
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    parent: str
    """Digest of the compressed model that it was written from."""
    tokenizer_proof: str
    """How many held-out texts tokenise identically in the runtime and in the original tokenizer, in words."""
    notes: tuple[str, ...] = ()
