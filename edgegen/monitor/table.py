"""A table of many live rows over Textual's line API.

Textual's own `DataTable` measures and redraws every row whenever one changes: 90 ms for a cell of 10,000 rows. Here the
rows stand in a model of their own (`Rows`); only the lines that are on the screen are ever drawn, and only those that
differ from what stands there are sent. Widths are fixed, columns that do not fit are left out by priority, the cursor
and the marks belong to keys and so outlive sorting and filtering.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from edgegen.monitor.columns import Column, Fitted, fit_columns, width_of
from edgegen.monitor.filters import Filter, Searchable
from edgegen.monitor.ink import Piece, fit
from edgegen.monitor.keymap import key
from edgegen.monitor.plain import plain
from edgegen.monitor.rows import Rows
from edgegen.monitor.widgets.lines import Painted

R = TypeVar("R")


class Table(Painted, Generic[R]):
    """Rows that change, a cursor and marks."""

    BINDINGS: ClassVar[list[BindingType]] = [
        key("table.down", "j,down", "move(1)", "Down"),
        key("table.up", "k,up", "move(-1)", "Up"),
        key("table.page-down", "pagedown,ctrl+f", "page(1)", "A page down"),
        key("table.page-up", "pageup,ctrl+b", "page(-1)", "A page up"),
        key("table.top", "g,home", "top", "First row"),
        key("table.bottom", "G,end", "bottom", "Last row"),
        key("table.left", "h,left", "across(-8)", "Left, where columns are wider than the screen"),
        key("table.right", "l,right", "across(8)", "Right"),
        key("table.open", "enter", "open", "Open", show="open"),
        key("table.mark", "space", "mark", "Mark"),
        key("table.mark-range", "ctrl+@,ctrl+space", "mark_range", "Mark from the last mark to here"),
        key("table.unmark", "ctrl+backslash", "unmark", "Clear the marks"),
        key("table.sort", "s", "sort", "Sort by the next column", show="sort"),
        key("table.reverse", "S", "reverse", "Reverse the order"),
        key("table.wide", "w", "wide", "All columns, or those that fit"),
    ]

    class Opened(Message):
        """Enter was pressed on a row, or it was clicked twice."""

        def __init__(self, table: Table[Any], row: Any) -> None:
            super().__init__()
            self.table, self.row = table, row

        @property
        def control(self) -> Table[Any]:
            return self.table

    class Moved(Message):
        """The cursor is on another row, or on none."""

        def __init__(self, table: Table[Any]) -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> Table[Any]:
            return self.table

    def __init__(
        self,
        columns: Sequence[Column[R]],
        key: Callable[[R], Hashable],
        *,
        search: Callable[[R], Searchable] | None = None,
        stale: Callable[[R, float], bool] | None = None,
        sort: str = "",
        empty: str = "nothing here",
        frozen: int = 1,
        id: str | None = None,
    ) -> None:
        """
        Args:
            key: tells rows apart; the cursor and marks belong to it.
            search: a row as filters see it.
            stale: whether a row's values are of the past, and dimmed.
            sort: column to sort by at first; empty: the order in which rows are given.
            empty: said where there are no rows.
            frozen: columns at the left that stay where the others are moved.
        """
        super().__init__(id=id)
        self.columns = tuple(columns)
        self.empty = empty
        self.frozen = frozen
        self.sort_column = sort
        self.reversed = self._column(sort).falls if sort else False
        self.is_wide = False
        self.is_dim = False
        """Everything: the source is away, so all of it is of the past."""
        self.now_s = 0.0
        self.marks: set[Hashable] = set()
        self._model: Rows[R] = Rows(key, search)
        self._stale = stale
        self._cursor = 0
        self._anchor: Hashable | None = None
        self._fitted: Fitted[R] = []
        self._fitted_for = (-1, False)
        if sort:
            self._model.sort(self._column(sort).sort, reverse=self.reversed)

    # ---- the rows

    @property
    def rows(self) -> list[R]:
        """Those that the filter lets through, in order."""
        rows = self._model.rows
        return [rows[name] for name in self._model.order]

    @property
    def total(self) -> int:
        """Rows, the filtered ones included."""
        return len(self._model.rows)

    @property
    def cursor(self) -> int:
        """Place in the order, 0 where there are no rows."""
        return self._cursor

    @property
    def row(self) -> R | None:
        """Under the cursor."""
        here = self._here()
        return None if here is None else self._model.rows[here]

    @property
    def marked(self) -> list[R]:
        """Marked rows in order; where none is marked the one under the cursor."""
        names = [name for name in self._model.order if name in self.marks]
        if not names and (here := self._here()) is not None:
            names = [here]
        return [self._model.rows[name] for name in names]

    @property
    def faults_only(self) -> bool:
        """Whether only rows are shown that a person should look at."""
        return self._model.faults_only

    def differing(self, rows: Iterable[R]) -> int:
        """How many rows are new, changed or gone against those that stand here."""
        return self._model.differing(rows)

    def update_rows(self, rows: Iterable[R], now_s: float) -> None:
        """Replace the rows; `repaint` draws them."""
        self.now_s = now_s
        here = self._here()
        if self._model.update(rows):
            self.marks &= self._model.rows.keys()
            self._follow(here)

    def set_filter(self, wanted: Filter | None) -> None:
        """Show only rows that pass; None: all."""
        self._filter(wanted, self.faults_only)

    def show_faults(self, only: bool) -> None:
        """Show only rows that a person should look at, of those that pass the filter."""
        self._filter(self._model.wanted, only)

    def _filter(self, wanted: Filter | None, faults_only: bool) -> None:
        here = self._here()
        self._model.filter(wanted, faults_only=faults_only)
        self._follow(here)
        self._scroll_to_cursor()
        self.repaint()

    def sort_by(self, name: str, reverse: bool | None = None) -> None:
        """Sort by a column; empty: the given order.

        Args:
            reverse: None: as the column begins.
        """
        here = self._here()
        column = self._column(name) if name else None
        self.sort_column = name
        self.reversed = (column.falls if column else False) if reverse is None else reverse
        self._model.sort(column.sort if column else None, reverse=self.reversed)
        self._follow(here)
        self._scroll_to_cursor()
        self.redraw()

    def select(self, name: Hashable) -> bool:
        """Put the cursor on a row; False where it is not shown."""
        if not self._model.shows(name):
            return False
        self._go(self._model.order.index(name))
        return True

    def seek(self, wanted: Callable[[R], bool], by: int) -> bool:
        """Put the cursor on the next row that is wanted, down (1) or up (-1), and on from the other end.

        Returns:
            Whether there is one, other than the row under the cursor.
        """
        rows, whole = self.rows, len(self.rows)
        for step in range(1, whole):
            place = (self._cursor + by * step) % whole
            if wanted(rows[place]):
                self._go(place)
                return True
        return False

    def _column(self, name: str) -> Column[R]:
        return next(column for column in self.columns if column.name == name)

    def _here(self) -> Hashable | None:
        """Key of the row under the cursor."""
        return self._model.order[self._cursor] if self._model.order else None

    def _follow(self, here: Hashable | None) -> None:
        """The order is another: keep the cursor on its row."""
        order = self._model.order
        if here is not None and self._model.shows(here):
            self._cursor = order.index(here)
        else:
            self._cursor = min(self._cursor, max(0, len(order) - 1))
        self._fit_size()
        if self._here() != here:
            self.post_message(self.Moved(self))

    # ---- drawing

    def watch_has_focus(self, has_focus: bool) -> None:
        super().watch_has_focus(has_focus)
        self.redraw()

    def on_resize(self) -> None:
        self._fit_size()
        self._scroll_to_cursor()

    def on_mount(self) -> None:
        self._fit_size()

    def draw(self, y: int, width: int) -> Strip:
        columns = self._columns_for(width)
        whole = max(width, width_of(columns))
        base = self.base
        if y == 0:
            strip = self._heading(columns, whole, base)
        else:
            place = y - 1 + self.scroll_offset.y
            if place >= len(self._model.order):
                words = self.empty if place == 0 else ""
                if place == 0 and self._model.rows:
                    words = f"none of {len(self._model.rows):,} rows passes the filter"
                return self.ink.strip([("  " + words, "dim")], width, base)
            strip = self._row(self._model.order[place], place, columns, whole, base)
        if whole == width:
            return strip
        kept, left = width_of(columns[: self.frozen]), self.scroll_offset.x
        return Strip.join([strip.crop(0, kept), strip.crop(kept + left, left + width)])

    def _heading(self, columns: Fitted[R], whole: int, base: Style) -> Strip:
        line: list[Piece] = [("  ", "head")]
        for column, width in columns:
            title = column.title
            if column.name == self.sort_column:
                title += "↓" if self.reversed else "↑"
            line.append((fit(title, width, right=column.right) + " ", "head"))
        return self.ink.strip(line, whole, base)

    def _row(self, name: Hashable, place: int, columns: Fitted[R], whole: int, base: Style) -> Strip:
        row = self._model.rows[name]
        here, marked = place == self._cursor, name in self.marks
        dim = self.is_dim or (self._stale is not None and self._stale(row, self.now_s))
        line: list[Piece] = [("▸" if here else " ", "accent"), ("*" if marked else " ", "warn")]
        for column, width in columns:
            text, role = column.cell(row, self.now_s)
            if not text.isascii() or not text.isprintable():
                text = plain(text)
            line.append((fit(text, width, right=column.right) + " ", "dim" if dim and column.priority > 1 else role))
        if here and self.has_focus:  # one colour for the whole row; the glyphs still say what others mean
            line = [(text, "") for text, _ in line]
        over = self.ink.style("chosen" if self.has_focus else "bold") if here else None
        return self.ink.strip(line, whole, base, over)

    def _columns_for(self, width: int) -> Fitted[R]:
        if self._fitted_for != (width, self.is_wide):
            self._fitted = fit_columns(self.columns, width, everything=self.is_wide)
            self._fitted_for = (width, self.is_wide)
        return self._fitted

    def refit(self) -> None:
        """The columns were replaced."""
        self._fitted_for = (-1, False)
        if self.sort_column not in {column.name for column in self.columns}:
            self.sort_by("")
        self._fit_size()
        self.redraw()

    def _fit_size(self) -> None:
        width = self.size.width
        whole = width_of(self._columns_for(width)) if width else 0
        self.styles.overflow_x = "auto" if whole > width else "hidden"
        size = Size(whole if whole > width else width, len(self._model.order) + 1)
        if self.virtual_size != size:
            self.virtual_size = size
            self._painted.clear()

    # ---- moving

    def _go(self, place: int) -> None:
        place = min(max(place, 0), max(0, len(self._model.order) - 1))
        if place == self._cursor:
            return
        self._cursor = place
        self._scroll_to_cursor()
        self.repaint()
        self.post_message(self.Moved(self))

    def _scroll_to_cursor(self) -> None:
        view = max(1, self.scrollable_content_region.height - 1)
        top = self.scroll_offset.y
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, force=True, immediate=True)
        elif self._cursor >= top + view:
            self.scroll_to(y=self._cursor - view + 1, animate=False, force=True, immediate=True)

    def action_move(self, by: int) -> None:
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        self._go(self._cursor + by * max(1, self.size.height - 2))

    def action_top(self) -> None:
        self._go(0)

    def action_bottom(self) -> None:
        self._go(len(self._model.order) - 1)

    def action_across(self, by: int) -> None:
        self.scroll_to(x=max(0, self.scroll_offset.x + by), animate=False, immediate=True)

    def action_open(self) -> None:
        if (row := self.row) is not None:
            self.post_message(self.Opened(self, row))

    def action_mark(self) -> None:
        if self._model.order:
            name = self._model.order[self._cursor]
            self.marks ^= {name}
            self._anchor = name
            self._go(self._cursor + 1)
            self.repaint()

    def action_mark_range(self) -> None:
        if not self._model.order:
            return
        here = self._cursor
        start = self._model.order.index(self._anchor) if self._anchor in self._model.order else here
        self.marks |= set(self._model.order[min(start, here) : max(start, here) + 1])
        self.repaint()

    def action_unmark(self) -> None:
        self.marks.clear()
        self.repaint()

    def action_sort(self) -> None:
        names = ["", *(column.name for column, _ in self._columns_for(self.size.width) if column.sort is not None)]
        at = names.index(self.sort_column) if self.sort_column in names else 0
        self.sort_by(names[(at + 1) % len(names)])

    def action_reverse(self) -> None:
        self.sort_by(self.sort_column, not self.reversed)

    def action_wide(self) -> None:
        self.is_wide = not self.is_wide
        self._fit_size()
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        place = event.y - 1 + self.scroll_offset.y
        if event.y > 0 and place < len(self._model.order):
            self._go(place)
            if event.chain > 1:
                self.action_open()
