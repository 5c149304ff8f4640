"""Tensors of a GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from edgegen.bundle.formats import Span, UnreadableError

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_MOST = 1 << 27
"""Longest string and largest array that are believed."""


def tensor_spans(path: Path) -> list[Span]:
    """Each tensor with the padding after it, in the file's order.

    Raises:
        UnreadableError: not a GGUF file of version 2 or 3.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        magic = stream.read(4)
        version, tensors, pairs = _unpack(stream, "<IQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise UnreadableError(f"{path.name}: not a GGUF file of version 2 or 3")
        alignment = 32
        for _ in range(pairs):
            key = _string(stream)
            (kind,) = _unpack(stream, "<I")
            if key == b"general.alignment" and kind == _UINT32:
                (alignment,) = _unpack(stream, "<I")
            else:
                _skip(stream, kind)
        starts: list[tuple[int, str]] = []
        for _ in range(tensors):
            name = _string(stream).decode("utf-8", "replace")
            (dimensions,) = _unpack(stream, "<I")
            if dimensions > 8:
                raise UnreadableError(f"{path.name}: {name} has {dimensions} dimensions")
            *_, offset = _unpack(stream, f"<{dimensions}QIQ")
            starts.append((offset, name))
        if not alignment:
            raise UnreadableError(f"{path.name}: alignment 0")
        data = -(-stream.tell() // alignment) * alignment
    starts.sort()
    ends = [offset for offset, _ in starts[1:]] + [size - data]
    return [Span(data + offset, end - offset, name) for (offset, name), end in zip(starts, ends, strict=True)]


def _unpack(stream: BinaryIO, form: str) -> tuple[int, ...]:
    data = stream.read(struct.calcsize(form))
    try:
        return struct.unpack(form, data)
    except struct.error as error:
        raise UnreadableError("the header is cut off") from error


def _string(stream: BinaryIO) -> bytes:
    (length,) = _unpack(stream, "<Q")
    if length > _MOST:
        raise UnreadableError("a string is too long")
    data = stream.read(length)
    if len(data) != length:
        raise UnreadableError("the header is cut off")
    return data


def _skip(stream: BinaryIO, kind: int) -> None:
    """Pass over a value."""
    if kind == _STRING:
        _string(stream)
    elif kind == _ARRAY:
        inner, count = _unpack(stream, "<IQ")
        if count > _MOST or inner == _ARRAY:
            raise UnreadableError("an array is too long or nested")
        if inner == _STRING:
            for _ in range(count):
                _string(stream)
        else:
            stream.seek(count * _width(inner), 1)
    else:
        stream.seek(_width(kind), 1)


def _width(kind: int) -> int:
    if kind not in _SCALAR_BYTES:
        raise UnreadableError(f"a value of unknown type {kind}")
    return _SCALAR_BYTES[kind]
