"""A scrolling list of drawn lines that repaints only those that changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from textual.binding import BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from edgegen.monitor.ink import Ink, Line
from edgegen.monitor.keymap import key


class Painted(ScrollView, can_focus=True):
    """Base of what is drawn line by line.

    A subclass gives the line at a height; `repaint` draws all visible ones again and sends those to the terminal that
    differ: a tick on a quiet screen costs no bytes.
    """

    DEFAULT_CSS = """
    Painted { background: $background; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }
    """
    ALLOW_SELECT: ClassVar[bool] = False  # selecting with the mouse would need every line's text kept

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._painted: dict[int, Strip] = {}
        self._base: Style | None = None

    @property
    def ink(self) -> Ink:
        """The theme's."""
        found: Ink = self.app.ink  # type: ignore[attr-defined]
        return found

    def draw(self, y: int, width: int) -> Strip:
        """The line at a height of the widget, exactly `width` cells wide."""
        raise NotImplementedError

    def repaint(self) -> None:
        """Draw the visible lines again and refresh those that changed."""
        width, height = self.size
        if not width or not self.is_attached:
            return
        for y in range(height):
            strip, before = self.draw(y, width), self._painted.get(y)
            if before is None:
                self._painted[y] = strip
                self.refresh(Region(0, y, width, 1))
            elif before != strip:
                self._painted[y] = strip
                first, cells = changed_cells(before, strip)
                self.refresh(Region(first, y, cells, 1))

    def redraw(self) -> None:
        """Draw everything again."""
        self._painted.clear()
        self._base = None
        self.refresh()

    def render(self) -> str:
        return ""

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        strip = self._painted.get(y)
        if strip is None or strip.cell_length != width:
            strip = self._painted[y] = self.draw(y, width)
        return strip.simplify()  # fewer escape sequences

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        self._painted.clear()
        super().watch_scroll_y(old_value, new_value)

    def watch_scroll_x(self, old_value: float, new_value: float) -> None:
        self._painted.clear()
        super().watch_scroll_x(old_value, new_value)

    def notify_style_update(self) -> None:
        self._painted.clear()
        self._base = None
        super().notify_style_update()

    def on_resize(self) -> None:
        self._painted.clear()

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self.redraw()

    @property
    def base(self) -> Style:
        """Style under everything. Textual works it out from all parents, which is too dear for every line."""
        if self._base is None:
            self._base = self.rich_style
        return self._base


def changed_cells(before: Strip, now: Strip) -> tuple[int, int]:
    """First cell and number of cells outside which two lines of one width are the same."""
    old, new = list(before), list(now)
    if len(old) != len(new):
        return 0, now.cell_length
    first = next((place for place, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]), len(new))
    last = len(new)
    while last > first and old[last - 1] == new[last - 1]:
        last -= 1
    start = sum(segment.cell_length for segment in new[:first])
    end = now.cell_length - sum(segment.cell_length for segment in new[last:])
    return start, max(1, end - start)


class Lines(Painted):
    """A text that is read: scrolled, with no cursor."""

    DEFAULT_CSS = "Lines { overflow-x: hidden; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        key("lines.down", "j,down", "scroll_down", "Scroll down"),
        key("lines.up", "k,up", "scroll_up", "Scroll up"),
        key("lines.page-down", "pagedown,ctrl+f", "page_down", "A page down"),
        key("lines.page-up", "pageup,ctrl+b", "page_up", "A page up"),
        key("lines.top", "g,home", "scroll_home", "To the top"),
        key("lines.bottom", "G,end", "scroll_end", "To the end"),
    ]

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._lines: Sequence[Line] = ()

    @property
    def lines(self) -> Sequence[Line]:
        return self._lines

    def show(self, lines: Sequence[Line]) -> None:
        """Replace the text."""
        self._lines = lines
        size = Size(self.size.width, len(lines))
        if self.virtual_size != size:
            self.virtual_size = size
        self.repaint()

    def draw(self, y: int, width: int) -> Strip:
        place = y + self.scroll_offset.y
        line = self._lines[place] if 0 <= place < len(self._lines) else ()
        return self.ink.strip(line, width, self.base)
