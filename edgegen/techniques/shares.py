"""Which of several sizes each matrix gets, so that all together stay within a limit at the least cost.

A multiple-choice knapsack by dynamic programming. Sizes are counted in steps of a two-thousandth of everything,
rounded up, so that a limit is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STEPS = 2000

Option = tuple[int, float]
"""Size and cost."""


def cheapest(options: Sequence[Sequence[Option]], limits: Sequence[float]) -> list[list[int] | None]:
    """For each limit the index of the option that each matrix takes; None where nothing is small enough.

    Args:
        options: of each matrix, sizes > 0.
        limits: most of the sizes' sum.
    """
    step = max(1.0, max(limits) / _STEPS)
    width = int(max(limits) / step) + 1
    best = np.zeros(width)
    taken = np.zeros((len(options), width), dtype=np.int32)
    for row, choices in enumerate(options):
        costs = np.full((len(choices), width), np.inf)
        for index, (size, cost) in enumerate(choices):
            used = int(np.ceil(size / step))
            if used < width:
                costs[index, used:] = best[: width - used] + cost
        taken[row] = costs.argmin(0)
        best = costs.min(0)
    return [
        _traced(options, taken, int(limit / step), step) if best[int(limit / step)] < np.inf else None
        for limit in limits
    ]


def _traced(options: Sequence[Sequence[Option]], taken: np.ndarray, left: int, step: float) -> list[int]:
    found = []
    for row in reversed(range(len(options))):
        index = int(taken[row, left])
        found.append(index)
        left -= int(np.ceil(options[row][index][0] / step))
    return found[::-1]
