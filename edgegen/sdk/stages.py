"""The arrows, each callable alone: measure → plan → compress → export → reference. Verifying stands in `output`.

Each reads records and folders and writes the next ones into `folder`. None of them knows the others; `pipeline`
strings them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import load_json, save_json
from edgegen.common.files import replacing
from edgegen.compress.execute import compress_model
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.registry import exporter_for
from edgegen.modeling.forward import counted_log_probs
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.reference import save_reference
from edgegen.modeling.sensitivity import measure_sensitivity
from edgegen.modeling.statistics import collect_statistics
from edgegen.modeling.text import make_windows, render
from edgegen.modeling.trimming import VocabularyOption, keep_all, measure_options
from edgegen.planner.plan import plan_within
from edgegen.records.artifact import Artifact
from edgegen.records.measured import Measured
from edgegen.records.plan import Infeasible, Plan
from edgegen.records.profile import Budgets
from edgegen.sdk.job import Job, read_importance
from edgegen.sdk.planning import (
    SCORED_TOKENS,
    SolutionScorer,
    build_problem,
    plan_of,
    read_vocabularies,
    scored_windows,
    window_tokens,
)

Progress = Callable[[int, int], None]

CALIBRATION_TOKENS = 8192

_PROMPTS_SMALL, _PROMPTS_LARGE, _SMALL_PARAMETERS = 64, 8, 60_000_000


def measure(
    job: Job, folder: Path, *, grids: tuple[str, ...] | None, vocab: str, progress: Progress | None = None
) -> Measured:
    """Price grids and vocabularies on calibration text; writes measured.json, importance.npz, vocabularies.npz.

    Args:
        grids: candidates named by the user; None: what the target plans with.
        vocab: `auto`, `keep`, or a number of tokens.

    Raises:
        ConfigError: an unknown grid or a bad `vocab`.
    """
    if vocab not in ("auto", "keep"):
        _vocab_number(vocab)
    if grids is not None and not grids:
        raise ConfigError("--grids names none", hint="Known: " + ", ".join(job.target.grid_names) + ".")
    for grid in grids or ():
        if grid not in job.target.grid_names:
            raise ConfigError(
                f"--grids: {job.target.name} has no grid {grid!r}",
                hint="Known: " + ", ".join(job.target.grid_names) + ".",
            )
    windows = make_windows(
        job.tokenizer, job.split.calibration, max_tokens=CALIBRATION_TOKENS, window_tokens=window_tokens(job)
    )
    # The tail of the calibration rows: the sum of sensitivities is corrected on text that it was not made from.
    scored = scored_windows(job, job.tokenizer)
    statistics = collect_statistics(job.model, job.summary, windows)
    job.source.use_importance(statistics.importance)
    reference = counted_log_probs(job.model, scored)
    sensitivity = measure_sensitivity(
        job.model, job.source, statistics, reference, scored, job.target, grids, progress=progress
    )
    options, notes = _vocabularies(job, vocab)
    _save_arrays(folder / "importance.npz", statistics.importance)
    _save_arrays(folder / "vocabularies.npz", {str(o.choice.size): o.kept for o in options if o.kept is not None})
    measured = Measured(
        schema=1,
        kl=sensitivity.kl,
        factors=sensitivity.factors,
        floor=sensitivity.floor,
        vocabularies=tuple(option.choice for option in options),
        calibration_tokens=sum(window.tokens for window in windows),
        scored_tokens=sum(window.tokens for window in scored),
        notes=tuple(notes),
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
    progress: Progress | None = None,
) -> Plan | Infeasible:
    """Choose within budgets; writes plan.json if a plan keeps them."""
    started = time.monotonic()
    measured = load_json(folder / "measured.json", Measured)
    job.source.use_importance(read_importance(folder / "importance.npz"))
    kept_ids = read_vocabularies(folder)
    problem = build_problem(job, measured, kept_ids, budgets, prefer, grids)
    scorer = SolutionScorer(job, kept_ids, progress)
    planned = plan_within(problem, scorer)
    if isinstance(planned, Infeasible):
        return planned
    plan = plan_of(job, planned, measured, budgets, prefer, time.monotonic() - started)
    save_json(folder / "plan.json", plan)
    return plan


def compress(job: Job, folder: Path, plan: Plan, *, progress: Progress | None = None) -> None:
    """Round and pack every tensor; writes compressed/."""
    job.source.use_importance(read_importance(folder / "importance.npz"))
    compress_model(plan, job.source, job.config, read_kept(folder, plan), folder / "compressed", progress=progress)


def export(job: Job, folder: Path, plan: Plan) -> Artifact:
    """Write the runtime's file with everything that travels; writes artifact/.

    Raises:
        UnsupportedError: the runtime would tokenize held-out text differently.
    """
    exporter = exporter_for(plan.target)
    return exporter(folder / "compressed", folder / "artifact", plan.settings, prove_texts=_texts(job))


def reference(job: Job, folder: Path, plan: Plan, *, progress: Progress | None = None) -> None:
    """Save what the original says on held-out text; writes reference/."""
    kept = read_kept(folder, plan)
    job.source.use_importance(read_importance(folder / "importance.npz"))
    small = job.summary.parameters <= _SMALL_PARAMETERS
    save_reference(
        job.model,
        job.source,
        tokenizer=job.tokenizer,
        artifact_tokenizer=open_tokenizer(folder / "compressed") if kept is not None else job.tokenizer,
        kept=kept,
        grids={choice.name: choice.grid for choice in plan.tensors},
        activation_of={grid.name: grid.activation for grid in job.target.grids},
        heldout=job.split.heldout,
        prompts=(_PROMPTS_SMALL if job.split.ref.kind == "completion" else _PROMPTS_LARGE) if small else _PROMPTS_LARGE,
        eos_ids=job.eos_ids,
        context_tokens=plan.settings.context_tokens,
        out=folder / "reference",
        progress=progress,
    )


def read_kept(folder: Path, plan: Plan) -> NDArray[np.int64] | None:
    """The plan's vocabulary in the original's ids; None if nothing was dropped."""
    if plan.vocabulary.size == plan.vocabulary.original_size:
        return None
    return read_vocabularies(folder)[plan.vocabulary.size]


def _texts(job: Job) -> list[str]:
    """Held-out texts as the runtime will meet them, for proving its tokenizer."""
    return ["".join(render(job.tokenizer, example)[:2]) for example in job.split.heldout[:200]]


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _vocabularies(job: Job, vocab: str) -> tuple[list[VocabularyOption], list[str]]:
    """The whole vocabulary, and trimmed ones where the user's data says what is needed."""
    rows = job.summary.vocab_size
    whole = keep_all(rows, "all tokens stay")
    if vocab == "keep":
        return [keep_all(rows, "--vocab keep")], []
    if vocab == "auto" and job.split.ref.generic:
        return [keep_all(rows, "without --data the domain is unknown, so all tokens stay")], []
    sizes = None if vocab == "auto" else [_vocab_number(vocab)]
    try:
        options = measure_options(
            job.model,
            Path(job.ref.path),
            job.tokenizer,
            job.split.calibration,
            sizes,
            max_tokens=SCORED_TOKENS // 2,
            window_tokens=window_tokens(job),
        )
    except UnsupportedError as error:
        if vocab != "auto":
            raise
        return [keep_all(rows, str(error))], [f"The vocabulary stays whole: {error}"]
    return ([whole] if vocab == "auto" else []) + options, []


def _vocab_number(vocab: str) -> int:
    if not (vocab.isascii() and vocab.isdigit()) or int(vocab) < 1:
        raise ConfigError(
            f"--vocab: {vocab!r} is neither auto, keep nor a number of tokens", hint="Write it like auto or 8000."
        )
    return int(vocab)
