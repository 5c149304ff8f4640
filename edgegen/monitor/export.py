"""Rows for other programs: JSON as the records are, which escapes nothing away and hides nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgegen.common.codec import encode_json
from edgegen.errors import ConfigError


def as_json(record: Any) -> str:
    """A record, indented."""
    return encode_json(record).decode()


def write_rows(rows: Sequence[Any], path: Path | None, what: str, at_s: float) -> Path:
    """Write records as lines of JSON into a new file.

    Args:
        path: None: `edgegen-<what>-<time>.jsonl` in the current folder.

    Raises:
        ConfigError: the file exists already, or cannot be written.
    """
    path = path or Path(f"edgegen-{what}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(at_s))}.jsonl")
    try:
        with path.open("xb") as stream:
            for row in rows:
                stream.write(msgspec.json.encode(row) + b"\n")
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", hint="Name another file: `:export FILE`.") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return path
