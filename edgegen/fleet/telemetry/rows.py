"""A report's item as a row: the columns of its table (`schema.REPORTS`) after the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from edgegen.fleet.telemetry.limits import bounded
from edgegen.fleet.telemetry.schema import REPORTS, Flag
from edgegen.fleet.transaction import Value
from edgegen.records import telemetry as wire

REPETITIVE = 0.5
"""Share of repeated 4-grams from which an answer is `Flag.REPEAT`."""

_HEAD = "cursor, stream, seq, device, at_s, received_s, late"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of report."""

    table: str
    row: Callable[[Any], tuple[Value, ...]]
    """Item → values of its columns; of generations without `served` and `flags`, which need the store."""
    insert: str


def _columns(table: str) -> list[str]:
    return [column.split()[0] for column in REPORTS[table].split(",")]


def _insert(table: str) -> str:
    columns = [*_HEAD.split(", "), *_columns(table)]
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT DO NOTHING"


def flags_of(item: wire.Generation, low_log_prob: float) -> int:
    """What is conspicuous about an answer.

    Args:
        low_log_prob: nats a token below which an answer counts as unlikely.
    """
    found = 0
    features = item.features
    if features is not None:
        if features.refusal:
            found |= Flag.REFUSE
        if features.repetition >= REPETITIVE:
            found |= Flag.REPEAT
        if features.leaked:
            found |= Flag.LEAK
        if features.empty:
            found |= Flag.EMPTY
        if features.json_valid is False:
            found |= Flag.BADJSON
    if item.stop == "length":
        found |= Flag.LENGTH
    if item.error or item.stop == "error":
        found |= Flag.ERROR
    if item.mean_log_prob is not None and item.mean_log_prob < low_log_prob:
        found |= Flag.LOW
    return int(found)


def _bit(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _generation(item: wire.Generation) -> tuple[Value, ...]:
    features = item.features
    numbers: tuple[Value, ...] = (None, None, None, None, None, None)
    if features is not None:
        numbers = (
            *(features.characters, features.repetition, features.distinct2, features.non_letter_fraction),
            *(features.script, _bit(features.json_valid)),
        )
    return (
        *(item.prompt_tokens, item.answer_tokens, item.stop, item.error, item.queue_s, item.ttft_s),
        *(item.tokens_per_s, item.threads, item.mean_log_prob, item.mean_entropy, item.distinct_fraction),
        *(item.byte_fraction, _json(item.missing) if item.missing else "", item.rss_bytes, item.peak_rss_bytes),
        *(item.temperature_c, _bit(item.throttled)),
        *numbers,
    )


def _sample(item: wire.Sample) -> tuple[Value, ...]:
    return (
        *(item.generation, item.release, item.prompt, item.answer, str(item.level), item.why),
        *(item.redactions, int(item.cut)),
    )


def _feedback(item: wire.Feedback) -> tuple[Value, ...]:
    return item.generation, item.rating, item.comment


def _embedding(item: wire.Embedding) -> tuple[Value, ...]:
    return item.release, item.what, item.n, _json(item.mean), _json(item.variance)


def _canary(item: wire.Canary) -> tuple[Value, ...]:
    return (
        *(item.release, item.prompt, item.agreed, item.expected, item.log_prob_drop, item.tokens_per_s),
        *(_bit(item.intact), _json(item.ids)),
    )


def _health(item: wire.Health) -> tuple[Value, ...]:
    return (
        *(item.release, item.uptime_s, item.load_s, item.rss_bytes, item.peak_rss_bytes, item.temperature_c),
        *(_bit(item.throttled), item.free_bytes, item.free_ram_bytes, item.spool_reports, item.spool_bytes),
        str(item.privacy),
    )


def _happening(item: wire.Happening) -> tuple[Value, ...]:
    return item.level, item.what, item.detail, item.release, ""


def _dropped(item: wire.Dropped) -> tuple[Value, ...]:
    return item.lane, item.count, item.first_seq, item.last_seq, item.why


KINDS: dict[type, Kind] = {
    bounded(said): Kind(table, row, _insert(table))
    for said, table, row in (
        (wire.Generation, "generations", _generation),
        (wire.Sample, "samples", _sample),
        (wire.Feedback, "feedback", _feedback),
        (wire.Embedding, "embeddings", _embedding),
        (wire.Canary, "canaries", _canary),
        (wire.Health, "health", _health),
        (wire.Happening, "events", _happening),
        (wire.Dropped, "dropped", _dropped),
    )
}
"""Class of a decoded item (`limits.bounded`) → what becomes of it."""
HEALTH_COLUMNS = tuple(_columns("health"))
