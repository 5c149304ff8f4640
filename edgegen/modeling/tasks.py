"""What differs between a model that continues text and one that encodes it, side by side.

Everything else (rounding, planning, packing, verifying) asks here and is the same for both.

`outputs` is compared by `distance`, a number that is 0 for the original and that sensitivities, the planner and the
budgets count in: mean KL divergence in nats per token, or 1 - mean cosine similarity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch

from edgegen.modeling.encoder import make_texts, mean_distance, vectors_of
from edgegen.modeling.encoder_statistics import collect_vector_statistics
from edgegen.modeling.forward import counted_log_probs, mean_kl
from edgegen.modeling.statistics import Statistics, collect_statistics
from edgegen.modeling.text import WINDOW_TOKENS, Window, make_windows
from edgegen.records.model import ModelSummary


class Task(msgspec.Struct, frozen=True):
    """One of the two."""

    windows: Callable[..., list[Window]]
    """(tokenizer, examples, *, max_tokens, window_tokens) → what the model is run on."""
    longest_window: int | None
    """Tokens; None: the model's own context."""
    statistics: Callable[..., Statistics]
    """(model, summary, windows) → importance of inputs and samples for pricing grids."""
    outputs: Callable[[Any, ModelSummary, list[Window]], torch.Tensor]
    """(model, summary, windows) → one row a counted token or a text."""
    distance: Callable[[torch.Tensor, torch.Tensor], float]
    """(the original's outputs, others) → how far they are, >= 0."""

    def window_tokens(self, summary: ModelSummary) -> int:
        """Longest window that is cut from the data."""
        return min(self.longest_window or summary.context_tokens, summary.context_tokens)


def _log_probs(model: Any, summary: ModelSummary, windows: list[Window]) -> torch.Tensor:
    return counted_log_probs(model, windows)


def _vectors(model: Any, summary: ModelSummary, windows: list[Window]) -> torch.Tensor:
    assert summary.pooling is not None, "an encoder has a pooling"
    return vectors_of(model, summary.pooling, windows)


_TASKS: dict[str, Task] = {
    "causal": Task(
        windows=make_windows,
        longest_window=WINDOW_TOKENS,
        statistics=collect_statistics,
        outputs=_log_probs,
        distance=mean_kl,
    ),
    "encoder": Task(
        windows=make_texts,
        longest_window=None,
        statistics=collect_vector_statistics,
        outputs=_vectors,
        distance=mean_distance,
    ),
}


def task_of(summary: ModelSummary) -> Task:
    """What a model is for."""
    return _TASKS[summary.task]
