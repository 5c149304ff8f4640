"""Impossible budgets and chosen grids in words whose numbers are right."""

from __future__ import annotations

import pytest

from edgegen.planner.explain import FLAGS, binding_budget, choices_of, explain_infeasible
from edgegen.planner.problem import Problem
from edgegen.planner.solve import Solution, solve
from edgegen.records.plan import Option
from tests.planner.problems import (
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

CASE = graded_case((0.5, 0.4, 0.3))
FREE = problem_of(CASE)
KEYS = {
    "max_bytes": "max_bytes",
    "max_rss": "max_rss_bytes",
    "min_tok_s": "min_tokens_per_s",
    "max_ttft": "max_ttft_ms",
    "max_kl": "max_kl",
}


def extreme(name: str) -> float:
    values = [price(FREE, s, name) for s in every_solution(FREE)]
    return max(values) if name == "min_tok_s" else min(values)


def beyond(name: str) -> float:
    return extreme(name) * (1.5 if name == "min_tok_s" else 0.7)


@pytest.mark.parametrize("name", list(KEYS))
def test_one_impossible_budget_is_named_with_the_best_that_is_possible(name: str) -> None:
    problem = problem_of(CASE, **{KEYS[name]: beyond(name)})
    assert solve(problem) is None
    found = explain_infeasible(problem)
    assert found.binding == name
    assert found.limit == pytest.approx(beyond(name), abs=1)
    assert found.best == pytest.approx(extreme(name), rel=1e-5)
    assert FLAGS[name] in found.message and "no other budget" in found.message


def test_the_shortfall_is_the_difference() -> None:
    found = explain_infeasible(problem_of(CASE, max_bytes=200))
    assert found.best - found.limit == extreme("max_bytes") - 200
    assert f"short by {int(extreme('max_bytes')) - 200} B" in found.message


@pytest.mark.parametrize("name", [name for name in KEYS if name != "max_bytes"])
def test_of_two_budgets_the_impossible_one_is_named_and_the_other_kept(name: str) -> None:
    generous = max(s.bytes for s in every_solution(FREE)) - 10
    problem = problem_of(CASE, max_bytes=generous, **{KEYS[name]: beyond(name)})
    found = explain_infeasible(problem)
    assert found.binding == name
    assert found.nearest.bytes <= generous
    kept = [s for s in every_solution(problem) if keeps(problem, s, without=name)]
    values = [price(problem, s, name) for s in kept]
    assert found.best == pytest.approx(max(values) if name == "min_tok_s" else min(values), rel=1e-5)


def test_two_budgets_that_contradict_each_other_are_both_shown() -> None:
    small, fine = extreme("max_bytes"), extreme("max_kl")
    problem = problem_of(CASE, max_bytes=small, max_kl=fine * 1.01)
    assert solve(problem) is None
    found = explain_infeasible(problem)
    assert found.binding in ("max_bytes", "max_kl")
    assert "--max-bytes" in found.message and "--max-kl" in found.message and "Or:" in found.message


def test_several_impossible_budgets_are_all_named() -> None:
    problem = problem_of(CASE, max_bytes=beyond("max_bytes"), max_rss_bytes=beyond("max_rss"))
    found = explain_infeasible(problem)
    assert set(found.binding.split("+")) == {"max_bytes", "max_rss"}
    assert "--max-bytes" in found.message and "--max-rss" in found.message


def test_whatever_is_impossible_the_nearest_plan_keeps_the_others() -> None:
    seen = 0
    for seed in range(80):
        problem = random_problem(seed)
        if solve(problem) is not None:
            continue
        found = explain_infeasible(problem)
        seen += 1
        matching = [s for s in every_solution(problem) if _same(problem, s, found.nearest.bytes, found.nearest.kl)]
        assert matching, seed
        if "+" not in found.binding:
            assert any(keeps(problem, s, without=found.binding) for s in matching), seed
            over = found.best - found.limit
            assert over < 0 if found.binding == "min_tok_s" else over > 0, seed
    assert seen > 10


def _same(problem: Problem, solution: Solution, size: int, kl: float) -> bool:
    found = predicted(problem, solution)
    return found.bytes == size and found.kl + solution.case.choice.kl == pytest.approx(kl)


def test_the_binding_budget_is_the_one_that_is_used_up() -> None:
    smallest = min(every_solution(FREE), key=lambda s: s.bytes)
    found = predicted(FREE, smallest)

    def binding(**budgets: float) -> str:
        return binding_budget(problem_of(CASE, **budgets), found, 0.0, 0.85)

    assert binding() == "none"
    assert binding(max_bytes=found.bytes, max_rss_bytes=2 * found.rss_bytes) == "max_bytes"
    assert binding(max_bytes=2 * found.bytes, max_rss_bytes=found.rss_bytes) == "max_rss"
    assert binding(max_bytes=2 * found.bytes) == "none"
    assert binding(min_tokens_per_s=found.decode_tokens_per_s * 0.99) == "min_tok_s"
    assert binding(min_tokens_per_s=found.decode_tokens_per_s * 0.5) == "none"
    assert binding(max_ttft_ms=found.ttft_ms * 1.01) == "max_ttft"
    assert binding(max_kl=found.kl / 0.85) == "max_kl"
    assert binding(max_kl=found.kl * 3) == "none"


def options(*rows: tuple[str, int, float]) -> tuple[Option, ...]:
    return tuple(Option(grid=grid, bytes=size, kl=kl) for grid, size, kl in rows)


def test_each_choice_names_its_neighbours() -> None:
    each = tensor("block")
    case = case_of({"block": options(("q2", 1000, 0.5), ("q4", 2000, 0.1), ("q8", 4500, 0.02))}, (each,))
    why = [choices_of(Solution(case=case, chosen=(index,)))[0].why for index in range(3)]
    assert why[0] == "nothing smaller was offered; q4 would win 0.4 nats for 1.00 kB"
    assert why[1] == "q2 would save 1.00 kB and cost 0.4 nats; q8 would win 0.08 nats for 2.50 kB"
    assert why[2] == "q4 would save 2.50 kB and cost 0.08 nats; nothing larger is better"


def test_an_option_that_another_beats_is_no_neighbour() -> None:
    each = tensor("block")
    case = case_of(
        {"block": options(("q2", 1000, 0.5), ("bad", 1500, 0.6), ("q4", 2000, 0.1), ("q8", 4000, 0.2))}, (each,)
    )
    choice = choices_of(Solution(case=case, chosen=(2,)))[0]
    assert choice.smaller is not None and choice.smaller.grid == "q2"
    assert choice.larger is None


def test_a_tensor_without_a_choice_says_why() -> None:
    norm, odd = tensor("norm", "vector", rows=1), tensor("odd", columns=7)
    case = case_of({"norm": options(("f32", 32, 0.0)), "odd": options(("f16", 112, 0.0))}, (norm, odd))
    first, second = choices_of(Solution(case=case, chosen=(0, 0)))
    assert first.why == "f32: vectors stay in full precision"
    assert second.why == "f16: nothing else fits rows of 7"
