"""Lines of pieces, and how a piece looks: the only way in which screens draw.

A piece is a text and a role (`ok`, `bad`, `dim` …); a line is a list of pieces. Widgets hand lines to `strip`, which
makes every text plain and of the right width. A role never carries a meaning alone: whoever gives one also writes a
glyph or a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from edgegen.monitor.plain import plain

Piece = tuple[str, str]
"""Text and role."""
Line = Sequence[Piece]

_COLOURS = {
    "ok": "success",
    "warn": "warning",
    "bad": "error",
    "accent": "accent",
    "head": "primary",
    "gone": "error",
    "new": "success",
}


class Ink:
    """A theme's roles as styles."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        """
        Args:
            variables: a theme's, as Textual computes them.
        """
        self._styles = {
            role: Style(color=_colour(variables.get(f"text-{name}", ""), variables.get(name, "")))
            for role, name in _COLOURS.items()
        }
        self._styles[""] = Style()
        self._styles["dim"] = Style(dim=True)
        self._styles["bold"] = Style(bold=True)
        self._styles["head"] += Style(bold=True)
        self._styles["gone"] += Style(bold=True)
        self._styles["new"] += Style(bold=True)
        self._styles["chosen"] = Style(reverse=True)
        self._styles["bar"] = Style(reverse=True, bold=True)

        self._combined: dict[tuple[str, Style, Style | None], Style] = {}

    def style(self, role: str) -> Style:
        """Of a role; several are separated by spaces."""
        found = self._styles.get(role)
        if found is None:
            found = Style.combine([self._styles[name] for name in role.split() if name in self._styles])
            self._styles[role] = found
        return found

    def strip(self, line: Iterable[Piece], width: int, base: Style, over: Style | None = None) -> Strip:
        """A line of exactly `width` cells.

        Args:
            base: under every piece.
            over: on top of every piece, such as a cursor's.
        """
        segments: list[Segment] = []
        room = width
        for text, role in line:
            if room <= 0:
                break
            clean = plain(text)
            cells = len(clean) if clean.isascii() else cell_len(clean)
            if cells > room:
                clean = fit(clean, room)
                cells = room
            style = self._combined.get((role, base, over))
            if style is None:
                style = base + self.style(role)
                style = self._combined[role, base, over] = style + over if over else style
            segments.append(Segment(clean, style))
            room -= cells
        if room > 0:
            segments.append(Segment(" " * room, base + over if over else base))
        return Strip(segments, width)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """A plain text in exactly `width` cells; one that is cut ends with `…`."""
    if width <= 0:
        return ""
    if text.isascii():
        if len(text) > width:
            return text[: width - 1] + "…"
        return text.rjust(width) if right else text.ljust(width)
    cells = cell_len(text)
    if cells > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - cells) + text if right else text + " " * (width - cells)


def _colour(*names: str) -> str | None:
    """The first that is a colour by itself; Textual's `auto` ones depend on a background."""
    return next((name for name in names if name.startswith("#")), None)
