"""Telemetry as files for other tools: Parquet or CSV, one file a kind of report.

    out/
      generations.parquet health.parquet …
      export.json        what it is: the span, rows of each file, whether texts are among it

An export is of one state of the database, however long it takes and whatever comes in meanwhile, and is there whole or
not at all. Texts (prompts, answers, comments, characters of prompts) are left out unless they are asked for: a file
outlives every lifetime.

Parquet holds strings as devices sent them. A CSV file is opened by spreadsheets and shown on terminals: there a text
that a spreadsheet would run as a formula begins with an apostrophe, and control characters are replaced.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgegen.common.files import building, write_bytes
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.fleet.database import Database
from edgegen.fleet.telemetry.schema import REPORTS
from edgegen.fleet.telemetry.store import Span, pages
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.base import Record

FORMATS = ("parquet", "csv")
MARK = "export.json"
_TEXTS = {"samples": ("prompt", "answer"), "feedback": ("comment",), "generations": ("missing",)}
_HEAD = {
    "cursor": "BIGINT",
    "stream": "BIGINT",
    "seq": "BIGINT",
    "device": "TEXT",
    "group": "TEXT",
    "at_s": "DOUBLE PRECISION",
    "received_s": "DOUBLE PRECISION",
    "late": "BIGINT",
}
_JOINED = {"generations": {"release": "TEXT", "template": "TEXT", "runtime": "TEXT"}}
_FORMULA = re.compile(r"[=+\-@\t\r＝＋－＠]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

Progress = Callable[[str, int], None]
"""Called with the kind of report and its rows so far."""


class Exported(Record, frozen=True):
    """`export.json`."""

    schema: int
    format: str
    since_s: float | None
    until_s: float | None
    texts: bool
    rows: dict[str, int]
    """Kind of report → rows of its file."""


class _Sink(Protocol):
    def write(self, rows: Sequence[Row]) -> None: ...


def export(
    store: str,
    out: Path,
    *,
    format: str = "parquet",
    kinds: Sequence[str] = (),
    span: Span = Span(),
    texts: bool = False,
    progress: Progress = lambda kind, rows: None,
) -> Exported:
    """Write telemetry into a folder, which an earlier export may give up.

    Args:
        store: file or URL of the database.
        kinds: tables of `schema.REPORTS`; none: all.
        span: by when things happened.

    Raises:
        ConfigError: an unknown format or kind, a span that is empty or has not begun, or `out` holds something else.
        UnsupportedError: Parquet without pyarrow.
        DeviceError: no space on the disk.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format!r} is not known", hint=f"Known: {', '.join(FORMATS)}.")
    unknown = [kind for kind in kinds if kind not in REPORTS]
    if unknown:
        raise ConfigError(f"--kind {unknown[0]!r} is not known", hint=f"Known: {', '.join(REPORTS)}.")
    if span.since_s is not None and span.until_s is not None and span.since_s >= span.until_s:
        raise ConfigError("--since is not before --until")
    if span.since_s is not None and span.since_s > time.time():
        raise ConfigError("--since lies in the future", hint="Like 7d, 2026-03-01 or 2026-03-01T12:00.")
    open_sink = _parquet if format == "parquet" else _csv
    database = Database(store)
    rows: dict[str, int] = {}
    try:
        with building(out, mark=MARK, what="export") as place, database.snapshot() as tx:
            groups = {row["device"]: row["grp"] for row in tx.rows("SELECT device, grp FROM devices")}
            for kind in kinds or REPORTS:
                columns = _columns(kind, texts)
                with open_sink(place / f"{kind}.{format}", columns) as sink:
                    rows[kind] = _copy(tx, kind, span, groups, sink, progress)
            done = Exported(1, format, span.since_s, span.until_s, texts, rows)
            write_bytes(place / MARK, msgspec.json.format(msgspec.json.encode(done)) + b"\n")
    finally:
        database.close()
    return done


def _copy(tx: Transaction, kind: str, span: Span, groups: dict[str, str], sink: _Sink, progress: Progress) -> int:
    count = 0
    for page in pages(tx, kind, span):
        for row in page:
            row["group"] = row.get("grp") or groups.get(row["device"], "")
        sink.write(page)
        count += len(page)
        progress(kind, count)
    return count


def _columns(kind: str, texts: bool) -> dict[str, str]:
    """Name → type in the database."""
    own = dict(column.split()[:2] for column in REPORTS[kind].split(","))
    left_out = {"served", "grp", *(() if texts else _TEXTS.get(kind, ()))}
    found = {**_HEAD, **_JOINED.get(kind, {}), **own}
    return {name: type_ for name, type_ in found.items() if name not in left_out}


class _CsvSink:
    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._columns = tuple(columns)
        self._csv = csv.writer(self._file)
        self._csv.writerow(self._columns)

    def __enter__(self) -> _CsvSink:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, rows: Sequence[Row]) -> None:
        self._csv.writerows([_cell(row[name]) for name in self._columns] for row in rows)


def _cell(value: Any) -> Any:
    """A value that no spreadsheet runs and no terminal obeys; NULL is an empty cell."""
    if not isinstance(value, str):
        return value
    shown = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)
    return "'" + shown if _FORMULA.match(value.lstrip(" ")) else shown


def _csv(path: Path, columns: dict[str, str]) -> AbstractContextManager[_Sink]:
    return _CsvSink(path, columns)


class _ParquetSink:
    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                "Parquet needs pyarrow, which is not installed",
                hint="pip install 'edgegen[parquet]', or take --format csv.",
            ) from error
        types = {"BIGINT": pyarrow.int64(), "DOUBLE": pyarrow.float64(), "TEXT": pyarrow.string()}
        self._pyarrow: Any = pyarrow
        self._schema = pyarrow.schema([(name, types[type_.split()[0]]) for name, type_ in columns.items()])
        self._writer: Any = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def __enter__(self) -> _ParquetSink:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.write_table(self._pyarrow.Table.from_pylist(rows, schema=self._schema))


def _parquet(path: Path, columns: dict[str, str]) -> AbstractContextManager[_Sink]:
    return _ParquetSink(path, columns)
