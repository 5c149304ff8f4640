"""Every record, whatever is in it: through JSON and back, strict about keys, never changed in place."""

from __future__ import annotations

import enum
import importlib
import pkgutil
import types
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest

import edgegen.records
from edgegen.common.codec import decode_json, encode_json
from edgegen.errors import ConfigError
from edgegen.records.base import Record


def all_records() -> list[type[Record]]:
    found = set()
    for module in pkgutil.iter_modules(edgegen.records.__path__):
        space = vars(importlib.import_module(f"edgegen.records.{module.name}"))
        found |= {v for v in space.values() if isinstance(v, type) and issubclass(v, Record) and v is not Record}
    return sorted(found, key=lambda kind: kind.__name__)


def sample(kind: Any, number: int) -> Any:
    """A value of a type; different for different numbers."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return kind(**{name: sample(hints[name], number + i) for i, name in enumerate(kind.__struct_fields__)})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return list(kind)[number % len(kind)]
    if origin is Literal:
        return inner[number % len(inner)]
    if origin in (types.UnionType,) or str(origin) == "typing.Union":
        return sample(inner[number % len(inner)], number)
    if origin is tuple and inner[-1] is Ellipsis:
        return tuple(sample(inner[0], number + i) for i in range(number % 3))
    if origin is tuple:
        return tuple(sample(each, number + i) for i, each in enumerate(inner))
    if origin is dict:
        return {f"kéy {i}": sample(inner[1], number + i) for i in range(number % 3)}
    simple = {int: number - 2, float: number / 7, str: f'té"xt\n{number}', bool: bool(number % 2), type(None): None}
    return simple[kind]


def test_there_are_records() -> None:
    names = {kind.__name__ for kind in all_records()}
    assert {"Plan", "Profile", "Target", "Report", "Artifact", "Compressed", "Build", "Example"} <= names


@pytest.mark.parametrize("kind", all_records(), ids=lambda kind: kind.__name__)
def test_through_json_and_back(kind: type[Record]) -> None:
    for number in range(6):
        record = sample(kind, number)
        again = decode_json(encode_json(record), kind, where="here")
        assert again == record
        assert encode_json(again) == encode_json(record)


@pytest.mark.parametrize("kind", all_records(), ids=lambda kind: kind.__name__)
def test_unknown_keys_are_refused(kind: type[Record]) -> None:
    tree = msgspec.json.decode(encode_json(sample(kind, 2)))
    with pytest.raises(ConfigError, match="here: unknown key 'surprise'"):
        decode_json(msgspec.json.encode({**tree, "surprise": 1}), kind, where="here")


@pytest.mark.parametrize("kind", all_records(), ids=lambda kind: kind.__name__)
def test_records_do_not_change(kind: type[Record]) -> None:
    record = sample(kind, 1)
    with pytest.raises(AttributeError):
        setattr(record, kind.__struct_fields__[0], None)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="digest"):
        decode_json(
            b'{"path": "a", "bytes": 1}', next(k for k in all_records() if k.__name__ == "ArtifactFile"), where="x"
        )
