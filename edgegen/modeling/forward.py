"""Run a model over windows and compare distributions.

B windows, L tokens of the longest, V vocabulary entries, T counted predictions of all windows, in window order.
Right padding needs no mask: in a causal model no real position sees a later one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from edgegen.modeling.text import Window, batches

_LOGIT_VALUES = 40_000_000
"""Most logits held at once (160 MB in float32)."""


def batch_tokens_for(vocab_size: int) -> int:
    """Padded tokens a batch, so that its logits stay small."""
    return max(256, min(4096, _LOGIT_VALUES // vocab_size))


def padded_ids(group: list[Window]) -> torch.Tensor:
    """(B, L) int64, right-padded with 0."""
    longest = max(len(window.ids) for window in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    for row, window in enumerate(group):
        ids[row, : len(window.ids)] = torch.from_numpy(window.ids)
    return ids


def iterate_logits(model: Any, windows: list[Window]) -> Iterator[tuple[list[Window], torch.Tensor]]:
    """Groups of windows with their logits (B, L, V) float32, without gradients."""
    vocab = model.get_input_embeddings().weight.shape[0]
    for group in batches(windows, batch_tokens=batch_tokens_for(vocab)):
        with torch.inference_mode():
            yield group, model(padded_ids(group), use_cache=False).logits.float()


def counted_log_probs(model: Any, windows: list[Window]) -> torch.Tensor:
    """(T, V) float32 log-probabilities at the counted positions, in the windows' own order."""
    found: dict[int, torch.Tensor] = {}
    for group, logits in iterate_logits(model, windows):
        for row, window in enumerate(group):
            mask = torch.from_numpy(window.counts)
            found[id(window)] = torch.log_softmax(logits[row, : len(window.ids)][mask], dim=-1)
    return torch.cat([found[id(window)] for window in windows])


def counted_targets(windows: list[Window]) -> torch.Tensor:
    """(T,) int64: the token that follows each counted position."""
    return torch.cat([torch.from_numpy(window.ids[1:][window.counts[:-1]]) for window in windows])


def mean_kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over T of KL(P || Q) = sum_v P (ln P - ln Q), nats per token; both (T, V) log-probabilities."""
    total = 0.0
    for start in range(0, len(reference), 1024):
        p = reference[start : start + 1024]
        q = other[start : start + 1024]
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
    return max(0.0, total / max(1, len(reference)))
