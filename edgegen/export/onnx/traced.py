"""The other way: torch's exporter, for families and settings that the model builder does not know.

The model's own code is traced, with three things exchanged for operators of ONNX Runtime: products and tables (packed
rows, as the builder's way has them) and attention, which transformers lets be exchanged by name. So the cache is
the attention operator's here too: one buffer, written in place, and no copies of it between steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgegen.errors import UnsupportedError
from edgegen.export.onnx.builder import ACCURACY_LEVEL, quiet, register
from edgegen.export.onnx.families import windows
from edgegen.export.onnx.settings import head_size, kv_heads
from edgegen.export.onnx.weights import Matrix, Part, Weights
from edgegen.modeling.structure import Relaxed, is_factorised
from edgegen.modeling.thin_tables import ThinTable, scale_of
from edgegen.runtime.onnx import LOGITS_FROM

OPSET = 22

_END = 2**62
"""Beyond every position."""

_TANH_GELUS = frozenset({"NewGELUActivation", "FastGELUActivation", "GELUTanh"})
"""transformers' names for one and the same function."""


def trace_graph(model: Any, weights: Weights, *, tokens: int) -> ir.Model:
    """The graph of a model. The model's layers are exchanged: it cannot be used afterwards.

    Args:
        model: a causal language model of transformers with its weights.
        tokens: length of the context.

    Raises:
        UnsupportedError: torch cannot trace it; the message carries its reason.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register("edgegen", _attend)
    AttentionMaskInterface.register("edgegen", lambda *arguments, **named: None)
    config = model.config
    layers, heads, size = config.num_hidden_layers, kv_heads(config), head_size(config)
    exchange_layers(model, weights)
    model.config._attn_implementation = "edgegen"
    batch, length, past = 1, 3, 5
    names = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    arguments = (
        torch.ones(batch, length, dtype=torch.long),
        torch.ones(batch, past + length, dtype=torch.long),
        torch.arange(past, past + length)[None],
        [torch.zeros(batch, heads, past, size) for _ in names],
    )
    dynamic = torch.export.Dim.DYNAMIC
    sequence = torch.export.Dim("sequence_length", min=1)
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _Traced(model, windows(config), tokens),
                arguments,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({1: sequence}, {1: dynamic}, {1: sequence}, [{2: dynamic} for _ in names]),
                input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in names)],
                output_names=["logits", *(f"present.{n}" for n in names)],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UnsupportedError(f"torch cannot trace this model: {first[:300]}") from error
    assert program is not None
    graph: ir.Model = program.model
    _open_input(graph.graph)
    return graph


class _Layer(torch.nn.Module):
    """What all exchanged layers have: a matrix's parts as buffers."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix
        for part in matrix.parts():
            self.register_buffer(part.suffix, torch.from_numpy(part.load().copy()))


class _Product(_Layer):
    """A linear layer, whichever way it was stored."""

    def __init__(self, matrix: Matrix, bias: Any) -> None:
        super().__init__(matrix)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix, spec = self.matrix, self.matrix.spec
        shape = (*x.shape[:-1], matrix.rows)
        if spec is None:
            rows = _float(self.weight)
            made = _operator("FusedMatMul", (x, rows), shape, transB=1)
            return made if self.bias is None else made + self.bias
        inputs = [x, self.codes, self.scales, self.zeros if spec.zero_points else None]
        if self.bias is not None:
            inputs += [None, self.bias]  # the one between would reorder columns
        elif not spec.zero_points:
            inputs.pop()
        return _operator(
            "MatMulNBits",
            tuple(inputs),
            shape,
            K=matrix.columns,
            N=matrix.rows,
            bits=spec.bits,
            block_size=spec.block,
            accuracy_level=ACCURACY_LEVEL,
        )


class _Sum(torch.nn.Module):
    """A layer and factors beside it."""

    def __init__(self, whole: Any, residual: Any) -> None:
        super().__init__()
        self.whole, self.residual = whole, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.whole(x) + self.residual(x)
        return made


class _Table(_Layer):
    """A table of which rows are looked up, and multiplied where the model's own table does so."""

    def __init__(self, matrix: Matrix, scale: float, up: Any = None) -> None:
        super().__init__(matrix)
        self.scale, self.up = scale, up

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self._rows(ids)
        if self.up is not None:
            found = self.up(found)
        return found if self.scale == 1 else found * self.scale

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        matrix, spec = self.matrix, self.matrix.spec
        if spec is None:
            found = torch.onnx.ops.symbolic(
                "Gather", (self.weight, ids), dtype=self.weight.dtype, shape=(*ids.shape, matrix.columns), version=OPSET
            )
            return _float(found)
        codes = self.codes.reshape(matrix.rows, -1)
        inputs = (codes, ids, self.scales, self.zeros) if spec.zero_points else (codes, ids, self.scales)
        found = _operator(
            "GatherBlockQuantized",
            inputs,
            (*ids.shape, matrix.padded_columns),
            bits=spec.bits,
            block_size=spec.block,
            gather_axis=0,
            quantize_axis=1,
        )
        return found[..., : matrix.columns]


class _TanhGelu(torch.nn.Module):
    """The tanh approximation as one operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.onnx.ops.symbolic(
            "Gelu", (x,), {"approximate": "tanh"}, dtype=x.dtype, shape=x.shape, version=OPSET
        )
        return made


class _LastRows(torch.nn.Module):
    """A head that only sees the positions from `logits_from` on."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("start", torch.tensor([-1]))
        self.register_buffer("end", torch.tensor([_END]))
        self.register_buffer("axis", torch.tensor([1]))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shape = (hidden.shape[0], 1, hidden.shape[2])
        rows = torch.onnx.ops.symbolic(
            "Slice", (hidden, self.start, self.end, self.axis), dtype=hidden.dtype, shape=shape, version=OPSET
        )
        logits: torch.Tensor = self.head(rows)
        return logits


class _State:
    """What the attention of the layers being traced needs beside their own tensors."""

    past: list[torch.Tensor]
    present: list[torch.Tensor]
    before: torch.Tensor
    total: torch.Tensor
    windows: list[int]
    tokens: int


_state = _State()


class _Traced(torch.nn.Module):
    """A model with its cache as inputs and outputs."""

    def __init__(self, model: Any, widths: list[int], tokens: int) -> None:
        super().__init__()
        self.model, self.widths, self.tokens = model, widths, tokens

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: list[Any]) -> tuple[Any, ...]:
        _state.past, _state.present, _state.windows, _state.tokens = past, [], self.widths, self.tokens
        _state.before = (attention_mask.sum(1) - 1).to(torch.int32)
        _state.total = attention_mask.sum(1).max().to(torch.int32)
        made = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        return (made.logits, *_state.present)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **options: Any
) -> tuple[Any, None]:
    """Attention of transformers' interface as ONNX Runtime's operator: (1, heads, T, size) each."""
    heads, size, groups = query.shape[1], query.shape[3], key.shape[1]
    layer = module.layer_idx
    flat = [x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1) for x in (query, key, value)]
    width = _state.windows[layer]
    past = _state.past[2 * layer : 2 * layer + 2]
    kinds = [torch.float32] * 3
    shapes = [(query.shape[0], query.shape[2], heads * size), *([past[0].shape] * 2)]
    result, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (*flat, *past, _state.before, _state.total),
        {
            "num_heads": heads,
            "kv_num_heads": groups,
            "scale": float(scaling if scaling is not None else size**-0.5),
            "local_window_size": width if 0 < width < _state.tokens else -1,
            "softcap": float(options.get("softcap") or 0.0),
            "do_rotary": 0,
        },
        dtypes=kinds,
        shapes=shapes,
        version=1,
    )
    _state.present += [keys, values]
    return result.reshape(query.shape[0], query.shape[2], heads, size), None


def _operator(name: str, inputs: tuple[Any, ...], shape: Any, **attributes: Any) -> torch.Tensor:
    found: torch.Tensor = torch.onnx.ops.symbolic(
        f"com.microsoft::{name}", inputs, attributes, dtype=torch.float32, shape=shape, version=1
    )
    return found


def _float(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float32 else x.to(torch.float32)


def exchange_layers(model: Any, weights: Weights) -> None:
    """Put packed layers in the place of a model's own."""
    head = model.get_output_embeddings()
    made: dict[int, Any] = {}

    def product(layer: Any) -> Any:
        if is_factorised(layer):
            return torch.nn.Sequential(product(layer[0]), product(layer[1]))
        whole = _Product(weights.matrix(layer.weight), layer.bias)
        return _Sum(whole, product(layer.residual)) if isinstance(layer, Relaxed) else whole

    def is_part(name: str) -> bool:
        parent = model.get_submodule(name.rpartition(".")[0])
        return is_factorised(parent) or isinstance(parent, Relaxed | ThinTable)

    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if isinstance(module, torch.nn.Embedding):
            up = product(module.up) if isinstance(module, ThinTable) else None
            made[id(module)] = (name, _Table(weights.matrix(module.weight), scale_of(module), up))
        elif kind in _TANH_GELUS:
            made[id(module)] = (name, _TanhGelu())
        elif (is_factorised(module) or kind in ("Linear", "Relaxed", "Conv1D")) and not is_part(name):
            made[id(module)] = (name, _LastRows(product(module)) if module is head else product(module))
    for name, new in made.values():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)


def _open_input(graph: ir.Graph) -> None:
    """Make where logits begin an input that may be left out.

    The exporter gives equal constants one name, so the slice before the head gets a start of its own.
    """
    for node in graph:
        if node.op_type == "Slice" and _is_end(node.inputs[2]):
            start = ir.Value(name=LOGITS_FROM)
            register(graph, start, Part("", np.dtype(np.int64), (1,), lambda: np.array([-1])))
            node.replace_input_with(1, start)
            graph.inputs.append(start)
            return
    raise AssertionError("the traced graph has no slice before its head")


def _is_end(value: ir.Value | None) -> bool:
    constant = None if value is None else value.const_value
    return constant is not None and constant.dtype == ir.DataType.INT64 and constant.numpy().tolist() == [_END]
