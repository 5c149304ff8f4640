"""Rows read again, in order; and events that the server itself adds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edgegen.fleet.schema import next_id
from edgegen.fleet.telemetry.schema import REPORTS
from edgegen.fleet.transaction import Row, Transaction, Value

_PAGE = 5000


class Span(NamedTuple):
    """Which rows: [since_s, until_s) by when it happened; None is open."""

    since_s: float | None = None
    until_s: float | None = None


def top_cursor(tx: Transaction, table: str) -> int:
    """The highest cursor that a table's rows ever had, 0 if it never had a row."""
    rows = tx.rows("SELECT value FROM counters WHERE name = ?", f"cursor:{table}")
    return int(rows[0]["value"]) if rows else 0


def rows_after(tx: Transaction, table: str, cursor: int, limit: int) -> list[Row]:
    """Rows of a table of `schema.REPORTS` beyond a cursor, in order; generations with their release and runtime."""
    return tx.rows(f"{_select(table)} WHERE {table}.cursor > ? ORDER BY {table}.cursor LIMIT ?", cursor, limit)


def pages(tx: Transaction, table: str, span: Span = Span()) -> Iterator[list[Row]]:
    """All rows of a span, a page at a time in the cursor's order."""
    where, values = [f"{table}.cursor > ?"], list[Value]()
    for mark, bound in ((">=", span.since_s), ("<", span.until_s)):
        if bound is not None:
            where.append(f"{table}.at_s {mark} ?")
            values.append(bound)
    query = f"{_select(table)} WHERE {' AND '.join(where)} ORDER BY {table}.cursor LIMIT {_PAGE}"
    cursor = 0
    while rows := tx.rows(query, cursor, *values):
        yield rows
        cursor = rows[-1]["cursor"]


def add_event(
    tx: Transaction, now_s: float, *, level: str, what: str, detail: str = "", device: str = "", group: str = ""
) -> int:
    """Add an event that no device reported, such as an alert; its cursor.

    Args:
        level: `info`, `warning` or `error`.
        group: of the event, where it is not the device's.
    """
    cursor = next_id(tx, "cursor:events")
    tx.run(
        "INSERT INTO events (cursor, device, at_s, received_s, late, level, what, detail, release, grp) "
        "VALUES (?, ?, ?, ?, 0, ?, ?, ?, '', ?)",
        *(cursor, device, now_s, now_s, level, what, detail, group),
    )
    return cursor


def _select(table: str) -> str:
    if table not in REPORTS:
        raise ValueError(table)
    if table == "generations":
        return (
            "SELECT generations.*, served.release AS release, served.template AS template, "
            "served.runtime AS runtime FROM generations JOIN served ON served.id = generations.served"
        )
    return f"SELECT {table}.* FROM {table}"
