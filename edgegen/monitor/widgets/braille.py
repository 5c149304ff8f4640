"""A curve in braille dots, two columns and four rows a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of the left and the right column, the top row first."""


def curve(values: Sequence[float | None], width: int, height: int, low: float, high: float) -> list[str]:
    """A line of `width` × `height` cells through values that are evenly spaced in time.

    Neighbouring points are joined; where a value is unknown the line has a gap.

    Args:
        low, high: values of the lowest and the highest row of dots.

    Returns:
        Lines from the top, each `width` cells.
    """
    cells = [[0] * width for _ in range(height)]
    columns, rows = width * 2, height * 4

    def row_of(value: float) -> int:
        share = (value - low) / (high - low) if high > low else 0.5
        return rows - 1 - round(min(max(share, 0.0), 1.0) * (rows - 1))

    before: int | None = None
    for column, value in enumerate(_resampled(values, columns)):
        if value is None:
            before = None
            continue
        row = row_of(value)
        first, last = (row, row) if before is None else (min(row, before), max(row, before))
        if before is not None and first < last:  # the joint belongs to the new column, without the old point
            first, last = (row, last - 1) if row < before else (first + 1, row)
        for dot in range(first, last + 1):
            cells[dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
        before = row
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in line) for line in cells]


def _resampled(values: Sequence[float | None], columns: int) -> list[float | None]:
    """One value a column: the mean of those that fall into it, or the one that it lies in."""
    count = len(values)
    if not count:
        return [None] * columns
    found: list[float | None] = []
    for column in range(columns):
        first = column * count // columns
        last = max(first + 1, (column + 1) * count // columns)
        known = [value for value in values[first:last] if value is not None and math.isfinite(value)]
        found.append(sum(known) / len(known) if known else None)
    return found


def scatter(
    points: Sequence[tuple[float, float]], width: int, height: int, bounds: tuple[float, float, float, float]
) -> list[str]:
    """Points as single dots.

    Args:
        bounds: least and greatest x, least and greatest y.
    """
    left, right, low, high = bounds
    cells = [[0] * width for _ in range(height)]
    columns, rows = width * 2, height * 4
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        column = round(min(max(across, 0.0), 1.0) * (columns - 1))
        row = rows - 1 - round(min(max(up, 0.0), 1.0) * (rows - 1))
        cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in line) for line in cells]
