"""Two distributions over the same bins, one line a bin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edgegen.monitor.ink import Piece, fit
from edgegen.monitor.shown import number, percent
from edgegen.monitor.widgets.spark import bar


def histogram(
    edges: Sequence[float], reference: Sequence[int], current: Sequence[int], width: int
) -> list[list[Piece]]:
    """Shares of both, side by side.

    Args:
        edges: between the bins: one more than bins, or one fewer where the outer bins are open.
        reference, current: counts.
        width: cells of a line.
    """
    bins = max(len(reference), len(current))
    labels = _labels(edges, bins)
    column = max((len(label) for label in labels), default=0)
    room = max(4, (width - column - 14) // 2)
    lines: list[list[Piece]] = [
        [
            (fit("", column + 1), ""),
            (fit("packed", room + 6), "dim"),
            (fit("now", room + 6), "dim"),
        ]
    ]
    shares = [_shares(reference, bins), _shares(current, bins)]
    top = max((share for side in shares for share in side if share is not None), default=0.0) or 1.0
    for place, label in enumerate(labels):
        was, now = shares[0][place], shares[1][place]
        moved = was is not None and now is not None and abs(now - was) > 0.05
        lines.append(
            [
                (label.rjust(column) + " ", "dim"),
                (bar(None if was is None else was / top, room), "accent"),
                (percent(was).rjust(5) + " ", ""),
                (bar(None if now is None else now / top, room), "warn" if moved else "ok"),
                (percent(now).rjust(5), "bold" if moved else ""),
            ]
        )
    return lines


def _shares(counts: Sequence[int], bins: int) -> list[float | None]:
    whole = sum(counts)
    return [counts[place] / whole if whole and place < len(counts) else None for place in range(bins)]


def _labels(edges: Sequence[float], bins: int) -> list[str]:
    if len(edges) == bins + 1:
        return [f"{number(edges[place])}…{number(edges[place + 1])}" for place in range(bins)]
    if len(edges) == bins - 1 and edges:
        inner = [f"{number(low)}…{number(high)}" for low, high in pairwise(edges)]
        return [f"<{number(edges[0])}", *inner, f"≥{number(edges[-1])}"]
    return [str(place + 1) for place in range(bins)]
