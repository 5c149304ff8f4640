"""5: what changed against the packed release: metrics by groups, and the two distributions of the chosen cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from edgegen.monitor.ink import Line, Piece, fit
from edgegen.monitor.keymap import key
from edgegen.monitor.plain import plain
from edgegen.monitor.screens.view import Question, View
from edgegen.monitor.shown import VERDICT_GLYPH, number
from edgegen.monitor.widgets.histogram import histogram
from edgegen.monitor.widgets.lines import Lines, Painted
from edgegen.records.monitor import DriftCell, Verdict

_FIRST = 16
_CELL = 18
Head = tuple[str, str, str]
"""Group, release's label, against what."""


class HeatTable(Painted):
    """Metrics down, groups across; one cell is chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        key("drift.down", "j,down", "move(1,0)", "Next metric"),
        key("drift.up", "k,up", "move(-1,0)", "Metric before"),
        key("drift.left", "h,left", "move(0,-1)", "Group to the left"),
        key("drift.right", "l,right", "move(0,1)", "Group to the right"),
        key("drift.worst", "n", "worst", "Next drift", show="next drift"),
    ]

    class Chosen(Message):
        """Another cell is chosen."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.metrics: list[str] = []
        self.heads: list[Head] = []
        self.cells: dict[tuple[str, Head], DriftCell] = {}
        self.place = (0, 0)
        self.is_dim = False

    def show(self, cells: Sequence[DriftCell]) -> None:
        """Replace the cells; the chosen one stays chosen."""
        before = self._chosen_name()
        self.metrics = list(dict.fromkeys(cell.metric for cell in cells))
        self.heads = sorted({_head(cell) for cell in cells})
        self.cells = {(cell.metric, _head(cell)): cell for cell in cells}
        if before is not None and before[0] in self.metrics and before[1] in self.heads:
            self.place = (self.metrics.index(before[0]), self.heads.index(before[1]))
        else:
            self.place = (0, 0)
            self._to_worst(0)
        self.virtual_size = Size(_FIRST + len(self.heads) * _CELL + 1, len(self.metrics) + 2)
        self.repaint()

    @property
    def chosen(self) -> DriftCell | None:
        name = self._chosen_name()
        return self.cells.get(name) if name else None

    def _chosen_name(self) -> tuple[str, Head] | None:
        row, column = self.place
        return (self.metrics[row], self.heads[column]) if row < len(self.metrics) and column < len(self.heads) else None

    def draw(self, y: int, width: int) -> Strip:
        place = y + self.scroll_offset.y
        whole = max(width, _FIRST + len(self.heads) * _CELL + 1)
        line: list[Piece] = []
        if not self.cells:
            return self.ink.strip([("  nothing to compare yet", "dim")] if y == 0 else [], width, self.base)
        if place == 0:
            line = [(fit(" METRIC", _FIRST), "head"), *((fit(plain(h[0]), _CELL), "head") for h in self.heads)]
        elif place == 1:
            line = [(" " * _FIRST, "")]
            for head in self.heads:
                against = "⇄" if head[2] == "control" else ""
                line.append((fit(plain(against + head[1]), _CELL - 1) + " ", "dim"))
        elif place - 2 < len(self.metrics):
            metric = self.metrics[place - 2]
            line.append((fit(" " + plain(metric), _FIRST), "bold"))
            for column, head in enumerate(self.heads):
                line.append(self._cell(self.cells.get((metric, head)), (place - 2, column) == self.place))
        strip = self.ink.strip(line, whole, self.base)
        return strip.crop(self.scroll_offset.x, self.scroll_offset.x + width) if whole > width else strip

    def _cell(self, cell: DriftCell | None, here: bool) -> Piece:
        if cell is None:
            return fit("▸" if here else " ", _CELL), "dim"
        glyph, role = VERDICT_GLYPH[cell.verdict]
        words = "few" if cell.verdict is Verdict.TOO_FEW else number(cell.psi)
        text = f"{'▸' if here else ' '}{glyph} {words:<5} n={number(cell.n)}"
        role = "dim" if self.is_dim else role
        return fit(text, _CELL - 1) + " ", f"{role} chosen" if here and self.has_focus else role

    def action_move(self, down: int, across: int) -> None:
        if not self.cells:
            return
        self._choose((self.place[0] + down) % len(self.metrics), (self.place[1] + across) % len(self.heads))

    def action_worst(self) -> None:
        self._to_worst(1)

    def _to_worst(self, skip: int) -> None:
        """The next cell that drifts, reading on from the chosen one; the first time that one too."""
        across = len(self.heads)
        whole = len(self.metrics) * across
        start = self.place[0] * across + self.place[1] + skip
        for wanted in (Verdict.DRIFT, Verdict.WATCH):
            for step in range(whole):
                row, column = divmod((start + step) % whole, across)
                cell = self.cells.get((self.metrics[row], self.heads[column]))
                if cell is not None and cell.verdict is wanted:
                    self._choose(row, column)
                    return

    def _choose(self, row: int, column: int) -> None:
        self.place = (row, column)
        left = _FIRST + column * _CELL
        if left < self.scroll_offset.x + _FIRST or left + _CELL > self.scroll_offset.x + self.size.width:
            self.scroll_to(x=max(0, left - _FIRST), animate=False, immediate=True)
        if row + 2 >= self.scroll_offset.y + self.size.height or row + 2 < self.scroll_offset.y:
            self.scroll_to(y=max(0, row + 3 - self.size.height), animate=False, immediate=True)
        self.repaint()
        self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        row = event.y - 2 + self.scroll_offset.y
        column = (event.x + self.scroll_offset.x - _FIRST) // _CELL
        if 0 <= row < len(self.metrics) and 0 <= column < len(self.heads):
            self._choose(row, column)


class DriftView(View):
    """All metrics of all groups."""

    NAME = "drift"
    TITLE_WORDS = "Drift: what changed against the packed release"
    CSS = """
    DriftView #main { height: auto; max-height: 60%; min-height: 3; }
    DriftView #detail { height: 1fr; border-top: solid $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("drift.text", "tab", "other", "To the lower part and back"),
        key("drift.devices", "o", "devices", "Devices of the group"),
        key("drift.group", "d", "group", "This group only, or all", show="group"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.group = ""
        self.shown: tuple[DriftCell, ...] = ()

    def body(self) -> Iterable[Widget]:
        yield HeatTable(id="main")
        yield Lines(id="detail")

    @property
    def heat(self) -> HeatTable:
        return self.query_one("#main", HeatTable)

    def enter(self, **what: str) -> None:
        self.group = what.get("group", "")

    def question(self) -> Question:
        source, ask = self.monitor.source, self.monitor.ask_of(group=self.group)
        return lambda: source.drift(ask)

    def accept(self, value: tuple[DriftCell, ...]) -> None:
        self.shown = value
        if self.is_ready:
            self.heat.show(value)
            self._show()

    def crumb(self) -> str:
        return self.group

    def current(self) -> DriftCell | None:
        return self.heat.chosen

    def exported(self) -> Sequence[DriftCell]:
        return self.shown

    def count_held(self) -> int:
        if not self._has_held:
            return 0
        return sum(1 for cell in self._held if cell not in self.shown)

    def tick(self) -> None:
        if self.is_ready:
            self.heat.is_dim = self.monitor.is_failing
            self.heat.repaint()
            self._show()

    def on_resize(self, event: events.Resize) -> None:
        self._show()

    def on_heat_table_chosen(self, event: HeatTable.Chosen) -> None:
        self._show()

    def _show(self) -> None:
        if self.is_ready:
            detail = self.query_one("#detail", Lines)
            cell = self.heat.chosen
            detail.show(cell_lines(cell, max(40, detail.size.width - 2)) if cell else [])

    def action_other(self) -> None:
        self.query_one("#detail" if self.heat.has_focus else "#main").focus()

    def action_group(self) -> None:
        cell = self.heat.chosen
        self.monitor.go("drift", **({"group": cell.group} if cell and not self.group else {}))

    def action_devices(self) -> None:
        if (cell := self.heat.chosen) is not None:
            self.monitor.go("fleet")
            self.monitor.filter(f"-l group={cell.group}")


def _head(cell: DriftCell) -> Head:
    return cell.group, cell.label, cell.against


def cell_lines(cell: DriftCell, width: int) -> list[Line]:
    """One comparison in words and as two histograms."""
    glyph, role = VERDICT_GLYPH[cell.verdict]
    against = "the control group" if cell.against == "control" else "the packed release"
    words = {
        Verdict.OK: "within the threshold for this n",
        Verdict.WATCH: "beyond the threshold in one window; a second one makes it a drift",
        Verdict.DRIFT: "beyond the threshold in two windows in a row",
        Verdict.TOO_FEW: "too few answers for a verdict: 200 are needed",
    }[cell.verdict]
    lines: list[Line] = [
        [
            (f" {glyph} {cell.verdict} ", f"{role} bold"),
            (f" {cell.metric}", "bold"),
            (f" of {cell.group}, {cell.label}, against {against}", ""),
        ],
        [(f"   {words}", "dim")],
        [
            (f"   n={cell.n:,}", ""),
            (f"  PSI {number(cell.psi)}", "bold"),
            (f" (limit {number(cell.threshold)})", "dim"),
            (f"  Jensen–Shannon {number(cell.js)}  Wasserstein {number(cell.wasserstein)}", ""),
            (f"  p={cell.p:.2g}" if cell.p is not None else "", ""),
        ],
        [],
    ]
    return [*lines, *histogram(cell.edges, cell.reference, cell.current, width)]
