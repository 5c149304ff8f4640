"""LiteRT's file format (a flatbuffer): how our grids are stored in it, and writing a model small.

The schema module of `ai-edge-litert` reads a file into plain objects and writes them back, but repeats whatever
objects have in common: a table that is embedding and head, in four signatures, would carry its scales eight times (a
fifth of a small file). Here equal vectors and tables are written once and referred to, names of tensors are left out
(only signatures are looked up by name), and weights are aligned as the schema asks, which its Python code forgets.

- `iB_row`: per-channel quantization along the rows, zero points all 0;
- `i4_N`: blockwise quantization with a 16-bit tensor of scales. XNNPACK keeps such scales as bfloat16, so they must
  have 8 significant bits (`grids.uniform` makes them so);
- 4-bit codes are two's complement, two a byte, the first one low, over the whole tensor.

R rows, C columns, B blocks a row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import DeviceError, UnsupportedError
from edgegen.grids import uniform

Bytes = NDArray[np.uint8]

ALIGNMENT = 16
"""Of every buffer's data in the file, bytes."""

GRIDS = ("f32", "f16", "i8_row", "i4_row", "i4_32")
"""Grids that the format can carry and the runtime has kernels for."""

_LARGEST = 2_000_000_000
"""Offsets in a flatbuffer are 31 bits."""


class Stored(msgspec.Struct, frozen=True):
    """One matrix as the file stores it."""

    kind: int
    """`TensorType`."""
    data: Bytes
    """The buffer's bytes."""
    scales: NDArray[np.generic] | None
    """(R,) float32 for one scale a row, (R, B) float16 for blocks, None for floating-point weights."""
    block: int
    """Columns that share a scale; 0: a row."""


@functools.cache
def schema() -> Any:
    """The generated schema module.

    Raises:
        UnsupportedError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise UnsupportedError(
            f"LiteRT's file format needs ai-edge-litert: {error}", hint="Install it with: pip install 'edgegen[litert]'"
        ) from error
    return schema_py_generated


def store(packed: Bytes, grid: str, columns: int) -> Stored:
    """Packed rows of a grid in the file's own form.

    Args:
        packed: (R, row bytes).

    Raises:
        UnsupportedError: a grid that the format cannot carry.
    """
    kinds = schema().TensorType
    if grid in ("f32", "f16"):
        kind = kinds.FLOAT32 if grid == "f32" else kinds.FLOAT16
        return Stored(kind=kind, data=np.ascontiguousarray(packed).reshape(-1), scales=None, block=0)
    if grid not in GRIDS:
        raise UnsupportedError(f"LiteRT has no kernels for {grid}", hint="Known: " + ", ".join(GRIDS) + ".")
    spec = uniform.NAMES[grid]
    codes = uniform.signed_codes(packed, grid, columns).reshape(-1)
    parts = uniform.split(packed, grid, columns)
    scales = parts.scales.astype(np.float16) if spec.block else parts.scales.reshape(-1)
    if spec.bits == 8:
        return Stored(kind=kinds.INT8, data=codes.view(np.uint8), scales=scales, block=spec.block)
    nibbles = np.pad(codes, (0, codes.size % 2)).view(np.uint8) & np.uint8(15)
    pairs: Bytes = (nibbles[0::2] | nibbles[1::2] << np.uint8(4)).astype(np.uint8)
    return Stored(kind=kinds.INT4, data=pairs, scales=scales, block=spec.block)


def stored_values(stored: Stored, rows: int, columns: int) -> NDArray[np.float32]:
    """The (R, C) weights that the file's form stands for: the runtime's own reading of it."""
    kinds = schema().TensorType
    if stored.scales is None:
        kind = np.float32 if stored.kind == kinds.FLOAT32 else np.float16
        return stored.data.view(kind).reshape(rows, columns).astype(np.float32)
    codes = stored.data.view(np.int8)
    if stored.kind == kinds.INT4:
        low = (stored.data << 4).view(np.int8) >> 4
        codes = np.stack([low, codes >> 4], axis=-1).reshape(-1)[: rows * columns]
    scales = stored.scales.astype(np.float32).reshape(rows, -1, 1)
    blocks = codes.reshape(rows, scales.shape[1], -1).astype(np.float32)
    values: NDArray[np.float32] = (blocks * scales).reshape(rows, columns)
    return values


def tensor_bytes(grid: str, rows: int, columns: int) -> int:
    """What a matrix takes in the file: codes and scales, each aligned.

    Raises:
        ConfigError: a row does not fit the grid's block.
        UnsupportedError: a grid that the format cannot carry.
    """
    if grid not in GRIDS:
        raise UnsupportedError(f"LiteRT has no kernels for {grid}", hint="Known: " + ", ".join(GRIDS) + ".")
    width = grids.row_bytes(grid, columns)
    if grid in ("f32", "f16"):
        return _aligned(rows * width)
    spec = uniform.NAMES[grid]
    scale_bytes = rows * spec.blocks(columns) * spec.scale_bytes
    codes = -(-rows * columns * spec.bits // 8)
    return _aligned(codes) + (_aligned(scale_bytes) if spec.block else scale_bytes)


def read_model(path: Path) -> Any:
    """A file as a `ModelT` object whose buffers are views of the mapped file.

    Raises:
        DeviceError: it is no such file.
    """
    try:
        return schema().ModelT.InitFromObj(schema().Model.GetRootAs(np.memmap(path, dtype=np.uint8, mode="r"), 0))
    except Exception as error:  # the parser has no errors of its own
        raise DeviceError(f"{path}: not a LiteRT file: {error}") from error


def description(path: Path) -> str:
    """What a file says about itself, read without reading the rest; empty if it says nothing.

    Raises:
        DeviceError: it is no such file.
    """
    try:
        said = schema().Model.GetRootAs(np.memmap(path, dtype=np.uint8, mode="r"), 0).Description()
    except Exception as error:  # the parser has no errors of its own
        raise DeviceError(f"{path}: not a LiteRT file: {error}") from error
    return said.decode("utf-8", "replace") if said else ""


def require_whole(path: Path) -> None:
    """Refuse a file that ends before its weights do: the runtime may read on beyond its end.

    Raises:
        DeviceError: it is cut off, or no LiteRT file at all.
    """
    try:
        model = schema().Model.GetRootAs(np.memmap(path, dtype=np.uint8, mode="r"), 0)
        for index in range(model.BuffersLength()):
            model.Buffers(index).DataAsNumpy()
    except Exception as error:  # the parser has no errors of its own
        raise DeviceError(f"{path}: cut off, or not a LiteRT file: {error}") from error


def write_model(model: Any, path: Path) -> None:
    """Write a `ModelT` object: equal parts once, no tensor names, only buffers that are used.

    Raises:
        UnsupportedError: larger than a flatbuffer can be.
    """
    data = _Writer(model).finish()
    with path.open("wb") as stream:
        stream.write(data)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Writer:
    """One pass over a model's objects. Tables and vectors that were written before are referred to."""

    def __init__(self, model: Any) -> None:
        import flatbuffers

        named = sorted({tensor.buffer for graph in model.subgraphs for tensor in graph.tensors})
        used = [index for index in named if model.buffers[index].data is not None]
        total = sum(np.asarray(model.buffers[index].data).nbytes for index in used)
        if total > _LARGEST:
            raise UnsupportedError(
                f"a LiteRT file cannot hold {total / 1e9:.1f} GB of weights in one piece",
                hint="Use smaller grids or a smaller model; the format ends at 2 GB.",
            )
        self._schema = schema()
        self._model = model
        self._buffers = {index: number for number, index in enumerate(used, 1)}
        """Buffer in the model → in the file; 0 is the empty one."""
        self._builder = flatbuffers.Builder(total + (1 << 20))
        self._known: dict[Any, int] = {}

    def finish(self) -> Any:
        """The whole file."""
        made, model, s = self._builder, self._model, self._schema
        data = [self._data(model.buffers[index].data) for index in self._buffers]
        s.BufferStart(made)
        buffers = [s.BufferEnd(made)]
        for offset in data:
            s.BufferStart(made)
            s.BufferAddData(made, offset)
            buffers.append(s.BufferEnd(made))
        graphs = self._tables([self._graph(graph) for graph in model.subgraphs])
        codes = self._tables([code.Pack(made) for code in model.operatorCodes])
        signatures = self._tables([self._signature(signature) for signature in model.signatureDefs or ()])
        listed = self._tables(buffers)
        said = made.CreateString(model.description) if model.description else 0
        s.ModelStart(made)
        s.ModelAddVersion(made, model.version)
        s.ModelAddOperatorCodes(made, codes)
        s.ModelAddSubgraphs(made, graphs)
        s.ModelAddBuffers(made, listed)
        s.ModelAddSignatureDefs(made, signatures)
        if said:
            s.ModelAddDescription(made, said)
        made.Finish(s.ModelEnd(made), b"TFL3")
        head = made.Head()
        return memoryview(made.Bytes)[head:]

    def _data(self, values: Any) -> int:
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        made = self._builder
        made.StartVector(1, raw.size, ALIGNMENT)
        made.head = made.Head() - raw.size
        made.Bytes[made.head : made.head + raw.size] = raw.tobytes()
        return int(made.EndVector())

    def _once(self, key: Any, write: Any) -> int:
        if key not in self._known:
            self._known[key] = write()
        return self._known[key]

    def _numbers(self, values: Any, kind: type[np.generic] = np.int32) -> int:
        array = np.ascontiguousarray(values, dtype=kind).reshape(-1)
        key = ("numbers", array.dtype.str, array.tobytes())
        return self._once(key, lambda: int(self._builder.CreateNumpyVector(array)))

    def _tables(self, offsets: Sequence[int]) -> int:
        made = self._builder
        made.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            made.PrependUOffsetTRelative(offset)
        return int(made.EndVector())

    def _table(self, kind: str, fields: dict[str, Any]) -> int:
        """A table of these fields, absent where None; the values are numbers and offsets."""
        present = tuple((name, value) for name, value in fields.items() if value is not None)

        def write() -> int:
            getattr(self._schema, f"{kind}Start")(self._builder)
            for name, value in present:
                getattr(self._schema, f"{kind}Add{name}")(self._builder, value)
            return int(getattr(self._schema, f"{kind}End")(self._builder))

        return self._once((kind, present), write)

    def _graph(self, graph: Any) -> int:
        tensors = self._tables([self._tensor(tensor) for tensor in graph.tensors])
        operators = self._tables([self._operator(operator) for operator in graph.operators])
        inputs, outputs = self._numbers(graph.inputs), self._numbers(graph.outputs)
        return self._table(
            "SubGraph", {"Tensors": tensors, "Inputs": inputs, "Outputs": outputs, "Operators": operators}
        )

    def _tensor(self, tensor: Any) -> int:
        return self._table(
            "Tensor",
            {
                "Shape": None if tensor.shape is None else self._numbers(tensor.shape),
                "Type": tensor.type,
                "Buffer": self._buffers.get(tensor.buffer, 0),
                "Quantization": self._quantization(tensor.quantization),
                "HasRank": tensor.hasRank,
            },
        )

    def _quantization(self, found: Any) -> int | None:
        if found is None or (found.scale is None and found.details is None):
            return None
        details = None
        if found.details is not None:
            inner = found.details
            details = self._table(
                "BlockwiseQuantization",
                {"Scales": inner.scales, "ZeroPoints": inner.zeroPoints, "BlockSize": inner.blockSize},
            )
        return self._table(
            "QuantizationParameters",
            {
                "Scale": None if found.scale is None else self._numbers(found.scale, np.float32),
                "ZeroPoint": None if found.zeroPoint is None else self._numbers(found.zeroPoint, np.int64),
                "DetailsType": found.detailsType,
                "Details": details,
                "QuantizedDimension": found.quantizedDimension,
            },
        )

    def _operator(self, operator: Any) -> int:
        fields = {
            "OpcodeIndex": operator.opcodeIndex,
            "Inputs": self._numbers(operator.inputs),
            "Outputs": self._numbers(operator.outputs),
        }
        for name, kind, options in (
            ("BuiltinOptions", operator.builtinOptionsType, operator.builtinOptions),
            ("BuiltinOptions2", operator.builtinOptions2Type, operator.builtinOptions2),
        ):
            if options is not None:
                key = (name, kind, repr(sorted(vars(options).items())))
                fields[f"{name}Type"] = kind
                fields[name] = self._once(key, functools.partial(options.Pack, self._builder))
        if operator.customOptions is not None:
            fields["CustomOptions"] = self._numbers(operator.customOptions, np.uint8)
        return self._table("Operator", fields)

    def _signature(self, signature: Any) -> int:
        fields: dict[str, Any] = {"SubgraphIndex": signature.subgraphIndex}
        fields["SignatureKey"] = self._builder.CreateSharedString(signature.signatureKey)
        for name, maps in (("Inputs", signature.inputs), ("Outputs", signature.outputs)):
            found = []
            for entry in maps:
                label = self._builder.CreateSharedString(entry.name)
                found.append(self._table("TensorMap", {"Name": label, "TensorIndex": entry.tensorIndex}))
            fields[name] = self._tables(found)
        return self._table("SignatureDef", fields)
