"""One choice for several runtimes that hold the same weights, and the plan that it is on each of them.

Each target's budgets are limits of the same choice. Its KL is the worst of all targets', measured with the activations
of each; what is optimised within the budgets is the first target's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import load_json
from edgegen.errors import InfeasibleError
from edgegen.grids import agreed
from edgegen.planner.explain import explain_infeasible
from edgegen.planner.plan import Planned, plan_within
from edgegen.planner.problem import Problem
from edgegen.planner.solve import Solution, solve
from edgegen.records.measured import Measured
from edgegen.records.plan import Infeasible, Plan
from edgegen.sdk import streaming
from edgegen.sdk.choosing import Contender, plan_of
from edgegen.sdk.job import Job
from edgegen.sdk.pipeline import nearest
from edgegen.sdk.planning import SolutionScorer, build_problem, read_vocabularies
from edgegen.sdk.wishes import Rounding, Wanted

Progress = Callable[[int, int], None]


def make_plans(
    jobs: Sequence[Job], folder: Path, wanted: Wanted, rounding: Rounding, progress: Progress | None
) -> list[Plan]:
    """One choice within all targets' budgets, as a plan for each.

    Args:
        folder: with what was measured of the first job.

    Raises:
        InfeasibleError: there is none.
    """
    started = time.monotonic()
    jobs[0].use_statistics(folder, compensated=rounding == "compensated")
    kept = read_vocabularies(folder)
    measured = load_json(folder / "measured.json", Measured)
    measurements = [_measured_for(job, measured, [one.target.name for one in jobs]) for job in jobs]
    problems = [
        build_problem(job, own, kept, wanted.budgets, wanted.prefer, None)
        for job, own in zip(jobs, measurements, strict=True)
    ]
    # KL is one number of the choice; which target's is worst only measuring tells.
    beside = tuple(
        msgspec.structs.replace(problem, budgets=msgspec.structs.replace(problem.budgets, max_kl=None))
        for problem in problems[1:]
    )
    scorer = _Scorer(jobs, problems, kept, progress)
    outcome = plan_within(msgspec.structs.replace(problems[0], beside=beside), scorer)
    if isinstance(outcome, Infeasible):
        found = _explained(outcome, [job.target.name for job in jobs], problems, scorer)
        raise InfeasibleError(found.message, hint=nearest(found))
    plans = []
    for number, (job, own) in enumerate(zip(jobs, measurements, strict=True)):
        problem = msgspec.structs.replace(problems[number], kl_scale=outcome.problem.kl_scale)
        planned = Planned(
            problem=problem,
            solution=_own_solution(outcome.solution, problems[0], problem),
            kl=scorer.kl_of(outcome.solution)[number],
            rounds=outcome.rounds,
        )
        contender = Contender(job=job, measured=own, outcome=planned, structure=None)
        seconds = time.monotonic() - started
        plans.append(plan_of(contender, [contender], None, wanted.budgets, wanted.prefer, seconds))
    return plans


def _measured_for(job: Job, measured: Measured, names: Sequence[str]) -> Measured:
    """What was measured of the leader's grids, as that of a target's own: they hold the same weights."""

    def own(grid: str) -> str:
        return agreed.own_grid(agreed.agreed_of(grid), job.target.grid_names)

    note = f"Rounded once for {', '.join(names)}: all hold the same codes and scales."
    return msgspec.structs.replace(
        measured,
        kl={name: {own(grid): kl for grid, kl in prices.items()} for name, prices in measured.kl.items()},
        factors={own(grid): factor for grid, factor in measured.factors.items()},
        notes=(*measured.notes, note),
    )


def _own_solution(solution: Solution, leading: Problem, problem: Problem) -> Solution:
    """The same choice in another target's problem, whose cases and options stand in the same order."""
    return Solution(case=problem.cases[leading.cases.index(solution.case)], chosen=solution.chosen)


class _Scorer:
    """The worst of all targets' distances of a choice to the original."""

    def __init__(
        self,
        jobs: Sequence[Job],
        problems: Sequence[Problem],
        kept: dict[int, NDArray[np.int64]],
        progress: Progress | None,
    ) -> None:
        self._problems = problems
        self._scorers = [
            streaming.StreamedScorer(job, progress) if job.subject.is_streamed else SolutionScorer(job, kept, progress)
            for job in jobs
        ]
        self._known: dict[tuple[int, tuple[int, ...]], list[float]] = {}

    def __call__(self, solution: Solution) -> float:
        return float(np.max(self.kl_of(solution)))  # NaN if any is

    def kl_of(self, solution: Solution) -> list[float]:
        """One number a target; measured once."""
        key = solution.case.choice.size, solution.chosen
        if key not in self._known:
            self._known[key] = [
                scorer(_own_solution(solution, self._problems[0], problem))
                for scorer, problem in zip(self._scorers, self._problems, strict=True)
            ]
        return self._known[key]

    @property
    def worst(self) -> int:
        """Which target was farthest from the original in the choice that came nearest to it."""
        return int(np.argmax(min(self._known.values(), key=max)))


def _explained(outcome: Infeasible, names: Sequence[str], problems: Sequence[Problem], scorer: _Scorer) -> Infeasible:
    """Why nothing fits, with the target that misses."""
    short = [number for number, problem in enumerate(problems) if solve(problem, without=frozenset({"max_kl"})) is None]
    if not short and outcome.binding in ("max_kl", "min_cosine"):
        return msgspec.structs.replace(outcome, message=f"{names[scorer.worst]}: {outcome.message}")
    missing = short or [number for number, problem in enumerate(problems) if solve(problem) is None]
    if not missing:
        words = f"no plan fits: none keeps the budgets of {', '.join(names)} together"
        return msgspec.structs.replace(outcome, message=words)
    found = explain_infeasible(problems[missing[0]])
    others = ", ".join(names[number] for number in missing[1:])
    also = f". Missed by {others} too" if others else ""
    return msgspec.structs.replace(found, message=f"{names[missing[0]]}: {found.message}{also}")
