"""The loop around the solver: whatever the sum gets wrong, the measured plan keeps the limit and uses it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from edgegen.errors import UnsupportedError
from edgegen.planner.plan import Planned, plan_within
from edgegen.planner.problem import Problem
from edgegen.planner.solve import Solution, solve
from edgegen.records.plan import Infeasible, Option
from tests.planner.problems import case_of, graded_case, problem_of, tensor

LIMIT = 0.05
GRIDS = 10
"""Options a tensor: steps fine enough that no plan needs to waste much."""


def fine_problem(prefer: str, **budgets: float) -> Problem:
    rng = np.random.default_rng(5)
    tensors = tuple(tensor(f"block{i}") for i in range(12))
    options = {
        t.name: tuple(Option(grid="q8", bytes=20 * bits, kl=float(s) * 3.0**-bits) for bits in range(2, 2 + GRIDS))
        for t, s in zip(tensors, 10.0 ** rng.uniform(-1.5, 0.5, 12), strict=True)
    }
    return problem_of(case_of(options, tensors), prefer=prefer, **{"max_kl": LIMIT, **budgets})


class Meter:
    """Measures a function of the sum, and counts."""

    def __init__(self, of_sum: Callable[[float], float], noise: float = 0.0, seed: int = 0) -> None:
        self._of_sum, self._noise, self._seed = of_sum, noise, seed
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, solution: Solution) -> float:
        self.calls.append(solution.chosen)
        # The same solution measures the same.
        luck = np.random.default_rng([self._seed, zlib.crc32(bytes(solution.chosen))]).uniform(-1, 1)
        return self._of_sum(solution.summed_kl) * (1 + self._noise * float(luck))


SHAPES: dict[str, Callable[[float], float]] = {
    "exact": lambda x: x,
    "half": lambda x: x / 2,
    "double": lambda x: 2 * x,
    "tenfold": lambda x: 10 * x,
    "tenth": lambda x: x / 10,
    "floor": lambda x: 0.01 + x,
    "curved": lambda x: 8 * x**1.5,
}


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("prefer", ["size", "speed", "quality"])
def test_the_measured_plan_keeps_the_limit(shape: str, noise: float, prefer: str) -> None:
    meter = Meter(SHAPES[shape], noise)
    found = plan_within(fine_problem(prefer), meter)
    assert isinstance(found, Planned)
    assert found.kl <= LIMIT
    assert found.kl == meter(found.solution)
    assert len(meter.calls) - 1 == found.rounds <= 8
    assert len(set(meter.calls)) == found.rounds, "nothing is measured twice"
    if prefer == "size":
        assert found.kl >= 0.6 * LIMIT, "finer steps would have allowed a smaller file"


@pytest.mark.parametrize("seed", range(10))
def test_noise_neither_breaks_nor_wastes_the_limit(seed: int) -> None:
    found = plan_within(fine_problem("size"), Meter(lambda x: 1.6 * x, noise=0.25, seed=seed))
    assert isinstance(found, Planned)
    assert 0.6 * LIMIT <= found.kl <= LIMIT


def test_quality_takes_one_measurement_when_it_fits() -> None:
    found = plan_within(fine_problem("quality"), Meter(SHAPES["double"]))
    assert isinstance(found, Planned)
    assert found.rounds == 1
    assert found.solution == solve(fine_problem("quality"))


def test_without_a_limit_the_plan_is_measured_once() -> None:
    problem = problem_of(*fine_problem("size").cases, prefer="size")
    found = plan_within(problem, Meter(SHAPES["double"]))
    assert isinstance(found, Planned)
    assert found.rounds == 1
    assert found.problem.kl_scale == pytest.approx(2.0)


def test_the_correction_makes_the_sum_agree_with_the_measurement() -> None:
    found = plan_within(fine_problem("size"), Meter(SHAPES["double"]))
    assert isinstance(found, Planned)
    assert found.problem.kl_scale * found.solution.summed_kl == pytest.approx(found.kl)


@pytest.mark.parametrize("factor", [1.2, 4.0, 40.0])
def test_impossible_when_even_the_finest_plan_measures_too_much(factor: float) -> None:
    finest = solve(fine_problem("quality"))
    assert finest is not None
    meter = Meter(lambda x: LIMIT * factor * x / finest.summed_kl)
    found = plan_within(fine_problem("size"), meter)
    assert isinstance(found, Infeasible)
    assert finest.chosen in meter.calls
    assert found.binding == "max_kl"
    assert found.limit == LIMIT
    assert found.best == pytest.approx(factor * LIMIT, rel=1e-3)


def test_the_finest_plan_is_measured_before_anything_is_called_impossible() -> None:
    finest = solve(fine_problem("quality"))
    assert finest is not None
    # Everything measures terribly but the finest plan, which the sum would never say.
    found = plan_within(
        fine_problem("size"), Meter(lambda x: 0.04 if x <= finest.summed_kl * (1 + 1e-9) else 10 + 100 * x)
    )
    assert isinstance(found, Planned)
    assert found.solution == finest


def test_other_budgets_that_cannot_be_kept_are_explained_without_measuring() -> None:
    meter = Meter(SHAPES["exact"])
    found = plan_within(fine_problem("size", max_bytes=100), meter)
    assert isinstance(found, Infeasible)
    assert found.binding == "max_bytes"
    assert meter.calls == []


def test_a_limit_on_size_that_leaves_too_little_quality() -> None:
    smallest = solve(fine_problem("size", max_kl=1e9))
    assert smallest is not None
    found = plan_within(fine_problem("size", max_bytes=smallest.bytes), Meter(SHAPES["exact"]))
    assert isinstance(found, Infeasible)
    assert "--max-kl is 0.05" in found.message and "--max-bytes" in found.message


def test_the_vocabulary_counts_towards_the_limit() -> None:
    whole, trimmed = graded_case((1.0, 1.0)), graded_case((1.0, 1.0), size=8, kl=0.049)
    found = plan_within(problem_of(whole, trimmed, prefer="size", max_kl=LIMIT), Meter(lambda x: x))
    assert isinstance(found, Planned)
    assert found.kl + found.solution.case.choice.kl <= LIMIT


def test_a_measurement_that_is_no_number_is_a_miss() -> None:
    finest = solve(fine_problem("quality"))
    assert finest is not None
    found = plan_within(fine_problem("size"), Meter(lambda x: 0.01 if x <= finest.summed_kl * (1 + 1e-9) else math.nan))
    assert isinstance(found, Planned)
    assert found.kl == 0.01
    with pytest.raises(UnsupportedError, match="not numbers"):
        plan_within(fine_problem("size"), Meter(lambda x: math.nan))
    with pytest.raises(UnsupportedError, match="not numbers"):
        plan_within(problem_of(*fine_problem("size").cases), Meter(lambda x: math.nan))
