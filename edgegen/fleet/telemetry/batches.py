"""A batch from its bytes: unpacked within limits, and each line decoded on its own.

What is wrong with a line is said in the answer and counted; it never keeps the other lines out. Only what makes the
whole unreadable (its packing, its first line) fails the batch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from edgegen.fleet.request_error import RequestError
from edgegen.fleet.telemetry.limits import BATCH, REPORT
from edgegen.records.telemetry import MOST_BATCH_BYTES, MOST_REPORT_BYTES, Batch, Refused, Report

MOST_PACKED_BYTES = MOST_BATCH_BYTES + 4096
"""Of a request: what does not compress grows a little."""
_MOST_LINES = 20_000
_MOST_REASON = 200
_GZIP = b"\x1f\x8b"


class Fault(StrEnum):
    """Kinds of what is wrong with a line."""

    JSON = "json"
    """No JSON, or not UTF-8."""
    KIND = "kind"
    """A kind of report that this server does not know."""
    TYPE = "type"
    """A field of another type, or one that is missing."""
    RANGE = "range"
    """A number that cannot be, or a field that is too long."""
    SIZE = "size"
    """A line that is too long."""
    STREAM = "stream"
    """Of another stream than the batch."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not taken."""

    number: int
    fault: Fault
    reason: str

    def refused(self) -> Refused:
        return Refused(self.number, self.reason)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A batch that was read."""

    batch: Batch
    reports: tuple[Report, ...]
    refused: tuple[Line, ...]
    nul: bool
    """Whether U+0000 stands somewhere in its strings."""


def read_batch(body: bytes) -> Incoming:
    """Read a batch as it came, gzipped or plain.

    Raises:
        RequestError: 400 not a batch, 413 larger than a batch may be.
    """
    lines = _unpacked(body).split(b"\n")
    if len(lines) > _MOST_LINES:
        raise RequestError(413, f"a batch has at most {_MOST_LINES} lines")
    try:
        batch = BATCH.decode(lines[0])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the batch's first line: {_short(error)}") from error
    if not batch.stream or "\0" in batch.stream + batch.boot:
        raise RequestError(400, "the batch's first line: a stream's name is letters and digits")
    texts = [line for line in lines[1:] if line and not line.isspace()]
    if len(texts) < batch.reports:  # the sender would forget what did not come
        raise RequestError(400, f"the batch has {len(texts)} of the {batch.reports} reports that it speaks of")
    reports, refused = [], []
    for number, text in enumerate(texts, 1):
        found = _read_line(number, text, batch.stream)
        if isinstance(found, Line):
            refused.append(found)
        else:
            reports.append(found)
    return Incoming(batch, tuple(reports), tuple(refused), any(b"\\u0000" in text for text in texts))


def _read_line(number: int, text: bytes, stream: str) -> Report | Line:
    if len(text) > MOST_REPORT_BYTES:
        return Line(number, Fault.SIZE, f"{len(text)} bytes; at most {MOST_REPORT_BYTES}")
    try:
        report = REPORT.decode(text)
    except msgspec.ValidationError as error:
        return Line(number, _fault(str(error)), _short(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Line(number, Fault.JSON, _short(error))
    if report.stream != stream:
        return Line(number, Fault.STREAM, "of another stream than the batch")
    return report


def _fault(message: str) -> Fault:
    """Which kind a decoder's message is."""
    if message.endswith("`$.item.kind`") or "required field `kind`" in message:
        return Fault.KIND
    if any(mark in message for mark in ("out of range", " >= ", " <= ", " of length ")):
        return Fault.RANGE
    return Fault.TYPE


def _short(error: Any) -> str:
    """The decoder's words, without what the line may have put into them."""
    words = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(error)[:_MOST_REASON])
    return words or type(error).__name__


def _unpacked(body: bytes) -> bytes:
    if not body.startswith(_GZIP):
        if len(body) > MOST_BATCH_BYTES:
            raise RequestError(413, f"a batch has at most {MOST_BATCH_BYTES} bytes")
        return body
    packed = zlib.decompressobj(wbits=31)
    try:
        plain = packed.decompress(body, MOST_BATCH_BYTES + 1)
    except zlib.error as error:
        raise RequestError(400, "the batch is not gzip, or damaged") from error
    if len(plain) > MOST_BATCH_BYTES:  # never unpacked beyond this: a bomb stays small
        raise RequestError(413, f"a batch has at most {MOST_BATCH_BYTES} bytes before it is packed")
    if not packed.eof or packed.unused_data:
        raise RequestError(400, "the batch is cut short, or something follows it")
    return plain
