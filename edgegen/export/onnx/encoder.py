"""Sentence encoders: traced by torch's exporter with the packed operators, pooling included.

The graph takes `input_ids` and `attention_mask` (B texts, L tokens, int64; 1 is a real token) and gives `embedding`,
(B, D) float32. Segment ids are the same for all tokens of a text, so they are constants inside. Attention is one
operator of ONNX Runtime, as it is for models that continue text: laid out in single steps it takes several passes over
the scores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from edgegen.errors import UnsupportedError
from edgegen.export.onnx.builder import quiet
from edgegen.export.onnx.traced import OPSET, exchange_layers
from edgegen.export.onnx.weights import Weights
from edgegen.modeling.encoder import SentenceEncoder
from edgegen.modeling.load import config_object
from edgegen.modeling.summary import position_count
from edgegen.records.compressed import PackedTensor
from edgegen.records.model import Pooling
from edgegen.runtime.onnx_encoder import OUTPUT

_GRAPH_BYTES, _GRAPH_LAYER_BYTES, _GRAPH_POSITION_BYTES = 1_800, 4_950, 16
"""Of a traced BERT's graph with its tables of position and segment ids: within a tenth."""


def context_tokens(config: dict[str, Any]) -> int:
    """The longest text whose positions the model has.

    Raises:
        UnsupportedError: transformers cannot read the configuration, or its positions are not counted from a table.
    """
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UnsupportedError(f"positions of kind {kind!r} cannot be written", hint="Known: absolute.")
    return position_count(config_object(config))


def graph_bytes(tensors: Sequence[PackedTensor]) -> int:
    """What an encoder's graph takes beyond the tensors' own bytes, by their names."""
    layers = len({found[1] for tensor in tensors if (found := re.search(r"\.layer\.(\d+)\.", tensor.name))})
    positions = sum(tensor.rows for tensor in tensors if "position_embeddings" in tensor.name)
    return _GRAPH_BYTES + _GRAPH_LAYER_BYTES * layers + _GRAPH_POSITION_BYTES * positions


def trace_encoder(model: Any, pooling: Pooling, weights: Weights) -> ir.Model:
    """The graph of an encoder. The model's layers are exchanged: it cannot be used afterwards.

    Args:
        model: an encoder of transformers with its weights.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register("edgegen_encoder", _attend)
    AttentionMaskInterface.register("edgegen_encoder", lambda *arguments, **named: None)
    exchange_layers(model, weights)
    model.config._attn_implementation = "edgegen_encoder"
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    ids = torch.ones(2, 5, dtype=torch.long)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Traced(model, pooling),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
            input_names=["input_ids", "attention_mask"],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    found: ir.Model = program.model
    for value in list(found.graph.initializers.values()):
        value.name = re.sub(r"^encoder\.model\.(?:(?:encoder|transformer)\.layer\.)?", "", value.name or "")
    return found


class _State:
    """What the attention of the layers being traced needs beside their own tensors."""

    padding: torch.Tensor


_state = _State()


class _Traced(torch.nn.Module):
    """The whole encoder; attention takes the mask as it is."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.encoder = SentenceEncoder(model, pooling)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        _state.padding = attention_mask.to(torch.int32)
        vectors: torch.Tensor = self.encoder(input_ids, attention_mask)
        return vectors


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **options: Any
) -> tuple[Any, None]:
    """Attention of transformers' interface as ONNX Runtime's operator: (B, heads, L, size) each."""
    heads, size = query.shape[1], query.shape[3]
    flat = [x.transpose(1, 2).reshape(x.shape[0], x.shape[2], heads * size) for x in (query, key, value)]
    found = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (*flat, None, _state.padding),
        {"num_heads": heads, "scale": float(scaling if scaling is not None else size**-0.5)},
        dtype=torch.float32,
        shape=(query.shape[0], query.shape[2], heads * size),
        version=1,
    )
    return found.reshape(query.shape[0], query.shape[2], heads, size), None
