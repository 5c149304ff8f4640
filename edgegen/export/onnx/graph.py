"""What both ways make of their graph: short names, every weight in one data file, and how large that is.

What a graph carries for people and debuggers (stack traces, names and shapes of every value between) is a tenth of a
small model's file, so it is dropped; inputs, outputs and weights keep their names. Initializers of equal bytes are
written once: shared layers, and the two shapes in which a tied table is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgegen import __version__
from edgegen.export.onnx.weights import aligned

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"

_INLINE_BYTES = 64
"""Smaller initializers stay in the graph: shapes and axes, which ONNX Runtime wants to see early."""

Progress = Callable[[str, float], None]


def shorten(model: ir.Model) -> None:
    """Drop whatever the runtime does not need and give the values between inputs and outputs short names."""
    model.producer_name, model.producer_version = "edgegen", __version__
    model.doc_string = model.graph.doc_string = None
    graph = model.graph
    for holder in (model, graph, *graph, *graph.inputs, *graph.initializers.values()):
        holder.metadata_props.clear()
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    count = 0
    for node in graph:
        node.name, node.doc_string = None, None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) in kept or not value.name:
                continue
            value.name = f"v{count}"
            count += 1
    for value in list(graph.initializers.values()):
        if id(value) not in kept and value.name:
            value.name = re.sub(r"^(?:model\.)?(?:model|transformer)\.(?:(?:layers|h)\.)?", "", value.name)


def lay_out(model: ir.Model, read: bool = True) -> Iterator[tuple[str, int, bytes]]:
    """Point every initializer into the data file: (name, offset, bytes) of each that has to be written there.

    Args:
        model: changed; its initializers then refer to the file.
        read: whether values are fetched; without, all count as different and the bytes are empty.
    """
    places: dict[bytes, int] = {}
    end = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None and value.name, "an initializer has values and a name"
        size = int(tensor.nbytes)
        if size < _INLINE_BYTES:
            if read:
                value.const_value = ir.Tensor(np.array(tensor.numpy(), order="C"), name=value.name)
            continue
        data = np.ascontiguousarray(tensor.numpy()).tobytes() if read else b""
        key = hashlib.sha256(data).digest() if read else value.name.removesuffix(".flat").encode()
        new = key not in places
        if new:
            places[key] = end
            end = aligned(end + size)
        value.const_value = ir.ExternalTensor(
            DATA_FILE, places[key], size, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name
        )
        if new:
            yield value.name, places[key], data


def serialize(model: ir.Model) -> bytes:
    """The graph's file, the same bytes for the same model."""
    proto = ir.serde.serialize_model(model)
    del proto.graph.value_info[:]  # types and shapes that the runtime infers
    return bytes(proto.SerializeToString(deterministic=True))


def set_accuracy(model: ir.Model, level: int) -> None:
    """Say in which numbers activations are multiplied: 4: int8 in blocks, 1: float."""
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)


def write_data(model: ir.Model, path: Path, progress: Progress | None) -> None:
    """Write the data file of a model and point its initializers into it."""
    total = sum(int(value.const_value.nbytes) for value in model.graph.initializers.values() if value.const_value)
    done = 0
    with path.open("wb") as stream:
        for name, offset, data in lay_out(model):
            stream.write(bytes(offset - stream.tell()))
            stream.write(data)
            done += len(data)
            if progress is not None:
                progress(name, min(1.0, done / total))
        stream.write(bytes(aligned(stream.tell()) - stream.tell()))
    if progress is not None:
        progress(DATA_FILE, 1.0)


def measure(model: ir.Model) -> tuple[int, int]:
    """What the graph's and the data's file will take, without reading any values; changes the model."""
    end = 0
    for _ in lay_out(model, read=False):
        pass
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if isinstance(tensor, ir.ExternalTensor):
            end = max(end, aligned(int(tensor.offset or 0) + int(tensor.length or 0)))
        else:
            value.const_value = ir.Tensor(np.zeros(tensor.shape.numpy(), tensor.dtype.numpy()), name=value.name)
    return len(serialize(model)), end
