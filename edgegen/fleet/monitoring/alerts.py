"""Rules that are broken: pending, firing, resolved.

The state is in the database (a row for each stretch of time in a state), so a server that starts again fires nothing
twice, and the past can be looked at. A rule that is broken is pending until it was so for `for_s`, then it fires; it
is resolved by the first look that finds it kept. Where there are too few to tell, a firing alert goes on firing (it
was not seen to end) and anything else is `no data`. A pending alert that nobody looked at for ten minutes begins anew.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable

import msgspec

from edgegen.fleet.monitoring.measures import Measures
from edgegen.fleet.monitoring.rules import EVERY_GROUP, AlertRules, Rule
from edgegen.fleet.schema import next_id
from edgegen.fleet.telemetry.store import add_event
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.base import Record
from edgegen.records.monitor import Alert

FIRING, PENDING, NO_DATA = "firing", "pending", "no data"
_ORDER = (FIRING, PENDING, NO_DATA)
_BROKEN: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_UNWATCHED_S = 600.0
_KEPT_S = 30 * 86400.0
_log = logging.getLogger("edgegen.fleet")


class Told(Record, frozen=True):
    """What a webhook is sent."""

    id: int
    """The same when it is sent again."""
    state: str
    """`firing` or `resolved`."""
    rule: str
    group: str
    metric: str
    op: str
    threshold: float
    value: float | None
    n: int
    at_s: float
    text: str


def evaluate(tx: Transaction, now_s: float, rules: AlertRules) -> tuple[Told, ...]:
    """Look at all rules; what began to fire or ended, which is also written as events and into the outbox."""
    measures = Measures(tx, now_s)
    rows = tx.rows("SELECT value FROM meta WHERE key = 'alerts_s'")
    unwatched = bool(rows) and now_s - float(rows[0]["value"]) > _UNWATCHED_S
    open_rows = {(row["rule"], row["grp"]): row for row in tx.rows("SELECT * FROM alerts WHERE until_s IS NULL")}
    told: list[Told] = []
    for rule in rules.rule:
        for group in measures.groups() if rule.group == EVERY_GROUP else [rule.group]:
            value, n = measures.take(rule.metric, group, rule.window_s)
            before = open_rows.pop((rule.name, group), None)
            state = _next_state(rule, before, value, n, now_s, unwatched=unwatched)
            told += _move(tx, now_s, rule, group, before, state, value, n, restart=unwatched)
    for row in open_rows.values():  # of rules and groups that are no more
        _close(tx, now_s, row)
        if row["state"] == FIRING:
            gone = Rule(row["rule"], row["metric"], row["threshold"])
            told.append(_tell(tx, now_s, gone, row["grp"], "resolved", None, 0, why="the rule is no more"))
    for one in told:
        _log.log(logging.WARNING if one.state == FIRING else logging.INFO, "%s", one.text)
        level = "warning" if one.state == FIRING else "info"
        add_event(tx, now_s, level=level, what=f"alert-{one.state}", detail=one.text, group=one.group)
        if rules.webhook is not None:
            tx.run(
                "INSERT INTO outbox (id, body, tries, next_s, created_s) VALUES (?, ?, 0, ?, ?)",
                *(one.id, msgspec.json.encode(one).decode(), now_s, now_s),
            )
    tx.run(
        "INSERT INTO meta (key, value) VALUES ('alerts_s', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        repr(now_s),
    )
    return tuple(told)


def read_alerts(tx: Transaction, at_s: float, *, live: bool = True, group: str = "") -> tuple[Alert, ...]:
    """Alerts of a moment, firing ones first; of a group and the whole fleet if a group is named."""
    if live:
        rows = tx.rows("SELECT * FROM alerts WHERE until_s IS NULL")
    else:
        rows = tx.rows(
            "SELECT * FROM alerts WHERE since_s <= ? AND (until_s IS NULL OR until_s > ?)",
            *(at_s, at_s),
        )
    rows = [row for row in rows if not group or row["grp"] in ("", group)]
    rows.sort(key=lambda row: (_ORDER.index(row["state"]), row["rule"], row["grp"]))
    return tuple(
        Alert(
            rule=row["rule"],
            group=row["grp"],
            metric=row["metric"],
            value=row["value"],
            threshold=row["threshold"],
            state=row["state"],
            since_s=row["since_s"],
            n=row["n"],
        )
        for row in rows
    )


def prune_alerts(tx: Transaction, now_s: float) -> int:
    """Throw away what ended long ago; how many."""
    return tx.run("DELETE FROM alerts WHERE until_s < ?", now_s - _KEPT_S)


def _next_state(
    rule: Rule, before: Row | None, value: float | None, n: int, now_s: float, *, unwatched: bool
) -> str | None:
    """The state that a rule is in now; None: it is kept."""
    state = before["state"] if before else None
    if value is None or n < rule.min_n:
        return FIRING if state == FIRING else NO_DATA
    if not _BROKEN[rule.op](value, rule.threshold):
        return None
    if state == FIRING or rule.for_s == 0:
        return FIRING
    if before and state == PENDING and not unwatched and now_s - before["since_s"] >= rule.for_s:
        return FIRING
    return PENDING


def _move(
    tx: Transaction,
    now_s: float,
    rule: Rule,
    group: str,
    before: Row | None,
    state: str | None,
    value: float | None,
    n: int,
    *,
    restart: bool,
) -> list[Told]:
    """Write a rule's state down; what is to be told of it."""
    if before and state == before["state"] and not (restart and state == PENDING):
        if (value, n, rule.threshold) != (before["value"], before["n"], before["threshold"]):
            tx.run(
                "UPDATE alerts SET value = ?, n = ?, threshold = ? WHERE id = ?", value, n, rule.threshold, before["id"]
            )
        return []
    if before:
        _close(tx, now_s, before)
    if state is not None:
        tx.run(
            "INSERT INTO alerts (id, rule, grp, metric, state, threshold, value, n, since_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(next_id(tx, "alerts"), rule.name, group, rule.metric, state, rule.threshold, value, n, now_s),
        )
    if state == FIRING:
        return [_tell(tx, now_s, rule, group, FIRING, value, n)]
    if before and before["state"] == FIRING:
        return [_tell(tx, now_s, rule, group, "resolved", value, n)]
    return []


def _close(tx: Transaction, now_s: float, row: Row) -> None:
    tx.run("UPDATE alerts SET until_s = ? WHERE id = ?", now_s, row["id"])


def _tell(
    tx: Transaction, now_s: float, rule: Rule, group: str, state: str, value: float | None, n: int, *, why: str = ""
) -> Told:
    shown = "unknown" if value is None else f"{value:.4g}"
    text = f"{rule.name} {state} in {group or 'the whole fleet'}: " + (
        why or f"{rule.metric} is {shown} (n = {n}), limit {rule.op} {rule.threshold:g}"
    )
    return Told(
        id=next_id(tx, "outbox"),
        state=state,
        rule=rule.name,
        group=group,
        metric=rule.metric,
        op=rule.op,
        threshold=rule.threshold,
        value=value,
        n=n,
        at_s=now_s,
        text=text,
    )
