"""What a table's columns are, and which of them fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edgegen.monitor.ink import Piece

R = TypeVar("R")
GUTTER = 2
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


Fitted = list[tuple[Column[R], int]]
"""Columns and their widths."""


def fit_columns(columns: Sequence[Column[R]], width: int, *, everything: bool) -> Fitted[R]:
    """The columns that fit, in their order, those that grow widened.

    Args:
        everything: keep all, although they are wider together.
    """
    chosen = list(columns)
    if not everything:
        for column in sorted(columns, key=lambda c: -c.priority):
            if _least(chosen) <= width or len(chosen) == 1:
                break
            chosen.remove(column)
    spare = max(0, width - _least(chosen))
    growing = sum(column.grows for column in chosen)
    return [(column, column.width + (spare // growing if column.grows else 0)) for column in chosen]


def width_of(columns: Fitted[R]) -> int:
    """Cells of a row."""
    return GUTTER + sum(width + 1 for _, width in columns)


def _least(columns: Sequence[Column[R]]) -> int:
    return GUTTER + sum(column.width + 1 for column in columns)
