"""The lines around every screen: where one is, how the fleet is, what is wrong, which keys there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from textual.strip import Strip

from edgegen.monitor.ink import Line, Piece
from edgegen.monitor.plain import plain
from edgegen.monitor.widgets.lines import Painted


class Bar(Painted, can_focus=False):
    """Lines that are asked for at each tick; as high as they are many."""

    DEFAULT_CSS = """
    Bar { height: auto; overflow: hidden hidden; background: $panel; }
    """

    def __init__(self, lines: Callable[[int], Sequence[Line]], *, least: int = 1, id: str | None = None) -> None:
        """
        Args:
            lines: width → lines.
            least: height that is kept even without lines.
        """
        super().__init__(id=id)
        self._ask = lines
        self._least = least
        self._lines: Sequence[Line] = ()
        self.styles.height = least

    def tick(self) -> None:
        """Ask for the lines and draw what changed."""
        self._lines = self._ask(self.size.width or self.app.size.width)
        height = max(self._least, len(self._lines))
        if self.styles.height is None or self.styles.height.value != height:
            self.styles.height = height
        self.repaint()

    def draw(self, y: int, width: int) -> Strip:
        return self.ink.strip(self._lines[y] if y < len(self._lines) else (), width, self.base)

    @property
    def text(self) -> list[str]:
        """What it says, for tests."""
        return ["".join(plain(text) for text, _ in line) for line in self._lines]


def joined(parts: Sequence[tuple[int, list[Piece]]], width: int, between: str = "  ") -> list[Piece]:
    """Parts in one line; those of the highest number are left out until the rest fits."""
    kept = list(parts)

    def cells(some: Sequence[tuple[int, list[Piece]]]) -> int:
        return sum(len(text) for _, part in some for text, _ in part) + len(between) * len(some)

    while len(kept) > 1 and cells(kept) > width:
        last: Any = max(range(len(kept)), key=lambda place: (kept[place][0], place))
        del kept[last]
    line: list[Piece] = []
    for _, part in kept:
        line += [*part, (between, "")]
    return line
