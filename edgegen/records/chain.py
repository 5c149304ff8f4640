"""The whole way in one file: data → teacher → student → compressed artifact → bundle. `pipeline.toml`."""

from __future__ import annotations

from edgegen.records.base import Record
from edgegen.records.recipe import Recipe

CHAIN_FILE = "chain.json"


class Course(Record, frozen=True, kw_only=True):
    """How long and how fast a step learns."""

    epochs: float = 3.0
    steps: int | None = None
    batch: int = 16
    rate: float | None = None
    max_tokens: int | None = None
    packed: bool = False
    patience: int = 3
    seed: int = 0


class Teach(Course, frozen=True, kw_only=True):
    """`[teacher]`: fine-tune the base model; keys as the options of `edgegen finetune`."""

    method: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0


class Learn(Course, frozen=True, kw_only=True):
    """`[student]`: distill a smaller model; keys as the options of `edgegen distill`."""

    student: str
    loss: str = "skew"
    alpha: float = 0.1
    temperature: float = 1.0
    labels: float = 0.1
    top: int = 0
    on_policy: float = 0.0
    sequence_level: bool = False


class Shrink(Record, frozen=True):
    """`[compress]`: keys as the options of `edgegen compress`."""

    profile: str
    target: str = "gguf"
    max_bytes: int | None = None
    max_rss_bytes: int | None = None
    min_tokens_per_s: float | None = None
    max_ttft_ms: float | None = None
    max_kl: float | None = None
    prefer: str = "auto"
    grids: tuple[str, ...] | None = None
    vocab: str = "auto"
    gates: str | None = None
    """A file of limits that the artifact must keep to be packed."""


class Pack(Record, frozen=True):
    """`[pack]`: keys as the options of `edgegen pack`."""

    keys: str = ""
    name: str = ""
    version: str = ""
    license: str = ""
    runtime: str = ""


class Gates(Record, frozen=True):
    """`[gates]`: what a step has to reach for the next one to begin."""

    max_heldout_loss: float | None = None
    """Of the teacher, nats per token."""
    max_student_loss: float | None = None
    """Of the student, in its own loss."""


class Chain(Record, frozen=True):
    """All of it. Steps without a section are left out."""

    schema: int
    model: str
    """The base model, or the teacher where there is no `[teacher]`."""
    name: str = "pipeline"
    out: str = "pipeline"
    """Folder for every step's result."""
    data: Recipe | None = None
    """`[data]`: as `data.toml`; without it `data_folder` is used."""
    data_folder: str = ""
    """A built data set, or a file of examples."""
    teacher: Teach | None = None
    student: Learn | None = None
    compress: Shrink | None = None
    pack: Pack | None = None
    gates: Gates = Gates()


class StepState(Record, frozen=True):
    """One step of a chain that ran."""

    name: str
    key: str
    """Digest of everything that went into it."""
    out: str
    digest: str
    """Of what it made."""
    summary: str
    seconds: float


class ChainState(Record, frozen=True):
    """`chain.json`: what is done."""

    schema: int
    name: str
    lineage: str
    """One id from data to release."""
    steps: tuple[StepState, ...] = ()
