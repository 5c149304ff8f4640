"""A data set that was built: rows, splits, and where each row comes from.

    data/
      dataset.json         `Dataset`
      train.jsonl validation.jsonl test.jsonl      a `Row` a line
      card.md report.json bias.png                 what a person reads

Its name is its content: the same sources and steps give the same digest anywhere.
"""

from __future__ import annotations

from edgegen.records.base import Record

DATASET_FILE = "dataset.json"
SPLITS = ("train", "validation", "test")


class Label(Record, frozen=True):
    """What was said of a row."""

    value: str
    by: str
    """A person, or the labelling function."""
    confidence: float = 1.0


class Row(Record, frozen=True):
    """One example with its history."""

    id: str
    """The first 16 digits of the SHA-256 of its content as it was read."""
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) pairs."""
    completion: bool = False
    """The last message is an answer to learn and to score."""
    weight: float = 1.0
    """How much it counts in training; re-weighting sets it."""
    labels: dict[str, Label] = {}
    source: str = ""
    """`name#number`: the source and the row's number in it, from 1."""
    touched: tuple[str, ...] = ()
    """Steps that changed it, in order."""
    made_by: str = ""
    """Of synthetic rows: the teacher and the prompt's version."""
    parents: tuple[str, ...] = ()
    """Of synthetic rows: ids of the seeds that were shown."""


class SourceRef(Record, frozen=True):
    """Where rows come from."""

    name: str
    digest: str
    rows: int
    license: str = ""
    note: str = ""


class StepDone(Record, frozen=True):
    """What a step did."""

    name: str
    rows_in: int
    rows_out: int
    changed: int = 0
    settings: dict[str, str] = {}
    dropped: dict[str, int] = {}
    """Reason → rows."""
    note: str = ""


class SplitRef(Record, frozen=True):
    """One part."""

    name: str
    file: str
    rows: int
    digest: str
    """Over the rows' lines."""


class Dataset(Record, frozen=True):
    """`dataset.json`."""

    schema: int
    name: str
    version: str
    """The first 12 digits of the digest."""
    digest: str
    """Over the splits."""
    created: str
    """UTC, ISO 8601; the only part that differs when it is built again."""
    kind: str
    """text, completion or chat."""
    sources: tuple[SourceRef, ...]
    steps: tuple[StepDone, ...]
    splits: tuple[SplitRef, ...]
    parents: tuple[str, ...] = ()
    """Digests of the data sets that it is made from."""
    decontaminated: tuple[str, ...] = ()
    """Evaluation sets whose texts were removed from `train`."""
    synthetic_rows: int = 0
    weighted: bool = False
    lineage: str = ""
    by: str = ""
    """Who built it."""
