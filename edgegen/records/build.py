"""What made an output folder: `build.json`."""

from __future__ import annotations

from edgegen.records.base import Record


class StageMark(Record, frozen=True):
    """A finished stage."""

    name: str
    key: str
    """`sha256:` over everything that went into it."""
    outputs: tuple[str, ...]
    seconds: float = 0.0
    """Wall time that it took when it ran."""
    cpu_seconds: float = 0.0
    """Time of all cores together, with the processes that it started."""


class Build(Record, frozen=True):
    """Which stages are done, and by which command."""

    schema: int
    command: str
    version: str
    stages: tuple[StageMark, ...]
