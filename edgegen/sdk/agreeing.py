"""One plan and one rounding for several runtimes: `--common-grid`.

The first target leads: its grids are priced, its weights rounded (onto grids that all targets hold, see
`grids.agreed`) and what the original says is saved in its folder. The plan is made for all at once (`agreed_plans`).
The others get the leader's packed rows in their own grids, code for code, with a plan of their own that says what that
takes on their runtime.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgegen.catalog import load_target
from edgegen.common.codec import canonical_json, load_json, save_json
from edgegen.common.files import filling
from edgegen.compress.translate import digest_of_weights, translate_model
from edgegen.errors import EdgegenError, UnsupportedError
from edgegen.grids import agreed
from edgegen.modeling.source import CACHE_BYTES, TensorSource
from edgegen.records.bakeoff import SameWeights
from edgegen.records.plan import Plan
from edgegen.records.target import Target
from edgegen.sdk import stages
from edgegen.sdk.agreed_plans import make_plans
from edgegen.sdk.job import PLANS, STRUCTURES, Job
from edgegen.sdk.output import Notify
from edgegen.sdk.pipeline import Run, export, fitted, key_of, measure, opened_workspace, prove
from edgegen.sdk.subject import Subject
from edgegen.sdk.wishes import Wanted

Progress = Callable[[int, int], None]


class Agreed(msgspec.Struct, frozen=True):
    """What `run_agreed` came to."""

    same_weights: SameWeights
    failures: dict[str, EdgegenError]
    """Target → why its artifact could not be made."""


def run_agreed(subject: Subject, wanted: Wanted, targets: Sequence[str], place: Path, notify: Notify) -> Agreed:
    """Make an output with the same weights for each target, in `place/TARGET`.

    Raises:
        InfeasibleError: no choice keeps every target's budgets; the message names the target that misses.
        UnsupportedError: a target cannot express the model.
        ConfigError, DeviceError, NetworkError: as `pipeline.compress`.
    """
    wanted = fitted(wanted, subject)
    jobs = _jobs(subject, wanted, [agreed_target(load_target(target)) for target in targets])
    failures: dict[str, EdgegenError] = {}
    with contextlib.ExitStack() as stack:
        runs = [
            Run(stack.enter_context(opened_workspace(place / target)), functools.partial(_tell, notify, target))
            for target in targets
        ]
        plans = _plan(runs, jobs, wanted)
        keys = [key_of(jobs[0], plan) for plan in plans]
        _compress(runs, jobs, plans, keys)
        same = _same_weights(runs, targets)
        for run, job, plan, key in zip(runs, jobs, plans, keys, strict=True):
            try:
                prove(run, subject, plan, wanted, export(run, job, plan, wanted, key))
            except EdgegenError as error:
                failures[plan.target] = error
    return Agreed(same_weights=same, failures=failures)


def agreed_target(target: Target) -> Target:
    """A runtime as if it had only the grids that all have, and only for rows that all can take.

    Raises:
        UnsupportedError: it does not have them.
    """
    planned = agreed.rounded_grids(target.grid_names)
    return msgspec.structs.replace(
        target,
        grids=tuple(
            msgspec.structs.replace(
                grid,
                block=1 if grid.name in ("f16", "f32") else agreed.BLOCK_COLUMNS,
                partial=False,
                planned=grid.name in planned,
            )
            for grid in target.grids
            if grid.name in (*planned, "f32")
        ),
    )


def _tell(notify: Notify, target: str, stage: str, state: str, done: int, total: int) -> None:
    notify(f"{target}/{stage}", state, done, total)


def _jobs(subject: Subject, wanted: Wanted, targets: Sequence[Target]) -> list[Job]:
    """With one source of rounded tensors, and one context, so that what the original says serves all."""
    source = TensorSource(
        subject.empty,
        subject.checkpoint,
        subject.summary,
        cache_bytes=0 if subject.is_streamed else CACHE_BYTES,
        is_agreed=True,
    )
    jobs = [Job(subject, wanted.profile, target, source=source) for target in targets]
    context = min(job.settings.context_tokens for job in jobs)
    for job in jobs:
        job.cap_context(context)
    return jobs


def _plan(runs: Sequence[Run], jobs: Sequence[Job], wanted: Wanted) -> list[Plan]:
    """One plan a target; a stage of the leader writes all, one of each other takes its own."""
    folder = runs[0].folder
    measuring, rounding = measure(runs[0], jobs[0], wanted)
    runs[0].without("structures.json", STRUCTURES)
    for run in runs[1:]:
        run.done_before("measure")
    planning = {
        "measured": measuring,
        "targets": [canonical_json(job.target).decode() for job in jobs],
        "profile": canonical_json(wanted.profile).decode(),
        "budgets": canonical_json(wanted.budgets).decode(),
        "prefer": wanted.prefer,
    }

    def work(tell: Progress) -> None:
        plans = make_plans(jobs, folder, wanted, rounding, tell)
        (folder / PLANS).mkdir()
        for plan in plans:
            save_json(folder / PLANS / f"{plan.target}.json", plan)
        save_json(folder / "plan.json", plans[0])

    runs[0].stage("plan", planning, ("plan.json", PLANS), work)
    found = []
    for run, job in zip(runs, jobs, strict=True):
        path = folder / PLANS / f"{job.target.name}.json"
        if run is not runs[0]:
            run.stage("plan", planning, ("plan.json",), functools.partial(_take_plan, path, run.folder))
        found.append(load_json(path, Plan))
    return found


def _compress(runs: Sequence[Run], jobs: Sequence[Job], plans: Sequence[Plan], keys: Sequence[str]) -> None:
    """Round once, and let the others have the same."""
    leader, job, plan = runs[0], jobs[0], plans[0]
    folder = leader.folder
    leader.stage("compress", keys[0], ("compressed",), lambda tell: stages.compress(job, folder, plan, progress=tell))
    leader.stage("reference", keys[0], ("reference",), lambda tell: stages.reference(job, folder, plan, progress=tell))
    for run, own, key in zip(runs[1:], plans[1:], keys[1:], strict=True):
        both = [keys[0], key]
        run.stage("compress", both, ("compressed",), functools.partial(_translate, folder, run.folder, own))
        run.stage("reference", both, ("reference",), functools.partial(_take_reference, folder, run.folder))


def _take_plan(path: Path, folder: Path, tell: Progress) -> None:
    shutil.copyfile(path, folder / "plan.json")


def _translate(leading: Path, folder: Path, plan: Plan, tell: Progress) -> None:
    translate_model(leading / "compressed", plan, folder / "compressed", progress=tell)


def _take_reference(leading: Path, folder: Path, tell: Progress) -> None:
    with filling(folder / "reference") as place:
        shutil.copytree(leading / "reference", place, dirs_exist_ok=True)


def _same_weights(runs: Sequence[Run], targets: Sequence[str]) -> SameWeights:
    """
    Raises:
        UnsupportedError: the packed tensors of two targets stand for different numbers.
    """
    found = [digest_of_weights(run.folder / "compressed") for run in runs]
    for target, own in zip(targets, found, strict=True):
        if own != found[0]:
            raise UnsupportedError(
                f"{targets[0]} and {target} hold different weights", hint="Run again into an empty folder."
            )
    tensors, digest = found[0]
    return SameWeights(targets=tuple(targets), tensors=tensors, digest=digest)
