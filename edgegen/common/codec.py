"""Strict reading and writing of records as JSON or TOML.

Records are `msgspec` structs: declared once, they give decoding with type checks, refusal of unknown keys and
JSON Schema. This module adds what a person needs: the file's name, the key, and the nearest key that exists.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgegen.common.files import digest_bytes, write_bytes
from edgegen.errors import ConfigError

T = TypeVar("T")


def encode_json(record: Any) -> bytes:
    """Indented JSON with a final newline; key order is the record's field order."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def canonical_json(value: Any) -> bytes:
    """Compact JSON with sorted keys: equal values give equal bytes, for hashing."""
    return msgspec.json.encode(value, order="sorted")


def digest_record(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return digest_bytes(canonical_json(value))


def save_json(path: Path, record: Any) -> None:
    """Write a record as JSON, whole or not at all."""
    write_bytes(path, encode_json(record))


def load_json(path: Path, kind: type[T]) -> T:
    """Read a record from a JSON file.

    Raises:
        ConfigError: no such file, not JSON, an unknown key or a wrong type.
    """
    return decode_json(read_bytes(path), kind, where=str(path))


def decode_json(data: bytes, kind: type[T], *, where: str) -> T:
    """Decode JSON bytes into a record; errors name `where` and the key."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _explained(error, kind, where) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from error


def load_toml(path: Path, kind: type[T], *, may_be_empty: bool = False) -> T:
    """Read a record from a TOML file.

    Args:
        may_be_empty: whether a file that says nothing means all defaults; else it is refused, as a slip.

    Raises:
        ConfigError: no such file, nothing in it, not TOML, an unknown key or a wrong type.
    """
    try:
        tree = tomllib.loads(read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    if not tree and not may_be_empty:
        raise ConfigError(f"{path}: it says nothing", hint="Write settings into it, or leave the file out.")
    if place := _nan_in(tree):
        raise ConfigError(f"{path}: {place}: nan is no finite number", hint="Leave the key out where nothing is known.")
    return convert(tree, kind, where=str(path))


def _nan_in(tree: Any, place: str = "") -> str:
    """The first key of a tree that is not a number; empty: none."""
    if isinstance(tree, float) and math.isnan(tree):
        return place
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return next((found for key, value in inner if (found := _nan_in(value, f"{place}.{key}".lstrip(".")))), "")


def convert(tree: Any, kind: type[T], *, where: str) -> T:
    """Turn plain dictionaries and lists into a record; errors name `where` and the key."""
    try:
        return msgspec.convert(tree, type=kind)
    except msgspec.ValidationError as error:
        raise _explained(error, kind, where) from error


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        ConfigError: it is not there or not readable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def load_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of someone else's, whatever its keys.

    Raises:
        ConfigError: no such file, not JSON, or another JSON value.
    """
    try:
        tree = msgspec.json.decode(read_bytes(path))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return tree


def load_object_if_there(path: Path) -> dict[str, Any]:
    """The same, empty where there is no such file."""
    return load_object(path) if path.is_file() else {}


def did_you_mean(word: str, known: list[str]) -> str:
    """`Did you mean 'x'?` for a close match, else a list of what is known (at most 40)."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Known: " + ", ".join(sorted(known)[:40]) + "."


def _explained(error: msgspec.ValidationError, kind: Any, where: str) -> ConfigError:
    """msgspec says `... unknown field `x` - at `$.a``; add the key's full name and its neighbour."""
    text = str(error)
    key = re.search(r"at `\$\.?(.*?)`$", text)
    place = key[1] if key else ""
    unknown = re.search(r"unknown field `(.*?)`", text)
    if unknown:
        name = f"{place}.{unknown[1]}" if place else unknown[1]
        return ConfigError(f"{where}: unknown key {name!r}", hint=did_you_mean(unknown[1], sorted(_keys(kind))))
    reason = re.sub(r" - at `.*`$", "", text)
    return ConfigError(f"{where}: {place + ': ' if place else ''}{reason}")


def _keys(kind: Any) -> set[str]:
    """All field names that a record and the records inside it have."""
    found: set[str] = set()
    waiting = [msgspec.inspect.type_info(kind)]
    seen: set[Any] = set()
    while waiting:
        info = waiting.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            found.update(field.encode_name for field in info.fields)
            waiting.extend(field.type for field in info.fields)
        for name in ("item_type", "key_type", "value_type"):
            inner = getattr(info, name, None)
            if inner is not None:
                waiting.append(inner)
        waiting.extend(getattr(info, "types", ()) or ())
        waiting.extend(getattr(info, "item_types", ()) or ())
    return found
