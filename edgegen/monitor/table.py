"""A table of many live rows over Textual's line API.

Textual's own `DataTable` measures and redraws every row whenever one changes: 90 ms for a cell of 10,000 rows. Here the
model is a dictionary of rows and a list of keys in order; only the lines that are on the screen are ever drawn, and
only those that differ from what stands there are sent. Widths are fixed, columns that do not fit are left out by
priority, the cursor and the marks belong to keys and so outlive sorting and filtering.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from edgegen.monitor.filters import Filter, Searchable
from edgegen.monitor.ink import Piece, fit
from edgegen.monitor.keymap import key
from edgegen.monitor.plain import plain
from edgegen.monitor.widgets.lines import Painted

R = TypeVar("R")
_GUTTER = 2
"""Cells for the cursor's and the mark's glyph."""


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """One column.

    Attributes:
        name: for `:sort` and exports.
        cell: a row and the time now → text and role.
        width: in cells; of the one that is `grows`, the least.
        priority: 1 is left out last.
        sort: what the column sorts by, None is unknown and comes last; without it the column does not sort.
        falls: whether sorting begins with the largest.
    """

    name: str
    title: str
    width: int
    priority: int
    cell: Callable[[R, float], Piece]
    sort: Callable[[R], Any] | None = None
    right: bool = False
    grows: bool = False
    falls: bool = False


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
        self._key, self._search, self._stale = key, search, stale
        self._rows: dict[Hashable, R] = {}
        self._given: Sequence[R] = ()
        self._some_unknown = False
        self._order: list[Hashable] = []
        self._sort_keys: dict[Hashable, Any] = {}
        self._filter: Filter | None = None
        self.faults_only = False
        self._kept: dict[Hashable, bool] = {}
        self._cursor = 0
        self._anchor: Hashable | None = None
        self._fitted: list[tuple[Column[R], int]] = []
        self._fitted_for = (-1, False)

    # ---- the model

    @property
    def rows(self) -> list[R]:
        """Those that the filter lets through, in order."""
        return [self._rows[name] for name in self._order]

    @property
    def total(self) -> int:
        """Rows, the filtered ones included."""
        return len(self._rows)

    @property
    def cursor(self) -> int:
        """Place in the order, 0 where there are no rows."""
        return self._cursor

    @property
    def row(self) -> R | None:
        """Under the cursor."""
        return self._rows[self._order[self._cursor]] if self._order else None

    @property
    def marked(self) -> list[R]:
        """Marked rows in order, hidden ones last; where none is marked the one under the cursor."""
        names = [name for name in self._order if name in self.marks]
        names += [name for name in self._rows if name in self.marks and name not in set(names)]
        if not names and self._order:
            names = [self._order[self._cursor]]
        return [self._rows[name] for name in names]

    def differing(self, rows: Iterable[R]) -> int:
        """How many rows are new, changed or gone against those that stand here."""
        names = {self._key(row): row for row in rows}
        changed = sum(1 for name, row in names.items() if name not in self._rows or self._rows[name] != row)
        return changed + sum(1 for name in self._rows if name not in names)

    def update_rows(self, rows: Iterable[R], now_s: float) -> None:
        """Replace the rows; `repaint` draws them.

        The usual case is quick: the same rows in the same order, most of them the very objects that stand here.
        """
        self.now_s = now_s
        given = rows if isinstance(rows, tuple) else tuple(rows)
        before, self._given = self._given, given
        if len(before) == len(given):
            pairs = [(was, row) for was, row in zip(before, given, strict=True) if was is not row and was != row]
            names = [self._key(row) for _, row in pairs]
            if names == [self._key(was) for was, _ in pairs]:
                self._rows.update(zip(names, (row for _, row in pairs), strict=True))
                moved = self._sorted_anew(names) | self._filtered_anew(names)
                if moved:
                    self._arrange(same_rows=True)
                return
        old = self._rows
        self._rows = {self._key(row): row for row in given}
        changed = [name for name, row in self._rows.items() if name not in old or old[name] != row]
        self._sort_keys = {name: value for name, value in self._sort_keys.items() if name in self._rows}
        self._sorted_anew(changed)
        self._filtered_anew(changed)
        self.marks &= self._rows.keys()
        self._arrange()

    def set_filter(self, wanted: Filter | None) -> None:
        """Show only rows that pass; None: all."""
        self._filter = wanted
        self._filter_all()

    def show_faults(self, only: bool) -> None:
        """Show only rows that a person should look at, of those that pass the filter."""
        self.faults_only = only
        self._filter_all()

    @property
    def is_filtered(self) -> bool:
        return self._filter is not None or self.faults_only

    def _filter_all(self) -> None:
        self._kept = {name: self._passes(row) for name, row in self._rows.items()} if self.is_filtered else {}
        self._arrange()
        self.repaint()

    def sort_by(self, name: str, reverse: bool | None = None) -> None:
        """Sort by a column; empty: the given order.

        Args:
            reverse: None: as the column begins.
        """
        self.sort_column = name
        self.reversed = (self._column(name).falls if name else False) if reverse is None else reverse
        self._sort_keys = {}
        self._some_unknown = False
        self._arrange()
        self.redraw()

    def select(self, name: Hashable) -> bool:
        """Put the cursor on a row; False where it is not shown."""
        if name not in self._rows or name not in self._order:
            return False
        self._go(self._order.index(name))
        return True

    def _column(self, name: str) -> Column[R]:
        return next(column for column in self.columns if column.name == name)

    def _passes(self, row: R) -> bool:
        if self._search is None:
            return True
        seen = self._search(row)
        return (seen.is_fault or not self.faults_only) and (self._filter is None or self._filter(seen))

    def _sorted_anew(self, changed: list[Hashable]) -> bool:
        """Whether the changed rows may stand elsewhere now."""
        moved = False
        if not self.sort_column:
            return moved
        sort = self._column(self.sort_column).sort
        assert sort is not None, "only columns that sort are sorted by"
        for name in changed:
            value = sort(self._rows[name])
            if name not in self._sort_keys or self._sort_keys[name] != value:
                self._sort_keys[name] = value
                moved = True
        return moved

    def _filtered_anew(self, changed: list[Hashable]) -> bool:
        if not self.is_filtered:
            return False
        moved = False
        for name in changed:
            keeps = self._passes(self._rows[name])
            moved = moved or self._kept.get(name) is not keeps
            self._kept[name] = keeps
        return moved

    def _arrange(self, *, same_rows: bool = False) -> None:
        """Order the rows anew and keep the cursor on its row.

        Args:
            same_rows: none came or went since the last time.
        """
        here = self._order[self._cursor] if self._order else None
        names: list[Hashable]
        if not self.sort_column:
            names = list(self._rows)
            if self.reversed:
                names.reverse()
        else:
            names = self._sorted(same_rows)
        if self.is_filtered:
            kept = self._kept
            names = [name for name in names if kept.get(name)]
        self._order = names
        if here is not None and here in self._rows and (not self.is_filtered or self._kept.get(here)):
            self._cursor = names.index(here)
        else:
            self._cursor = min(self._cursor, max(0, len(names) - 1))
        self._fit_size()
        if (self._order[self._cursor] if self._order else None) != here:
            self.post_message(self.Moved(self))

    def _sorted(self, same_rows: bool) -> list[Hashable]:
        """All rows' keys; the former order is nearly right, which makes sorting cheap."""
        sort = self._column(self.sort_column).sort
        assert sort is not None, "only columns that sort are sorted by"
        keys = self._sort_keys
        if len(keys) != len(self._rows) or not keys.keys() >= self._rows.keys():
            keys = self._sort_keys = {name: sort(row) for name, row in self._rows.items()}
        whole = same_rows and not self.is_filtered and len(self._order) == len(self._rows)
        before: Iterable[Hashable] = self._order if whole else self._rows
        if not self._some_unknown:
            try:
                return sorted(before, key=keys.__getitem__, reverse=self.reversed)
            except TypeError:  # None among them
                self._some_unknown = True
        known = [name for name in before if keys[name] is not None]
        unknown = [name for name in before if keys[name] is None]
        known.sort(key=keys.__getitem__, reverse=self.reversed)
        return known + unknown

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
        whole = max(width, self._width_of(columns))
        base = self.base
        if y == 0:
            strip = self._heading(columns, whole, base)
        else:
            place = y - 1 + self.scroll_offset.y
            if place >= len(self._order):
                words = self.empty if place == 0 else ""
                if place == 0 and self._rows:
                    words = f"none of {len(self._rows):,} rows passes the filter"
                return self.ink.strip([("  " + words, "dim")], width, base)
            strip = self._row(self._order[place], place, columns, whole, base)
        if whole == width:
            return strip
        kept, left = self._width_of(columns[: self.frozen]), self.scroll_offset.x
        return Strip.join([strip.crop(0, kept), strip.crop(kept + left, left + width)])

    def _heading(self, columns: list[tuple[Column[R], int]], whole: int, base: Style) -> Strip:
        line: list[Piece] = [("  ", "head")]
        for column, width in columns:
            title = column.title
            if column.name == self.sort_column:
                title += "↓" if self.reversed else "↑"
            line.append((fit(title, width, right=column.right) + " ", "head"))
        return self.ink.strip(line, whole, base)

    def _row(self, name: Hashable, place: int, columns: list[tuple[Column[R], int]], whole: int, base: Style) -> Strip:
        row = self._rows[name]
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

    def _columns_for(self, width: int) -> list[tuple[Column[R], int]]:
        """The columns that fit, in their order, the growing one widened."""
        if self._fitted_for == (width, self.is_wide):
            return self._fitted
        chosen = list(self.columns)
        if not self.is_wide:
            for column in sorted(self.columns, key=lambda c: -c.priority):
                if self._least(chosen) <= width or len(chosen) == 1:
                    break
                chosen.remove(column)
        spare = max(0, width - self._least(chosen))
        growing = sum(column.grows for column in chosen)
        self._fitted = [(c, c.width + (spare // growing if c.grows else 0)) for c in chosen]
        self._fitted_for = (width, self.is_wide)
        return self._fitted

    @staticmethod
    def _least(columns: list[Column[R]]) -> int:
        return _GUTTER + sum(column.width + 1 for column in columns)

    @staticmethod
    def _width_of(columns: list[tuple[Column[R], int]]) -> int:
        return _GUTTER + sum(width + 1 for _, width in columns)

    def refit(self) -> None:
        """The columns were replaced."""
        self._fitted_for = (-1, False)
        if self.sort_column not in {column.name for column in self.columns}:
            self.sort_by("")
        self._fit_size()
        self.redraw()

    def _fit_size(self) -> None:
        width = self.size.width
        whole = self._width_of(self._columns_for(width)) if width else 0
        self.styles.overflow_x = "auto" if whole > width else "hidden"
        size = Size(whole if whole > width else width, len(self._order) + 1)
        if self.virtual_size != size:
            self.virtual_size = size
            self._painted.clear()

    # ---- moving

    def _go(self, place: int) -> None:
        place = min(max(place, 0), max(0, len(self._order) - 1))
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
        self._go(len(self._order) - 1)

    def action_across(self, by: int) -> None:
        self.scroll_to(x=max(0, self.scroll_offset.x + by), animate=False, immediate=True)

    def action_open(self) -> None:
        if (row := self.row) is not None:
            self.post_message(self.Opened(self, row))

    def action_mark(self) -> None:
        if self._order:
            name = self._order[self._cursor]
            self.marks ^= {name}
            self._anchor = name
            self._go(self._cursor + 1)
            self.repaint()

    def action_mark_range(self) -> None:
        if not self._order:
            return
        here = self._cursor
        start = self._order.index(self._anchor) if self._anchor in self._order else here
        self.marks |= set(self._order[min(start, here) : max(start, here) + 1])
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
        if event.y > 0 and place < len(self._order):
            self._go(place)
            if event.chain > 1:
                self.action_open()
