"""Drift judged ahead: the verdicts that the first screen and the alerts show.

Working them out reads tens of thousands of answers a group, seconds for a large fleet. So the server judges a window of
an hour, one group a tick and each every five minutes, and writes down what changed; who looks reads a small table, also
of the past. The screen of drift, which is about statistics, asks for its own window.
"""

from __future__ import annotations

from collections import defaultdict

from edgegen.fleet.monitoring.drift import read_drift
from edgegen.fleet.monitoring.releases import label_of, read_labels
from edgegen.fleet.schema import next_id
from edgegen.fleet.telemetry.store import add_event
from edgegen.fleet.transaction import Transaction
from edgegen.records.monitor import Ask, DriftCell, Verdict

WINDOW_S = 3600.0
EVERY_S = 300.0
_KEPT_S = 30 * 86400.0
_LANE = "drift:"
_ORDER = (Verdict.TOO_FEW, Verdict.OK, Verdict.WATCH, Verdict.DRIFT)


def judge_next_group(tx: Transaction, now_s: float) -> bool:
    """Judge the group that was judged longest ago, if that is long enough; whether there was one."""
    judged = {
        row["lane"].removeprefix(_LANE): row["at_s"]
        for row in tx.rows("SELECT lane, at_s FROM progress WHERE lane >= ? AND lane < ?", _LANE, _LANE[:-1] + ";")
    }
    groups = [row["grp"] for row in tx.rows("SELECT DISTINCT grp FROM devices ORDER BY grp")]
    due = [group for group in groups if group not in judged or not 0 <= now_s - judged[group] < EVERY_S]
    for group in judged.keys() - set(groups):
        tx.run("DELETE FROM progress WHERE lane = ?", _LANE + group)
        _write(tx, now_s, group, ())
    if not due:
        return False
    group = min(due, key=lambda name: judged.get(name, 0.0))
    _write(tx, now_s, group, read_drift(tx, now_s, Ask(window_s=WINDOW_S, group=group)))
    tx.run(
        "INSERT INTO progress (lane, cursor, at_s) VALUES (?, 0, ?) "
        "ON CONFLICT (lane) DO UPDATE SET at_s = excluded.at_s",
        *(_LANE + group, now_s),
    )
    return True


def read_verdicts(tx: Transaction, at_s: float) -> dict[tuple[str, str], Verdict]:
    """(group, release) → the worst verdict of its metrics at a moment."""
    rows = tx.rows(
        "SELECT grp, release, verdict FROM verdicts WHERE since_s <= ? AND (until_s IS NULL OR until_s > ?)", at_s, at_s
    )
    return {(row["grp"], row["release"]): Verdict(row["verdict"]) for row in rows}


def prune_verdicts(tx: Transaction, now_s: float) -> int:
    """Throw away what ended long ago; how many."""
    return tx.run("DELETE FROM verdicts WHERE until_s < ?", now_s - _KEPT_S)


def _write(tx: Transaction, now_s: float, group: str, cells: tuple[DriftCell, ...]) -> None:
    """Write a group's verdicts down where they differ from those before."""
    by_release: defaultdict[str, list[DriftCell]] = defaultdict(list)
    for cell in cells:
        by_release[cell.release].append(cell)
    there = {row["release"]: row for row in tx.rows("SELECT * FROM verdicts WHERE grp = ? AND until_s IS NULL", group)}
    labels = read_labels(tx)
    for release in sorted(there.keys() | by_release.keys()):
        before, found = there.get(release), by_release.get(release, [])
        verdict = max((cell.verdict for cell in found), key=_ORDER.index, default=None)
        drifted = sorted({cell.metric for cell in found if cell.verdict is Verdict.DRIFT})
        metrics, n = ", ".join(drifted), max((cell.n for cell in found), default=0)
        if before and (before["verdict"], before["metrics"]) == (verdict, metrics):
            tx.run("UPDATE verdicts SET n = ? WHERE id = ?", n, before["id"])
            continue
        if before:
            tx.run("UPDATE verdicts SET until_s = ? WHERE id = ?", now_s, before["id"])
        if verdict is not None:
            tx.run(
                "INSERT INTO verdicts (id, grp, release, verdict, metrics, drifted, n, since_s) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *(next_id(tx, "verdicts"), group, release, verdict, metrics, len(drifted), n, now_s),
            )
        label = label_of(labels, release)
        if drifted and (before is None or before["metrics"] != metrics):
            add_event(tx, now_s, level="warning", what="drift", detail=f"{label}: {metrics}", group=group)
        elif before and before["drifted"] and not drifted:
            add_event(tx, now_s, level="info", what="drift-over", detail=f"{label}: {before['metrics']}", group=group)
