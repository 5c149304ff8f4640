"""Losses as sums over a batch's counted predictions; the loop divides by the whole batch's weight.

B sequences, L tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from edgegen.training.batches import Batch, collate

Loss = Callable[[Any, Batch], torch.Tensor]
"""(model, batch) → the weighted sum of the counted predictions' losses, a scalar that has a gradient."""


def counted(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where predictions count: a mask (B, L) bool, the tokens to predict there (T,), and their weights (T,)."""
    mask = batch.weights > 0
    targets = batch.ids.roll(-1, dims=1)[mask]
    return mask, targets, batch.weights[mask]


def cross_entropy(model: Any, batch: Batch) -> torch.Tensor:
    """- Σ w ln p(next token), nats."""
    mask, targets, weights = counted(batch)
    losses = functional.cross_entropy(logits_of(model, batch)[mask].float(), targets, reduction="none")
    return (losses * weights).sum()


def in_parts(loss: Loss, rows: int) -> Loss:
    """The same loss of a batch, computed for at most `rows` of its rows at once: for what needs no gradient."""

    def whole(model: Any, batch: Batch) -> torch.Tensor:
        parts = [batch.items[start : start + rows] for start in range(0, len(batch.items), rows)]
        found = [loss(model, collate(part, packed=batch.packed).to(batch.ids.device)) for part in parts]
        return torch.stack(found).sum()

    return whole


def logits_of(model: Any, batch: Batch) -> torch.Tensor:
    """(B, L, V) after each of the batch's tokens; those of soft prompts before them are left out."""
    logits: torch.Tensor = model(**batch.inputs(model_dtype(model)), use_cache=False).logits
    return logits[:, -batch.ids.shape[1] :]


def model_dtype(model: Any) -> torch.dtype:
    """Type of a model's numbers."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
