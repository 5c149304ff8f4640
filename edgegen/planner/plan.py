"""Solve, measure, correct, solve again: the loop around the exact solver.

Summed sensitivities ignore how errors of different tensors meet. So the chosen plan is measured as a whole, the sum
is scaled to agree, and the problem is solved again until the measured plan keeps the KL budget and does not waste it.
The scale is searched between one whose plan missed and one whose plan kept the budget; where no scaled plan keeps it,
the finest plan of all is measured before anything is called impossible.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from edgegen.errors import UnsupportedError
from edgegen.planner.explain import explain_infeasible
from edgegen.planner.problem import Problem
from edgegen.planner.solve import Solution, solve
from edgegen.records.plan import Infeasible

KL_MARGIN = 0.85
"""Planning aims at this share of the KL budget: the held-out text will not give the same number."""
_KEPT = (1 + KL_MARGIN) / 2
"""A measured plan up to this share is taken."""
_USED_UP = 0.95 * KL_MARGIN
"""A measured plan from this share on wastes nothing worth another measurement."""
_MEASUREMENTS = 6
_SOLVES = 16
_STEP = 1.5


class Planned(msgspec.Struct, frozen=True):
    """A solution with its KL measured as a whole."""

    problem: Problem
    """With the correction that the measurement gave."""
    solution: Solution
    kl: float
    """Measured: rounded weights and activations, nats per token; the vocabulary's cost is not in it."""
    rounds: int
    """Plans that were measured."""


def plan_within(problem: Problem, measure: Callable[[Solution], float]) -> Planned | Infeasible:
    """The best plan that keeps the budgets by measurement.

    Args:
        problem: its `max_kl` is the user's; planning aims at `KL_MARGIN` of it.
        measure: KL of a whole solution on text that the sensitivities did not see, nats per token. NaN counts as a
            miss.

    Raises:
        UnsupportedError: not even the finest plan has a finite KL.
    """
    measured = _Measured(measure)
    limit = problem.budgets.max_kl
    if limit is None:
        solution = solve(problem)
        return explain_infeasible(problem) if solution is None else measured.planned(problem, solution)
    aimed = msgspec.structs.replace(problem, budgets=msgspec.structs.replace(problem.budgets, max_kl=limit * KL_MARGIN))
    best: Solution | None = None
    scale, missed_at, kept_at = problem.kl_scale, 0.0, math.inf
    for _ in range(_SOLVES):
        solution = solve(msgspec.structs.replace(aimed, kl_scale=scale))
        most = _KEPT * limit
        if solution is None:
            if best is not None:
                break
            # So fine that the sum allows nothing: only measuring the finest plan tells.
            solution, most = _finest(problem), limit
            if solution is None:
                return explain_infeasible(problem)
        if not measured.knows(solution) and len(measured.known) == _MEASUREMENTS and best is not None:
            break
        total = measured.total(solution)
        if total <= most:
            kept_at = min(kept_at, scale)
            best = solution if best is None or _better(problem.prefer, measured, solution, best) else best
            if problem.prefer == "quality" or total >= _USED_UP * limit:
                break
        elif most == limit:
            return _impossible(problem, solution, measured)
        else:
            missed_at = max(missed_at, scale)
        if kept_at < missed_at * 1.02:
            break
        scale = _next_scale(_scale(problem, solution, measured.kl(solution)), missed_at, kept_at)
    if best is None:
        best = _finest(problem)
        if best is None:
            return explain_infeasible(problem)
        if not measured.total(best) <= limit:
            return _impossible(problem, best, measured)
    return measured.planned(problem, best)


def replanned(planned: Planned, solution: Solution, kl: float) -> Planned:
    """A plan with another solution of the same problem.

    Args:
        kl: of the solution, measured as a whole.
    """
    corrected = msgspec.structs.replace(planned.problem, kl_scale=_scale(planned.problem, solution, kl))
    return Planned(problem=corrected, solution=solution, kl=kl, rounds=planned.rounds)


class _Measured:
    """Measures each solution once."""

    def __init__(self, measure: Callable[[Solution], float]) -> None:
        self._measure = measure
        self.known: dict[tuple[int, tuple[int, ...]], float] = {}

    @staticmethod
    def _key(solution: Solution) -> tuple[int, tuple[int, ...]]:
        return solution.case.choice.size, solution.chosen

    def knows(self, solution: Solution) -> bool:
        return self._key(solution) in self.known

    def kl(self, solution: Solution) -> float:
        key = self._key(solution)
        if key not in self.known:
            kl = self._measure(solution)
            self.known[key] = math.inf if math.isnan(kl) else kl
        return self.known[key]

    def total(self, solution: Solution) -> float:
        """With the vocabulary's cost."""
        return self.kl(solution) + solution.case.choice.kl

    def planned(self, problem: Problem, solution: Solution) -> Planned:
        kl = self.kl(solution)
        if not math.isfinite(kl):
            raise UnsupportedError("the compressed model's outputs are not numbers", hint="Check the checkpoint.")
        corrected = msgspec.structs.replace(problem, kl_scale=_scale(problem, solution, kl))
        return Planned(problem=corrected, solution=solution, kl=kl, rounds=len(self.known))


def _finest(problem: Problem) -> Solution | None:
    return solve(problem, prefer="quality", without=frozenset({"max_kl"}))


def _impossible(problem: Problem, finest: Solution, measured: _Measured) -> Infeasible:
    """Explained with the sum corrected to what the finest plan really has, so that the numbers agree."""
    return explain_infeasible(measured.planned(problem, finest).problem)


def _scale(problem: Problem, solution: Solution, kl: float) -> float:
    """Measured over summed; kept as it was where there is nothing to compare."""
    if solution.summed_kl <= 1e-9:
        return problem.kl_scale
    return max(0.05, (kl - problem.kl_floor) / solution.summed_kl)


def _next_scale(measured: float, missed_at: float, kept_at: float) -> float:
    """What the measurement says if that lies between the scales that missed and kept, else halfway."""
    if missed_at * 1.01 < measured < kept_at / 1.01 and math.isfinite(measured):
        return measured
    if missed_at and math.isfinite(kept_at):
        return math.sqrt(missed_at * kept_at)
    return missed_at * _STEP if missed_at else kept_at / _STEP


def _better(prefer: str, measured: _Measured, new: Solution, old: Solution) -> bool:
    if prefer == "quality":
        return measured.total(new) < measured.total(old)
    return new.bytes < old.bytes
