"""One option for each tensor: a multiple-choice knapsack with several budgets, solved by HiGHS.

    minimise    Σ c(m, q) x(m, q)      or   max_j Σ c_j(m, q) x(m, q)
    subject to  Σ_q x(m, q) = 1 for each tensor m,   Σ a_k(m, q) x(m, q) ≤ b_k for each budget k,   x ∈ {0, 1}

Up to `_EXACT_OPTIONS` options are solved to the solver's gap of 1e-6. With more, the mixed-integer program is solved
over a core (Pisinger 1995): the options whose reduced costs in the linear relaxation are smallest. The relaxation
bounds what the others could win; the core's answer is taken when that is less than 0.3 %, far below what the
sensitivities are known to, else all options are solved. 300 tensors with 12 options take about a second.

HiGHS' tolerances are a millionth of a budget, which is bytes; so each answer is added up and one that exceeds a budget
is forbidden and the problem solved again.

M tensors, N options of all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_EXACT_OPTIONS = 400
_CORE_OPTIONS = (400, 800)
"""Beside one for each tensor: a second core is tried before all options are."""
_CORE_GAP = 3e-3
_LARGE_GAP = 5e-4
_REPAIRS = 12
_ROUNDING = 1e-12
"""Share of a budget that adding up in another order may change."""


class Budget(msgspec.Struct, frozen=True):
    """Σ of one option each may not exceed `limit`."""

    name: str
    costs: tuple[Floats, ...]
    """One array a tensor, one number an option, >= 0."""
    limit: float


def allocate(objective: Sequence[Floats], budgets: Sequence[Budget]) -> list[int] | None:
    """The choice with the least sum, or None if no choice keeps the budgets.

    Args:
        objective: one array a tensor (its options' costs; finite). Of options that are alike in everything the first
            is taken; other ties go to whichever the solver finds.
        budgets: may be empty; an option that a budget excludes alone is fine.

    Returns:
        M option indices.
    """
    return _allocate([objective], budgets)


def allocate_evenly(loads: Sequence[Sequence[Floats]], budgets: Sequence[Budget]) -> list[int] | None:
    """The choice whose largest load is least: what is fastest when several resources work at the same time.

    Args:
        loads: each like an objective, all in the same unit.
        budgets: as in `allocate`.
    """
    return _allocate(loads, budgets)


def _allocate(loads: Sequence[Sequence[Floats]], budgets: Sequence[Budget]) -> list[int] | None:
    if not loads[0]:
        # Nothing to choose: only a budget that not even nothing keeps can fail.
        return None if any(budget.limit < 0 for budget in budgets) else []
    sizes = [len(costs) for costs in loads[0]]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    costs = np.stack([np.concatenate(load) for load in loads]).astype(np.float64)
    spent = np.zeros((len(budgets), len(owner)))
    for row, budget in enumerate(budgets):
        spent[row] = np.concatenate(budget.costs)
    limits = np.array([float(budget.limit) for budget in budgets])
    kept = _worth_asking(costs, spent, limits, owner, len(sizes))
    if kept is None:
        return None
    found = _Program(costs[:, kept], spent[:, kept], limits, owner[kept], len(sizes)).solve()
    if found is None:
        return None
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(index) for index in kept[found] - starts]


def _worth_asking(
    costs: Floats, spent: Floats, limits: Floats, owner: NDArray[np.int64], tensors: int
) -> NDArray[np.int64] | None:
    """Indices of options that fit beside the others' cheapest and that no option of the same tensor beats.

    None if that leaves a tensor without any.
    """
    starts = np.searchsorted(owner, np.arange(tensors))
    fits = np.ones(len(owner), dtype=bool)
    for cost, limit in zip(spent, limits, strict=True):
        least = np.minimum.reduceat(cost, starts)
        total = float(least.sum())
        if _exceeds(total, limit):
            return None
        fits &= cost - least[owner] <= limit - total + _ROUNDING * max(abs(limit), abs(total))
    prices = np.concatenate([costs, spent])
    kept = []
    for tensor in range(tensors):
        indices = np.flatnonzero((owner == tensor) & fits)
        own = prices[:, indices]
        no_worse = (own[:, :, None] <= own[:, None, :]).all(axis=0)  # [i, j]: i is as good as j in everything
        earlier = np.arange(len(indices))[:, None] < np.arange(len(indices))[None, :]
        kept.append(indices[~(no_worse & (~no_worse.T | earlier)).any(axis=0)])
    return np.concatenate(kept) if all(len(indices) for indices in kept) else None


def _exceeds(total: float, limit: float) -> bool:
    return total > limit + _ROUNDING * abs(limit)


class _Program:
    """The problem in the solver's form: N choices and, beside them, the largest load."""

    def __init__(self, costs: Floats, spent: Floats, limits: Floats, owner: NDArray[np.int64], tensors: int) -> None:
        self.count, self.tensors = len(owner), tensors
        self._owner, self._costs, self._spent, self._limits = owner, costs, spent, limits
        # Tolerances are absolute: in units of its limit every budget is 1, in units of its optimum the objective is.
        self._units = np.maximum(np.abs(limits), 1e-300)
        self._objective_unit = float(np.abs(costs).max()) or 1.0
        self._forbidden: list[NDArray[np.int64]] = []
        self._slack = 1e-9

    def solve(self) -> NDArray[np.int64] | None:
        """Indices of the chosen options, one a tensor."""
        relaxed = self._relax()
        if relaxed is None:
            return None
        bound, reduced = relaxed
        if bound > 0:
            self._objective_unit *= bound
            reduced /= bound
        for attempt in range(2 * _REPAIRS):
            if attempt == _REPAIRS:
                self._slack = -2e-6  # the solver's own tolerance
            found = self._search(bound > 0, reduced)
            if found is None:
                return None
            totals = self._spent[:, found].sum(axis=1)
            if not any(_exceeds(total, limit) for total, limit in zip(totals, self._limits, strict=True)):
                return found
            self._forbidden.append(found)
        return None

    def _relax(self) -> tuple[float, Floats] | None:
        """The linear relaxation's optimum and each option's reduced cost against its tensor's best."""
        from scipy.optimize import linprog

        upper, upper_limits = self._rows()
        one_each = self._one_each()
        result = linprog(
            self._objective(),
            A_ub=upper,
            b_ub=upper_limits,
            A_eq=one_each,
            b_eq=np.ones(self.tensors),
            bounds=[(0, None)] * (self.count + 1),
            method="highs",
        )
        if result.x is None:
            return None
        prices = self._objective() - result.ineqlin.marginals @ upper if len(upper_limits) else self._objective()
        starts = np.searchsorted(self._owner, np.arange(self.tensors))
        reduced = prices[: self.count] - np.minimum.reduceat(prices[: self.count], starts)[self._owner]
        return float(result.fun), reduced

    def _search(self, bounded: bool, reduced: Floats) -> NDArray[np.int64] | None:
        cores = _CORE_OPTIONS if bounded and self.count > _EXACT_OPTIONS else ()
        cheapest = np.argsort(reduced, kind="stable")
        for beside in cores:
            found = self._milp(np.sort(cheapest[: self.tensors + beside]))
            if found is not None and self._value(found) <= 1 + _CORE_GAP:
                return found
        return self._milp(np.arange(self.count))

    def _value(self, found: NDArray[np.int64]) -> float:
        """Of a choice, in units of the relaxation's optimum."""
        return float(self._costs[:, found].sum(axis=1).max()) / self._objective_unit

    def _milp(self, columns: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The best choice among some options."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        upper, upper_limits = self._rows()
        with_load = np.append(columns, self.count)
        constraints = [LinearConstraint(self._one_each()[:, with_load], 1, 1)]
        if len(upper_limits):
            constraints.append(LinearConstraint(upper[:, with_load], -np.inf, upper_limits))
        choices = np.append(np.ones(len(columns)), 0)
        gap = 1e-6 if self.count <= _EXACT_OPTIONS else _LARGE_GAP
        with _quiet_stdout():
            result = milp(
                self._objective()[with_load],
                constraints=constraints,
                integrality=choices,
                bounds=Bounds(0, np.where(choices, 1, np.inf)),
                options={"mip_rel_gap": gap, "time_limit": 60.0},
            )
        if result.x is None:
            return None
        chosen = np.zeros(self.count)
        chosen[columns] = result.x[:-1]
        starts = np.searchsorted(self._owner, np.arange(self.tensors))
        ends = np.append(starts[1:], self.count)
        return np.array([start + int(np.argmax(chosen[start:end])) for start, end in zip(starts, ends, strict=True)])

    def _objective(self) -> Floats:
        if len(self._costs) == 1:
            return np.append(self._costs[0] / self._objective_unit, 0.0)
        return np.append(np.zeros(self.count), 1.0)

    def _rows(self) -> tuple[Floats, Floats]:
        """Rows `a x <= b`: budgets, loads below the largest, forbidden choices."""
        rows = [np.append(cost / unit, 0.0) for cost, unit in zip(self._spent, self._units, strict=True)]
        limits = [limit / unit + self._slack for limit, unit in zip(self._limits, self._units, strict=True)]
        if len(self._costs) > 1:
            rows += [np.append(load / self._objective_unit, -1.0) for load in self._costs]
            limits += [0.0] * len(self._costs)
        for found in self._forbidden:
            row = np.zeros(self.count + 1)
            row[found] = 1
            rows.append(row)
            limits.append(self.tensors - 1.0)
        return np.array(rows).reshape(len(rows), self.count + 1), np.array(limits)

    def _one_each(self) -> Any:
        from scipy.sparse import csc_array

        return csc_array(
            (np.ones(self.count), (self._owner, np.arange(self.count))), shape=(self.tensors, self.count + 1)
        )


_STDOUT = threading.Lock()


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep the lines that HiGHS prints whatever its options say (`transformNewIntegerFeasibleSolution`) off stdout.

    They come from C, so the file descriptor itself is pointed at nothing meanwhile. Python's own pending output and C's
    are flushed before and after, so that only what is printed inside is lost; two threads take turns. Errors come back
    as values and on stderr, which is left alone.
    """
    import sys

    with _STDOUT, contextlib.ExitStack() as stack:
        try:
            kept = os.dup(1)
        except OSError:  # closed: there is nothing to keep clean
            yield
            return
        stack.callback(os.close, kept)
        nothing = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nothing)
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
        _flush_c()
        os.dup2(nothing, 1)
        try:
            yield
        finally:
            _flush_c()
            os.dup2(kept, 1)


def _flush_c() -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library on this system
        ctypes.CDLL(None).fflush(None)
