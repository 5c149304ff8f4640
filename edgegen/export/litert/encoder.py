"""Sentence encoders as functions of fixed lengths.

LiteRT runs static graphs, so there is a signature for each of a few lengths, `embed_16` to `embed_T`, which share
their weights; a text runs in the shortest that holds it, filled up with tokens that the mask hides. Each takes
`tokens` (1, T), `mask` (T,), `positions` (T,) and `segments` (T,), and gives `embedding` (1, D). Positions and segments
are inputs although they never differ: as constants the converter would copy the rows of their tables for every length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface

from edgegen.errors import UnsupportedError
from edgegen.export.litert.wrapper import keep_apart
from edgegen.modeling.pooling import pool
from edgegen.records.compressed import PackedTensor
from edgegen.records.model import Pooling

ATTENTION = "edgegen_litert_encoder"
FAMILIES = ("bert", "roberta", "xlm-roberta")
"""DistilBERT takes no positions from outside."""
_LENGTHS = (16, 64)
_GRAPH_BYTES, _SIGNATURE_BYTES, _LAYER_BYTES = 2_500, 7_100, 700
_TABLES = re.compile(r"(position|token_type)_embeddings")
"""Stored in 16 bits."""
_HIDDEN_SCORE = -1e9
"""Added to scores of tokens that must not be seen. Not infinity: the runtime would compute inf - inf."""

_masks: list[torch.Tensor] = []
"""(T,) what is added to the scores of the graph that is being traced. One conversion a process."""


def require_family(family: str) -> None:
    """Refuse encoders that cannot be written.

    Raises:
        UnsupportedError: positions that are not an argument of the model.
    """
    if family not in FAMILIES:
        raise UnsupportedError(
            f"encoder family {family!r} cannot be written for LiteRT", hint="Known: " + ", ".join(FAMILIES) + "."
        )


def lengths_of(context_tokens: int) -> tuple[int, ...]:
    """Lengths of the signatures, shortest first; the last holds the longest text."""
    return (*(length for length in _LENGTHS if length < context_tokens), context_tokens)


def graph_bytes(tensors: Sequence[PackedTensor], layers: int, context_tokens: int) -> int:
    """What the file takes beyond the tensors' own bytes: a fit over files, within a tenth.

    A zero point for each row of a matrix is written, once for all matrices of as many rows.
    """
    rows = {tensor.rows for tensor in tensors if tensor.rows > 1 and not _TABLES.search(tensor.name)}
    graphs = len(lengths_of(context_tokens)) * (_SIGNATURE_BYTES + _LAYER_BYTES * layers)
    return _GRAPH_BYTES + graphs + 8 * sum(rows)


class EncoderGraph(torch.nn.Module):
    """One signature."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, tokens: Any, mask: Any, positions: Any, segments: Any) -> dict[str, Any]:
        """(1, T) tokens → (1, D) vector."""
        real = mask.to(torch.float32)
        _masks[:] = [(1.0 - real) * _HIDDEN_SCORE]
        hidden = self.model(
            input_ids=tokens, attention_mask=None, position_ids=positions[None], token_type_ids=segments[None]
        ).last_hidden_state
        return {"embedding": pool(hidden, real[None], self.pooling)}


def sample_inputs(tokens: int) -> dict[str, Any]:
    """Inputs of the right shapes, for tracing."""
    return {
        "tokens": torch.zeros(1, tokens, dtype=torch.int32),
        "mask": torch.ones(tokens, dtype=torch.int32),
        "positions": torch.arange(tokens, dtype=torch.int32),
        "segments": torch.zeros(tokens, dtype=torch.int32),
    }


def prepare(model: Any) -> Any:
    """Let a model use the attention of this module. It is changed and returned."""
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, lambda *arguments, **named: None)
    model.config._attn_implementation = ATTENTION
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            keep_apart(module)
    return model


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **options: Any
) -> tuple[Any, None]:
    """Attention of all tokens to all real ones: (1, H, T, D) each → (1, T, H, D).

    Scores are scaled, not queries: the converter would multiply the factor into the queries' weights.
    """
    scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = torch.softmax(scores + _masks[0], -1)
    return (weights @ value).transpose(1, 2), None
