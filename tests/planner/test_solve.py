"""Whole plans against enumeration: budgets kept, wishes granted, vocabularies and the front."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.planner.problem import Problem
from edgegen.planner.solve import Solution, expected_kl, front, solve
from edgegen.records.plan import Option
from tests.planner.problems import (
    as_encoder,
    case_of,
    every_solution,
    graded_case,
    keeps,
    predicted,
    price,
    problem_of,
    random_problem,
    tensor,
)

_VALUE = {
    "quality": lambda problem, s: expected_kl(problem, s) + s.case.choice.kl,
    "size": lambda problem, s: float(s.bytes),
    "speed": lambda problem, s: 1 / predicted(problem, s).decode_tokens_per_s,
    "first_token": lambda problem, s: predicted(problem, s).ttft_ms,
}


@pytest.mark.parametrize("task", ["causal", "encoder"])
@pytest.mark.parametrize("wish", list(_VALUE))
def test_wishes_equal_enumeration(wish: str, task: str) -> None:
    for seed in range(40):
        problem = random_problem(seed) if task == "causal" else as_encoder(random_problem(seed))
        feasible = [s for s in every_solution(problem) if keeps(problem, s)]
        found = solve(problem, prefer=wish)
        assert (found is None) == (not feasible), seed
        if found is not None:
            assert keeps(problem, found), seed
            best = min(_VALUE[wish](problem, s) for s in feasible)
            assert _VALUE[wish](problem, found) == pytest.approx(best, rel=1e-5, abs=2e-9), seed


@pytest.mark.parametrize("wish", ["quality", "size"])
def test_budgets_of_another_runtime_count_too(wish: str) -> None:
    """The same choice costs other bytes there, and has limits of its own."""
    for seed in range(40):
        problem = random_problem(seed)
        other = _on_another_runtime(problem, np.random.default_rng(seed))
        both = msgspec.structs.replace(problem, beside=(other,))

        def fits(solution: Solution, problem: Problem = problem, other: Problem = other) -> bool:
            there = Solution(case=other.cases[problem.cases.index(solution.case)], chosen=solution.chosen)
            return keeps(problem, solution) and keeps(other, there)

        feasible = [s for s in every_solution(problem) if fits(s)]
        found = solve(both, prefer=wish)
        assert (found is None) == (not feasible), seed
        if found is not None:
            assert fits(found), seed
            best = min(_VALUE[wish](problem, s) for s in feasible)
            assert _VALUE[wish](problem, found) == pytest.approx(best, rel=1e-5, abs=2e-9), seed


def _on_another_runtime(problem: Problem, rng: np.random.Generator) -> Problem:
    """Other bytes and a larger header; the largest file that it allows is a random choice's."""
    cases = tuple(
        msgspec.structs.replace(
            case,
            overhead_bytes=case.overhead_bytes + 7,
            options={
                name: tuple(msgspec.structs.replace(option, bytes=int(rng.integers(1, 40))) for option in options)
                for name, options in case.options.items()
            },
        )
        for case in problem.cases
    )
    other = msgspec.structs.replace(problem, cases=cases)
    sizes = sorted(solution.bytes for solution in every_solution(other))
    limits = msgspec.structs.replace(problem.budgets, max_bytes=int(rng.choice(sizes)), max_rss_bytes=None, max_kl=None)
    return msgspec.structs.replace(other, budgets=limits)


def test_at_the_highest_speed_the_best_quality_is_taken() -> None:
    for seed in range(40):
        problem = random_problem(seed, prefer="speed")
        found = solve(problem)
        if found is None:
            continue
        fastest = predicted(problem, found).decode_tokens_per_s
        alike = [
            s
            for s in every_solution(problem)
            if s.case == found.case
            and keeps(problem, s)
            and predicted(problem, s).decode_tokens_per_s >= fastest * (1 - 1e-9)
        ]
        best = min(expected_kl(problem, s) for s in alike)
        assert expected_kl(problem, found) <= best * (1 + 1e-5) + 2e-9, seed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100_000), st.sampled_from(["quality", "size", "speed"]))
def test_no_budget_is_ever_exceeded(seed: int, wish: str) -> None:
    problem = random_problem(seed, prefer=wish)
    found = solve(problem)
    if found is not None:
        assert keeps(problem, found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100_000), st.floats(1.0, 4.0), st.sampled_from(["quality", "size", "speed"]))
def test_larger_budgets_are_never_worse(seed: int, factor: float, wish: str) -> None:
    problem = random_problem(seed, prefer=wish)
    found = solve(problem)
    limits = msgspec.structs.asdict(problem.budgets)
    wider = {
        name: value / factor if name == "min_tokens_per_s" else value * factor
        for name, value in limits.items()
        if value is not None
    }
    more = solve(problem_of(*problem.cases, prefer=wish, **wider))
    if found is not None:
        assert more is not None
        assert _VALUE[wish](problem, more) <= _VALUE[wish](problem, found) * (1 + 1e-5) + 2e-9


def test_the_time_to_first_token_counts_reading_too() -> None:
    # One token is bound by reading here: kernels alone would let the large option through.
    only = tensor("block", "ffn_in")
    options = {"block": (Option(grid="q8", bytes=4000, kl=0.0), Option(grid="q8", bytes=400, kl=0.5))}
    case = case_of(options, (only,))
    small, large = sorted(every_solution(problem_of(case)), key=lambda s: s.bytes)
    limit = (price(problem_of(case), small, "max_ttft") + price(problem_of(case), large, "max_ttft")) / 2
    assert solve(problem_of(case, max_ttft_ms=limit)) == small
    assert solve(problem_of(case)) == large


def test_a_smaller_vocabulary_is_chosen_when_it_pays() -> None:
    whole, cheap = graded_case((1.0, 1.0)), graded_case((1.0, 1.0), size=8, kl=1e-4)
    for limit in range(270, 420, 10):
        problem = problem_of(whole, cheap, max_bytes=limit)
        found = solve(problem)
        feasible = [s for s in every_solution(problem) if keeps(problem, s)]
        assert found is not None
        assert _VALUE["quality"](problem, found) == pytest.approx(
            min(_VALUE["quality"](problem, s) for s in feasible), rel=1e-6
        )
    assert solve(problem_of(whole, cheap, max_bytes=250)).case == cheap  # type: ignore[union-attr]
    assert solve(problem_of(whole, cheap)).case == whole  # type: ignore[union-attr]
    # Smaller files and all else equal: size takes it, quality does not.
    assert solve(problem_of(whole, cheap, prefer="size", max_kl=1.0)).case == cheap  # type: ignore[union-attr]


def test_a_vocabulary_that_costs_more_than_the_budget_is_left_out() -> None:
    whole, dear = graded_case((1.0, 1.0)), graded_case((1.0, 1.0), size=8, kl=0.3)
    assert solve(problem_of(whole, dear, prefer="size", max_kl=0.2)).case == whole  # type: ignore[union-attr]


def test_among_equal_quality_the_smaller_file_is_taken() -> None:
    only = tensor("block")
    options = {"block": tuple(Option(grid="q8", bytes=size, kl=0.1) for size in (90, 30, 60))}
    found = solve(problem_of(case_of(options, (only,))))
    assert found is not None and found.chosen == (1,)


def test_no_tensor_at_all() -> None:
    problem = problem_of(case_of({}, ()), max_bytes=50)
    assert solve(problem).bytes == 50  # type: ignore[union-attr]
    assert solve(problem_of(case_of({}, ()), max_bytes=49)) is None


def front_of_all(problem: Problem) -> list[tuple[int, float]]:
    best: list[tuple[int, float]] = []
    for size, kl in sorted((s.bytes, _VALUE["quality"](problem, s)) for s in every_solution(problem)):
        if not best or kl < best[-1][1] - 1e-12:
            best.append((size, kl))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_front_is_strictly_monotone_and_beaten_by_none(seed: int) -> None:
    problem = random_problem(seed)
    points = [(s.bytes, kl) for s, kl in front(problem)]
    assert points
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))
    every = front_of_all(problem)
    for size, kl in points:
        assert not any(a <= size and b < kl * (1 - 1e-5) - 2e-9 for a, b in every)
    assert points[-1][1] == pytest.approx(every[-1][1], rel=1e-5, abs=2e-9)
    assert points[0][0] == every[0][0]
