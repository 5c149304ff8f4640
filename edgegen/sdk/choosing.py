"""Which structure's plan is taken, and the plan as a record that says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from edgegen.catalog import learned_notes
from edgegen.common.codec import digest_record
from edgegen.common.units import format_bytes
from edgegen.planner.explain import binding_budget, choices_of
from edgegen.planner.plan import KL_MARGIN, Planned
from edgegen.planner.problem import Problem, VocabularyCase
from edgegen.planner.solve import Solution, front, prediction_of, terms_of_solution
from edgegen.records.measured import Measured
from edgegen.records.plan import FrontPoint, Infeasible, Option, Plan, Prediction, VocabularyChoice
from edgegen.records.profile import Budgets
from edgegen.records.structure import Considered, Search, Tried
from edgegen.sdk.job import Job
from edgegen.sdk.planning import overhead_of
from edgegen.techniques.registry import techniques

UNTIMED = "not looked at: no time budget was given for it"
"""Why a technique was not taken."""


class Contender(msgspec.Struct, frozen=True):
    """A structure with the best plan for it."""

    job: Job
    measured: Measured
    outcome: Planned | Infeasible
    structure: Tried | None
    """None: the original's own."""

    @property
    def value(self) -> float:
        """What planning optimises, smaller is better; infinite where no plan keeps the budgets."""
        if isinstance(self.outcome, Infeasible):
            return math.inf
        problem, solution = self.outcome.problem, self.outcome.solution
        if problem.prefer == "quality":
            return self.outcome.kl + solution.case.choice.kl
        if problem.prefer == "size":
            return float(solution.bytes)
        return 1 / prediction_of(problem, solution, self.outcome.kl).decode_tokens_per_s


def best_of(contenders: Sequence[Contender]) -> Contender:
    """The one whose measured plan is best; the original where none is better."""
    return min(contenders, key=lambda contender: contender.value)


def plan_of(
    best: Contender,
    contenders: Sequence[Contender],
    search: Search | None,
    budgets: Budgets,
    prefer: str,
    seconds: float,
) -> Plan:
    """The plan of the best contender, which keeps the budgets.

    Args:
        search: what was looked at besides; None: nothing was.
    """
    job, planned, measured = best.job, best.outcome, best.measured
    assert isinstance(planned, Planned), "the best keeps the budgets"
    problem, solution = planned.problem, planned.solution
    prediction = prediction_of(problem, solution, planned.kl)
    choice = solution.case.choice
    plan = Plan(
        schema=1,
        model=job.subject.ref,
        summary=solution.case.summary,
        original=job.subject.summary,
        data=job.subject.split.ref,
        target=job.target.name,
        profile=job.profile,
        budgets=budgets,
        prefer=prefer,
        vocabulary=msgspec.structs.replace(choice, why=choice.why or _vocabulary_why(choice)),
        tensors=tuple(
            msgspec.structs.replace(one, compensated=job.source.compensates(one.name, one.grid))
            for one in choices_of(solution)
        ),
        settings=job.settings,
        prediction=prediction,
        baseline=_baseline(job, problem),
        front=_front_points(problem, prediction, choice),
        calibration={**measured.factors, "joint": problem.kl_scale},
        binding=binding_budget(problem, prediction, choice.kl, KL_MARGIN),
        notes=(*job.subject.notes, *measured.notes, *_budget_notes(job, budgets), *learned_notes(job.profile)),
        terms=terms_of_solution(problem, solution),
        structure=best.structure.changes if best.structure else (),
        structure_name=best.structure.name if best.structure else "",
    )
    # Digested before what does not decide the artifact comes in.
    return msgspec.structs.replace(
        plan,
        lineage=digest_record(plan),
        seconds=seconds,
        considered=_considered(best, contenders, search),
        more_time=search.more if search else "",
    )


def _considered(best: Contender, contenders: Sequence[Contender], search: Search | None) -> tuple[Considered, ...]:
    """What became of each technique, in one sentence."""
    if search is None:
        return tuple(Considered(technique=t.NAME, title=t.TITLE, taken=False, why=UNTIMED) for t in techniques())
    taken = {change.technique: change for change in (best.structure.changes if best.structure else ())}
    planned = {c.structure.name: c for c in contenders if c.structure}
    found = []
    for name, title in search.titles.items():
        tried = [t for t in search.tried if name in {change.technique for change in t.changes}]
        if name in taken:
            why = f"{taken[name].words}: {_shown(best)} as planned and measured, {_shown(contenders[0])} without"
        elif name in search.obstacles:
            why = search.obstacles[name]
        elif name in search.late:
            why = "the time was up before it could be looked at"
        elif not tried:
            why = "nothing was found that it could take away"
        else:
            why = _why_not(tried, planned, best)
        found.append(Considered(technique=name, title=title, taken=name in taken, why=why))
    return tuple(found)


def _why_not(tried: Sequence[Tried], planned: Mapping[str, Contender], best: Contender) -> str:
    """Why the best of a technique's changes lost."""
    closest = min(tried, key=lambda t: (t.name not in planned, math.inf if t.estimate is None else t.estimate))
    healed = "" if closest.healed_kl is None else f", {closest.healed_kl:.3g} healed"
    words = f"{closest.changes[-1].words}: KL {closest.kl:.3g} before rounding{healed}; "
    if closest.name in planned:
        return words + f"{_shown(planned[closest.name])} as planned and measured, {_shown(best)} is better"
    if closest.estimate is None:
        return words + "no plan for it keeps the budgets"
    return words + f"{_valued(best, closest.estimate)} is to be expected of it, {_shown(best)} is better"


def _shown(contender: Contender) -> str:
    if isinstance(contender.outcome, Infeasible):
        return "no plan within the budgets"
    return _valued(contender, contender.value)


def _valued(contender: Contender, value: float) -> str:
    """What planning optimises, with its unit."""
    assert isinstance(contender.outcome, Planned), "only plans have a value"
    prefer = contender.outcome.problem.prefer
    if prefer == "quality":
        return f"KL {value:.3g}"
    return format_bytes(value) if prefer == "size" else f"{1 / value:.3g} tok/s"


def _budget_notes(job: Job, budgets: Budgets) -> list[str]:
    if job.subject.summary.task == "encoder":
        if budgets.min_cosine is not None:
            return []
        return ["A size was given, so no limit on cosine similarity applies; --min-cosine sets one."]
    own = job.profile.budgets.max_kl
    if own is None or budgets.max_kl is not None:
        return []
    return [f"A size was given, so the profile's limit on KL ({own:g}) does not apply; --max-kl sets one."]


def _vocabulary_why(choice: VocabularyChoice) -> str:
    return (
        f"{choice.original_size - choice.size:,} tokens that the data hardly uses go; text is cut into "
        f"{100 * (choice.tokens_per_byte_ratio - 1):+.1f} % tokens and costs {choice.kl:.2g} nats"
    )


def _baseline(job: Job, problem: Problem) -> Prediction:
    """The whole model at 16 bits on the same device."""
    summary = job.subject.summary
    grids = {t.name: "f16" if t.role != "vector" else "f32" for t in summary.tensors}
    sizes = {t.name: job.exporter.tensor_bytes(grids[t.name], t.rows, t.columns) for t in summary.tensors}
    options: dict[str, tuple[Option, ...]] = {
        name: (Option(grid=grids[name], bytes=sizes[name], kl=0.0),) for name in grids
    }
    whole = VocabularyCase(
        choice=problem.cases[0].choice,
        summary=summary,
        options=options,
        overhead_bytes=overhead_of(job, summary, None),
    )
    return prediction_of(problem, Solution(case=whole, chosen=(0,) * len(grids)), 0.0)


def _front_points(problem: Problem, prediction: Prediction, choice: VocabularyChoice) -> tuple[FrontPoint, ...]:
    """The sweep's points with the chosen plan among them, as far as nothing beats them."""
    points = [
        FrontPoint(
            bytes=solution.bytes,
            kl=kl,
            vocab_size=solution.case.choice.size,
            bits_per_weight=prediction_of(problem, solution, kl).bits_per_weight,
        )
        for solution, kl in front(problem)
    ]
    chosen = FrontPoint(
        bytes=prediction.bytes,
        kl=prediction.kl + choice.kl,
        vocab_size=choice.size,
        bits_per_weight=prediction.bits_per_weight,
    )
    others = [p for p in points if not (p.bytes >= chosen.bytes and p.kl >= chosen.kl) and p.bytes != chosen.bytes]
    return tuple(sorted([*others, chosen], key=lambda p: p.bytes))
