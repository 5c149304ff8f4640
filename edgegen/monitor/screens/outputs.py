"""3: what devices answer, live: a tail of the last 5,000, with flags, the text, and two releases beside each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from textual import events
from textual.binding import BindingType
from textual.widget import Widget

from edgegen.monitor.columns import Column
from edgegen.monitor.filters import Searchable
from edgegen.monitor.ink import Line, Piece
from edgegen.monitor.keymap import key
from edgegen.monitor.plain import fold
from edgegen.monitor.screens.comparison import Pair, comparison_lines, pairs_of
from edgegen.monitor.screens.view import Question, View
from edgegen.monitor.shown import UNKNOWN, age, clock, moment, number, seconds
from edgegen.monitor.table import Table
from edgegen.monitor.widgets.lines import Lines
from edgegen.records.monitor import AskComparison, AskOutputs, CanaryRow, OutputRow

RING = 5000
_BATCH = 500
_STOP = {"stop": "", "length": "warn", "canceled": "dim", "error": "bad"}


def _flags(row: OutputRow, now_s: float) -> Piece:
    return ("⚑ " + " ".join(row.flags), "warn") if row.flags else ("", "")


def _rating(row: OutputRow, now_s: float) -> Piece:
    return ("+", "ok") if row.rating > 0 else ("-", "bad") if row.rating < 0 else (" ", "")


def _words(row: OutputRow, now_s: float) -> Piece:
    if row.error:
        return row.error[:300], "bad"
    if not row.answer and not row.prompt and row.level:
        return f"({row.level.upper()}: no text)", "dim"
    return row.answer[:300], ""


COLUMNS: tuple[Column[OutputRow], ...] = (
    Column("time", "TIME", 8, 1, lambda r, n: (clock(r.at_s), "dim"), lambda r: r.at_s),
    Column("late", "", 1, 8, lambda r, n: ("⏲", "dim") if r.late else (" ", ""), None),
    Column("device", "DEVICE", 13, 1, lambda r, n: (r.device, "bold"), lambda r: r.device),
    Column("release", "RELEASE", 18, 5, lambda r, n: (r.label or UNKNOWN, "dim"), lambda r: r.label),
    Column("in", "IN", 5, 6, lambda r, n: (number(r.prompt_tokens), ""), lambda r: r.prompt_tokens, True, falls=True),
    Column("out", "OUT", 5, 4, lambda r, n: (number(r.answer_tokens), ""), lambda r: r.answer_tokens, True, falls=True),
    Column("ttft", "TTFT", 6, 5, lambda r, n: (seconds(r.ttft_s), ""), lambda r: r.ttft_s, True, falls=True),
    Column(
        "speed", "TOK/S", 5, 4, lambda r, n: (number(r.tokens_per_s), ""), lambda r: r.tokens_per_s, True, falls=True
    ),
    Column("stop", "STOP", 8, 7, lambda r, n: (r.stop, _STOP.get(r.stop, "")), lambda r: r.stop),
    Column("rating", "±", 1, 3, _rating, lambda r: r.rating),
    Column("flags", "FLAGS", 14, 2, _flags, lambda r: " ".join(r.flags) or None),
    Column("answer", "ANSWER", 12, 3, _words, None, grows=True),
)


def searchable(row: OutputRow) -> Searchable:
    """An answer as filters see it; its text too, if it is here."""
    flags = " ".join(row.flags)
    return Searchable(
        f"{row.device} {row.label} {row.stop} {flags} {row.error[:200]} {row.prompt[:800]} {row.answer[:800]}",
        {"device": row.device, "release": row.label, "stop": row.stop, "flag": flags, "level": row.level},
        bool(row.flags) or row.rating < 0,
    )


class OutputsView(View):
    """The tail of answers."""

    NAME = "outputs"
    TITLE_WORDS = "Outputs: what devices answer"
    LABELS = ("device", "release", "stop", "flag", "level")
    # Textual applies a screen's rules to the whole app, so each names its screen.
    CSS = """
    OutputsView #detail { height: 40%; max-height: 10; border-top: solid $primary; }
    OutputsView #detail.tall { height: 2fr; max-height: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("outputs.follow", "f", "follow", "Follow the newest, or stay", show="follow"),
        key("outputs.next", "n", "flagged(1)", "Next flagged", show="next flag"),
        key("outputs.previous", "N", "flagged(-1)", "Flagged before"),
        key("outputs.compare", "a", "compare", "Two marked answers, or old against new release", show="compare"),
        key("outputs.mask", "m", "mask", "Hide texts, or show them as far as privacy goes"),
        key("outputs.faults", "F", "faults", "Flagged only, or all"),
        key("outputs.device", "d", "device", "The device"),
        key("outputs.text", "tab", "other", "To the text and back"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.ring: deque[OutputRow] = deque(maxlen=RING)
        self.wanted: dict[str, str] = {}
        self.follows = True
        self.is_masked = False
        self.compares = ""
        """`releases` or `answers` while two are beside each other."""
        self.pairs: Sequence[Pair] = ()
        self._held_rows: deque[OutputRow] = deque(maxlen=RING)
        self._cursor = 0
        self._compare_words = ""

    def body(self) -> Iterable[Widget]:
        yield Table(
            COLUMNS,
            lambda row: row.cursor,
            search=searchable,
            empty="no answers yet",
            id="main",
        )
        yield Lines(id="detail")

    @property
    def table(self) -> Table[OutputRow]:
        found: Table[OutputRow] = self.query_one("#main", Table)
        return found

    def enter(self, **what: str) -> None:
        wanted = {name: value for name, value in what.items() if name != "compare" and value}
        if wanted != self.wanted:
            self.wanted = wanted
            self.forget()
        self.compares = "releases" if what.get("compare") and wanted.get("device") else ""
        self.pairs, self._compare_words = (), "asking …" if self.compares else ""

    def crumb(self) -> str:
        return " ".join(f"{name}={value}" if name != "device" else value for name, value in self.wanted.items())

    def status(self) -> list[str]:
        words = [] if self.follows else ["not following (f)"]
        if self.table.faults_only:
            words.append("flagged only")
        if self.is_masked:
            words.append("texts hidden (m)")
        return words

    # ---- asking

    def question(self) -> Question:
        source, sight = self.monitor.source, self.monitor.sight
        if self.compares == "releases":
            asked = AskComparison(device=self.wanted["device"])
            return lambda: source.compare(asked)
        ask = AskOutputs(
            after=self._cursor if sight.until_s is None else 0,
            limit=_BATCH,
            until_s=sight.until_s,
            group=self.wanted.get("group", ""),
            device=self.wanted.get("device", ""),
            release=self.wanted.get("release", ""),
            flag=self.wanted.get("flag", ""),
        )
        return lambda: source.outputs(ask)

    def forget(self) -> None:
        self.ring.clear()
        self._held_rows.clear()
        self._cursor = 0
        self.has_shown = False
        self.follows = True
        if self.is_ready:
            self.table.update_rows((), self.monitor.now_s)

    def accept(self, value: Sequence[OutputRow] | Sequence[CanaryRow]) -> None:
        if self.compares == "releases":
            rows = [row for row in value if isinstance(row, CanaryRow)]
            self.pairs = pairs_of(rows)
            self._compare_words = "" if self.pairs else "no golden prompts were asked on this device with two releases"
        else:
            new = self._new(value)
            self.ring.extend(new)
            if self.is_ready:
                self.table.update_rows(self.ring, self.monitor.now_s)
                if self.follows:
                    self.table.action_bottom()
            if len(new) >= _BATCH:
                self.is_asked_again = True
        self._show_detail()

    def _new(self, value: Sequence[Any]) -> list[OutputRow]:
        """Rows beyond the cursor, in order, which then moves."""
        new = sorted((r for r in value if isinstance(r, OutputRow) and r.cursor > self._cursor), key=lambda r: r.cursor)
        if new:
            self._cursor = new[-1].cursor
        return new

    def hold(self, value: Sequence[Any]) -> None:
        self._held_rows.extend(self._new(value))

    def release(self) -> None:
        if self._held_rows:
            self.ring.extend(self._held_rows)
            self._held_rows.clear()
            if self.is_ready:
                self.table.update_rows(self.ring, self.monitor.now_s)
                if self.follows:
                    self.table.action_bottom()

    def drop_held(self) -> None:
        self._held_rows.clear()

    def count_held(self) -> int:
        return len(self._held_rows)

    # ---- drawing

    def tick(self) -> None:
        super().tick()
        self._show_detail()

    def on_resize(self, event: events.Resize) -> None:
        self._show_detail()

    def on_table_moved(self, event: Table.Moved) -> None:
        if self.follows and event.table.cursor < len(event.table.rows) - 1:
            self.follows = False
        if self.compares == "answers":
            self.compares = ""
        self._show_detail()

    def on_table_opened(self, event: Table.Opened) -> None:
        self.query_one("#detail").toggle_class("tall")
        self.call_after_refresh(self._show_detail)

    def _show_detail(self) -> None:
        if not self.is_ready:
            return
        detail = self.query_one("#detail", Lines)
        self.table.display = self.compares != "releases"
        if self.compares:
            detail.add_class("tall")
            if not self.table.display and self.table.has_focus:
                detail.focus()
        width = max(20, detail.size.width - 2)
        if self.compares:
            if self._compare_words:
                detail.show([[("  " + self._compare_words, "dim")]])
            else:
                detail.show(comparison_lines(self.pairs, width, masked=self.is_masked))
            return
        row = self.table.row
        detail.show(output_lines(row, width, self.monitor.now_s, masked=self.is_masked) if row is not None else [])

    # ---- acting on the view

    def leave(self) -> bool:
        """Back from two beside each other to the tail."""
        if not self.compares:
            return False
        self.compares, self.pairs, self._compare_words = "", (), ""
        self.query_one("#detail").remove_class("tall")
        self._show_detail()
        self.table.focus()
        self.is_asked_again = True
        self.monitor.tick()
        return True

    def action_follow(self) -> None:
        self.follows = not self.follows
        if self.follows:
            self.table.action_bottom()
        self.monitor.tick()

    def action_flagged(self, by: int) -> None:
        """To the next row with a flag or a bad rating."""
        if self.table.seek(lambda row: bool(row.flags) or row.rating < 0, by):
            self.follows = False
        else:
            self.monitor.say("no other flagged answer here")

    def action_compare(self) -> None:
        if self.leave():
            return
        marked = self.table.marked
        if len(marked) == 2:
            old, new = sorted(marked, key=lambda row: row.cursor)
            self.compares = "answers"
            self.pairs = (
                Pair(f"{old.device} {old.label}", f"{new.device} {new.label}", old.answer, new.answer, new.prompt),
            )
            self._show_detail()
            return
        row = self.table.row
        device = self.wanted.get("device") or (row.device if row is not None else "")
        if device:
            self.monitor.go("outputs", device=device, compare="yes")
        else:
            self.monitor.say("mark two answers, or choose a device")

    def action_mask(self) -> None:
        self.is_masked = not self.is_masked
        self.table.columns = tuple(c for c in COLUMNS if c.name != "answer") if self.is_masked else COLUMNS
        self.table.refit()
        self._show_detail()

    def action_faults(self) -> None:
        self.table.show_faults(not self.table.faults_only)
        self.monitor.tick()

    def action_device(self) -> None:
        if (row := self.table.row) is not None:
            self.monitor.go("device", device=row.device)

    def action_other(self) -> None:
        self.query_one("#detail" if self.table.has_focus else "#main").focus()


def output_lines(row: OutputRow, width: int, now_s: float, *, masked: bool) -> list[Line]:
    """One answer in full: figures, prompt, answer."""
    lines: list[Line] = [
        [
            (" " + moment(row.at_s), "dim"),
            ("  " + row.device, "bold"),
            ("  ⚑ " + " ".join(row.flags) if row.flags else "", "warn"),
            (f"  {row.label or UNKNOWN}", ""),
            (f"  {row.prompt_tokens}→{row.answer_tokens} tokens", ""),
            (f"  first {seconds(row.ttft_s)}, {number(row.tokens_per_s)} tok/s", ""),
            (f"  {row.stop}", _STOP.get(row.stop, "")),
            (f"  came late, {age(now_s - row.at_s)} old" if row.late else "", "dim"),
        ]
    ]
    if row.rating or row.comment:
        glyph, role = ("+ good", "ok") if row.rating > 0 else ("- bad", "bad") if row.rating < 0 else ("", "")
        lines.append([(f" {glyph} ", role), (row.comment, "")])
    if row.error:
        lines.append([(" ▲ ", "bad"), (row.error, "bad")])
    if masked:
        return [*lines, [(" texts are hidden (m shows them)", "dim")]]
    if not row.prompt and not row.answer:
        why = (
            "an empty answer"
            if "EMPTY" in row.flags
            else f"no text leaves the device at privacy {row.level.upper() or UNKNOWN}"
        )
        return [*lines, [(" " + why, "dim")]]
    for words, text, role in (("prompt", row.prompt, ""), ("answer", row.answer, "")):
        lines.append([(f" {words}", "accent")])
        lines += [[("  " + line, role)] for line in fold(text, width - 3)]
    return lines
