"""The part of a GGUF file before its tensor data, and the file's exact size before it is written.

Both the writer and the planner's price come from one function that lays out the header, so that they cannot
differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf

from edgegen.export.gguf.rope import Value
from edgegen.export.gguf.tensors import Placed, aligned
from edgegen.grids import ggml


def start(path: Path, arch: str, metadata: Mapping[str, Value], tensors: Sequence[Placed]) -> gguf.GGUFWriter:
    """Write the header of a file; the caller then writes each tensor's data in this order and closes it."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in tensors:
        shape = (tensor.columns,) if tensor.vector else (tensor.rows, tensor.columns)
        writer.add_tensor_info(
            tensor.name,
            shape,
            # The number type is named by raw_dtype; this one only has to be none that the package computes
            # from.
            "float32",
            tensor.nbytes,
            raw_dtype=gguf.GGMLQuantizationType(ggml.TYPES[tensor.grid]),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def header_bytes(arch: str, metadata: Mapping[str, Value], tensors: Sequence[Placed]) -> int:
    """Size of the header with its padding; writes it to a temporary file to be exact."""
    with tempfile.TemporaryDirectory(prefix="edgegen-") as folder:
        path = Path(folder) / "header.gguf"
        start(path, arch, metadata, tensors).close()
        return aligned(path.stat().st_size)


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    """Booleans, 32-bit numbers, strings and lists of them; llama.cpp reads all counts as uint32."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
