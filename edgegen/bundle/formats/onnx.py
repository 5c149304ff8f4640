"""Tensors of an ONNX model, in the file itself and in the files beside it that hold external data.

A protocol buffer is a list of (field number, wire type, value); the few fields needed here are walked by hand.
ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto: name = 8, raw_data = 9, external_data = 13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgegen.bundle.formats import Span, UnreadableError

_GRAPH, _INITIALIZER, _NAME, _RAW, _EXTERNAL = 7, 5, 8, 9, 13


def tensor_spans(path: Path) -> dict[str, list[Span]]:
    """File name → its tensors, in ascending order; the model's own name for those inside it.

    Raises:
        UnreadableError: not a protocol buffer.
    """
    data = path.read_bytes()
    found: dict[str, list[Span]] = {}
    for graph, start, end in _fields(data, 0, len(data)):
        if graph != _GRAPH:
            continue
        for number, first, last in _fields(data, start, end):
            if number == _INITIALIZER:
                place, span = _tensor(data, first, last)
                if span.bytes:
                    found.setdefault(place or path.name, []).append(span)
    return {name: sorted(set(spans)) for name, spans in found.items()}


def _tensor(data: bytes, start: int, end: int) -> tuple[str, Span]:
    """(name of the external file or empty, where the tensor is in it)."""
    name, span, external = "", Span(0, 0, ""), {}
    for number, first, last in _fields(data, start, end):
        if number == _NAME:
            name = data[first:last].decode("utf-8", "replace")
        elif number == _RAW:
            span = Span(first, last - first, "")
        elif number == _EXTERNAL:
            entry = {key: data[a:b].decode("utf-8", "replace") for key, a, b in _fields(data, first, last)}
            external[entry.get(1, "")] = entry.get(2, "")
    if "location" in external:
        with contextlib.suppress(ValueError):
            return external["location"], Span(int(external.get("offset") or 0), int(external.get("length") or 0), name)
    return "", Span(span.offset, span.bytes, name)


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, first byte, end) of each length-delimited field; others are passed over."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise UnreadableError("a field goes past the end")
            yield key >> 3, at, at + length
            at += length
        else:
            raise UnreadableError(f"wire type {wire}")
    if at != end:
        raise UnreadableError("a field goes past the end")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise UnreadableError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise UnreadableError("a number is too long")
