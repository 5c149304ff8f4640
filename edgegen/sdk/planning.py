"""From measurements to a planner's problem, and from its solution to a plan.

The planner sees numbers only; here they are gathered: which grids fit which rows, how many bytes each makes in the
target's file, what a header with each vocabulary's tokenizer takes, and how a whole solution really scores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.catalog import learned_notes
from edgegen.common.codec import digest_record
from edgegen.modeling.load import open_tokenizer
from edgegen.modeling.sensitivity import fitting_grids
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.summary import resized_config
from edgegen.modeling.text import Window
from edgegen.modeling.vocabulary import Vocabulary
from edgegen.planner.cost import device_of
from edgegen.planner.explain import binding_budget, choices_of
from edgegen.planner.plan import KL_MARGIN, Planned
from edgegen.planner.problem import Problem, VocabularyCase
from edgegen.planner.solve import Solution, front, prediction_of, terms_of_solution
from edgegen.records.compressed import PackedTensor
from edgegen.records.measured import Measured
from edgegen.records.model import HEAD_BIAS, ModelSummary, TensorInfo
from edgegen.records.plan import FrontPoint, Option, Plan, Prediction, VocabularyChoice
from edgegen.records.profile import Budgets
from edgegen.sdk.job import Job
from edgegen.sdk.subject import SCORED_TOKENS, Subject

Progress = Callable[[int, int], None]


def read_vocabularies(folder: Path) -> dict[int, NDArray[np.int64]]:
    with np.load(folder / "vocabularies.npz") as stored:
        return {int(name): stored[name] for name in stored.files}


def scored_windows(subject: Subject, tokenizer: Any) -> list[Window]:
    # From the end, so that few rows are shared with the statistics even when there is little data.
    columns = subject.summary.vocab_size
    tokens = int(np.clip(1_000_000_000 // (4 * columns), 1024, SCORED_TOKENS))
    return subject.task.windows(
        tokenizer,
        tuple(reversed(subject.split.calibration)),
        max_tokens=tokens,
        window_tokens=subject.window_tokens,
    )


def build_problem(
    job: Job,
    measured: Measured,
    kept_ids: dict[int, NDArray[np.int64]],
    budgets: Budgets,
    prefer: str,
    grids: tuple[str, ...] | None,
) -> Problem:
    cases = [_case(job, measured, choice, kept_ids.get(choice.size), grids) for choice in measured.vocabularies]
    return Problem(
        cases=tuple(cases),
        settings=job.settings,
        device=device_of(job.profile, job.target, job.settings, job.subject.summary.task),
        budgets=_as_distance(budgets),
        workload=job.profile.workload,
        prefer=prefer,
        kl_floor=measured.floor,
    )


def _as_distance(budgets: Budgets) -> Budgets:
    """The planner trades one number: an encoder's limit on cosine similarity becomes one on 1 - cosine."""
    if budgets.min_cosine is None:
        return budgets
    return msgspec.structs.replace(budgets, max_kl=1 - budgets.min_cosine, min_cosine=None)


def _case(
    job: Job,
    measured: Measured,
    choice: VocabularyChoice,
    kept: NDArray[np.int64] | None,
    grids: tuple[str, ...] | None,
) -> VocabularyCase:
    summary = with_vocabulary(job.source.summary, choice.size)
    options = {}
    size_of = job.exporter.tensor_bytes
    for tensor in summary.tensors:
        prices = measured.kl.get(tensor.name, {})
        options[tensor.name] = tuple(
            Option(grid=grid, bytes=size_of(grid, tensor.rows, tensor.columns), kl=prices.get(grid, 0.0))
            for grid in fitting_grids(tensor, job.target, grids)
        )
    return VocabularyCase(choice=choice, summary=summary, options=options, overhead_bytes=_overhead(job, summary, kept))


def with_vocabulary(summary: ModelSummary, size: int) -> ModelSummary:
    """The same model with another number of tokens."""

    def resized(tensor: TensorInfo) -> TensorInfo:
        if tensor.name == HEAD_BIAS:
            return msgspec.structs.replace(tensor, columns=size)
        return msgspec.structs.replace(tensor, rows=size) if tensor.role in ("embedding", "head") else tensor

    return msgspec.structs.replace(summary, vocab_size=size, tensors=tuple(resized(t) for t in summary.tensors))


def _overhead(job: Job, summary: ModelSummary, kept: NDArray[np.int64] | None) -> int:
    """File bytes beside the tensors, with this vocabulary's tokenizer."""
    config = resized_config(job.subject.config, summary)
    tensors = [
        PackedTensor(
            name=t.name,
            grid="f32" if t.role == "vector" else "f16",
            rows=t.rows,
            columns=t.columns,
            offset=0,
            bytes=0,
        )
        for t in summary.tensors
    ]
    folder = Path(job.subject.ref.path)
    with tempfile.TemporaryDirectory() as scratch:
        if kept is not None:
            Vocabulary(folder / "tokenizer.json").write_trimmed(folder, Path(scratch), kept)
            folder = Path(scratch)
        return job.exporter.overhead_bytes(config, folder, tensors, job.settings, license_text=summary.license)


class SolutionScorer:
    """How far a whole solution is from the original (KL, or 1 - cosine), measured in torch with the runtime's rounding
    of activations."""

    def __init__(self, job: Job, kept_ids: dict[int, NDArray[np.int64]], progress: Progress | None) -> None:
        self._job = job
        self._kept = kept_ids
        self._windows: dict[int, list[Window]] = {}
        self._progress = progress
        self._done = 0

    def __call__(self, solution: Solution) -> float:
        size = solution.case.choice.size
        kept = self._kept.get(size) if size != self._job.subject.summary.vocab_size else None
        windows = self._windows.get(size)
        if windows is None:
            windows = self._windows[size] = self._make_windows(kept)
        columns = torch.from_numpy(kept) if kept is not None else None
        subject, target = self._job.subject, self._job.target
        model, task = subject.model, subject.task

        def outputs() -> torch.Tensor:
            found = task.outputs(model, subject.summary, windows)
            return found if columns is None else torch.log_softmax(found[:, columns], dim=-1)

        original = outputs()
        grids = {name: grid for name, grid in solution.grids.items() if grid != "f32"}
        with rounded_model(model, self._job.source, grids, {g.name: g.activation for g in target.grids}):
            kl = task.distance(original, outputs())
        self._done += 1
        if self._progress:
            self._progress(self._done, self._done + 1)
        return kl

    def _make_windows(self, kept: NDArray[np.int64] | None) -> list[Window]:
        if kept is None:
            return scored_windows(self._job.subject, self._job.subject.tokenizer)
        folder = Path(self._job.subject.ref.path)
        with tempfile.TemporaryDirectory() as scratch:
            Vocabulary(folder / "tokenizer.json").write_trimmed(folder, Path(scratch), kept)
            windows = scored_windows(self._job.subject, open_tokenizer(Path(scratch)))
        return [Window(ids=kept[w.ids], counts=w.counts, bytes=w.bytes) for w in windows]


def plan_of(job: Job, planned: Planned, measured: Measured, budgets: Budgets, prefer: str, seconds: float) -> Plan:
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
            msgspec.structs.replace(choice, compensated=job.source.compensates(choice.name, choice.grid))
            for choice in choices_of(solution)
        ),
        settings=job.settings,
        prediction=prediction,
        baseline=_baseline(job, problem),
        front=_front_points(problem, prediction, choice),
        calibration={**measured.factors, "joint": problem.kl_scale},
        binding=binding_budget(problem, prediction, choice.kl, KL_MARGIN),
        notes=(*job.subject.notes, *measured.notes, *_budget_notes(job, budgets), *learned_notes(job.profile)),
        terms=terms_of_solution(problem, solution),
    )
    # Digested before what changes from one run to the next comes in.
    return msgspec.structs.replace(plan, lineage=digest_record(plan), seconds=seconds)


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
        overhead_bytes=_overhead(job, summary, None),
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
