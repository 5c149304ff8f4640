"""Why: for each tensor its neighbours on the trade-off, for an impossible budget what would have to give."""

from __future__ import annotations

import msgspec

from edgegen.common.units import format_bytes
from edgegen.planner.problem import Problem, VocabularyCase
from edgegen.planner.solve import Solution, expected_kl, prediction_of, solve
from edgegen.records.model import Task, TensorInfo
from edgegen.records.plan import Infeasible, Option, Prediction, TensorChoice

_BUDGETS = ("max_rss", "min_tok_s", "max_ttft", "max_bytes", "max_kl")
_WISH = {
    "max_rss": "size",
    "min_tok_s": "speed",
    "max_ttft": "first_token",
    "max_bytes": "size",
    "max_kl": "quality",
}
FLAGS = {
    "max_bytes": "--max-bytes",
    "max_rss": "--max-rss",
    "min_tok_s": "--min-tok-s",
    "max_ttft": "--max-ttft",
    "max_kl": "--max-kl",
}


def limit_of(problem: Problem, budget: str) -> float | None:
    """The limit of a budget by its short name."""
    limits = problem.budgets
    return {
        "max_bytes": limits.max_bytes,
        "max_rss": limits.max_rss_bytes,
        "min_tok_s": limits.min_tokens_per_s,
        "max_ttft": limits.max_ttft_ms,
        "max_kl": limits.max_kl,
    }[budget]


def value_of(prediction: Prediction, budget: str, vocabulary_kl: float) -> float:
    """What a plan is predicted to reach for a budget."""
    return {
        "max_bytes": prediction.bytes,
        "max_rss": prediction.rss_bytes,
        "min_tok_s": prediction.decode_tokens_per_s,
        "max_ttft": prediction.ttft_ms,
        "max_kl": prediction.kl + vocabulary_kl,
    }[budget]


def flag(budget: str, task: Task) -> str:
    """The option that sets a budget. What limits quality of an encoder is its cosine similarity."""
    return "--min-cosine" if budget == "max_kl" and task == "encoder" else FLAGS[budget]


def shown(budget: str, value: float, task: Task = "causal") -> str:
    """A budget's value with its unit."""
    if budget == "max_kl" and task == "encoder":
        return f"{1 - value:.5g}"
    if budget in ("max_bytes", "max_rss"):
        return format_bytes(value)
    if budget == "min_tok_s":
        return f"{value:.3g} tok/s"
    return f"{value:.3g} ms" if budget == "max_ttft" else f"{value:.3g} nats"


def explain_infeasible(problem: Problem) -> Infeasible:
    """Which budget cannot be kept, by how much, and the plan that comes nearest."""
    asked = [budget for budget in _BUDGETS if limit_of(problem, budget) is not None]
    found: list[tuple[str, Solution]] = []
    for budget in asked:
        solution = solve(problem, prefer=_WISH[budget], without=frozenset({budget}))
        if solution is not None:
            found.append((budget, solution))
    if not found:
        return _several(problem, asked)
    sentences = []
    for budget, solution in found:
        best = value_of(_predicted(problem, solution), budget, solution.case.choice.kl)
        limit = limit_of(problem, budget) or 0.0
        kept = "the other budgets kept" if len(asked) > 1 else "no other budget"
        sentences.append(
            f"{flag(budget, problem.task)} is {shown(budget, limit, problem.task)}; "
            f"with {kept} the best is {shown(budget, best, problem.task)}"
        )
    budget, solution = found[0]
    nearest = _predicted(problem, solution)
    best = value_of(nearest, budget, solution.case.choice.kl)
    limit = limit_of(problem, budget) or 0.0
    is_cosine = budget == "max_kl" and problem.task == "encoder"
    shortfall = f"{abs(best - limit):.3g} of cosine similarity" if is_cosine else shown(budget, abs(best - limit))
    return Infeasible(
        binding="min_cosine" if is_cosine else budget,
        limit=1 - limit if is_cosine else limit,
        best=1 - best if is_cosine else best,
        message=f"no plan fits: short by {shortfall}. " + ". Or: ".join(sentences),
        nearest=_in_all(nearest, solution),
        task=problem.task,
    )


def _several(problem: Problem, asked: list[str]) -> Infeasible:
    """More than one budget is out of reach by itself."""
    solution = solve(problem, prefer="size", without=frozenset(_BUDGETS))
    assert solution is not None, "without budgets every problem has solutions"
    nearest = _predicted(problem, solution)
    missed = []
    for budget in asked:
        limit, value = limit_of(problem, budget) or 0.0, value_of(nearest, budget, solution.case.choice.kl)
        if value < limit if budget == "min_tok_s" else value > limit:
            missed.append((budget, limit, value))
    words = "; ".join(
        f"{flag(b, problem.task)} {shown(b, limit, problem.task)} against {shown(b, value, problem.task)}"
        for b, limit, value in missed
    )
    first = missed[0] if missed else (asked[0], limit_of(problem, asked[0]) or 0.0, 0.0)
    return Infeasible(
        binding="+".join(budget for budget, _, _ in missed) or asked[0],
        limit=first[1],
        best=first[2],
        message=f"no plan fits, even the smallest file misses: {words}",
        nearest=_in_all(nearest, solution),
        task=problem.task,
    )


def _in_all(prediction: Prediction, solution: Solution) -> Prediction:
    """With the vocabulary's cost in its KL: nobody reads the two side by side here."""
    return msgspec.structs.replace(prediction, kl=prediction.kl + solution.case.choice.kl)


def _predicted(problem: Problem, solution: Solution) -> Prediction:
    return prediction_of(problem, solution, expected_kl(problem, solution))


def binding_budget(problem: Problem, prediction: Prediction, vocabulary_kl: float, margin: float) -> str:
    """The budget that a plan nearly uses up, or `none`.

    Args:
        margin: share of the KL limit that planning aims at.
    """
    tightest = ("none", 0.97)
    for budget in _BUDGETS:
        limit = limit_of(problem, budget)
        if not limit:
            continue
        value = value_of(prediction, budget, vocabulary_kl)
        used = limit / max(value, 1e-30) if budget == "min_tok_s" else value / limit
        if budget == "max_kl":
            used = min(1.0, used / margin + 0.08)
        if used >= tightest[1]:
            tightest = ("min_cosine" if budget == "max_kl" and problem.task == "encoder" else budget, used)
    return tightest[0]


def choices_of(solution: Solution) -> tuple[TensorChoice, ...]:
    """Each tensor's grid with the neighbours that lost and one sentence."""
    return tuple(
        _choice(solution.case, tensor, index)
        for tensor, index in zip(solution.case.summary.tensors, solution.chosen, strict=True)
    )


def _choice(case: VocabularyCase, tensor: TensorInfo, index: int) -> TensorChoice:
    options = case.options[tensor.name]
    option = options[index]
    curve = [o for o in options if not any(p.bytes <= o.bytes and p.kl < o.kl for p in options)]
    smaller = max((o for o in curve if o.bytes < option.bytes), key=lambda o: (o.bytes, -o.kl), default=None)
    larger = min(
        (o for o in curve if o.bytes > option.bytes and o.kl < option.kl),
        key=lambda o: (o.bytes, o.kl),
        default=None,
    )
    return TensorChoice(
        name=tensor.name,
        role=tensor.role,
        layer=tensor.layer,
        rows=tensor.rows,
        columns=tensor.columns,
        grid=option.grid,
        bytes=option.bytes,
        kl=option.kl,
        smaller=smaller,
        larger=larger,
        why=_why(tensor, option, smaller, larger, len(options), case.summary.task),
    )


def _why(
    tensor: TensorInfo, option: Option, smaller: Option | None, larger: Option | None, number: int, task: Task
) -> str:
    unit = "of cosine similarity" if task == "encoder" else "nats"
    if number == 1:
        reason = (
            "vectors stay in full precision"
            if tensor.role == "vector"
            else f"nothing else fits rows of {tensor.columns}"
        )
        return f"{option.grid}: {reason}"
    parts = []
    if smaller:
        saved, cost = format_bytes(option.bytes - smaller.bytes), smaller.kl - option.kl
        parts.append(f"{smaller.grid} would save {saved} and cost {cost:.2g} {unit}")
    else:
        parts.append("nothing smaller was offered")
    if larger:
        price, gain = format_bytes(larger.bytes - option.bytes), option.kl - larger.kl
        parts.append(f"{larger.grid} would win {gain:.2g} {unit} for {price}")
    else:
        parts.append("nothing larger is better")
    return "; ".join(parts)
