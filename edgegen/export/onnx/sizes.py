"""How large the graph and its tables will be, before any weights exist.

Where the model builder builds, the graph is really built, from a model without weights, and serialised. Every matrix
counts as one that has the most parts, with zero points, and queries, keys and values as three of different grids: what
is said is exact for such a plan and at most a kilobyte a layer too much for others, so a size budget is kept. Where
torch traces, which takes seconds, sizes measured on such graphs stand in; they are within a tenth of the graph.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgegen.export.onnx import families, graph
from edgegen.export.onnx.builder import build_graph
from edgegen.export.onnx.weights import Weights, tensor_bytes
from edgegen.modeling.load import quiet_transformers
from edgegen.modeling.structure import reshape_layers, share
from edgegen.records.compressed import PackedTensor
from edgegen.records.plan import Settings
from edgegen.runtime.onnx import CONTEXT_KEY

_GRIDS = {"q_proj": "u4_32", "k_proj": "u8_16", "v_proj": "u8_32"}
_TYPICAL = "u4_32"

_TRACED_BASE_BYTES, _TRACED_LAYER_BYTES = 1_900, 3_900
"""Of a traced GPT-2's graph."""


def overhead_bytes(config: dict[str, Any], tensors: Sequence[PackedTensor], settings: Settings) -> int:
    """What the model's files take beyond `tensor_bytes` of these tensors.

    Raises:
        UnsupportedError: the configuration cannot be expressed.
    """
    described = families.read(config)
    if families.why_traced(described):
        return _TRACED_BASE_BYTES + _TRACED_LAYER_BYTES * int(described.num_hidden_layers)
    shapes = tuple((tensor.name, tensor.grid == "f32", tensor.rows, tensor.columns) for tensor in tensors)
    return _built_bytes(json.dumps(config, sort_keys=True), shapes, settings.context_tokens)


@functools.lru_cache(maxsize=16)
def _built_bytes(config: str, shapes: tuple[tuple[str, bool, int, int], ...], tokens: int) -> int:
    from transformers import AutoModelForCausalLM

    stored = {
        name: PackedTensor(
            name=name, grid="f32" if exact else _grid(name), rows=rows, columns=columns, offset=0, bytes=0
        )
        for name, exact, rows, columns in shapes
    }
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(families.read(json.loads(config)), dtype=torch.float32)
        reshape_layers(model, {name: (tensor.rows, tensor.columns) for name, tensor in stored.items()})
        share(model, _shared(model, stored))
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.ndim == 1:  # the builder leaves out biases of zeros
                module._parameters[name] = torch.nn.Parameter(torch.ones(parameter.shape), requires_grad=False)
    table = model.get_input_embeddings().weight
    named = {
        name: stored.get(name) or stored.get(name.replace(".1.bias", ".bias")) or stored["lm_head.weight"]
        for name, parameter in model.named_parameters()
        if name in stored or name.endswith(".1.bias") or parameter is table
    }
    empty = np.empty((0, 0), np.uint8)
    made = build_graph(model, Weights(model, named, lambda name: empty), tokens=tokens)
    graph.shorten(made)
    made.metadata_props[CONTEXT_KEY] = str(tokens)
    head, data = graph.measure(made)
    return head + data - sum(tensor_bytes(t.grid, t.rows, t.columns) for t in stored.values())


def _shared(model: Any, stored: Mapping[str, PackedTensor]) -> dict[str, str]:
    """Matrices of the blocks that are not stored → the one in their place in the last block before that stores it.

    Which one it really is makes no difference to the size.
    """
    found, last = {}, dict[str, str]()
    for name, parameter in model.named_parameters():
        place = re.sub(r"\.(layers|h)\.\d+\.", ".", name)
        if name in stored:
            last[place] = name
        elif parameter.ndim == 2 and place != name and place in last:
            found[name] = last[place]
    return found


def _grid(name: str) -> str:
    """The grid that a matrix is counted as."""
    return next((grid for part, grid in _GRIDS.items() if part in name), _TYPICAL)
