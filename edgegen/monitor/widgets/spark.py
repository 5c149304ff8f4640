"""A few values as a few cells, and a share as a bar."""

from __future__ import annotations

import math
from collections.abc import Sequence

_STEPS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
GAP = "·"


def spark(values: Sequence[float | None], most: float | None = None) -> str:
    """One cell a value; `·` where nothing is known.

    The lowest cell is 0, or half of the largest value if none is below that: so a curve of a few percent is seen.

    Args:
        most: value of a full cell; None: the largest of the values.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    top = most if most else max(known, default=0.0)
    low = top / 2 if known and min(known) >= top / 2 > 0 else 0.0
    cells = []
    for value in values:
        if value is None or not math.isfinite(value):
            cells.append(GAP)
        else:
            share = min(max((value - low) / (top - low), 0.0), 1.0) if top > low else 0.0
            cells.append(_STEPS[min(len(_STEPS) - 1, int(share * len(_STEPS)))])
    return "".join(cells)


def bar(share: float | None, width: int) -> str:
    """A share of 0 … 1 in eighths of cells; unknown is `–`."""
    if share is None or not math.isfinite(share):
        return "–".ljust(width)
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)
