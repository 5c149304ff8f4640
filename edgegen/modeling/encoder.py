"""Run a sentence encoder over texts and compare its vectors.

A text is one `Window`: whole, cut only where the encoder itself cuts, with the special tokens around it. All its
tokens count. Vectors are compared by 1 - cosine similarity, for encoders what KL divergence is for models that
continue text: 0 is identical, and to second order it is half the squared distance of the normalised vectors.

B texts of a batch, L tokens of the longest, W texts, D numbers of a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgegen.errors import ConfigError
from edgegen.modeling.forward import padded_ids
from edgegen.modeling.pooling import pool
from edgegen.modeling.text import Window, batches
from edgegen.records.data import Example
from edgegen.records.model import Pooling

_BATCH_TOKENS = 4096


class SentenceEncoder(torch.nn.Module):
    """Token ids in, vectors out: what exporters convert."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, L) int64 ids and mask (1: real, 0: padding) → (B, D) float32."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden.float(), attention_mask, self.pooling)


def plain_text(example: Example) -> str:
    """A row as one text; the turns of a conversation are its lines."""
    return example.text or "\n".join(content for _, content in example.messages)


def make_texts(tokenizer: Any, examples: tuple[Example, ...], *, max_tokens: int, window_tokens: int) -> list[Window]:
    """One window a row, in order, until they have `max_tokens` tokens.

    Raises:
        ConfigError: there is no row.
    """
    windows: list[Window] = []
    total = 0
    for example in examples:
        text = plain_text(example)
        ids = np.asarray(tokenizer(text, truncation=True, max_length=window_tokens)["input_ids"], dtype=np.int64)
        windows.append(Window(ids=ids, counts=np.ones(len(ids), dtype=bool), bytes=max(1, len(text.encode()))))
        total += len(ids)
        if total >= max_tokens:
            return windows
    if not windows:
        raise ConfigError("the data has no rows for an encoder", hint="Give more rows.")
    return windows


def padded(group: list[Window]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) ids, right-padded with 0, and (B, L) mask."""
    ids = padded_ids(group)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(group):
        mask[row, : len(window.ids)] = 1
    return ids, mask


def vectors_of(model: Any, pooling: Pooling, windows: list[Window]) -> torch.Tensor:
    """(W, D) float32 vectors, in the windows' own order, without gradients."""
    encoder = SentenceEncoder(model, pooling)
    found: dict[int, torch.Tensor] = {}
    for group in batches(windows, batch_tokens=_BATCH_TOKENS):
        with torch.inference_mode():
            for window, vector in zip(group, encoder(*padded(group)), strict=True):
                found[id(window)] = vector
    return torch.stack([found[id(window)] for window in windows])


def mean_distance(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over W of 1 - cosine similarity; both (W, D).

    As half the squared distance of the normalised vectors, which stays exact near 0 where the difference of two
    numbers near 1 would not.
    """
    a, b = (torch.nn.functional.normalize(part.double(), dim=-1) for part in (reference, other))
    return float((a - b).square().sum(-1).mean() / 2)
