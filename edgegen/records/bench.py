"""How fast artifacts run on a machine, side by side. `bench.json`."""

from __future__ import annotations

from edgegen.records.base import Record
from edgegen.records.report import Machine


class Spread(Record, frozen=True):
    """Over the repeats, each in a process of its own."""

    median: float
    low: float
    high: float
    values: tuple[float, ...] = ()
    """In the order in which they were measured; those of two artifacts at the same place are neighbours in time."""


class PromptSpeed(Record, frozen=True):
    """Reading a prompt of one length, with the model warm."""

    tokens: int
    ttft_ms: Spread
    """Until the last prompt token's logits are there."""
    tokens_per_s: Spread


class BenchRow(Record, frozen=True):
    """One artifact on one runtime with one number of threads."""

    name: str
    target: str
    runtime: str
    version: str
    """The runtime's."""
    threads: int
    bytes: int
    context_tokens: int
    repeats: int = 0
    """How many were measured."""
    load_ms: Spread | None = None
    start_ms: Spread | None = None
    """From opening the file to the first token of the shortest prompt."""
    prompts: tuple[PromptSpeed, ...] = ()
    decode_tokens: int = 0
    """After the shortest prompt."""
    decode_tokens_per_s: Spread | None = None
    peak_rss_bytes: Spread | None = None
    """Of the whole process."""
    error: str = ""
    """Why there are no numbers."""


class Bench(Record, frozen=True):
    """What `edgegen bench` measured."""

    schema: int
    created: str
    """UTC, ISO 8601."""
    seconds: float
    command: str
    version: str
    """edgegen's, on the machine that measured."""
    where: str
    """The other machine's user and name; empty: measured where it was asked for."""
    machine: Machine
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...] = ()
