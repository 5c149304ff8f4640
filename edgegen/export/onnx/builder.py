"""The usual way: onnxruntime-genai's model builder, subclassed and fed with the model in memory.

The builder lays out the graph (grouped-query attention with a shared cache, fused norms); what is multiplied is laid
out here: each product's packed rows as they are, factorised layers as two products, feed-forward widths as the rows
say, queries, keys and values as one product where they share a grid, tables that are embedding and head stored once.

Its classes are used directly rather than through `create_model`, which reads a checkpoint from disk, writes files and
quantises. They are internal to onnxruntime-genai, so the extra `onnx` pins its version, and every family is compared
with torch in the tests.

Decisions:

- **The graph computes the logits of the last token**, unless its optional input `logits_from` names an earlier
  position: a head over the whole prompt costs up to a third of the time to the first token, and as many rows of logits
  in memory. onnxruntime-genai generates with the default; scoring overrides it.
- **The cache is as long as the plan's context** in all layers, windows included; the builder's shorter caches of
  windowed layers are off, so that a session may score in any steps.
- The fused rotation of the attention operator needs heads, and what is rotated of them, of a multiple of 16; others
  are rotated before it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgegen.errors import UnsupportedError
from edgegen.export.onnx.families import BUILDERS, rotary_caches, windows
from edgegen.export.onnx.weights import Matrix, Part, Weights, stacked
from edgegen.modeling.structure import Relaxed, is_factorised
from edgegen.modeling.thin_tables import ThinTable
from edgegen.runtime.onnx import LOGITS_FROM

ACCURACY_LEVEL = 4
"""Of `MatMulNBits`: activations are rounded to int8 in blocks. 1 is float."""


@dataclass(frozen=True, slots=True)
class _Product:
    """A layer that multiplies with given rows."""

    matrix: Matrix
    bias: Any = None
    first: Any = None
    """A layer that comes before it: the first factor."""
    more: Any = None
    """A layer of the same input whose outputs are added."""


def build_graph(model: Any, weights: Weights, *, tokens: int) -> ir.Model:
    """The graph of a model, with initializers that load lazily.

    Args:
        model: a causal language model of transformers; its one-dimensional parameters must have values, its matrices
            need none.
        tokens: length of the context.

    Raises:
        UnsupportedError: the builder refuses the configuration; it says why.
    """
    module, name = BUILDERS[model.config.model_type]
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    # What the builder sizes its position tables by.
    config.max_position_embeddings = config.original_max_position_embeddings = tokens
    if getattr(config, "rope_parameters", None) is None:
        config.rope_parameters = {"rope_type": "default"}
    config.rope_local_base_freq = 1.0
    with quiet():
        base = getattr(importlib.import_module(f"onnxruntime_genai.models.builders.{module}"), name)
        made = type(f"Packed{name}", (_Packed, base), {"source": model, "rows": weights, "tokens": tokens})
        builder = made(
            config,
            ir.DataType.FLOAT,
            ir.DataType.FLOAT,
            "cpu",
            "",
            {"windowed_kv_cache": False, "shared_embeddings": False},
        )
        try:
            builder.make_model("")
        except NotImplementedError as error:
            raise UnsupportedError(f"onnxruntime-genai's model builder refuses this model: {error}") from error
        graph: ir.Model = builder.model
        graph.graph.inputs.append(builder.values[LOGITS_FROM])
        # onnxruntime-genai sizes the logits by what is declared.
        builder.values["logits"].shape = ir.Shape(["batch_size", 1, builder.vocab_size])
    graph.graph.sort()
    return graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the libraries print, log and warn about off the terminal, and their paths out of `sys.path`.

    They load ONNX Runtime, so its telemetry is switched off first.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    root, path = logging.getLogger(), list(sys.path)
    level, handlers, disabled = root.level, list(root.handlers), root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)  # ONNX Runtime's tools call basicConfig when they are imported
        root.handlers[:] = handlers
        sys.path[:] = path


class _Packed:
    """Overrides that go before the builder's class of a family."""

    source: Any
    """The torch model."""
    rows: Weights
    tokens: int

    def __init__(self, config: Any, *arguments: Any) -> None:
        super().__init__(config, *arguments)  # type: ignore[call-arg]
        this: Any = self
        original = self.source.config
        epsilon = getattr(original, "rms_norm_eps", None) or getattr(original, "layer_norm_eps", None)
        this.layernorm_attrs["epsilon"] = this.attention_attrs["qk_norm_epsilon"] = epsilon
        if this.embed_attrs["scale"] != 1:  # the builder's is rounded to two decimals
            this.embed_attrs["scale"] = float(np.float32(original.hidden_size**0.5))
        for name in ("past_key_values.key", "past_key_values.value"):
            this.input_shapes[name] = ["batch_size", this.num_kv_heads, "past_sequence_length", this.head_size]
        for name in ("present.key", "present.value"):
            this.output_shapes[name] = ["batch_size", this.num_kv_heads, "total_sequence_length", this.head_size]
        self._windows = windows(original)
        self._table = self.source.get_input_embeddings().weight

    # What the model is.

    def load_weights(self, input_path: str) -> Any:
        for module in self.source.modules():
            if is_factorised(module) and not hasattr(module, "bias"):
                module.bias = module[1].bias  # where the builder looks for it
        return self.source

    def has_lm_head(self, module: Any) -> bool:
        return module is self.source.get_output_embeddings()

    def is_local(self, layer_id: int) -> bool:
        return 0 < self._windows[layer_id] < self.tokens

    # Positions.

    def make_rope_init(self, config: Any) -> None:
        """Nothing: the angles come from transformers."""

    def make_rotary_embedding_multi_cache(self, **given: Any) -> None:
        """Nothing: each kind of layer asks for its own."""

    def make_rotary_embedding_caches(self, **given: Any) -> tuple[str, str]:
        this: Any = self
        kinds = getattr(self.source.config, "layer_types", None)
        rules = getattr(self.source.config, "rope_parameters", None) or {}
        by_kind = isinstance(rules.get("full_attention"), dict)
        kind = kinds[this.layer_id] if kinds and by_kind else ""
        names = (f"cos.{kind}" if kind else "cos", f"sin.{kind}" if kind else "sin")
        if names[0] not in this.model.graph.initializers:
            caches = rotary_caches(self.source.model.rotary_emb, self.source.config, self.tokens, kind)
            for name, cache in zip(names, caches, strict=True):
                self.make_initializer(cache, name)
        return names

    def is_fused_rope_supported(self) -> bool:
        this: Any = self
        return this.head_size % 16 == 0 and int(this.head_size * this.rope_attrs["partial_rotary_factor"]) % 16 == 0

    # What is multiplied.

    def make_initializer(self, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False) -> None:
        """Register values that are fetched when they are written, as float32 where they are fractions."""
        this: Any = self
        assert not raw
        if isinstance(tensor, torch.Tensor):
            tensor = tensor.detach()
            kind = np.dtype(np.float32) if tensor.is_floating_point() else np.dtype(str(tensor.dtype).split(".")[-1])
            part = Part("", kind, tuple(tensor.shape), lambda: tensor.cpu().numpy().astype(kind))
        else:
            array = np.asarray(tensor)
            part = Part("", array.dtype, array.shape, lambda: array)
        register(this.model.graph, this.make_value(name), part)

    def make_matmul(self, matmul: Any, basename: str, root_input: str, **options: Any) -> str:
        """One product, two in a row for a factorised layer, with a sum for a relaxed one; the last node's name."""
        more = matmul.residual if isinstance(matmul, Relaxed) else getattr(matmul, "more", None)
        if more is not None:
            return self._sum(matmul, more, basename, root_input)
        first, last = (matmul[0], matmul[1]) if is_factorised(matmul) else (getattr(matmul, "first", None), matmul)
        if first is not None:
            root_input = f"{self.make_matmul(first, f'{basename}/first', root_input)}/output_0"
        this: Any = self
        matrix = last.matrix if isinstance(last, _Product) else self.rows.matrix(last.weight)
        output = "logits" if options.get("logits") else f"{basename}/output_0"
        inputs, attributes = self._operands(matrix), {}
        if matrix.spec is not None:
            kind = "MatMulNBits"
            attributes = {
                "K": matrix.columns,
                "N": matrix.rows,
                "bits": matrix.spec.bits,
                "block_size": matrix.spec.block,
                "accuracy_level": ACCURACY_LEVEL,
            }
        else:
            kind, attributes = "FusedMatMul", {"transB": 1}
            if matrix.grid == "f16":
                inputs = [self._cast(inputs[0], [matrix.rows, matrix.columns])]
        this.make_node(
            kind, inputs=[root_input, *inputs], outputs=[output], name=basename, domain="com.microsoft", **attributes
        )
        this.make_value(output, this.io_dtype, shape=["batch_size", "sequence_length", matrix.rows])
        return basename

    def _sum(self, matmul: Any, more: Any, basename: str, root_input: str) -> str:
        """A layer's product without its factors, plus that of the factors."""
        this: Any = self
        matrix = matmul.matrix if isinstance(matmul, _Product) else self.rows.matrix(matmul.weight)
        whole = _Product(matrix, first=getattr(matmul, "first", None))
        parts = [
            f"{self.make_matmul(layer, f'{basename}/{name}', root_input)}/output_0"
            for layer, name in ((whole, "whole"), (more, "more"))
        ]
        this.make_add(basename, parts, dtype=this.io_dtype, shape=["batch_size", "sequence_length", matrix.rows])
        return basename

    def make_embedding_lookup(self, embedding: Any, basename: str, lm_head: Any) -> str:
        """Rows of the table by their packed form, as wide as the model; a tied head uses the same initializers."""
        table, rows = self.source.get_input_embeddings(), self._rows_of_table(basename)
        if not isinstance(table, ThinTable):
            return rows
        return f"{self.make_matmul(table.up, f'{basename}/up', rows)}/output_0"

    def _rows_of_table(self, basename: str) -> str:
        this: Any = self
        matrix, ids = self.rows.matrix(self._table), this.input_names["input_ids"]
        found = f"{basename}/output_0"
        if matrix.spec is None:
            (table,) = self._operands(matrix)
            this.make_node("Gather", inputs=[table, ids], outputs=[found], name=f"{basename}/Gather")
            return (
                self._cast(found, ["batch_size", "sequence_length", matrix.columns]) if matrix.grid == "f16" else found
            )
        codes, *others = self._operands(matrix)
        flat = this.make_value(f"{codes}.flat")
        if flat.const_value is None:
            part = matrix.parts()[0]
            shape = (matrix.rows, part.shape[1] * part.shape[2])
            register(this.model.graph, flat, Part("", part.dtype, shape, lambda: part.load().reshape(shape)))
        this.make_node(
            "GatherBlockQuantized",
            inputs=[flat.name, ids, *others],
            outputs=[found],
            name=f"{basename}/GatherBlockQuantized",
            domain="com.microsoft",
            bits=matrix.spec.bits,
            block_size=matrix.spec.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if matrix.padded_columns == matrix.columns:
            return found
        ends = [f"/model/constants/INT64/[{number}]" for number in (0, matrix.columns, -1)]
        cut = ["batch_size", "sequence_length", matrix.columns]
        this.make_slice(f"{basename}/Slice", [found, *ends], dtype=this.io_dtype, shape=cut)
        return f"{basename}/Slice/output_0"

    def make_attention_input_proj(self, layer_id: int, attention: Any, root_input: str, **options: Any) -> None:
        """Queries, keys and values: one product where they share a grid and are not cut into factors."""
        this: Any = self
        base, paths = f"/model/layers.{layer_id}/attn", this.attention_attrs
        whole = getattr(attention, "qkv_proj", None)
        sizes = [this.q_size, this.kv_size, this.kv_size]
        layers = [] if whole is not None else [attention.q_proj, attention.k_proj, attention.v_proj]
        paths["k_path"] = paths["v_path"] = ""
        joined = whole if whole is not None else self._joined(layers)
        if joined is None:
            for path, layer in zip(("q", "k", "v"), layers, strict=True):
                paths[f"{path}_path"] = self._affine(layer, f"{base}/{path}_proj", root_input)
            return
        value = self._affine(joined, f"{base}/qkv_proj", root_input)
        if paths["use_rope_in_attn"] and not paths["q_norm"]:
            paths["q_path"] = value  # the attention operator takes them as they are
            return
        outputs = [f"{base}/qkv_proj/Split/output_{index}" for index in range(3)]
        this.make_split(
            f"{base}/qkv_proj/Split",
            inputs=[value, f"/model/constants/INT64/{sizes}"],
            outputs=outputs,
            dtypes=[this.io_dtype] * 3,
            shapes=[["batch_size", "sequence_length", size] for size in sizes],
        )
        paths["q_path"], paths["k_path"], paths["v_path"] = outputs

    def make_mlp(self, layer_id: int, mlp: Any, root_input: str) -> None:
        this: Any = self
        usual = this.intermediate_size
        first = getattr(mlp, "down_proj", None) or mlp.fc2
        this.intermediate_size = (first[0] if is_factorised(first) else first).in_features
        super().make_mlp(layer_id, mlp, root_input)  # type: ignore[misc]
        this.intermediate_size = usual

    def make_mlp_unpacked(self, layer_id: int, mlp: Any, root_input: str) -> None:
        """Gate and up of one matrix are its upper and lower rows."""
        both = getattr(mlp, "gate_up_proj", None)
        if both is None:
            return
        this: Any = self
        half = this.intermediate_size
        first, last = (both[0], both[1]) if is_factorised(both) else (None, both)
        matrix = self.rows.matrix(last.weight)
        own = both.residual if isinstance(both, Relaxed) else None
        gate, up = (
            _Product(
                matrix.some_rows(start, start + half),
                _some(last.bias, start, half),
                first,
                more=own and _Product(self.rows.matrix(own[1].weight).some_rows(start, start + half), first=own[0]),
            )
            for start in (0, half)
        )
        mlp.__dict__["gate_proj"], mlp.__dict__["up_proj"] = gate, up

    def make_lm_head(self, lm_head: Any) -> None:
        """The head, over the positions from `logits_from` on."""
        this: Any = self
        hidden, rows = this.layernorm_attrs["output_0"], "/lm_head/rows"
        start = this.make_value(LOGITS_FROM)
        register(this.model.graph, start, Part("", np.dtype(np.int64), (1,), lambda: np.array([-1])))
        ends = [f"/model/constants/INT64/[{number}]" for number in (2**62, 1)]
        this.make_slice(
            rows,
            [hidden, LOGITS_FROM, *ends],
            dtype=this.io_dtype,
            shape=["batch_size", "logits_length", this.hidden_size],
        )
        this.layernorm_attrs["output_0"] = f"{rows}/output_0"
        super().make_lm_head(lm_head)  # type: ignore[misc]

    def _affine(self, layer: Any, name: str, root_input: str) -> str:
        """A product and its bias: the output's name."""
        this: Any = self
        made = self.make_matmul(layer, f"{name}/MatMul", root_input)
        if layer.bias is None:
            return f"{made}/output_0"
        this.make_add_bias(layer.bias, f"{name}/Add", root_input=f"{made}/output_0")
        return f"{name}/Add/output_0"

    def _joined(self, layers: list[Any]) -> _Product | None:
        if any(is_factorised(layer) or isinstance(layer, Relaxed) for layer in layers):
            return None
        matrix = stacked([self.rows.matrix(layer.weight) for layer in layers])
        shared_alike = len({self.rows.uses(layer.weight) for layer in layers}) == 1
        if matrix is None or not shared_alike:
            return None
        biases = [torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach() for layer in layers]
        return _Product(matrix, torch.cat(biases) if any(layer.bias is not None for layer in layers) else None)

    def _operands(self, matrix: Matrix) -> list[str]:
        """Names of a matrix's initializers, registered once."""
        this: Any = self
        names = []
        for part in matrix.parts():
            name = f"{matrix.name}.{part.suffix}"
            value = this.make_value(name)
            if value.const_value is None:
                register(this.model.graph, value, part)
            names.append(name)
        return names

    def _cast(self, name: str, shape: list[Any]) -> str:
        this: Any = self
        node = f"{name}/Cast"
        this.make_cast(node, name, dtype=ir.DataType.FLOAT, shape=shape)
        return f"{node}/output_0"


def _some(bias: Any, start: int, count: int) -> Any:
    return None if bias is None else bias[start : start + count]


def register(graph: ir.Graph, value: ir.Value, part: Part) -> None:
    """Make a value an initializer that is loaded when it is written."""
    dtype = ir.DataType.from_numpy(part.dtype)
    shape = ir.Shape(part.shape)
    value.dtype, value.shape = dtype, shape
    value.const_value = ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(part.load()), name=value.name), dtype=dtype, shape=shape, name=value.name
    )
    graph.register_initializer(value)
