"""New answers added to sums and sketches: for each device and each group, by what answered, in steps of time.

- A minute, an eighth of an hour, an eighth of a day, a day: eighths because the screens show a window in eight cells,
  so a window of an hour or a day is eight or nine cells of each device, whatever the fleet's size.
- A lane reads `generations` by its cursor, adds what it read, and moves its cursor in the same transaction. So after a
  kill at any moment each answer is in each cell once. Coarse steps have a lane of their own that runs seldom: the same
  cell is then written once for many answers.
- The step is by when an answer was made, not by when it came: a device that was away for days fills the past. An
  answer that is older than a step is kept is left out of that step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor

from edgegen.fleet.monitoring.schema import COUNTS, SKETCHES
from edgegen.fleet.monitoring.sketches import add_values, quantile, require_sketches
from edgegen.fleet.telemetry.schema import Flag
from edgegen.fleet.transaction import Row, Transaction

MINUTE, EIGHTH_HOUR, EIGHTH_DAY, DAY = 60, 450, 10_800, 86_400
KEPT_S = {MINUTE: 3 * 3600.0, EIGHTH_HOUR: 3 * 86400.0, EIGHTH_DAY: 40 * 86400.0, DAY: 400 * 86400.0}
"""Step → how long its cells are kept."""
GROUP = "group:"
MOST_ROWS = 5000
"""Answers of one call: the server's one writer must not be held up."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Steps that are filled together."""

    name: str
    steps: tuple[int, ...]
    every_s: float


LANES = (Lane("fast", (MINUTE, EIGHTH_HOUR), 0.0), Lane("slow", (EIGHTH_DAY, DAY), 30.0))

_FLAGS = {
    "refused": Flag.REFUSE,
    "repeated": Flag.REPEAT,
    "cut": Flag.LENGTH,
    "leaked": Flag.LEAK,
    "empty": Flag.EMPTY,
    "low": Flag.LOW,
    "bad_json": Flag.BADJSON,
}
_VALUES = {"ttft": "ttft_s", "speed": "tokens_per_s", "tokens": "answer_tokens", "log_prob": "mean_log_prob"}
_KEY = ("step", "start_s", "subject", "served")
_Key = tuple[int, int, str, int]


@dataclass(slots=True)
class _Cell:
    """What is added to a cell."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SKETCHES})


def roll_up(tx: Transaction, now_s: float, *, most_rows: int = MOST_ROWS, all_lanes: bool = False) -> bool:
    """Add answers that came since the last call.

    Args:
        most_rows: of each lane.
        all_lanes: also those that ran a moment ago.

    Returns:
        Whether more wait.

    Raises:
        UnsupportedError: the sketches' library is not installed.
    """
    require_sketches()
    known = {row["lane"]: row for row in tx.rows("SELECT lane, cursor, at_s FROM progress")}
    newest = tx.rows("SELECT MAX(cursor) AS newest FROM generations")[0]["newest"] or 0
    more = False
    for lane in LANES:
        row = known.get(lane.name)
        cursor = row["cursor"] if row else 0
        behind = row is not None and row["at_s"] > now_s  # the clock was set back
        if cursor >= newest or (row and not all_lanes and not behind and now_s - row["at_s"] < lane.every_s):
            continue
        reached, count = _advance(tx, now_s, lane, cursor, most_rows)
        full = count == most_rows
        more = more or full
        # A lane with a backlog is due at once.
        tx.run(
            "INSERT INTO progress (lane, cursor, at_s) VALUES (?, ?, ?) "
            "ON CONFLICT (lane) DO UPDATE SET cursor = excluded.cursor, at_s = excluded.at_s",
            *(lane.name, reached, 0.0 if full else now_s),
        )
    return more


def prune(tx: Transaction, now_s: float) -> int:
    """Throw away cells that have been kept long enough; how many."""
    return sum(
        tx.run("DELETE FROM rollups WHERE step = ? AND start_s < ?", step, int(now_s - kept_s))
        for step, kept_s in KEPT_S.items()
    )


def forget_device(tx: Transaction, device: str) -> int:
    """Throw away a device's own cells; what it added to its groups stays, as nothing in there names it."""
    return tx.run("DELETE FROM rollups WHERE subject = ?", device)


def _advance(tx: Transaction, now_s: float, lane: Lane, cursor: int, most_rows: int) -> tuple[int, int]:
    """Add one lane's next answers; where it is then, and how many it read."""
    rows = tx.rows(
        "SELECT generations.cursor AS cursor, generations.device AS device, devices.grp AS grp, served, at_s, flags, "
        "stop, prompt_tokens, answer_tokens, ttft_s, tokens_per_s, mean_log_prob, throttled FROM generations "
        "LEFT JOIN devices ON devices.device = generations.device WHERE generations.cursor > ? "
        "ORDER BY generations.cursor LIMIT ?",
        *(cursor, most_rows),
    )
    if not rows:
        return cursor, 0
    cells: defaultdict[_Key, _Cell] = defaultdict(_Cell)
    for row in rows:
        subjects = (row["device"],) if row["grp"] is None else (row["device"], GROUP + row["grp"])
        for step in lane.steps:
            if row["at_s"] < now_s - KEPT_S[step]:
                continue
            start_s = floor(row["at_s"] / step) * step
            for subject in subjects:
                _count(cells[step, start_s, subject, row["served"]], row)
    changed = _next_change(tx)
    for key, cell in sorted(cells.items()):
        _add(tx, key, cell, changed)
    return int(rows[-1]["cursor"]), len(rows)


def _count(cell: _Cell, row: Row) -> None:
    counts, flags = cell.counts, row["flags"]
    counts["answers"] += 1
    counts["prompt_tokens"] += row["prompt_tokens"]
    counts["answer_tokens"] += row["answer_tokens"]
    counts["throttled"] += row["throttled"] or 0
    if flags:
        for name, flag in _FLAGS.items():
            if flags & flag:
                counts[name] += 1
    if row["stop"] == "error" or flags & Flag.ERROR:
        counts["errors"] += 1
        return  # how fast a failure came says nothing of speed
    for name, column in _VALUES.items():
        value = row[column]
        if value is not None:
            cell.values[name].append(value)


def _add(tx: Transaction, key: _Key, cell: _Cell, changed: int) -> None:
    there = tx.rows(_FIND, *key)
    before = there[0] if there else {}
    sketches: Sequence[bytes | None] = [
        add_values(_as_bytes(before.get(name)), cell.values[name]) if cell.values[name] else _as_bytes(before.get(name))
        for name in SKETCHES
    ]
    median = quantile((sketches[SKETCHES.index("speed")],), 0.5)
    tx.run(_WRITE, *key, changed, *cell.counts.values(), *sketches, median)


def _as_bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)


def _next_change(tx: Transaction) -> int:
    """A number above all before it. Never one that a transaction took which then came to nothing: readers remember."""
    rows = tx.rows("SELECT value FROM meta WHERE key = 'rollups-changed'")
    changed = max(int(rows[0]["value"]) + 1 if rows else 0, time.time_ns() // 1000)
    tx.run(
        "INSERT INTO meta (key, value) VALUES ('rollups-changed', ?) "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        str(changed),
    )
    return changed


_FIND = f"SELECT {', '.join(SKETCHES)} FROM rollups WHERE " + " AND ".join(f"{name} = ?" for name in _KEY)
_COLUMNS = (*_KEY, "changed", *COUNTS, *SKETCHES, "median_speed")
_WRITE = (
    f"INSERT INTO rollups ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET changed = excluded.changed, "
    + ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in COUNTS)
    + ", "
    + ", ".join(f"{name} = excluded.{name}" for name in (*SKETCHES, "median_speed"))
)
