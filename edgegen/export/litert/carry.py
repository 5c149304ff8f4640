"""Put packed weights into a converted model, code for code.

The converter works with float32 weights. Here each of its matrices is recognised by its values and replaced by the
packed rows that these values came from, so nothing is rounded a second time. The result is complete or refused: every
packed matrix has to be found, and every matrix that an operator multiplies with has to be one of them, so a model
that silently kept floats cannot be written.

Scales of blocks are a tensor beside the codes. 16-bit floats go through a DEQUANTIZE that the runtime runs once.
Codes are only understood where an operator can read them: as FULLY_CONNECTED's weights or EMBEDDING_LOOKUP's table.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import UnsupportedError
from edgegen.records.compressed import PackedTensor
from edgegen.runtime.flatmodel import Stored, schema, store, stored_values

_FINDING = "The converter changed this layer in a way that edgegen does not know; use another target."


class Source(msgspec.Struct, frozen=True):
    """A packed matrix to place."""

    tensor: PackedTensor
    packed: NDArray[np.uint8]
    """(R, row bytes)."""


class Placed(msgspec.Struct, frozen=True):
    """Where a packed matrix went."""

    name: str
    grid: str
    stored: Stored
    buffer: int


def carry_weights(model: Any, sources: Mapping[str, Source]) -> dict[int, Placed]:
    """Replace the float32 matrices of a model by packed ones.

    Args:
        model: a `ModelT`; changed.
        sources: tensor name → packed rows; vectors are left out.

    Returns:
        Buffer in the model → what was placed there.

    Raises:
        UnsupportedError: a matrix was not found, is used where codes are not understood, or stayed in float32 without
            being planned so.
    """
    known: dict[tuple[tuple[int, ...], str], list[Source]] = {}
    for source in sources.values():
        values = grids.unpack(source.packed, source.tensor.grid, source.tensor.columns)
        known.setdefault((values.shape, _digest(values)), []).append(source)
    placed: dict[int, Placed] = {}
    unknown: set[int] = set()
    scales: dict[int, int] = {}
    for graph in model.subgraphs:
        carrier = _Carrier(model, graph, scales)
        for index in carrier.matrices():
            tensor = graph.tensors[index]
            buffer = tensor.buffer
            if buffer not in placed and buffer not in unknown:
                values = np.asarray(model.buffers[buffer].data).view(np.float32).reshape(tensor.shape)
                found = known.get((values.shape, _digest(values)))
                if found is None:
                    unknown.add(buffer)
                    continue
                placed[buffer] = _place(found[0], values, buffer)
            if buffer in placed:
                carrier.replace(index, placed[buffer])
        carrier.require_known(placed)
    for buffer, entry in placed.items():
        model.buffers[buffer].data = entry.stored.data
    # Equal values of several tensors are one buffer, and any of them stands for the others.
    names = {entry.name for entry in placed.values()}
    for alike in known.values():
        if not any(source.tensor.name in names for source in alike):
            name = alike[0].tensor.name
            raise UnsupportedError(f"{name}: not found in what LiteRT's converter wrote", hint=_FINDING)
    return placed


def check_carried(model: Any, sources: Mapping[str, Source]) -> None:
    """Hold a written file against what should be in it.

    Args:
        model: the file, read again.

    Raises:
        UnsupportedError: codes or scales of a matrix are not those that were packed.
    """
    kinds = schema().TensorType
    wanted: dict[tuple[int, str], list[tuple[PackedTensor, Stored]]] = {}
    for source in sources.values():
        stored = store(source.packed, source.tensor.grid, source.tensor.columns)
        wanted.setdefault((stored.kind, _digest(stored.data)), []).append((source.tensor, stored))
    seen: set[str] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or tensor.shape is None or len(tensor.shape) != 2:
                continue
            same = {
                packed.name
                for packed, stored in wanted.get((tensor.type, _digest(np.asarray(data))), ())
                if tuple(tensor.shape) == (packed.rows, packed.columns) and _same_scales(model, graph, tensor, stored)
            }
            seen |= same
            if tensor.type in (kinds.INT8, kinds.INT4) and not same:
                raise UnsupportedError("a matrix in the written file is none of the packed ones", hint=_FINDING)
    for group in wanted.values():
        for packed, _ in group:
            if packed.name not in seen:
                raise UnsupportedError(f"{packed.name}: other codes or scales in the written file", hint=_FINDING)


def _same_scales(model: Any, graph: Any, tensor: Any, stored: Stored) -> bool:
    if stored.scales is None:
        return True
    found = tensor.quantization
    if stored.block:
        scales = graph.tensors[found.details.scales]
        held = np.asarray(model.buffers[scales.buffer].data).view(np.float16).reshape(scales.shape)
        return bool(found.details.blockSize == stored.block and np.array_equal(held, stored.scales))
    return bool(np.array_equal(found.scale, stored.scales) and not np.any(found.zeroPoint))


def _place(source: Source, values: NDArray[np.float32], buffer: int) -> Placed:
    tensor = source.tensor
    stored = store(source.packed, tensor.grid, tensor.columns)
    if not np.array_equal(stored_values(stored, tensor.rows, tensor.columns), values):
        raise UnsupportedError(f"{tensor.name}: {tensor.grid} cannot be written for LiteRT without changing weights")
    return Placed(name=tensor.name, grid=tensor.grid, stored=stored, buffer=buffer)


def _digest(values: NDArray[np.generic]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


class _Carrier:
    """One graph's tensors and operators while weights are exchanged."""

    def __init__(self, model: Any, graph: Any, scale_buffers: dict[int, int]) -> None:
        self._model, self._graph, self._schema = model, graph, schema()
        self._scale_buffers = scale_buffers
        """Buffer of codes → buffer of their block scales; shared by all graphs."""
        self._uses: dict[int, list[tuple[str, int, Any]]] = {}
        """Tensor → operator's name, which of its inputs, operator."""
        names = {number: name for name, number in vars(self._schema.BuiltinOperator).items() if isinstance(number, int)}
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "custom")
            for position, tensor in enumerate(operator.inputs):
                self._uses.setdefault(int(tensor), []).append((name, position, operator))

    def matrices(self) -> list[int]:
        """Constant two-dimensional float32 tensors that operators use."""
        found = []
        for index, tensor in enumerate(self._graph.tensors):
            constant = self._model.buffers[tensor.buffer].data is not None
            if constant and tensor.type == self._schema.TensorType.FLOAT32 and np.size(tensor.shape) == 2:
                found.append(index)
        return [index for index in found if index in self._uses]

    def replace(self, index: int, placed: Placed) -> None:
        """Let a tensor be the packed matrix."""
        s, tensor, stored = self._schema, self._graph.tensors[index], placed.stored
        if placed.grid == "f32":
            return
        if placed.grid == "f16":
            self._widen(index, stored)
            return
        for name, position, _ in self._uses[index]:
            if (name, position) not in (("FULLY_CONNECTED", 1), ("EMBEDDING_LOOKUP", 1)):
                raise UnsupportedError(
                    f"{placed.name}: {name} cannot read {placed.grid} weights in LiteRT",
                    hint="Give this tensor f16 or f32.",
                )
        tensor.type = stored.kind
        quantization = s.QuantizationParametersT()
        assert stored.scales is not None, "only floating-point weights have none"
        if stored.block:
            details = s.BlockwiseQuantizationT()
            details.scales = self._scales(placed)
            details.zeroPoints = -1
            details.blockSize = stored.block
            quantization.detailsType = s.QuantizationDetails.BlockwiseQuantization
            quantization.details = details
        else:
            quantization.scale = stored.scales
            quantization.zeroPoint = np.zeros(len(stored.scales), np.int64)
        tensor.quantization = quantization

    def require_known(self, placed: Mapping[int, Placed]) -> None:
        """Refuse a matrix that is multiplied with and was not packed."""
        for index, uses in self._uses.items():
            if index < 0:
                continue
            tensor = self._graph.tensors[index]
            data = self._model.buffers[tensor.buffer].data
            if data is None or tensor.buffer in placed or np.asarray(data).nbytes < 4:
                continue
            for name, position, _ in uses:
                weights = (name == "FULLY_CONNECTED" and position == 1) or name in (
                    "BATCH_MATMUL",
                    "EMBEDDING_LOOKUP",
                    "GATHER",
                    "CONV_2D",
                )
                if weights and tensor.type == self._schema.TensorType.FLOAT32:
                    raise UnsupportedError(
                        f"{name} multiplies with a float32 matrix of {list(tensor.shape)} that is no packed weight",
                        hint=_FINDING,
                    )

    def _scales(self, placed: Placed) -> int:
        """The tensor of a matrix's block scales; its buffer is the same in every graph."""
        s, model = self._schema, self._model
        scales = np.ascontiguousarray(placed.stored.scales)
        known = self._scale_buffers
        if placed.buffer not in known:
            buffer = s.BufferT()
            buffer.data = scales.view(np.uint8).reshape(-1)
            model.buffers.append(buffer)
            known[placed.buffer] = len(model.buffers) - 1
        tensor = s.TensorT()
        tensor.shape, tensor.type = np.array(scales.shape, np.int32), s.TensorType.FLOAT16
        tensor.buffer, tensor.hasRank = known[placed.buffer], True
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _widen(self, index: int, stored: Stored) -> None:
        """Store a matrix in 16 bits and let the graph make float32 of it."""
        s, graph, model = self._schema, self._graph, self._model
        wide = graph.tensors[index]
        narrow = copy.copy(wide)
        narrow.type = stored.kind
        wide.buffer = 0
        graph.tensors.append(narrow)
        operator = s.OperatorT()
        operator.opcodeIndex = _opcode(model, s.BuiltinOperator.DEQUANTIZE, version=3)
        operator.inputs = np.array([len(graph.tensors) - 1], np.int32)
        operator.outputs = np.array([index], np.int32)
        graph.operators.insert(0, operator)


def _opcode(model: Any, builtin: int, *, version: int) -> int:
    """The index of an operator's code, added if it is not there."""
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
            return index
    code = schema().OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, 127)
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
