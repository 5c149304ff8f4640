"""Split examples into calibration and held-out by what they say, not by where they stand.

The hash of a row's content decides its side, so adding rows never moves the others, a duplicate cannot be on both
sides, and two runs agree without a stored split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import resources

import msgspec

from edgegen.common.codec import digest_record
from edgegen.errors import ConfigError
from edgegen.prepare.built import example_of, is_built, open_dataset, read_rows
from edgegen.prepare.sources import read_examples
from edgegen.records.data import DataRef, Example
from edgegen.records.dataset import SPLITS

MIN_ROWS = 8
_HELDOUT_PER_MILLE = 250


class Split(msgspec.Struct, frozen=True):
    """Examples after reading, without duplicates."""

    ref: DataRef
    calibration: tuple[Example, ...]
    heldout: tuple[Example, ...]


def prepare_data(source: str | None) -> Split:
    """Read and split a source; without one, edgegen's own generic text.

    Of a built data set `train` calibrates, and `validation` and `test` are held out.

    Raises:
        ConfigError: unreadable, or fewer than 8 distinct rows.
    """
    if source is None:
        return split_examples(generic_examples(), "generic", generic=True)
    if is_built(source):
        return _of_built(source)
    return split_examples(read_examples(source), source)


def _of_built(folder: str) -> Split:
    """
    Raises:
        ConfigError: one side has fewer than 2 rows.
    """
    dataset = open_dataset(folder)
    # A row that was repeated to even out classes counts once here.
    parts = {name: tuple({row.id: row for row in read_rows(folder, name)}.values()) for name in SPLITS}
    calibration = tuple(example_of(row) for row in parts["train"])
    heldout = tuple(example_of(row) for name in ("validation", "test") for row in parts[name])
    if min(len(calibration), len(heldout)) < 2:
        raise ConfigError(
            f"{folder}: {len(calibration)} rows to calibrate and {len(heldout)} to judge on; 2 of each are needed",
            hint="Build it with larger splits.",
        )
    rows = (*calibration, *heldout)
    ref = DataRef(
        source=folder,
        digest=dataset.digest,
        rows=len(rows),
        calibration_rows=len(calibration),
        heldout_rows=len(heldout),
        characters=sum(len(content_of(row)) for row in rows),
        kind=dataset.kind,
    )
    return Split(ref=ref, calibration=calibration, heldout=heldout)


def generic_examples() -> list[Example]:
    """A small varied English text of the project's own: prose, dialogue, instructions, code, tables."""
    raw = resources.files("edgegen.prepare").joinpath("generic.jsonl").read_bytes()
    return [Example(text=row["text"]) for row in msgspec.json.decode(b"[" + b",".join(raw.strip().splitlines()) + b"]")]


def split_examples(examples: Iterable[Example], source: str, *, generic: bool = False) -> Split:
    """Drop empty rows and exact duplicates, then split by content hash (one quarter is held out).

    Raises:
        ConfigError: fewer than 8 rows are left, or one side is empty.
    """
    kept: list[Example] = []
    seen: set[bytes] = set()
    empty = duplicates = 0
    for example in examples:
        if not content_of(example).strip():
            empty += 1
            continue
        key = _hash(example)
        if key in seen:
            duplicates += 1
            continue
        seen.add(key)
        kept.append(example)
    if len(kept) < MIN_ROWS:
        raise ConfigError(
            f"{source}: {len(kept)} usable rows ({empty} empty, {duplicates} duplicates); {MIN_ROWS} are needed",
            hint="Give more rows, or leave --data out to calibrate on a generic text.",
        )
    ordered = sorted(kept, key=_hash)
    held = [row for row in ordered if int.from_bytes(_hash(row)[:4]) % 1000 < _HELDOUT_PER_MILLE]
    if not 2 <= len(held) <= len(ordered) - 2:
        # So few rows that chance emptied a side: the lowest hashes are held out instead.
        held = ordered[: max(2, len(ordered) // 4)]
    names = {id(row) for row in held}
    calibration = [row for row in ordered if id(row) not in names]
    ref = DataRef(
        source=source,
        digest=digest_record([_hash(row).hex() for row in ordered]),
        rows=len(ordered),
        calibration_rows=len(calibration),
        heldout_rows=len(held),
        characters=sum(len(content_of(row)) for row in ordered),
        kind=_kind(ordered),
        duplicates=duplicates,
        empty=empty,
        generic=generic,
    )
    return Split(ref=ref, calibration=tuple(calibration), heldout=tuple(held))


def content_of(example: Example) -> str:
    """All of a row's text, for hashing and counting."""
    return example.text or "\n".join(content for _, content in example.messages)


def _hash(example: Example) -> bytes:
    return hashlib.sha256(content_of(example).encode(errors="surrogatepass")).digest()


def _kind(examples: list[Example]) -> str:
    if all(row.completion for row in examples):
        return "completion"
    return "chat" if any(row.messages for row in examples) else "text"
