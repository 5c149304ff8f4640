"""Read a data set that was built (see `records.dataset`), checked against its digests."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgegen.common.codec import load_json, read_bytes
from edgegen.common.files import digest_bytes
from edgegen.errors import ConfigError
from edgegen.records.data import Example
from edgegen.records.dataset import DATASET_FILE, Dataset, Row


def is_built(source: str | Path) -> bool:
    """Whether this is a built data set's folder."""
    return (Path(source).expanduser() / DATASET_FILE).is_file()


def open_dataset(folder: str | Path) -> Dataset:
    """What a built data set is.

    Raises:
        ConfigError: none is there, or its record cannot be read.
    """
    path = Path(folder).expanduser() / DATASET_FILE
    if not path.is_file():
        raise ConfigError(f"{folder}: no built data set", hint="Build one with `edgegen data build`.")
    return load_json(path, Dataset)


def read_rows(folder: str | Path, split: str) -> list[Row]:
    """The rows of a split, in order; none if the data set has no such split.

    Raises:
        ConfigError: a file that is missing, damaged, or not the one that was built.
    """
    dataset = open_dataset(folder)
    for part in dataset.splits:
        if part.name == split:
            path = Path(folder).expanduser() / part.file
            data = read_bytes(path)
            if digest_bytes(data) != part.digest:
                raise ConfigError(
                    f"{path}: is not what was built (its digest differs)", hint="Build the data set again."
                )
            try:
                return msgspec.json.decode(b"[" + b",".join(data.splitlines()) + b"]", type=list[Row])
            except msgspec.MsgspecError as error:
                raise ConfigError(f"{path}: {error}", hint="Build the data set again.") from error
    return []


def example_of(row: Row) -> Example:
    """A row as everything that reads examples wants it."""
    return Example(text=row.text, messages=row.messages, completion=row.completion, weight=row.weight)
