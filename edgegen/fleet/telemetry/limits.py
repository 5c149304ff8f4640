"""What a report may say at most: the wire's records again, with bounds that the decoder checks.

A device may be broken or in wrong hands; what it says is added up, plotted and kept for months. So each field has the
widest range that a sound device can need, and a report outside of it is refused as a whole, with the field's name.
JSON has no NaN, and a number that overflows to infinity is refused by the decoder.
"""

from __future__ import annotations

import functools
import types
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from edgegen.records import telemetry as wire

_YEARS_S = 100 * 366 * 86400.0
_WHOLE = 2**53
"""Integers that every JSON reader keeps exact."""
_ANY = (-1e12, 1e12)
_COUNT = (0, _WHOLE)
_MEMBERS = 4096

_RANGES: dict[str, tuple[float, float]] = {
    "at_s": (0, _YEARS_S),
    "sent_s": (0, _YEARS_S),
    "mono_s": (0, _YEARS_S),
    "uptime_s": (0, _YEARS_S),
    "queue_s": (0, 1e6),
    "ttft_s": (0, 1e6),
    "load_s": (0, 1e6),
    "tokens_per_s": (0, 1e7),
    "mean_log_prob": (-1e4, 0.01),
    "mean_entropy": (-0.01, 1e3),
    "log_prob_drop": (-1e4, 1e4),
    "temperature_c": (-100, 300),
    "distinct_fraction": (0, 1),
    "byte_fraction": (0, 1),
    "repetition": (0, 1),
    "distinct2": (0, 1),
    "non_letter_fraction": (0, 1),
    "mean": (-1e9, 1e9),
    "variance": (0, 1e18),
    "prompt_tokens": (0, 1e8),
    "answer_tokens": (0, 1e8),
    "threads": (0, 1e5),
    "rating": (-1, 1),
    "prompt": (0, 1e6),
    "lane": (0, 15),
    "reports": (0, 1e6),
}
"""Of numbers by their field; of the members where it holds several."""
_LENGTHS: dict[str, int] = {
    "stream": 64,
    "boot": 64,
    "id": 128,
    "generation": 128,
    "release": 80,
    "template": 64,
    "runtime": 80,
    "stop": 16,
    "script": 32,
    "level": 16,
    "why": 32,
    "what": 64,
    "error": 2048,
    "detail": 4096,
    "missing": 16,
}
"""Most characters, or members, by field."""
_KEY = 64


@functools.cache
def bounded(kind: type) -> type:
    """The same message with the bounds of its fields; what it decodes has the record's fields."""
    hints = get_type_hints(kind)
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        inside = _bounded_type(hints[field.name], field.name)
        if field.default is not msgspec.NODEFAULT:
            fields.append((field.name, inside, field.default))
        elif field.default_factory is not msgspec.NODEFAULT:
            fields.append((field.name, inside, msgspec.field(default_factory=field.default_factory)))
        else:
            fields.append((field.name, inside))
    config = kind.__struct_config__  # type: ignore[attr-defined]
    return msgspec.defstruct(kind.__name__, fields, tag_field=config.tag_field, tag=config.tag, frozen=True)


def _bounded_type(kind: Any, name: str) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return Union[tuple(_bounded_type(one, name) for one in inside)]  # noqa: UP007
    if origin is tuple:
        member = _bounded_type(inside[0], name)
        return Annotated[tuple.__class_getitem__((member, ...)), Meta(max_length=_LENGTHS.get(name, _MEMBERS))]
    if origin is dict:
        key, value = Annotated[str, Meta(max_length=_KEY)], _bounded_type(inside[1], name)
        return Annotated[dict.__class_getitem__((key, value)), Meta(max_length=_LENGTHS.get(name, _MEMBERS))]
    if kind is float:
        low, high = _RANGES.get(name, _ANY)
        return Annotated[float, Meta(ge=low, le=high)]
    if kind is int:
        low, high = _RANGES.get(name, _COUNT)
        return Annotated[int, Meta(ge=int(low), le=int(high))]
    if kind is str:
        return Annotated[str, Meta(max_length=_LENGTHS.get(name, wire.MOST_REPORT_BYTES))]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return bounded(kind)
    if kind in (bool, types.NoneType) or (isinstance(kind, type) and issubclass(kind, Enum)):
        return kind
    raise TypeError(f"{name}: no bounds for {kind}")  # a new kind of field in the wire's records


BATCH: msgspec.json.Decoder[wire.Batch] = msgspec.json.Decoder(bounded(wire.Batch))
"""The first line."""
REPORT: msgspec.json.Decoder[wire.Report] = msgspec.json.Decoder(bounded(wire.Report))
"""The others. `item` is not of the record's own classes: see `bounded` and compare by class name."""
