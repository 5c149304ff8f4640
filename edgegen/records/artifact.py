"""A file that a runtime opens, and what travels with it."""

from __future__ import annotations

from edgegen.records.base import Record
from edgegen.records.compressed import Rounding
from edgegen.records.model import Task
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
    """Relative path of the file that the runtime opens."""
    model_files: tuple[str, ...]
    """That file and those that it refers to: together they are the artifact's size."""
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
    task: Task = "causal"
    """Whether the runtime continues text with it or turns text into vectors."""
    notes: tuple[str, ...] = ()
    lineage: str = ""
    """The plan's."""
    rounding: Rounding | None = None
    """What rounding its weights cost."""

    @property
    def model_bytes(self) -> int:
        """Size of the model's files."""
        return sum(file.bytes for file in self.files if file.path in self.model_files)
