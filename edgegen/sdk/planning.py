"""From measurements to a planner's problem.

The planner sees numbers only; here they are gathered: which grids fit which rows, how many bytes each makes in the
target's file, what a header with each vocabulary's tokenizer takes, and how a whole solution really scores.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.modeling.sensitivity import fitting_grids
from edgegen.modeling.simulate import rounded_model
from edgegen.modeling.summary import resized_config
from edgegen.modeling.text import Window
from edgegen.modeling.vocabulary import Vocabulary
from edgegen.planner.cost import device_of
from edgegen.planner.problem import Problem, VocabularyCase
from edgegen.planner.solve import Solution
from edgegen.records.compressed import PackedTensor
from edgegen.records.measured import Measured
from edgegen.records.model import HEAD_BIAS, ModelSummary, TensorInfo
from edgegen.records.plan import Option, VocabularyChoice
from edgegen.records.profile import Budgets
from edgegen.sdk.job import Job
from edgegen.sdk.texts import in_original, scored_windows, tokenizer_of

Progress = Callable[[int, int], None]


def read_vocabularies(folder: Path) -> dict[int, NDArray[np.int64]]:
    with np.load(folder / "vocabularies.npz") as stored:
        return {int(name): stored[name] for name in stored.files}


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
    return VocabularyCase(
        choice=choice, summary=summary, options=options, overhead_bytes=overhead_of(job, summary, kept)
    )


def with_vocabulary(summary: ModelSummary, size: int) -> ModelSummary:
    """The same model with another number of tokens."""

    def resized(tensor: TensorInfo) -> TensorInfo:
        if tensor.name == HEAD_BIAS:
            return msgspec.structs.replace(tensor, columns=size)
        return msgspec.structs.replace(tensor, rows=size) if tensor.role in ("embedding", "head") else tensor

    return msgspec.structs.replace(summary, vocab_size=size, tensors=tuple(resized(t) for t in summary.tensors))


def overhead_of(job: Job, summary: ModelSummary, kept: NDArray[np.int64] | None) -> int:
    """File bytes beside the tensors, with this vocabulary's tokenizer."""
    config = resized_config(job.base.config, summary)
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
        kept = self.kept_of(solution)
        size = solution.case.choice.size
        windows = self._windows.get(size)
        if windows is None:
            with tokenizer_of(self._job.subject, kept) as tokenizer:
                windows = self._windows[size] = in_original(scored_windows(self._job.subject, tokenizer), kept)
        found = distance_of(self._job, solution.grids, windows, kept)
        self._done += 1
        if self._progress:
            self._progress(self._done, self._done + 1)
        return found

    def kept_of(self, solution: Solution) -> NDArray[np.int64] | None:
        """(K,) ids of the solution's vocabulary; None: all of it."""
        size = solution.case.choice.size
        return self._kept.get(size) if size != self._job.subject.summary.vocab_size else None


def distance_of(job: Job, grids: Mapping[str, str], windows: list[Window], kept: NDArray[np.int64] | None) -> float:
    """How far the rounded model is from the original on some text, with the runtime's rounding of activations.

    Args:
        grids: tensor name → grid, of all tensors.
        windows: of the original's ids.
        kept: (K,) ids of the vocabulary that stays; None: all of it.
    """
    original = outputs_of(job, job.subject.model, windows, kept)
    with as_rounded(job, grids):
        return job.subject.task.distance(original, outputs_of(job, job.base.model, windows, kept))


def as_rounded(job: Job, grids: Mapping[str, str]) -> contextlib.AbstractContextManager[None]:
    """Inside the block the base computes as the runtime would with these grids."""
    activations = {g.name: g.activation for g in job.target.grids}
    return rounded_model(job.base.model, job.source, job.source.changed(grids), activations)


def outputs_of(job: Job, model: Any, windows: list[Window], kept: NDArray[np.int64] | None) -> torch.Tensor:
    """What a model says, over the vocabulary that stays; arguments as `distance_of`."""
    found = job.subject.task.outputs(model, job.subject.summary, windows)
    return found if kept is None else torch.log_softmax(found[:, torch.from_numpy(kept)], dim=-1)
