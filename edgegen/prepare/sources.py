"""Read examples from JSONL, JSON, CSV, Parquet or text files, or from a data set on the hub.

The rows' columns decide what an example is: `messages` (a chat), prompt and answer columns, or `text`. Anything else
is an error that lists the columns found, because guessing wrong would calibrate on the wrong text.

JSON and CSV are read with the standard library rather than with `datasets`, which turns text that looks like a date or
a number into one, and fails on rows whose columns differ.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgegen.errors import ConfigError, NetworkError
from edgegen.records.data import Example

Row = tuple[int, dict[str, Any]]
"""Its number in the file, counted as a person would, and its columns."""
Reader = Callable[[dict[str, Any]], Example]

_PROMPTS = ("prompt", "instruction", "question", "input", "request")
_ANSWERS = ("completion", "response", "output", "answer", "reply")
_TEXTS = ("text", "content", "document")
_PLAIN = (".txt", ".text", ".md", ".raw", ".tokens")
_PARAGRAPH_CHARACTERS = 2000
"""Plain text is cut at blank lines into rows of at least this many characters, or as long as a paragraph is."""


def read_examples(source: str, *, max_rows: int = 50_000) -> list[Example]:
    """All rows of a source, at most `max_rows`, in order.

    Args:
        source: a file, a folder of such files, or a hub id (`org/name` or `org/name:split`).

    Raises:
        ConfigError: no such file, invalid UTF-8, an unknown format, or rows without usable columns.
        NetworkError: a hub id while the hub cannot be reached.
    """
    _require_named(source)
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*_READERS, *_PLAIN) and p.is_file())
        if not files:
            raise ConfigError(f"{path}: no data files in it", hint=_formats())
        rows = [example for file in files for example in _read_file(file, max_rows)]
    elif path.is_file():
        rows = list(_read_file(path, max_rows))
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")) and not path.suffix:
        rows = list(_examples(_hub_rows(source, max_rows), source))
    else:
        raise ConfigError(f"{source}: no such data file", hint=_formats())
    return rows[:max_rows]


def _require_named(source: str) -> None:
    if not source.strip():
        raise ConfigError("the name of a data source is empty", hint=_formats())


class Numbered(NamedTuple):
    """A row with where it stands."""

    source: str
    """Name of the file or data set."""
    number: int
    """In it, from 1."""
    columns: dict[str, Any]
    example: Example


def read_numbered(source: str, *, max_rows: int) -> Iterator[Numbered]:
    """The rows of a source one by one, with all that they say.

    Raises:
        ConfigError, NetworkError: as `read_examples`.
    """
    _require_named(source)
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*_READERS, *_PLAIN) and p.is_file())
        if not files:
            raise ConfigError(f"{path}: no data files in it", hint=_formats())
        found = (row for file in files for row in read_numbered(str(file), max_rows=max_rows))
        yield from itertools.islice(found, max_rows)
        return
    if not path.is_file() or path.suffix.lower() in _PLAIN:
        for number, example in enumerate(read_examples(source, max_rows=max_rows), 1):
            yield Numbered(path.name if path.is_file() else source, number, {}, example)
        return
    if path.suffix.lower() not in _READERS or path.stat().st_size == 0:
        list(_read_file(path, max_rows))  # says what is wrong
    kept: list[Row] = []

    def noted(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            kept[:] = [row]
            yield row

    rows = noted(itertools.islice(_READERS[path.suffix.lower()](path), max_rows))
    for example in _examples(rows, str(path)):
        yield Numbered(path.name, kept[0][0], kept[0][1], example)


def _formats() -> str:
    return "Give a .jsonl, .json, .csv, .tsv, .parquet or .txt file, a folder of them, or a hub id like org/name."


def _read_file(path: Path, max_rows: int) -> Iterable[Example]:
    if path.stat().st_size == 0:
        raise ConfigError(f"{path}: the file is empty", hint="At least 8 rows are needed.")
    suffix = path.suffix.lower()
    if suffix in _PLAIN:
        return itertools.islice(_paragraphs(_text_of(path)), max_rows)
    if suffix not in _READERS:
        raise ConfigError(f"{path}: unknown data format {path.suffix!r}", hint=_formats())
    return _examples(itertools.islice(_READERS[suffix](path), max_rows), str(path))


def _text_of(path: Path) -> str:
    """A whole text file, without a byte order mark and with `\\n` at the ends of lines."""
    return "".join(_lines(path))


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{path}: line {number} is not UTF-8 (byte {error.object[error.start]:#04x})",
                    hint="Convert it first, for example: iconv -f latin1 -t utf-8 FILE > NEW.",
                ) from error
            yield line.replace("\r\n", "\n")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, _object(_json(line.rstrip(), path, number), path, f"line {number}")


def _json_file(path: Path) -> Iterator[Row]:
    """An array of objects, or objects one after another as some tools write under this name."""
    text = _text_of(path).rstrip()
    if text.lstrip().startswith("["):
        for number, row in enumerate(_json(text, path, 1), 1):
            yield number, _object(row, path, f"row {number}")
        return
    with contextlib.suppress(ValueError):
        row = json.loads(text)
        yield 1, _object(row, path, "row 1")
        return
    yield from _json_lines(path)


def _json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {first_line + error.lineno - 1} is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, nesting of thousands of brackets
        raise ConfigError(f"{path}: line {first_line} cannot be read: {error}") from error


def _object(row: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ConfigError(f"{path}: {where} is not a JSON object", hint='Write rows like {"text": "..."}.')
    return row


def _table(path: Path) -> Iterator[Row]:
    """Comma or tab separated, all cells as they are written."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader(_lines(path), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row:
                raise ConfigError(
                    f"{path}: line {reader.line_num} has more cells than the header",
                    hint="Put cells that hold the delimiter in double quotes.",
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.reader.line_num} is no table row: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0][:200]}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}


def _hub_rows(source: str, max_rows: int) -> Iterator[Row]:
    import datasets

    name, _, split = source.partition(":")
    _require_hub(name)
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        yield from enumerate(rows.take(max_rows), 1)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ConfigError(f"{name}: no such file, and no such data set on the hub", hint=_formats()) from error
    except (ConnectionError, OSError) as error:
        raise _no_hub(name) from error
    except ValueError as error:
        raise ConfigError(f"{source}: {str(error).splitlines()[0][:200]}") from error


def _require_hub(name: str) -> None:
    """Fail at once where the hub is out of reach; its client would try again for half a minute.

    Raises:
        NetworkError: offline by wish (HF_HUB_OFFLINE), or the hub's name does not resolve.
    """
    import socket
    from urllib.parse import urlsplit

    import huggingface_hub.constants as hub

    try:
        if hub.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        if not urllib.request.getproxies():  # a proxy resolves names itself
            socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, None)
    except OSError as error:
        raise _no_hub(name) from error


def _no_hub(name: str) -> NetworkError:
    return NetworkError(
        f"{name}: not a file here, and the hub cannot be reached",
        hint="Check the path, or download the data first.",
    )


def _examples(rows: Iterable[Row], where: str) -> Iterator[Example]:
    readers: dict[tuple[str, ...], Reader] = {}
    for number, row in rows:
        columns = tuple(name for name, value in row.items() if value is not None)
        if not columns:
            yield Example()  # counted as empty
            continue
        if columns not in readers:
            readers[columns] = _reader(row, f"{where}: row {number}")
        try:
            yield readers[columns](row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: row {number}: {error}") from error


def _reader(row: dict[str, Any], where: str) -> Reader:
    """How to read rows that have the columns of this one."""
    columns = list(row)
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list):
            return lambda r: _from_messages(r[name])
    filled = [name for name in columns if row[name] is not None]
    prompt = next((c for c in _PROMPTS if c in filled), None)
    answer = next((c for c in _ANSWERS if c in filled), None)
    if prompt and answer:
        extra = "input" if prompt == "instruction" and "input" in columns else None
        return lambda r: _from_pair(r[prompt], r[answer], r.get(extra) if extra else None)
    text = next((c for c in _TEXTS if c in filled), None)
    if text:
        return lambda r: Example(text=_string(r[text], text))
    if any(name in columns for name in (*_PROMPTS, *_ANSWERS, *_TEXTS)) and len(filled) < len(columns):
        return lambda r: Example()  # its text is missing
    raise ConfigError(
        f"{where}: no usable column among {', '.join(columns)}",
        hint="Rows need `text`, or `messages`, or a prompt (prompt, instruction, question) with an answer "
        "(completion, response, output).",
    )


def _from_messages(messages: Any) -> Example:
    pairs = []
    for message in messages:
        if not isinstance(message, dict):
            raise TypeError(f"a message is {type(message).__name__}, not an object with role and content")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        roles = {"human": "user", "gpt": "assistant"}
        pairs.append((roles.get(str(role), str(role)), _string(content, "content")))
    if not pairs:
        return Example()
    return Example(messages=tuple(pairs), completion=pairs[-1][0] == "assistant")


def _from_pair(prompt: Any, answer: Any, extra: Any) -> Example:
    question = _string(prompt, "prompt") + (f"\n{extra}" if extra else "")
    return Example(messages=(("user", question), ("assistant", _string(answer, "answer"))), completion=True)


def _string(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # an answer such as 42
    if not isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}, not text")
    value.encode()  # refuses half a surrogate pair, which no tokenizer takes
    return value


def _paragraphs(text: str) -> Iterator[Example]:
    # A file without blank lines is one line a row.
    blocks = text.split("\n\n")
    if len(text) > 4 * _PARAGRAPH_CHARACTERS * len(blocks):
        blocks = text.split("\n")
    piece = ""
    for paragraph in blocks:
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
        if len(piece) >= _PARAGRAPH_CHARACTERS:
            yield Example(text=piece)
            piece = ""
    if piece.strip():
        yield Example(text=piece)
