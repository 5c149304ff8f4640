"""The arrows, each callable alone: measure → plan → refine → compress → export → reference.

Verifying stands in `output`.

Each reads records and folders and writes the next ones into `folder`. None of them knows the others; `pipeline`
strings them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import replacing
from edgegen.compress.execute import compress_model
from edgegen.compress.refine import read_refinement, use_refined
from edgegen.errors import ConfigError
from edgegen.modeling.encoder import plain_text
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.reference import save_reference
from edgegen.modeling.sensitivity import Sensitivity, measure_sensitivity
from edgegen.modeling.text import render
from edgegen.modeling.trimming import VocabularyOption
from edgegen.modeling.vector_reference import save_vectors
from edgegen.planner.plan import plan_within
from edgegen.records.artifact import Artifact
from edgegen.records.measured import Measured
from edgegen.records.plan import Infeasible, Plan
from edgegen.records.profile import Budgets
from edgegen.records.refinement import Refinement
from edgegen.records.structure import Search
from edgegen.sdk import streaming
from edgegen.sdk.choosing import Contender, best_of, plan_of
from edgegen.sdk.improving import improved
from edgegen.sdk.job import HESSIANS, Job, derived_job, measured_folder
from edgegen.sdk.planning import (
    SolutionScorer,
    build_problem,
    read_vocabularies,
)
from edgegen.sdk.refining import (
    REFINED,
    considered_refinement,
    considered_search,
    left_out,
    tuned,
    with_refinement,
)
from edgegen.sdk.structures import StructureSearch
from edgegen.sdk.subject import vocab_number
from edgegen.sdk.texts import scored_windows
from edgegen.sdk.wishes import LOCAL_SEARCH, NO_TIME, REFINEMENT, Rounding, Times

Progress = Callable[[int, int], None]

_PROMPTS_SMALL, _PROMPTS_LARGE, _SMALL_PARAMETERS = 64, 8, 60_000_000


def measure(
    job: Job,
    folder: Path,
    *,
    grids: tuple[str, ...] | None,
    vocab: str,
    keep: tuple[str, ...] = (),
    rounding: Rounding = "plain",
    progress: Progress | None = None,
) -> Measured:
    """Price grids and vocabularies on calibration text; writes measured.json, importance.npz, vocabularies.npz, and
    hessians/ where rounding is to be compensated.

    Args:
        grids: candidates named by the user; None: what the target plans with.
        vocab: `auto`, `keep`, or a number of tokens.
        keep: tokens, or text whose tokens, stay in a trimmed vocabulary.
        rounding: how weights will be rounded; the same for all stages in this folder.

    Raises:
        ConfigError: an unknown grid or a bad `vocab`.
    """
    if vocab not in ("auto", "keep"):
        vocab_number(vocab)
    if grids is not None and not grids:
        raise ConfigError("--grids names none", hint="Known: " + ", ".join(job.target.grid_names) + ".")
    for grid in grids or ():
        if grid not in job.target.grid_names:
            raise ConfigError(
                f"--grids: {job.target.name} has no grid {grid!r}",
                hint="Known: " + ", ".join(job.target.grid_names) + ".",
            )
    # The tail of the calibration rows: the sum of sensitivities is corrected on text that it was not made from.
    subject = job.subject
    if subject.is_streamed:
        found = streaming.measure(job, grids, vocab, progress)
        _save_arrays(folder / "importance.npz", found.importance)
        return _save_measured(
            folder,
            found.sensitivity,
            list(found.vocabularies),
            calibration_tokens=found.calibration_tokens,
            scored_tokens=found.scored_tokens,
            notes=found.notes,
        )
    scored = scored_windows(subject, subject.tokenizer)
    model = job.base.model
    statistics = subject.statistics if job.base is subject else subject.statistics_of(job.base)
    _save_arrays(folder / "importance.npz", statistics.importance)
    compensated = rounding == "compensated"
    uncompensated = subject.save_hessians(job.base, folder / HESSIANS) if compensated else ()
    job.use_statistics(folder, compensated=compensated)
    reference = subject.task.outputs(model, subject.summary, scored)
    original = reference if job.base is subject else subject.task.outputs(subject.model, subject.summary, scored)
    sensitivity = measure_sensitivity(
        model, job.source, statistics, reference, scored, job.target, grids, original=original, progress=progress
    )
    options, notes = subject.vocabularies(vocab, keep)
    return _save_measured(
        folder,
        sensitivity,
        options,
        calibration_tokens=subject.calibration_tokens,
        scored_tokens=sum(window.tokens for window in scored),
        notes=(*notes, *uncompensated),
    )


def _save_measured(
    folder: Path,
    sensitivity: Sensitivity,
    options: list[VocabularyOption],
    *,
    calibration_tokens: int,
    scored_tokens: int,
    notes: tuple[str, ...],
) -> Measured:
    _save_arrays(folder / "vocabularies.npz", {str(o.choice.size): o.kept for o in options if o.kept is not None})
    measured = Measured(
        schema=1,
        kl=sensitivity.kl,
        factors=sensitivity.factors,
        floor=sensitivity.floor,
        vocabularies=tuple(option.choice for option in options),
        calibration_tokens=calibration_tokens,
        scored_tokens=scored_tokens,
        notes=notes,
    )
    save_json(folder / "measured.json", measured)
    return measured


def make_plan(
    job: Job,
    folder: Path,
    *,
    budgets: Budgets,
    prefer: str,
    grids: tuple[str, ...] | None,
    rounding: Rounding = "plain",
    times: Times = NO_TIME,
    progress: Progress | None = None,
) -> Plan | Infeasible:
    """Choose within budgets; writes plan.json if a plan keeps them.

    Structures that the search left are planned like the original, and the best measured plan is taken.

    Args:
        times: for exchanging grids of that plan by what they really do; and what comes after it.
    """
    started = time.monotonic()
    search = load_json(folder / "structures.json", Search) if (folder / "structures.json").exists() else None
    finalists = [tried for tried in search.tried if tried.finalist] if search else []
    kept_ids = read_vocabularies(folder)
    contenders = []
    for structure in (None, *finalists):
        name = structure.name if structure else ""
        own = derived_job(job, folder, name, grids)
        place = measured_folder(folder, name)
        measured = load_json(place / "measured.json", Measured)
        own.use_statistics(place, compensated=rounding == "compensated")
        problem = build_problem(own, measured, kept_ids, budgets, prefer, grids)
        streamed = job.subject.is_streamed
        scorer = streaming.StreamedScorer(own, progress) if streamed else SolutionScorer(own, kept_ids, progress)
        outcome = plan_within(problem, scorer)
        contenders.append(Contender(job=own, measured=measured, outcome=outcome, structure=structure))
    best = best_of(contenders)
    if isinstance(best.outcome, Infeasible):
        return best.outcome
    searched = left_out(LOCAL_SEARCH)
    if times.local_search:
        planned, found = improved(best.job, best.outcome, kept_ids, seconds=times.local_search, progress=progress)
        best, searched = msgspec.structs.replace(best, outcome=planned), considered_search(found)
    plan = plan_of(best, contenders, search, budgets, prefer, time.monotonic() - started)
    refined = considered_refinement(None) if times.refinement else left_out(REFINEMENT)
    plan = msgspec.structs.replace(plan, considered=(*plan.considered, searched, refined))
    save_json(folder / "plan.json", plan)
    return plan


def search_structures(
    job: Job,
    folder: Path,
    *,
    budgets: Budgets,
    prefer: str,
    grids: tuple[str, ...] | None,
    vocab: str,
    keep: tuple[str, ...] = (),
    rounding: Rounding = "plain",
    techniques: tuple[str, ...] | None,
    seconds: float,
    progress: Progress | None = None,
) -> Search:
    """Change, heal and measure structures within a time budget; writes structures.json and structures/.

    Args:
        techniques: that may be used; None: all.
        seconds: time budget; what is in hand when it ends is finished.

    Raises:
        ConfigError: an unknown technique.
    """
    measured = load_json(folder / "measured.json", Measured)
    job.use_statistics(folder, compensated=rounding == "compensated")
    problem = build_problem(job, measured, read_vocabularies(folder), budgets, prefer, grids)
    search = StructureSearch(job, folder, problem, grids=grids, seconds=seconds, progress=progress).run(techniques)
    for tried in search.tried:
        if tried.finalist:
            own = derived_job(job, folder, tried.name, grids)
            place = measured_folder(folder, tried.name)
            measure(own, place, grids=grids, vocab=vocab, keep=keep, rounding=rounding, progress=progress)
    return search


def refine(job: Job, folder: Path, plan: Plan, *, seconds: float, progress: Progress | None = None) -> Refinement:
    """Tune the plan's rounded weights within a time budget; writes refined/."""
    job.use_statistics(measured_folder(folder, plan.structure_name), compensated=_is_compensated(plan))
    return tuned(job, plan, read_kept(folder, plan), folder / REFINED, seconds=seconds, progress=progress)


def add_refinement(folder: Path, plan: Plan) -> Plan:
    """The plan with what tuning gave, as refined/ says; rewrites plan.json unless that says so already."""
    found = read_refinement(folder / REFINED)
    if plan.refinement == found:
        return plan
    plan = with_refinement(plan, found)
    save_json(folder / "plan.json", plan)
    return plan


def compress(job: Job, folder: Path, plan: Plan, *, progress: Progress | None = None) -> None:
    """Round and pack every tensor; writes compressed/."""
    _use_weights(job, folder, plan)
    compress_model(
        plan,
        job.source,
        job.base.config,
        read_kept(folder, plan),
        folder / "compressed",
        original=Path(job.base.ref.path),
        progress=progress,
    )


def export(job: Job, folder: Path, plan: Plan, *, litertlm: bool = False) -> Artifact:
    """Write the runtime's file with everything that travels; writes artifact/, and strict/ for checking it.

    Args:
        litertlm: whether a LiteRT artifact is also packed as one file for LiteRT-LM.

    Raises:
        UnsupportedError: the runtime would tokenize held-out text differently.
    """
    artifact = job.exporter.export(
        folder / "compressed",
        folder / "artifact",
        plan.settings,
        prove_texts=_texts(job),
        strict=folder / "strict",
    )
    if not litertlm:
        return artifact
    from edgegen.export.litert.container import add_container  # needs LiteRT's libraries

    return add_container(folder / "artifact")


def reference(job: Job, folder: Path, plan: Plan, *, progress: Progress | None = None) -> None:
    """Save what the original says on held-out text; writes reference/."""
    subject = job.subject
    kept = read_kept(folder, plan)
    _use_weights(job, folder, plan)
    grids = {choice.name: choice.grid for choice in plan.tensors}
    if subject.summary.pooling is not None:
        save_vectors(
            subject.model,
            job.source,
            tokenizer=subject.tokenizer,
            pooling=subject.summary.pooling,
            grids=grids,
            heldout=subject.split.heldout,
            context_tokens=plan.settings.context_tokens,
            out=folder / "reference",
            progress=progress,
        )
        return
    if subject.is_streamed:
        streaming.reference(job, folder, grids, plan.settings.context_tokens, progress)
        return
    many = subject.split.ref.kind == "completion" and subject.summary.parameters <= _SMALL_PARAMETERS
    save_reference(
        subject.model,
        job.source,
        tokenizer=subject.tokenizer,
        artifact_tokenizer=open_tokenizer(folder / "compressed") if kept is not None else subject.tokenizer,
        kept=kept,
        grids=grids,
        heldout=subject.split.heldout,
        prompts=_PROMPTS_SMALL if many else _PROMPTS_LARGE,
        eos_ids=subject.eos_ids,
        context_tokens=plan.settings.context_tokens,
        out=folder / "reference",
        base=job.base.model,
        progress=progress,
    )


def _use_weights(job: Job, folder: Path, plan: Plan) -> None:
    """Round as the plan says, and take the weights that were tuned."""
    job.use_statistics(measured_folder(folder, plan.structure_name), compensated=_is_compensated(plan))
    if plan.refinement is None:
        job.source.use_tuned({}, None)
    else:
        use_refined(job.source, folder / REFINED)


def _is_compensated(plan: Plan) -> bool:
    return any(choice.compensated for choice in plan.tensors)


def read_kept(folder: Path, plan: Plan) -> NDArray[np.int64] | None:
    """The plan's vocabulary in the original's ids; None if nothing was dropped."""
    if plan.vocabulary.size == plan.vocabulary.original_size:
        return None
    return read_vocabularies(folder)[plan.vocabulary.size]


def _texts(job: Job) -> list[str]:
    """Held-out texts as the runtime will meet them, for proving its tokenizer."""
    heldout = job.subject.split.heldout[:200]
    if job.subject.summary.task == "encoder":
        return [plain_text(example) for example in heldout]
    return ["".join(render(job.subject.tokenizer, example)[:2]) for example in heldout]


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
