"""Exchanging grids around a solution: every neighbour keeps the budgets, and only what is truly better is taken."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgegen.planner.improve import Texts, improve, neighbours, paired
from edgegen.planner.problem import Problem
from edgegen.planner.solve import Solution, expected_kl, solve
from edgegen.records.plan import Option
from tests.planner.problems import case_of, keeps, problem_of, random_problem, tensor

Floats = NDArray[np.float64]
WINDOWS = 8


def sized_problem() -> Problem:
    """Six tensors of three grids each, not far from one another, and room for two thirds of what they can take."""
    tensors = tuple(tensor(f"block{i}") for i in range(6))
    options = {
        t.name: tuple(Option(grid="q8", bytes=20 * size, kl=0.01 * weight * 1.2**-size) for size in (2, 3, 4))
        for t, weight in zip(tensors, (5, 4.2, 4.6, 3.9, 4.4, 4.8), strict=True)
    }
    return problem_of(case_of(options, tensors), max_bytes=50 + 6 * 60)


class Meter:
    """KL that is not the sum: each pair of tensors on the coarsest grid costs more, or less."""

    def __init__(self, truth: Callable[[Solution], float], *, noise: float = 0.0, biased: float = 0.0) -> None:
        self._truth, self._noise, self._biased = truth, noise, biased
        self.windows: list[int] = []

    def search(self, solution: Solution, first: int, last: int) -> tuple[Floats, Floats]:
        self.windows.append(last - first)
        luck = np.random.default_rng([*solution.chosen, first]).uniform(-1, 1, last - first)
        tokens = np.full(last - first, 50.0)
        return tokens * (self._truth(solution) - self._biased * sum(solution.chosen) + self._noise * luck), tokens

    def accept(self, solution: Solution) -> float:
        return self._truth(solution)

    @property
    def texts(self) -> Texts:
        return Texts(self.search, self.accept, WINDOWS)


def meeting(solution: Solution) -> float:
    """The sum, and what errors of two tensors add when they meet."""
    coarse = [number for number, option in enumerate(solution.chosen) if option == 0]
    return solution.summed_kl + sum(0.01 * ((a * 7 + b) % 5 - 2) for a, b in itertools.combinations(coarse, 2))


def solved(problem: Problem) -> Solution:
    solution = solve(problem)
    assert isinstance(solution, Solution)
    return solution


@pytest.mark.parametrize("seed", range(40))
def test_neighbours_keep_the_budgets_and_differ_in_two_tensors_at_most(seed: int) -> None:
    problem = random_problem(seed)
    solution = solve(problem)
    if not isinstance(solution, Solution):
        return
    sums = [expected_kl(problem, solution)]
    for neighbour in neighbours(problem, solution):
        assert 1 <= sum(a != b for a, b in zip(neighbour.chosen, solution.chosen, strict=True)) <= 2
        assert keeps(problem, neighbour, without="max_kl")
        sums.append(expected_kl(problem, neighbour))
    assert sums[1:] == sorted(sums[1:])
    assert all(kl >= sums[0] * (1 - 1e-9) for kl in sums) or problem.prefer != "quality"


def test_neighbours_are_all_single_and_double_exchanges_that_fit() -> None:
    problem = sized_problem()
    solution = solved(problem)
    most = 1.03 * solution.summed_kl
    wanted = set()
    for chosen in itertools.product(range(3), repeat=6):
        other = Solution(case=solution.case, chosen=chosen)
        differ = [(b - a) for a, b in zip(solution.chosen, chosen, strict=True) if a != b]
        exchanged = len(differ) == 1 or (len(differ) == 2 and min(differ) < 0 < max(differ))
        if exchanged and keeps(problem, other) and other.summed_kl <= most:
            wanted.add(chosen)
    assert {n.chosen for n in neighbours(problem, solution)} == wanted


def test_it_ends_where_no_neighbour_is_better() -> None:
    problem = sized_problem()
    solution = solved(problem)
    found = improve(problem, solution, Meter(meeting, noise=0.0).texts, seconds=1e6)
    assert found.complete and found.kl == meeting(found.solution)
    assert keeps(problem, found.solution)
    assert all(meeting(n) >= found.kl for n in neighbours(problem, found.solution))
    assert found.kl_before == meeting(solution) and (found.kl < found.kl_before) == (found.taken > 0)


def test_what_is_better_in_truth_is_found() -> None:
    problem = sized_problem()
    solution = solved(problem)
    best = next(iter(neighbours(problem, solution)))

    def truth(other: Solution) -> float:
        return 0.1 if other.chosen == best.chosen else 0.2

    found = improve(problem, solution, Meter(truth, noise=0.01).texts, seconds=1e6)
    assert found.solution.chosen == best.chosen and (found.kl_before, found.kl, found.taken) == (0.2, 0.1, 1)


def test_what_is_better_on_the_searched_text_only_is_not_taken() -> None:
    problem = sized_problem()
    solution = solved(problem)
    meter = Meter(lambda other: 0.2 + 0.001 * (other.chosen != solution.chosen), biased=0.01)
    found = improve(problem, solution, meter.texts, seconds=1e6)
    assert found.tried and found.taken == 0 and found.solution is solution and found.complete


def test_worse_neighbours_are_left_after_little_text() -> None:
    problem = sized_problem()
    solution = solved(problem)
    meter = Meter(lambda other: 0.2 + (other.chosen != solution.chosen))
    found = improve(problem, solution, meter.texts, seconds=1e6)
    assert meter.windows == [1] * (found.tried + 1), "one window of each, and of the solution"


def test_it_stops_when_the_time_is_up_and_tells_how_far_it_is() -> None:
    problem = sized_problem()
    times, told = itertools.count(), list[tuple[int, int]]()
    found = improve(
        problem,
        solved(problem),
        Meter(lambda _: 0.2).texts,
        seconds=3,
        progress=lambda done, total: told.append((done, total)),
        clock=lambda: float(next(times)),
    )
    assert not found.complete and found.tried == 2
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_error_of_a_paired_difference_is_that_of_a_ratio() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 60, 4000).astype(float)
    differences = 0.1 * tokens + rng.normal(0, 3, 4000)
    means = [paired(differences[i : i + 40], tokens[i : i + 40]) for i in range(0, 4000, 40)]
    spread = np.std([mean for mean, _ in means])
    assert np.mean([mean for mean, _ in means]) == pytest.approx(0.1, abs=3 * spread / 10)
    assert np.mean([error for _, error in means]) == pytest.approx(spread, rel=0.2)
    assert paired(np.array([3.0]), np.array([10.0])) == (pytest.approx(0.3), math.inf)
