"""Solve a problem: over all vocabularies and grids, for what the user prefers."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from edgegen.planner.allocate import Budget, allocate, allocate_evenly
from edgegen.planner.cost import predict, terms_of
from edgegen.planner.problem import Problem, VocabularyCase, budget_rows, column, first_token_s, tensors_of, token_s
from edgegen.records.plan import Prediction, Terms

_NO_BUDGETS: frozenset[str] = frozenset()
_SPEED_ROOM = 1e-6
"""Share of the shortest time that quality may take: far below what a clock shows."""


class Solution(msgspec.Struct, frozen=True):
    """A vocabulary and one option for each of its tensors."""

    case: VocabularyCase
    chosen: tuple[int, ...]
    """Indices into the case's options, in the order of its tensors."""

    @property
    def grids(self) -> dict[str, str]:
        return {
            t.name: self.case.options[t.name][index].grid
            for t, index in zip(tensors_of(self.case), self.chosen, strict=True)
        }

    @property
    def tensor_bytes(self) -> dict[str, int]:
        return {
            t.name: self.case.options[t.name][index].bytes
            for t, index in zip(tensors_of(self.case), self.chosen, strict=True)
        }

    @property
    def bytes(self) -> int:
        return self.case.overhead_bytes + sum(self.tensor_bytes.values())

    @property
    def summed_kl(self) -> float:
        """Of the tensors alone, uncorrected, nats per token."""
        return sum(
            self.case.options[t.name][index].kl for t, index in zip(tensors_of(self.case), self.chosen, strict=True)
        )


def expected_kl(problem: Problem, solution: Solution) -> float:
    """Corrected sum plus the runtime's own rounding; the vocabulary's cost is not in it."""
    return problem.kl_floor + problem.kl_scale * solution.summed_kl


def prediction_of(problem: Problem, solution: Solution, kl: float) -> Prediction:
    """The whole price of a solution."""
    return predict(
        solution.case.summary,
        problem.settings,
        problem.device,
        solution.grids,
        solution.tensor_bytes,
        overhead_bytes=solution.case.overhead_bytes,
        kl=kl,
        prompt_tokens=problem.workload.prompt_tokens,
    )


def terms_of_solution(problem: Problem, solution: Solution) -> Terms:
    """What a solution is apart from the device."""
    return terms_of(
        solution.case.summary,
        problem.settings,
        problem.device,
        solution.grids,
        solution.tensor_bytes,
        overhead_bytes=solution.case.overhead_bytes,
    )


def solve(problem: Problem, *, prefer: str = "", without: frozenset[str] = _NO_BUDGETS) -> Solution | None:
    """The best solution within the budgets, or None.

    Args:
        prefer: overrides the problem's own wish: quality, size, speed or `first_token`.
        without: budgets to ignore: max_bytes, max_rss, min_tok_s, max_ttft, max_kl.
    """
    wish = prefer or problem.prefer
    best: tuple[float, Solution] | None = None
    for case in problem.cases:
        found = _solve_case(problem, case, wish, without)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return best[1] if best else None


def _solve_case(
    problem: Problem, case: VocabularyCase, wish: str, without: frozenset[str]
) -> tuple[float, Solution] | None:
    budgets = budget_rows(problem, case, without=without)
    kl = column(case, "kl", problem.device)
    sizes = column(case, "bytes", problem.device)
    total_bytes = sum(float(s.max()) for s in sizes)
    # Among equals the smaller file: a part in a million of the whole scale cannot change a real difference.
    quality = [problem.kl_scale * k + 1e-9 * s / total_bytes for k, s in zip(kl, sizes, strict=True)]
    if wish in ("speed", "first_token"):
        return _fastest(problem, case, budgets, quality, wish)
    objective = {"quality": quality, "size": sizes}[wish]
    chosen = allocate(objective, budgets)
    if chosen is None:
        return None
    solution = Solution(case=case, chosen=tuple(chosen))
    value = _sum_of(tuple(objective), chosen)
    extra = {"quality": case.choice.kl, "size": float(case.overhead_bytes)}[wish]
    return value + extra, solution


def _fastest(
    problem: Problem, case: VocabularyCase, budgets: list[Budget], quality: list[np.ndarray], wish: str
) -> tuple[float, Solution] | None:
    """The shortest time that is possible, then the best quality within it."""
    loads = token_s(problem, case) if wish == "speed" else first_token_s(problem, case)
    fastest = allocate_evenly(loads, budgets)
    if fastest is None:
        return None
    shortest = max(_sum_of(load, fastest) for load in loads)
    limit = shortest * (1 + _SPEED_ROOM)
    chosen = allocate(quality, [*budgets, *(Budget(wish, load, limit) for load in loads)]) or fastest
    return shortest, Solution(case=case, chosen=tuple(chosen))


def _sum_of(costs: tuple[np.ndarray, ...], chosen: list[int]) -> float:
    return sum(float(own[index]) for own, index in zip(costs, chosen, strict=True))


def front(problem: Problem, points: int = 12) -> list[tuple[Solution, float]]:
    """Solutions that no other beats in both bytes and KL, smallest first, other budgets ignored.

    Returns:
        (solution, total KL with the vocabulary's cost) pairs with rising bytes and falling KL.
    """
    everything = frozenset({"max_bytes", "max_rss", "min_tok_s", "max_ttft", "max_kl"})
    smallest = solve(problem, prefer="size", without=everything)
    finest = solve(problem, prefer="quality", without=everything)
    assert smallest is not None and finest is not None, "without budgets every problem has solutions"
    found: dict[int, tuple[Solution, float]] = {}
    for limit in np.geomspace(max(smallest.bytes, 1), max(finest.bytes, smallest.bytes + 1), points):
        capped = msgspec.structs.replace(
            problem, budgets=msgspec.structs.replace(problem.budgets, max_bytes=math.ceil(limit * (1 - 1e-9)))
        )
        solution = solve(capped, prefer="quality", without=everything - {"max_bytes"})
        if solution is not None:
            found[solution.bytes] = (solution, expected_kl(problem, solution) + solution.case.choice.kl)
    kept: list[tuple[Solution, float]] = []
    for _, (solution, kl) in sorted(found.items()):
        if not kept or kl < kept[-1][1]:
            kept.append((solution, kl))
    return kept
