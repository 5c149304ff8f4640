"""6: what happened: operators' acts, devices' words, alerts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from textual.binding import BindingType
from textual.widget import Widget

from edgegen.monitor.columns import Column
from edgegen.monitor.filters import Searchable
from edgegen.monitor.ink import Piece
from edgegen.monitor.keymap import key
from edgegen.monitor.screens.view import Question, View
from edgegen.monitor.shown import LEVEL_GLYPH, day
from edgegen.monitor.table import Table
from edgegen.records.monitor import AskEvents, EventRow

RING = 5000
_BATCH = 500


def _level(row: EventRow, now_s: float) -> Piece:
    glyph, role = LEVEL_GLYPH.get(row.level, ("·", ""))
    return f"{glyph} {row.level}", role


COLUMNS: tuple[Column[EventRow], ...] = (
    Column("time", "TIME", 14, 1, lambda r, n: (day(r.at_s), "dim"), lambda r: r.at_s),
    Column("level", "LEVEL", 9, 1, _level, lambda r: r.level),
    Column("what", "WHAT", 18, 1, lambda r, n: (r.what, "bold"), lambda r: r.what),
    Column("device", "DEVICE", 14, 2, lambda r, n: (r.device, ""), lambda r: r.device or None),
    Column("group", "GROUP", 16, 4, lambda r, n: (r.group, "dim"), lambda r: r.group or None),
    Column("detail", "DETAIL", 14, 3, lambda r, n: (r.detail, ""), None, grows=True),
)


def searchable(row: EventRow) -> Searchable:
    """An event as filters see it."""
    return Searchable(
        f"{row.level} {row.what} {row.device} {row.group} {row.detail}",
        {"level": row.level, "what": row.what, "device": row.device, "group": row.group},
        row.level in ("warning", "error"),
    )


class EventsView(View):
    """The log."""

    NAME = "events"
    TITLE_WORDS = "Events: what happened"
    LABELS = ("level", "what", "device", "group")
    BINDINGS: ClassVar[list[BindingType]] = [
        key("events.faults", "F", "faults", "Warnings and errors only, or all", show="faults"),
        key("events.follow", "f", "follow", "Follow the newest, or stay", show="follow"),
        key("events.next", "n", "wrong(1)", "Next error"),
        key("events.previous", "N", "wrong(-1)", "Error before"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.ring: deque[EventRow] = deque(maxlen=RING)
        self.wanted: dict[str, str] = {}
        self.follows = True
        self._held_rows: deque[EventRow] = deque(maxlen=RING)
        self._cursor = 0

    def body(self) -> Iterable[Widget]:
        yield Table(COLUMNS, lambda row: row.cursor, search=searchable, empty="nothing happened", id="main")

    @property
    def table(self) -> Table[EventRow]:
        found: Table[EventRow] = self.query_one("#main", Table)
        return found

    def enter(self, **what: str) -> None:
        wanted = {name: value for name, value in what.items() if value}
        if wanted != self.wanted:
            self.wanted = wanted
            self.forget()

    def crumb(self) -> str:
        return " ".join(value if name == "device" else f"{name}={value}" for name, value in self.wanted.items())

    def status(self) -> list[str]:
        words = [] if self.follows else ["not following (f)"]
        return [*words, "warnings and errors only"] if self.table.faults_only else words

    def question(self) -> Question:
        source, until_s = self.monitor.source, self.monitor.sight.until_s
        ask = AskEvents(
            after=self._cursor if until_s is None else 0,
            limit=_BATCH,
            until_s=until_s,
            group=self.wanted.get("group", ""),
            device=self.wanted.get("device", ""),
            level=self.wanted.get("level", ""),
        )
        return lambda: source.events(ask)

    def forget(self) -> None:
        self.ring.clear()
        self._held_rows.clear()
        self._cursor = 0
        self.has_shown = False
        self.follows = True
        if self.is_ready:
            self.table.update_rows((), self.monitor.now_s)

    def accept(self, value: Sequence[Any]) -> None:
        new = self._new(value)
        self._add(new)
        if len(new) >= _BATCH:
            self.is_asked_again = True

    def _new(self, value: Sequence[Any]) -> list[EventRow]:
        new = sorted((row for row in value if row.cursor > self._cursor), key=lambda row: row.cursor)
        if new:
            self._cursor = new[-1].cursor
        return new

    def _add(self, rows: Iterable[EventRow]) -> None:
        self.ring.extend(rows)
        if self.is_ready:
            self.table.update_rows(self.ring, self.monitor.now_s)
            if self.follows:
                self.table.action_bottom()

    def hold(self, value: Sequence[Any]) -> None:
        self._held_rows.extend(self._new(value))

    def release(self) -> None:
        self._add(self._held_rows)
        self._held_rows.clear()

    def drop_held(self) -> None:
        self._held_rows.clear()

    def count_held(self) -> int:
        return len(self._held_rows)

    def on_table_moved(self, event: Table.Moved) -> None:
        if self.follows and event.table.cursor < len(event.table.rows) - 1:
            self.follows = False

    def on_table_opened(self, event: Table.Opened) -> None:
        if event.row.device:
            self.monitor.go("device", device=event.row.device)
        else:
            self.monitor.say("this is about no one device")

    def action_faults(self) -> None:
        self.table.show_faults(not self.table.faults_only)
        self.monitor.tick()

    def action_follow(self) -> None:
        self.follows = not self.follows
        if self.follows:
            self.table.action_bottom()
        self.monitor.tick()

    def action_wrong(self, by: int) -> None:
        """To the next row that is an error."""
        if self.table.seek(lambda row: row.level == "error", by):
            self.follows = False
        else:
            self.monitor.say("no other error here")
