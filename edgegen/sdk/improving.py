"""The local search around a plan, on a subject's text (see `planner.improve`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.modeling.text import Window
from edgegen.planner.improve import Improved, Texts, improve
from edgegen.planner.plan import Planned, replanned
from edgegen.planner.solve import Solution
from edgegen.sdk.job import Job
from edgegen.sdk.planning import SolutionScorer, as_rounded, outputs_of
from edgegen.sdk.texts import in_original, study_windows, tokenizer_of

Ids = NDArray[np.int64]

_SEARCH_VALUES = 125_000_000
"""Most log-probabilities of the original's that are kept (500 MB)."""
_SEARCH_TOKENS = 2048


def improved(
    job: Job,
    planned: Planned,
    kept_ids: dict[int, Ids],
    *,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Planned, Improved | None]:
    """Exchange grids of a plan for as long as that helps.

    Args:
        kept_ids: size of a vocabulary → (K,) ids.

    Returns:
        The plan, and what the search found; None where there is too little text for one.
    """
    scorer = SolutionScorer(job, kept_ids, None)
    kept = scorer.kept_of(planned.solution)
    with tokenizer_of(job.subject, kept) as tokenizer:
        windows = _windows(job, in_original([w for part in study_windows(job.subject, tokenizer) for w in part], kept))
    if not windows:
        return planned, None
    texts = Texts(_Nats(job, windows, kept), scorer, len(windows))
    found = improve(planned.problem, planned.solution, texts, seconds=seconds, progress=progress)
    return (replanned(planned, found.solution, found.kl) if found.taken else planned), found


def _windows(job: Job, study: list[Window]) -> list[Window]:
    """The last ones, as few of which as can be are among those that sensitivities come from."""
    most = min(_SEARCH_TOKENS, _SEARCH_VALUES // job.subject.summary.vocab_size)
    chosen: list[Window] = []
    for window in reversed(study):
        if sum(w.tokens for w in chosen) >= most:
            break
        chosen.append(window)
    return chosen


class _Nats:
    """KL to the original of whole solutions, window by window."""

    def __init__(self, job: Job, windows: list[Window], kept: Ids | None) -> None:
        self._job, self._all, self._kept = job, windows, kept
        self._originals: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, solution: Solution, first: int, last: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        windows, job = self._all[first:last], self._job
        if (first, last) not in self._originals:
            self._originals[first, last] = outputs_of(job, job.subject.model, windows, self._kept)
        original = self._originals[first, last]
        with as_rounded(job, solution.grids):
            rounded = outputs_of(job, job.base.model, windows, self._kept)
        nats = (original.exp() * (original - rounded)).sum(1, dtype=torch.float64).numpy()
        counts = np.array([window.tokens for window in windows])
        starts = np.cumsum(counts) - counts
        return np.add.reduceat(nats, starts), counts.astype(np.float64)
