"""Measuring and planning for a model that is larger than memory: block by block, activations on disk.

What needs the whole model at once is left out, and the plan's notes say so: the vocabulary stays whole, and grids whose
rounding would take hours are no candidates unless the user names them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import UnsupportedError
from edgegen.modeling.load import memory_needed_by_blocks, require_memory
from edgegen.modeling.sensitivity import Sensitivity, fitting_grids
from edgegen.modeling.simulate import ACTIVATION_BLOCKS
from edgegen.modeling.streamed import StreamedModel
from edgegen.modeling.streamed_reference import save_streamed_reference
from edgegen.modeling.streamed_sensitivity import Variant, distance, measure_streamed, run_variants
from edgegen.modeling.text import Window
from edgegen.modeling.trimming import VocabularyOption, keep_all
from edgegen.planner.solve import Solution
from edgegen.sdk.job import Job

Progress = Callable[[int, int], None]

CALIBRATION_TOKENS, SCORED_TOKENS = 4096, 1024
_SLOW_GRIDS = ("iq2_s", "iq2_xs", "iq2_xxs")
"""Searched over a lattice: about a hundredth of the others' speed."""


class StreamedMeasurement(msgspec.Struct, frozen=True):
    """What `stages.measure` finds of a model in memory."""

    sensitivity: Sensitivity
    importance: dict[str, NDArray[np.float32]]
    vocabularies: tuple[VocabularyOption, ...]
    calibration_tokens: int
    scored_tokens: int
    notes: tuple[str, ...]


def measure(job: Job, grids: tuple[str, ...] | None, vocab: str, progress: Progress | None) -> StreamedMeasurement:
    """Price grids; arguments as `stages.measure`.

    Raises:
        UnsupportedError: a vocabulary of another size was asked for.
        DeviceError: too little memory for one block.
    """
    subject = job.subject
    if vocab not in ("auto", "keep"):
        raise UnsupportedError(
            "a vocabulary is trimmed with the whole model in memory, and this one is larger",
            hint="Leave out --vocab, or allow more with --memory.",
        )
    require_memory(subject.ref, memory_needed_by_blocks(subject.summary))
    allowed = grids or tuple(g.name for g in job.target.grids if g.planned and g.name not in _SLOW_GRIDS)
    tensors = [t for t in job.source.summary.tensors if t.quantizable]
    text, scored = _calibration(job), _scored(job)
    with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
        sensitivity, importance = measure_streamed(
            StreamedModel(subject.ref, job.source),
            job.source,
            text,
            scored,
            job.target,
            {t.name: fitting_grids(t, job.target, allowed) for t in tensors},
            Path(scratch),
            progress=progress,
        )
    left_out = sorted(set(job.target.grid_names) & set(_SLOW_GRIDS)) if grids is None else []
    notes = [
        "The model is larger than the memory it may take, so it was measured block by block on less text, and "
        "weights are rounded one by one, without compensation.",
        "No texts were written for comparison: the original would run through all its blocks for each token.",
    ]
    if vocab == "auto" and not subject.split.ref.generic:
        notes.append("The vocabulary stays whole: it is trimmed with the whole model in memory.")
    if left_out:
        notes.append(f"Grids that take hours to round to were left out: {', '.join(left_out)}; --grids can name them.")
    return StreamedMeasurement(
        sensitivity=sensitivity,
        importance=importance,
        vocabularies=(keep_all(subject.summary.vocab_size, "a model larger than memory keeps all tokens"),),
        calibration_tokens=sum(window.tokens for window in text),
        scored_tokens=sum(window.tokens for window in scored),
        notes=tuple(notes),
    )


class StreamedScorer:
    """How far a whole solution is from the original, as `planning.SolutionScorer` measures it."""

    def __init__(self, job: Job, progress: Progress | None) -> None:
        self._job = job
        self._progress = progress

    def __call__(self, solution: Solution) -> float:
        job, done = self._job, 0
        stream = StreamedModel(job.subject.ref, job.source)

        def tell() -> None:
            nonlocal done
            done += 1
            if self._progress:
                self._progress(done, stream.layers + 1)

        variant = _variant(job, solution.grids)
        with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
            original, rounded = run_variants(stream, _scored(job), [Variant(), variant], Path(scratch), tell=tell)
        found = distance(stream, original, rounded, variant)
        tell()
        return found


def reference(job: Job, folder: Path, grids: dict[str, str], context_tokens: int, progress: Progress | None) -> None:
    """Save what the original says on held-out text; writes reference/."""
    subject = job.subject
    with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
        save_streamed_reference(
            StreamedModel(subject.ref, job.source),
            msgspec.structs.replace(_variant(job, grids), activations={}),
            tokenizer=subject.tokenizer,
            heldout=subject.split.heldout,
            context_tokens=context_tokens,
            out=folder / "reference",
            scratch=Path(scratch),
            progress=progress,
        )


def _variant(job: Job, grids: dict[str, str]) -> Variant:
    summary = job.subject.summary
    activation = {g.name: ACTIVATION_BLOCKS.get(g.activation) for g in job.target.grids}
    tables = {t.role: grids[t.name] for t in summary.tensors if t.role in ("embedding", "head")}
    head = tables["embedding"] if summary.tied else tables.get("head", "")
    rounded = {name: block for name, grid in grids.items() if (block := activation.get(grid)) is not None}
    return Variant(
        grids={t.name: grids[t.name] for t in summary.tensors if t.layer >= 0 and grids[t.name] != "f32"},
        activations=rounded,
        embedding="" if tables["embedding"] == "f32" else tables["embedding"],
        head="" if head == "f32" else head,
    )


def _calibration(job: Job) -> list[Window]:
    subject = job.subject
    return subject.task.windows(
        subject.tokenizer,
        subject.split.calibration,
        max_tokens=CALIBRATION_TOKENS,
        window_tokens=subject.window_tokens,
    )


def _scored(job: Job) -> list[Window]:
    """From the end, so that few rows are shared with the statistics even when there is little data."""
    subject = job.subject
    return subject.task.windows(
        subject.tokenizer,
        tuple(reversed(subject.split.calibration)),
        max_tokens=SCORED_TOKENS,
        window_tokens=subject.window_tokens,
    )
