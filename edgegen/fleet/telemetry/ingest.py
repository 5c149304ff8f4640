"""A batch into the store: each report once, however often it comes.

Everything of a batch is one transaction; `take` gives the answer, which may be sent as soon as that is committed. A
report that the store has is told from a new one by its name, `(device, stream, seq)`, before anything is counted, so
sums are right after any number of repetitions. There is one transaction at a time on either database, so nothing comes
in between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edgegen.fleet.request_error import RequestError
from edgegen.fleet.schema import next_id
from edgegen.fleet.telemetry.batches import Incoming, Line
from edgegen.fleet.telemetry.clocks import Clocks
from edgegen.fleet.telemetry.rows import HEALTH_COLUMNS, KINDS, Kind, flags_of
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.records.bundle import Manifest, ReferenceProfile
from edgegen.records.telemetry import Ack, Generation, Report

TTFT_EDGES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
SPEED_EDGES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""Upper edges of the buckets in `totals`: seconds to the first token, tokens a second."""
_MOST_STREAMS = 10_000
"""Of a device: it starts a new one only when its spool is lost."""
_CHUNK = 500
_LOW_FRACTION = 0.02
_LEAST_REFERENCE = 50
_LOW_LOG_PROB = -2.5
"""Nats a token: a geometric mean of 8 % a token, where the release says nothing of its own."""


@dataclass(frozen=True, slots=True)
class _Served:
    id: int
    low_log_prob: float
    label: str
    """The release if the server knows it, else empty: strangers' digests are no names of metrics."""


def take(tx: Transaction, received_s: float, device: Row, incoming: Incoming) -> Ack:
    """Keep what is new of a batch.

    Args:
        received_s: when it came, seconds since 1970.
        device: its row of `devices`.

    Raises:
        RequestError: 409, the device has started too many streams.
    """
    batch = incoming.batch
    name, clocks = str(device["device"]), Clocks.of(batch, received_s)
    stream = _stream(tx, name, batch.stream)
    by_kind: dict[type, dict[int, Report]] = defaultdict(dict)
    for report in incoming.reports:
        by_kind[type(report.item)].setdefault(report.seq, report)
    totals: dict[tuple[str, str], float] = defaultdict(float)
    stored = 0
    fresh: dict[str, list[tuple[Report, float]]] = {}
    for item_type, reports in by_kind.items():
        kind = KINDS[item_type]
        for seq in _known(tx, kind.table, stream, sorted(reports)):
            del reports[seq]
        if not reports:
            continue
        rows = _Rows(tx, kind, clocks, (stream, name), totals)
        placed = rows.insert(list(reports.values()), clean=incoming.nul)
        fresh[kind.table] = placed
        stored += len(placed)
    known = len(incoming.reports) - stored
    _note_device(tx, name, clocks, (stored, known, len(incoming.refused)), fresh)
    _note_refused(tx, name, received_s, incoming.refused)
    for what, count in (("stored", stored), ("known", known), ("refused", len(incoming.refused))):
        totals["", what] += count
    _add_totals(tx, str(device["grp"]), totals)
    seqs = [report.seq for report in incoming.reports]
    return Ack(
        stream=batch.stream,
        stored=stored,
        known=known,
        refused=tuple(line.refused() for line in incoming.refused),
        first_seq=min(seqs, default=0),
        last_seq=max(seqs, default=0),
    )


class _Rows:
    """The rows of one kind of report in a batch."""

    def __init__(
        self,
        tx: Transaction,
        kind: Kind,
        clocks: Clocks,
        of: tuple[int, str],
        totals: dict[tuple[str, str], float],
    ) -> None:
        self.tx, self.kind, self.clocks, self.totals = tx, kind, clocks, totals
        self.stream, self.device = of
        self._served: dict[tuple[str, str, str], _Served] = {}

    def insert(self, reports: Sequence[Report], *, clean: bool) -> list[tuple[Report, float]]:
        """Insert reports that the store does not have; each with when it happened."""
        cursor = next_id(self.tx, f"cursor:{self.kind.table}", len(reports))
        received_s, place, row = self.clocks.received_s, self.clocks.place, self.kind.row
        generations = self.kind.table == "generations"
        rows: list[tuple[Value, ...]] = []
        placed = []
        for number, report in enumerate(reports, cursor):
            item: Any = report.item
            at_s, late = place(report)
            judged = self._judge(item, clean=clean) if generations else ()
            rows.append((number, self.stream, report.seq, self.device, at_s, received_s, late, *judged, *row(item)))
            placed.append((report, at_s))
            if not generations:
                self._count(item)
        if clean:
            rows = [tuple(_without_nul(value) for value in row) for row in rows]
        self.tx.many(self.kind.insert, rows)
        return placed

    def _judge(self, item: Generation, *, clean: bool) -> tuple[int, str, int]:
        """A generation's `served`, `generation` and `flags`; it is counted, too."""
        key = (item.release, item.template, item.runtime)
        served = self._served.get(key)
        if served is None:
            served = self._served[key] = _serve(self.tx, *(map(_text_without_nul, key) if clean else key))
        totals, label = self.totals, served.label
        totals[label, "generations"] += 1
        totals[label, "prompt_tokens"] += item.prompt_tokens
        totals[label, "answer_tokens"] += item.answer_tokens
        if item.error or item.stop == "error":
            totals[label, "errors"] += 1
        if item.ttft_s is not None:
            totals[label, f"ttft:{bisect_left(TTFT_EDGES_S, item.ttft_s)}"] += 1
            totals[label, "ttft_s"] += item.ttft_s
        if item.tokens_per_s is not None:
            totals[label, f"speed:{bisect_left(SPEED_EDGES, item.tokens_per_s)}"] += 1
            totals[label, "speed"] += item.tokens_per_s
        return served.id, item.id, flags_of(item, served.low_log_prob)

    def _count(self, item: Any) -> None:
        if self.kind.table == "dropped":
            self.totals["", "dropped"] += item.count
        elif self.kind.table == "feedback":
            self.totals["", "thumbs_up" if item.rating > 0 else "thumbs_down"] += abs(item.rating)


def _stream(tx: Transaction, device: str, stream: str) -> int:
    """The number of a device's stream, made if it is new."""
    rows = tx.rows("SELECT id FROM streams WHERE device = ? AND stream = ?", device, stream)
    if rows:
        return int(rows[0]["id"])
    (count,) = tx.rows("SELECT COUNT(*) AS streams FROM streams WHERE device = ?", device)
    if count["streams"] >= _MOST_STREAMS:
        raise RequestError(409, f"the device has {_MOST_STREAMS} streams; forget it and enrol it again")
    number = next_id(tx, "streams")
    tx.run("INSERT INTO streams (id, device, stream) VALUES (?, ?, ?)", number, device, stream)
    return number


def _known(tx: Transaction, table: str, stream: int, seqs: list[int]) -> list[int]:
    """Which of these numbers, ascending, the store has."""
    if seqs[-1] - seqs[0] < 8 * len(seqs):
        rows = tx.rows(f"SELECT seq FROM {table} WHERE stream = ? AND seq BETWEEN ? AND ?", stream, seqs[0], seqs[-1])
        asked = set(seqs)
        return [row["seq"] for row in rows if row["seq"] in asked]
    found: list[int] = []
    for start in range(0, len(seqs), _CHUNK):  # numbers far apart: never more rows than were asked about
        some = seqs[start : start + _CHUNK]
        marks = ", ".join("?" * len(some))
        rows = tx.rows(f"SELECT seq FROM {table} WHERE stream = ? AND seq IN ({marks})", stream, *some)
        found += [row["seq"] for row in rows]
    return found


def _serve(tx: Transaction, release: str, template: str, runtime: str) -> _Served:
    """The row of what answered, made if it is new."""
    known = tx.rows("SELECT digest FROM releases WHERE digest = ?", release)
    label = release if known else ""
    rows = tx.rows(
        "SELECT id, low_log_prob FROM served WHERE release = ? AND template = ? AND runtime = ?",
        *(release, template, runtime),
    )
    if rows:
        return _Served(rows[0]["id"], rows[0]["low_log_prob"], label)
    low = _LOW_LOG_PROB
    if known:
        (row,) = tx.rows("SELECT manifest FROM releases WHERE digest = ?", release)
        low = low_log_prob(msgspec.json.decode(row["manifest"], type=Manifest).reference)
    number = next_id(tx, "served")
    tx.run(
        "INSERT INTO served (id, release, template, runtime, low_log_prob) VALUES (?, ?, ?, ?, ?)",
        *(number, release, template, runtime, low),
    )
    return _Served(number, low, label)


def low_log_prob(reference: ReferenceProfile) -> float:
    """The highest edge of the reference's histogram below which hardly an answer was, nats a token."""
    edges, counts = reference.edges.get("mean_log_prob", ()), reference.counts.get("mean_log_prob", ())
    total, below, low = sum(counts), 0, _LOW_LOG_PROB
    if total < _LEAST_REFERENCE or len(counts) != len(edges) + 1:
        return low
    for edge, count in zip(edges, counts, strict=False):
        below += count
        if below > _LOW_FRACTION * total:
            break
        low = edge
    return low


def _note_device(
    tx: Transaction,
    device: str,
    clocks: Clocks,
    counts: tuple[int, int, int],
    fresh: dict[str, list[tuple[Report, float]]],
) -> None:
    """Keep the latest of a device where it is found at once."""
    losses: list[Any] = [report.item for report, _ in fresh.get("dropped", ())]
    dropped = sum(item.count for item in losses)
    generation_s = max((at_s for _, at_s in fresh.get("generations", ())), default=None)
    tx.run(
        "INSERT INTO device_state (device, heard_s, clock_skew_s, boot, stored, known, refused, dropped, generation_s) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET heard_s = excluded.heard_s, "
        "clock_skew_s = excluded.clock_skew_s, boot = excluded.boot, stored = device_state.stored + excluded.stored, "
        "known = device_state.known + excluded.known, refused = device_state.refused + excluded.refused, "
        "dropped = device_state.dropped + excluded.dropped, "
        "generation_s = COALESCE(CASE WHEN device_state.generation_s > excluded.generation_s "
        "THEN device_state.generation_s ELSE excluded.generation_s END, device_state.generation_s)",
        *(device, clocks.received_s, clocks.skew_s, clocks.boot, *counts, dropped, generation_s),
    )
    if "health" in fresh:
        report, at_s = max(fresh["health"], key=lambda pair: (pair[1], pair[0].seq))
        columns = ", ".join(f"{column} = ?" for column in ("health_s", *HEALTH_COLUMNS))
        values = [_without_nul(value) for value in KINDS[type(report.item)].row(report.item)]
        tx.run(
            f"UPDATE device_state SET {columns} WHERE device = ? AND (health_s IS NULL OR health_s <= ?)",
            *(at_s, *values, device, at_s),
        )


def _note_refused(tx: Transaction, device: str, now_s: float, lines: Sequence[Line]) -> None:
    by_fault: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_fault[str(line.fault)].append(line)
    for fault, some in by_fault.items():
        tx.run(
            "INSERT INTO refused (device, fault, count, first_s, last_s, example) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (device, fault) DO UPDATE SET count = refused.count + excluded.count, "
            "last_s = excluded.last_s, example = excluded.example",
            *(device, fault, len(some), now_s, now_s, some[-1].reason),
        )


def _add_totals(tx: Transaction, group: str, totals: dict[tuple[str, str], float]) -> None:
    tx.many(
        "INSERT INTO totals (grp, release, name, value) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (grp, release, name) DO UPDATE SET value = totals.value + excluded.value",
        [(group, release, name, float(value)) for (release, name), value in sorted(totals.items()) if value],
    )


def _text_without_nul(value: str) -> str:
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _without_nul(value: Value) -> Value:
    return _text_without_nul(value) if isinstance(value, str) else value
