"""What happened: operators' and the engine's acts (the audit log), devices' words, alerts.

Two tables are read side by side. A cursor holds how far each was read (the audit log's number times 2³¹ plus the
events' cursor), so that a tail misses nothing of either, whatever times the rows bear.
"""

from __future__ import annotations

from edgegen.errors import ConfigError
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.records.monitor import AskEvents, EventRow

_SHIFT = 1 << 31
LEVELS = ("info", "warning", "error")
MOST_ROWS = 10_000
_LEVEL_OF = {"failed": "error", "timed-out": "warning", "aborted": "warning", "paused": "warning", "revoked": "warning"}


def read_events(tx: Transaction, now_s: float, ask: AskEvents) -> tuple[EventRow, ...]:
    """Answer which events; oldest first.

    Raises:
        ConfigError: a level that is none.
    """
    if ask.level and ask.level not in LEVELS:
        raise ConfigError(f"there is no level {ask.level[:20]!r}", hint="Levels: " + ", ".join(LEVELS) + ".")
    limit = max(0, min(ask.limit, MOST_ROWS))
    seen_audit, seen_events = divmod(max(0, ask.after), _SHIFT)
    groups = {row["device"]: row["grp"] for row in tx.rows("SELECT device, grp FROM devices")} if limit else {}
    events = [_of_event(row, groups) for row in _events(tx, ask, seen_events, limit)]
    audit = [_of_audit(row, groups) for row in _audit(tx, ask, seen_audit, limit)]
    audit = [pair for pair in audit if _wanted(pair[1], ask)]
    if not ask.after:
        # The latest: what comes before them counts as read.
        newest = {kind: max((number for number, _ in rows), default=0) for kind, rows in (("a", audit), ("e", events))}
        rows = sorted((row for _, row in (*audit, *events)), key=lambda row: row.at_s)[-limit or len(audit + events) :]
        return _numbered_last(rows, newest["a"], newest["e"])
    found: list[EventRow] = []
    while (audit or events) and len(found) < limit:
        first = audit if not events or (audit and audit[0][1].at_s <= events[0][1].at_s) else events
        number, row = first.pop(0)
        if first is audit:
            seen_audit = number
        else:
            seen_events = number
        found.append(_with_cursor(row, seen_audit * _SHIFT + seen_events))
    return tuple(found)


def _numbered_last(rows: list[EventRow], audit: int, events: int) -> tuple[EventRow, ...]:
    """The last of some rows has the cursor of all of them; those before it have their places before it."""
    end = audit * _SHIFT + events
    return tuple(_with_cursor(row, max(0, end - (len(rows) - 1 - place))) for place, row in enumerate(rows))


def _with_cursor(row: EventRow, cursor: int) -> EventRow:
    return EventRow(cursor, row.at_s, row.level, row.what, row.device, row.group, row.detail)


def _events(tx: Transaction, ask: AskEvents, after: int, limit: int) -> list[Row]:
    words, arguments = "1 = 1", list[Value]()
    for condition, value in (
        ("cursor > ?", after or None),
        ("at_s <= ?", ask.until_s),
        ("device = ?", ask.device or None),
        ("level = ?", ask.level or None),
    ):
        if value is not None:
            words += f" AND {condition}"
            arguments.append(value)
    if ask.group:
        words += " AND (grp = ? OR device IN (SELECT device FROM devices WHERE grp = ?))"
        arguments += [ask.group, ask.group]
    order = "cursor" if ask.after else "at_s DESC, cursor DESC"
    rows = tx.rows(f"SELECT * FROM events WHERE {words} ORDER BY {order} LIMIT ?", *arguments, limit)
    return rows if ask.after else rows[::-1]


def _audit(tx: Transaction, ask: AskEvents, after: int, limit: int) -> list[Row]:
    words, arguments = "id > ?", list[Value]((after,))
    if ask.until_s is not None:
        words += " AND at_s <= ?"
        arguments.append(ask.until_s)
    if ask.device:
        words += " AND (subject = ? OR who = ?)"
        arguments += [f"device:{ask.device}", f"device:{ask.device}"]
    elif ask.group:
        words += (
            " AND (subject IN (SELECT 'device:' || device FROM devices WHERE grp = ?) OR subject IN "
            "(SELECT 'rollout:' || CAST(id AS TEXT) FROM rollouts WHERE grp = ?))"
        )
        arguments += [ask.group, ask.group]
    if ask.level == "info":
        marks = ", ".join("?" * len(_LEVEL_OF))
        words += f" AND what NOT IN ({marks})"
        arguments += list(_LEVEL_OF)
    elif ask.level:
        chosen = [what for what, level in _LEVEL_OF.items() if level == ask.level]
        words += f" AND what IN ({', '.join('?' * len(chosen))})"
        arguments += chosen
    order = "id" if ask.after else "id DESC"
    rows = tx.rows(f"SELECT * FROM audit WHERE {words} ORDER BY {order} LIMIT ?", *arguments, limit)
    return rows if ask.after else rows[::-1]


def _of_event(row: Row, groups: dict[str, str]) -> tuple[int, EventRow]:
    group = row["grp"] or groups.get(row["device"], "")
    return row["cursor"], EventRow(0, row["at_s"], row["level"], row["what"], row["device"], group, row["detail"])


def _of_audit(row: Row, groups: dict[str, str]) -> tuple[int, EventRow]:
    kind, _, name = row["subject"].partition(":")
    device = name if kind == "device" else row["who"].partition(":")[2] if row["who"].startswith("device:") else ""
    by = "" if row["who"] == f"device:{device}" else f"by {row['who']}"
    subject = "" if kind == "device" else row["subject"]
    detail = ", ".join(word for word in (subject, row["detail"], by) if word)
    level = _LEVEL_OF.get(row["what"], "info")
    return row["id"], EventRow(0, row["at_s"], level, row["what"], device, groups.get(device, ""), detail)


def _wanted(row: EventRow, ask: AskEvents) -> bool:
    return not ask.level or row.level == ask.level
