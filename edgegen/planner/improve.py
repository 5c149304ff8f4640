"""Local search after the exact solution: neighbours of a plan, compared by what they really do to the outputs.

The solver adds up sensitivities, and errors of different tensors meet in ways that no sum knows. So grids are exchanged
around its solution: one tensor takes another grid, and where that exceeds a budget a second one gives way. Neighbours
are tried in the order of what the sum expects of them, the best first.

Two plans are compared on the same text, window by window, so that what the text does to both cancels. A neighbour is
measured on a little text first, and on more only while it looks better: it is left as soon as it is not better there.
One that is better on all of the search's text is taken if it is also better on text that the search never looks at.

W windows of text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.planner.problem import Problem, budget_rows, column
from edgegen.planner.solve import Solution

Floats = NDArray[np.float64]

SHARES = (0.125, 0.5, 1.0)
"""Of the search's windows, that a neighbour is measured on, one after the other."""
_HOPE = 0.03
"""A neighbour that the sum expects to be worse by more than this share of the KL is not tried."""
_MOST = 400
"""Neighbours of one solution."""


class Texts(NamedTuple):
    """How a solution does on text."""

    search: Callable[[Solution, int, int], tuple[Floats, Floats]]
    """(solution, first, last) → nats of KL and counted tokens of each of the search's windows in between."""
    accept: Callable[[Solution], float]
    """KL on text that the search does not use, nats per token."""
    windows: int
    """W of the search's text."""


class Improved(msgspec.Struct, frozen=True):
    """What the search found. KL is on the text for accepting, nats per token, without the vocabulary's cost."""

    solution: Solution
    kl_before: float
    kl: float
    tried: int
    """Neighbours that were measured."""
    taken: int
    complete: bool
    """Whether no neighbour was left to try when it ended."""


def improve(
    problem: Problem,
    solution: Solution,
    texts: Texts,
    *,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Improved:
    """Exchange grids for as long as that helps and the time lasts.

    Args:
        problem: every budget in it is kept but that on KL, which falls.
        solution: one that keeps them.
        progress: told (seconds spent, seconds in all).
    """
    started = clock()
    best = before = texts.accept(solution)
    known = _Known(texts)
    seen = {solution.chosen}
    tried = taken = 0
    while True:
        found = None
        for neighbour in neighbours(problem, solution):
            if neighbour.chosen in seen:
                continue
            spent = clock() - started
            if progress:
                progress(min(round(spent), round(seconds)), max(1, round(seconds)))
            if spent >= seconds:
                return Improved(solution, before, best, tried, taken, complete=False)
            seen.add(neighbour.chosen)
            tried += 1
            if known.is_better(neighbour, solution):
                kl = texts.accept(neighbour)
                if kl < best:
                    found, best = neighbour, kl
                    break
        if found is None:
            return Improved(solution, before, best, tried, taken, complete=True)
        solution, taken = found, taken + 1


class _Move(NamedTuple):
    """Another grid for one tensor."""

    tensor: int
    option: int
    rise: float
    """Of the sum's KL."""
    costs: Floats
    """Rises of the budgets' sums."""


class _Known:
    """Measures, and remembers what was measured of the solution that neighbours are compared with."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._parts: dict[tuple[tuple[int, ...], int], tuple[Floats, Floats]] = {}
        ends = [max(1, round(share * texts.windows)) for share in SHARES]
        self._ends = sorted(set(ends))

    def is_better(self, new: Solution, old: Solution) -> bool:
        """Whether a neighbour stays ahead on more and more text; at the end by more than the windows' own spread."""
        differences: list[Floats] = []
        counts: list[Floats] = []
        for number, end in enumerate(self._ends):
            mine, theirs = self._part(new, number), self._part(old, number)
            differences.append(mine[0] - theirs[0])
            counts.append(theirs[1])
            mean, error = paired(np.concatenate(differences), np.concatenate(counts))
            if not mean < 0 or (end == self._ends[-1] and not mean < -error):
                return False
        return True

    def _part(self, solution: Solution, number: int) -> tuple[Floats, Floats]:
        key = (solution.chosen, number)
        if key not in self._parts:
            first = self._ends[number - 1] if number else 0
            self._parts[key] = self._texts.search(solution, first, self._ends[number])
        return self._parts[key]


def paired(differences: Floats, tokens: Floats) -> tuple[float, float]:
    """Mean difference a token of two plans on the same windows, and its standard error (that of a ratio of sums).

    Args:
        differences: (W,) nats.
        tokens: (W,) counted.

    Returns:
        Nats per token; the error is infinite for a single window.
    """
    total = float(tokens.sum())
    mean = float(differences.sum()) / total
    if len(differences) < 2:
        return mean, math.inf
    spread = float(np.square(differences - mean * tokens).sum()) * len(tokens) / (len(tokens) - 1)
    return mean, math.sqrt(spread) / total


def neighbours(problem: Problem, solution: Solution) -> Iterator[Solution]:
    """Solutions that differ in one tensor's grid, or in two, and keep all budgets but KL; those that the sum expects
    most of come first.
    """
    case, chosen = solution.case, solution.chosen
    kl = column(case, "kl", problem.device)
    rows = budget_rows(problem, case, without=frozenset({"max_kl"}))
    room = np.array([row.limit - sum(c[i] for c, i in zip(row.costs, chosen, strict=True)) for row in rows])
    moves: list[_Move] = []
    for tensor, own in enumerate(chosen):
        for option in range(len(kl[tensor])):
            if option != own:
                costs = np.array([row.costs[tensor][option] - row.costs[tensor][own] for row in rows])
                moves.append(_Move(tensor, option, float(kl[tensor][option] - kl[tensor][own]), costs))
    most = _HOPE * max(solution.summed_kl, 1e-12)
    slack = 1e-9 * np.abs([row.limit for row in rows]) if rows else np.zeros(0)
    found: list[tuple[float, tuple[_Move, ...]]] = []
    exchanges: list[tuple[_Move, ...]] = [(move,) for move in moves]
    better, worse = [m for m in moves if m.rise < 0], [m for m in moves if m.rise > 0]
    exchanges += [(up, down) for up in better for down in worse if up.tensor != down.tensor]
    for exchange in exchanges:
        rise = sum(move.rise for move in exchange)
        if rise <= most and bool((sum(move.costs for move in exchange) <= room + slack).all()):
            found.append((rise, exchange))
    found.sort(key=lambda each: each[0])
    for _, exchange in found[:_MOST]:
        changed = list(chosen)
        for move in exchange:
            changed[move.tensor] = move.option
        yield msgspec.structs.replace(solution, chosen=tuple(changed))
