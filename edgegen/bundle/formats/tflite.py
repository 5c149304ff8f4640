"""Buffers of a LiteRT (TensorFlow Lite) file, a flatbuffer, with the names of the tensors that use them.

A flatbuffer table begins with the distance back to its vtable, which holds the distance from the table to each field
(0: left out). Fields used here: Model.subgraphs = 2, Model.buffers = 4, SubGraph.tensors = 0, Tensor.buffer = 2,
Tensor.name = 3, Buffer.data = 0, and Buffer.offset = 1, Buffer.size = 2 for data behind the flatbuffer.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from edgegen.bundle.formats import Span, UnreadableError

_MOST = 1 << 20


def tensor_spans(path: Path) -> list[Span]:
    """Each distinct buffer in the file's order; buffers that several entries share are named once.

    Raises:
        UnreadableError: not a LiteRT file.
    """
    size = path.stat().st_size
    if size < 16:
        raise UnreadableError(f"{path.name}: too short")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[4:8] != b"TFL3":
            raise UnreadableError(f"{path.name}: not a LiteRT file")
        try:
            return _spans(data, size)
        except (struct.error, IndexError) as error:
            raise UnreadableError(f"{path.name}: a table goes past the end") from error


def _spans(data: mmap.mmap, size: int) -> list[Span]:
    model = _u32(data, 0)
    names: dict[int, str] = {}
    for graph in _tables(data, _field(data, model, 2)):
        for tensor in _tables(data, _field(data, graph, 0)):
            at, text = _field(data, tensor, 2), _field(data, tensor, 3)
            if at:
                names.setdefault(_u32(data, at), _text(data, text))
    found: dict[int, Span] = {}
    for index, buffer in enumerate(_tables(data, _field(data, model, 4))):
        inside, behind, length = (_field(data, buffer, number) for number in (0, 1, 2))
        if inside:
            vector = inside + _u32(data, inside)
            start, count = vector + 4, _u32(data, vector)
        elif behind and length:
            start, count = _u64(data, behind), _u64(data, length)
        else:
            continue
        if count and start > 1 and start + count <= size:
            name = names.get(index, "")
            known = found.get(start)
            if known is None or known.bytes < count:
                found[start] = Span(start, count, name)
    return sorted(found.values())


def _field(data: mmap.mmap, table: int, number: int) -> int:
    """Where a table's field is; 0: left out."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    if vtable < 0:
        raise IndexError
    (length,) = struct.unpack_from("<H", data, vtable)
    slot = 4 + 2 * number
    if slot + 2 > length:
        return 0
    (distance,) = struct.unpack_from("<H", data, vtable + slot)
    return table + distance if distance else 0


def _tables(data: mmap.mmap, at: int) -> Iterator[int]:
    """Where each table of a vector of tables is."""
    if not at:
        return
    vector = at + _u32(data, at)
    count = _u32(data, vector)
    if count > _MOST:
        raise IndexError
    for place in range(vector + 4, vector + 4 + 4 * count, 4):
        yield place + _u32(data, place)


def _text(data: mmap.mmap, at: int) -> str:
    if not at:
        return ""
    start = at + _u32(data, at)
    return data[start + 4 : start + 4 + min(_u32(data, start), 4096)].decode("utf-8", "replace")


def _u32(data: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _u64(data: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<Q", data, at)[0])
