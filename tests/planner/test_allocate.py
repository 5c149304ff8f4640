"""The exact solver against enumeration, and its silence."""

from __future__ import annotations

import ctypes
import itertools
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.planner import allocate as module
from edgegen.planner.allocate import Budget, allocate, allocate_evenly

Rows = list[np.ndarray]


def brute_force(loads: list[Rows], budgets: list[Budget]) -> float | None:
    best = None
    for chosen in itertools.product(*(range(len(costs)) for costs in loads[0])):
        if all(total(budget.costs, chosen) <= budget.limit for budget in budgets):
            value = max(total(load, chosen) for load in loads)
            best = value if best is None else min(best, value)
    return best


def total(costs: Rows | tuple[np.ndarray, ...], chosen: tuple[int, ...] | list[int]) -> float:
    return sum(float(own[index]) for own, index in zip(costs, chosen, strict=True))


def rows(*values: list[float]) -> Rows:
    return [np.array(own, dtype=float) for own in values]


def random_problem(seed: int) -> tuple[Rows, Rows, list[Budget]]:
    """Costs over nine orders of magnitude, whole numbers up to a thousand million, limits that a choice just meets."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 5, rng.integers(1, 6))
    objective = [10.0 ** rng.uniform(-8, 1, width) for width in widths]
    second = [10.0 ** rng.uniform(-8, 1, width) for width in widths]
    budgets = []
    for name in ("bytes", "resident", "ties")[: rng.integers(0, 4)]:
        high = 3 if name == "ties" else 10 ** rng.integers(2, 10)
        costs = tuple(rng.integers(0, high, width).astype(float) for width in widths)
        limit = sum(rng.choice(own) for own in costs) + rng.choice([-1, 0, 0, 1])
        budgets.append(Budget(name, costs, float(limit)))
    return objective, second, budgets


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_equals_enumeration(start: int) -> None:
    for seed in range(start, start + 100):
        objective, _, budgets = random_problem(seed)
        expected, found = brute_force([objective], budgets), allocate(objective, budgets)
        assert (found is None) == (expected is None), seed
        if found is not None and expected is not None:
            assert all(total(b.costs, found) <= b.limit for b in budgets), seed
            assert total(objective, found) == pytest.approx(expected, rel=2e-6), seed


def test_even_loads_equal_enumeration() -> None:
    for seed in range(80):
        first, second, budgets = random_problem(seed)
        expected, found = brute_force([first, second], budgets), allocate_evenly([first, second], budgets)
        assert (found is None) == (expected is None), seed
        if found is not None and expected is not None:
            assert all(total(b.costs, found) <= b.limit for b in budgets), seed
            assert max(total(first, found), total(second, found)) == pytest.approx(expected, rel=2e-6), seed


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6, 1e12])
def test_the_unit_does_not_matter(scale: float) -> None:
    for seed in range(20):
        objective, _, budgets = random_problem(seed)
        expected = brute_force([objective], budgets)
        scaled = [Budget(b.name, tuple(c * scale for c in b.costs), b.limit * scale) for b in budgets]
        found = allocate([costs * scale for costs in objective], scaled)
        assert (found is None) == (expected is None)
        if found is not None:
            assert total(objective, found) == pytest.approx(expected, rel=2e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.0, 3.0))
def test_a_larger_budget_is_never_worse(seed: int, factor: float) -> None:
    objective, _, budgets = random_problem(seed)
    found = allocate(objective, budgets)
    wider = allocate(objective, [Budget(b.name, b.costs, b.limit * factor) for b in budgets if b.limit >= 0])
    if found is not None:
        assert wider is not None
        assert total(objective, wider) <= total(objective, found) * (1 + 2e-6)


def test_nothing_to_choose() -> None:
    assert allocate([], []) == []
    assert allocate([], [Budget("bytes", (), 0.0)]) == []
    assert allocate([], [Budget("bytes", (), -1.0)]) is None


def test_a_single_option_is_taken_or_nothing() -> None:
    assert allocate(rows([5.0]), [Budget("bytes", tuple(rows([3.0])), 3.0)]) == [0]
    assert allocate(rows([5.0]), [Budget("bytes", tuple(rows([3.0])), 2.0)]) is None


def test_zero_costs_and_zero_limits() -> None:
    assert allocate(rows([0.0, 0.0], [0.0]), []) == [0, 0]
    assert allocate(rows([0.0, 1.0]), [Budget("bytes", tuple(rows([1.0, 0.0])), 0.0)]) == [1]
    assert allocate(rows([0.0, 1.0]), [Budget("bytes", tuple(rows([1.0, 1.0])), 0.0)]) is None


def test_the_first_of_equal_options_is_taken() -> None:
    assert allocate(rows([2.0, 1.0, 1.0], [7.0, 7.0]), [Budget("b", tuple(rows([1, 1, 1], [1, 1])), 9.0)]) == [1, 0]


def test_one_byte_too_many_in_a_thousand_million_is_too_many() -> None:
    costs = tuple(rows([500_000_000, 499_999_999], [500_000_001, 400_000_000]))
    objective = rows([1.0, 1.5], [1.0, 9.0])
    assert allocate(objective, [Budget("bytes", costs, 1_000_000_001.0)]) == [0, 0]
    assert allocate(objective, [Budget("bytes", costs, 1_000_000_000.0)]) == [1, 0]
    assert allocate(objective, [Budget("bytes", costs, 999_999_999.0)]) == [0, 1]


def test_a_tiny_difference_beside_a_terrible_option_counts() -> None:
    objective = rows([20.0, 2e-6, 1e-6], [20.0, 1e-6, 2e-6])
    costs = tuple(rows([1, 2, 3], [1, 2, 3]))
    assert allocate(objective, [Budget("bytes", costs, 5.0)]) == [2, 1]


def large_problem(seed: int, tensors: int = 300) -> tuple[Rows, list[Budget]]:
    """Grids as they are: the more bits the less KL, with kernels, copies and prompts that follow no order."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.1, 2.6, 3.4, 4.25, 4.5, 5.0, 5.25, 5.5, 6.0, 6.56, 8.5, 16.0])
    weights = 10.0 ** rng.uniform(4, 7, tensors)
    objective = [s * 4.0**-bits * rng.uniform(0.7, 1.4, 12) for s in 10.0 ** rng.uniform(-6, -2, tensors)]
    sizes = [np.round(w * bits / 8) for w in weights]
    others = [[w * rng.uniform(0.1, 1, 12) for w in weights] for _ in range(2)]
    resident = [own * rng.choice([1, 2], 12) for own in sizes]
    budgets = []
    for share, costs in zip((0.5, 0.7, 0.7, 0.7), (sizes, resident, *others), strict=True):
        least, mean = sum(own.min() for own in costs), sum(own.mean() for own in costs)
        budgets.append(Budget("budget", tuple(costs), (1 - share) * least + share * mean))
    return objective, budgets


@pytest.mark.parametrize("seed", [3, 4])
def test_300_tensors_with_12_options_and_4_budgets_take_seconds(seed: int) -> None:
    objective, budgets = large_problem(seed)
    before = time.process_time()
    found = allocate(objective, budgets)
    assert time.process_time() - before < 15  # about 1 s; generous because other machines are slow
    assert found is not None
    assert all(total(b.costs, found) <= b.limit for b in budgets)


def test_the_core_is_as_good_as_all_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        objective, budgets = large_problem(seed, tensors=20)
        exact = allocate(objective, budgets)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_EXACT_OPTIONS", 0)
            patch.setattr(module, "_CORE_OPTIONS", (40, 80))
            quick = allocate(objective, budgets)
        assert exact is not None and quick is not None
        assert total(objective, quick) <= total(objective, exact) * (1 + module._CORE_GAP)
        assert all(total(b.costs, quick) <= b.limit for b in budgets)


def test_what_the_solver_prints_does_not_reach_stdout(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import scipy.optimize

    solver = scipy.optimize.milp

    def noisy(*args: object, **options: object) -> object:
        ctypes.CDLL(None).printf(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n")
        return solver(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", noisy)
    print("before")
    assert allocate(rows([2.0, 1.0], [1.0, 2.0]), []) == [1, 0]
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_stdout_is_restored_after_an_error(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    def failing(*args: object, **options: object) -> object:
        raise MemoryError("too large")

    monkeypatch.setattr(scipy.optimize, "milp", failing)
    with pytest.raises(MemoryError, match="too large"):
        allocate(rows([1.0, 2.0]), [])
    os.write(1, b"still here\n")
    assert capfd.readouterr().out == "still here\n"


def test_real_solves_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(60):
        objective, _, budgets = random_problem(seed)
        allocate(objective, budgets)
    assert capfd.readouterr() == ("", "")
