"""Roll-ups of a window, merged: figures of each subject.

The window is rounded out to whole cells: it begins with the cell that holds its beginning. The cells are the finest
that are kept for so long and of which a window has at most `_MOST_CELLS`.

A fleet of 10,000 devices has some 85,000 cells an hour, and the screens ask every two seconds. So what was read stays
in memory with its connection, and the next look reads what changed since (`rollups.changed`); figures are worked out
again for those subjects only.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor

from edgegen.errors import ConfigError
from edgegen.fleet.monitoring.rollups import GROUP, KEPT_S
from edgegen.fleet.monitoring.schema import COUNTS, SKETCHES
from edgegen.fleet.monitoring.sketches import quantile
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.records.base import Record
from edgegen.records.monitor import SPARK_CELLS

LONGEST_S = max(KEPT_S.values())
_MOST_CELLS = 15
_MOST_WINDOWS = 2
"""That stay in memory for a connection."""
_LIVE_S = 5.0
"""Windows that end so far from now are read as ending now."""


@dataclass(frozen=True, slots=True)
class Span:
    """A window in whole cells."""

    step: int
    since_s: int
    until_s: float

    @property
    def length_s(self) -> float:
        return self.until_s - self.since_s

    @property
    def end_s(self) -> int:
        """Where the last cell ends."""
        return ceil(self.until_s / self.step) * self.step


@dataclass(slots=True)
class Figures:
    """Of one subject in a window."""

    answers: int = 0
    errors: int = 0
    answer_tokens: int = 0
    leaked: int = 0
    throttled: int = 0
    speed: float | None = None
    """Median tokens a second."""
    ttft_p95_s: float | None = None
    spark: tuple[float | None, ...] = ()

    @property
    def error_fraction(self) -> float | None:
        return self.errors / self.answers if self.answers else None


def span_of(now_s: float, until_s: float, window_s: float) -> Span:
    """A window's cells."""
    since_s = until_s - window_s
    kept = [step for step in KEPT_S if now_s - since_s <= KEPT_S[step]] or [max(KEPT_S)]
    few = [step for step in kept if window_s / step <= _MOST_CELLS]
    step = few[0] if few else kept[-1]
    return Span(step, floor(since_s / step) * step, until_s)


def read_cells(
    tx: Transaction, span: Span, *, subjects: Sequence[str] = (), groups: bool = False, columns: Iterable[str] = ()
) -> list[Row]:
    """Cells of a window: of some subjects, of all groups, or of all devices.

    Args:
        columns: of `COUNTS` and `SKETCHES`; none: all.
    """
    named = ", ".join(("subject", "served", "start_s", *(columns or (*COUNTS, *SKETCHES, "median_speed"))))
    words, arguments = "step = ? AND start_s >= ? AND start_s < ?", [span.step, span.since_s, span.end_s]
    found: list[Row] = []
    if not subjects:
        # Names of devices hold no colon, which the groups' have; `;` is the character after it.
        words += " AND subject >= ? AND subject < ?" if groups else " AND NOT (subject >= ? AND subject < ?)"
        return tx.rows(
            f"SELECT {named} FROM rollups WHERE {words} ORDER BY start_s", *arguments, GROUP, GROUP[:-1] + ";"
        )
    for subject in subjects:
        found += tx.rows(
            f"SELECT {named} FROM rollups WHERE {words} AND subject = ? ORDER BY start_s", *arguments, subject
        )
    return found


def device_figures(tx: Transaction, span: Span, *, live: bool) -> dict[str, Figures]:
    """Device → its figures, of those that answered in the window.

    Args:
        live: the window ends now: keep what was read for the next look.
    """
    if not live:
        return _figures_of(read_cells(tx, span, columns=_NEEDED), span)
    try:
        windows = _windows.setdefault(tx, {})
    except TypeError:  # a connection that cannot be referred to weakly
        return _figures_of(read_cells(tx, span, columns=_NEEDED), span)
    key = (span.step, round(span.length_s / span.step))
    held = windows.pop(key, None) or _Held()
    windows[key] = held
    while len(windows) > _MOST_WINDOWS:
        del windows[next(iter(windows))]
    held.renew(tx, span)
    return held.figures


_NEEDED = ("answers", "errors", "answer_tokens", "leaked", "throttled", "ttft", "speed", "median_speed")
_CellKey = tuple[int, int]


@dataclass(slots=True)
class _Held:
    """What is in memory of a window that moves along."""

    cells: defaultdict[str, dict[_CellKey, Row]] = field(default_factory=lambda: defaultdict(dict))
    """Device → (start, served) → cell."""
    figures: dict[str, Figures] = field(default_factory=dict)
    seen: int = -1
    since_s: int = -1
    end_s: int = -1

    def renew(self, tx: Transaction, span: Span) -> None:
        named = ", ".join(("subject", "served", "start_s", "changed", *_NEEDED))
        words, arguments = "step = ? AND start_s >= ?", list[Value]((span.step, span.since_s))
        fresh = self.seen < 0 or span.since_s < self.since_s
        if fresh:
            self.cells.clear()
        else:
            words += " AND changed > ?"
            arguments.append(self.seen)
        rows = tx.rows(
            f"SELECT {named} FROM rollups WHERE {words} AND NOT (subject >= ? AND subject < ?)",
            *(*arguments, GROUP, GROUP[:-1] + ";"),
        )
        touched = set()
        for row in rows:
            self.cells[row["subject"]][row["start_s"], row["served"]] = row
            touched.add(row["subject"])
            if row["changed"] > self.seen:
                self.seen = row["changed"]
        if (span.since_s, span.end_s) != (self.since_s, self.end_s):  # a cell has left the window, or come in
            if self.since_s != span.since_s and not fresh:
                self._drop(span.since_s)
            self.since_s, self.end_s = span.since_s, span.end_s
            self.figures.clear()
            touched = set(self.cells)
        for device in touched:
            # What a clock that runs ahead has dated to the future waits.
            cells = [row for row in self.cells[device].values() if row["start_s"] < self.end_s]
            if cells:
                self.figures[device] = merge_cells(cells, span)

    def _drop(self, since_s: int) -> None:
        """Let go of cells before a time."""
        for device in list(self.cells):
            kept = {key: row for key, row in self.cells[device].items() if key[0] >= since_s}
            if kept:
                self.cells[device] = kept
            else:
                del self.cells[device]


_windows: weakref.WeakKeyDictionary[Transaction, dict[tuple[int, int], _Held]] = weakref.WeakKeyDictionary()


def _figures_of(rows: list[Row], span: Span) -> dict[str, Figures]:
    by_subject: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_subject[row["subject"]].append(row)
    return {subject: merge_cells(cells, span) for subject, cells in by_subject.items()}


def merge_cells(cells: Iterable[Row], span: Span) -> Figures:
    """The figures of some cells of one subject."""
    cells = list(cells)
    found = Figures()
    speeds: defaultdict[int, list[Row]] = defaultdict(list)
    for cell in cells:
        found.answers += cell["answers"]
        found.errors += cell["errors"]
        found.answer_tokens += cell["answer_tokens"]
        found.leaked += cell["leaked"]
        found.throttled += cell["throttled"]
        if cell["speed"] is not None:
            speeds[cell["start_s"]].append(cell)
    found.speed = quantile([cell["speed"] for cell in cells], 0.5)
    found.ttft_p95_s = quantile([cell["ttft"] for cell in cells], 0.95)
    found.spark = _spark(speeds, span)
    return found


def _spark(speeds: dict[int, list[Row]], span: Span) -> tuple[float | None, ...]:
    """The median of each eighth of the window: of its cells, or of the cell that it lies in."""
    end_s = span.end_s
    eighth_s = (end_s - span.since_s) / SPARK_CELLS
    eighths: list[list[Row]] = [[] for _ in range(SPARK_CELLS)]
    if eighth_s >= span.step:
        for start_s, cells in speeds.items():
            place = int((start_s + span.step / 2 - span.since_s) / eighth_s)
            eighths[min(place, SPARK_CELLS - 1)] += cells
    else:
        for place in range(SPARK_CELLS):
            middle_s = span.since_s + (place + 0.5) * eighth_s
            eighths[place] = speeds.get(floor(middle_s / span.step) * span.step, [])
    return tuple(_median(cells) for cells in eighths)


def _median(cells: list[Row]) -> float | None:
    if len(cells) == 1:
        median: float | None = cells[0]["median_speed"]
        return median
    return quantile([cell["speed"] for cell in cells], 0.5)


def check_window(asked: Record) -> None:
    """
    Raises:
        ConfigError: a question's window or moment is none.
    """
    window_s, until_s = getattr(asked, "window_s", 1.0), getattr(asked, "until_s", None)
    if not (math.isfinite(window_s) and 0 < window_s <= LONGEST_S):
        raise ConfigError(f"window_s: {window_s:g} is not above 0 and at most {LONGEST_S:g} (400 days)")
    if until_s is not None and not (math.isfinite(until_s) and 0 <= until_s < 1e11):
        raise ConfigError(f"until_s: {until_s:g} is no moment", hint="Seconds since 1970.")


def is_live(now_s: float, until_s: float | None) -> bool:
    """Whether a question is about now."""
    return until_s is None or until_s > now_s - _LIVE_S
