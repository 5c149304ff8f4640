"""What was made, and from what: entries of the registry."""

from __future__ import annotations

from edgegen.records.base import Record

KINDS = ("data", "model", "plan", "artifact", "evaluation", "release")


class Entry(Record, frozen=True):
    """One data set, model, plan, artifact, evaluation or release."""

    id: str
    """The first 12 digits of its digest."""
    kind: str
    """`data`, `model`, `plan`, `artifact`, `evaluation` or `release`."""
    name: str
    path: str
    digest: str
    parents: tuple[str, ...] = ()
    """Digests of what it is made from, found here or not."""
    parent_names: tuple[str, ...] = ()
    """What those are called, in the same order."""
    metrics: dict[str, float] = {}
    created: str = ""
    by: str = ""
    lineage: str = ""
    note: str = ""
    also: str = ""
    """Another digest that it is known by; of an artifact, that of all its files."""
