"""Tuning a plan's rounded weights on a subject's text (see `compress.refine`), and what it says in the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import digest_record
from edgegen.compress.refine import RefineOptions, refine
from edgegen.planner.improve import Improved
from edgegen.records.plan import Plan
from edgegen.records.refinement import Refinement
from edgegen.records.structure import Considered
from edgegen.sdk.choosing import UNTIMED
from edgegen.sdk.job import Job
from edgegen.sdk.planning import distance_of
from edgegen.sdk.texts import in_original, items_of, scored_windows, study_windows, tokenizer_of
from edgegen.sdk.wishes import LOCAL_SEARCH, REFINEMENT

REFINED = "refined"
"""Folder of tuned weights in a workspace."""
_TITLES = {LOCAL_SEARCH: "exchanging grids by what that really does", REFINEMENT: "tuning rounded weights as a whole"}


def weights_identity(job: Job, plan: Plan, kept: NDArray[np.int64] | None) -> list[object]:
    """What decides how a plan's weights are tuned, beside the time, as plain values; `kept` as in `tuned`."""
    grids = [(choice.name, choice.grid, choice.compensated) for choice in plan.tensors]
    return [job.identity, plan.structure_name, None if kept is None else kept.tolist(), grids]


def tuned(
    job: Job,
    plan: Plan,
    kept: NDArray[np.int64] | None,
    out: Path,
    *,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> Refinement:
    """Tune what the job's source rounds for a plan, and write it to a folder.

    Args:
        kept: (K,) ids of the plan's vocabulary; None: all of it.
        seconds: time budget.
    """
    subject = job.subject
    with tokenizer_of(subject, kept) as tokenizer:
        study, aside = (in_original(some, kept) for some in study_windows(subject, tokenizer))
        scored = in_original(scored_windows(subject, tokenizer), kept)
    grids = {choice.name: choice.grid for choice in plan.tensors}
    return refine(
        job.base.model,
        subject.model,
        job.source,
        grids,
        items_of(study),
        items_of(aside),
        lambda: distance_of(job, grids, scored, kept),
        out,
        RefineOptions(seconds=seconds),
        identity=digest_record(weights_identity(job, plan, kept)),
        kept=kept,
        progress=progress,
    )


def with_refinement(plan: Plan, found: Refinement) -> Plan:
    """A plan that says what tuning gave. Where other weights are used, its lineage is another one too."""
    considered = (*(c for c in plan.considered if c.technique != REFINEMENT), considered_refinement(found))
    plan = msgspec.structs.replace(plan, refinement=found, considered=considered)
    if not found.kept:
        return plan
    return msgspec.structs.replace(
        plan,
        prediction=msgspec.structs.replace(plan.prediction, kl=found.kl_after),
        lineage=digest_record([plan.lineage, found.digest]),
    )


def considered_refinement(found: Refinement | None) -> Considered:
    """What became of tuning; None: it comes after the plan."""
    if found is None:
        why = "comes after the plan, with its share of the time"
    elif not found.steps:
        why = "not a step of it fits its share of the time, or there is too little text"
    else:
        words = f"{found.steps:,} steps on {found.tokens:,} predictions"
        gave = f"KL {found.kl_before:.3g} → {found.kl_after:.3g}"
        why = f"{words}: {gave}" if found.kept else f"{words} gave nothing better than KL {found.kl_before:.3g}"
    return Considered(REFINEMENT, _TITLES[REFINEMENT], found is not None and found.kept, why)


def considered_search(found: Improved | None) -> Considered:
    """What became of exchanging grids; None: there is too little text."""
    if found is None:
        why = "there is too little text for it"
    else:
        end = "none was left to try" if found.complete else "its share of the time was up"
        gave = f"KL {found.kl_before:.3g} → {found.kl:.3g}" if found.taken else "none better on text it did not look at"
        why = f"{found.tried:,} exchanges measured, {found.taken} taken until {end}: {gave}"
    return Considered(LOCAL_SEARCH, _TITLES[LOCAL_SEARCH], found is not None and found.taken > 0, why)


def left_out(name: str) -> Considered:
    """Of either, where it was not asked for."""
    return Considered(name, _TITLES[name], False, UNTIMED)
