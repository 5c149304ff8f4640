"""Which bytes of a new release this device already has.

A release's files are cut into segments at tensor boundaries, and every segment has a digest. So any file here whose
manifest lists the same digest is a source: an older version, an interrupted download, another model. What is found is
only a hint: the copy is hashed before it counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from edgegen.records.bundle import BundleFile, Manifest, Segment

MERGED_GAP_BYTES = 64 * 1024
"""A segment smaller than this between two that must be fetched is fetched with them: a request costs more."""


class Place(NamedTuple):
    """A stretch of a local file."""

    path: Path
    offset: int


class Piece(NamedTuple):
    """A segment where it belongs in its file."""

    offset: int
    segment: Segment


def pieces_of(file: BundleFile) -> list[Piece]:
    """A file's segments with their offsets; a file without a table is one segment, an empty one has none."""
    if not file.segments:
        return [Piece(0, Segment(bytes=file.bytes, digest=file.digest))] if file.bytes else []
    found, offset = [], 0
    for segment in file.segments:
        found.append(Piece(offset, segment))
        offset += segment.bytes
    return found


def index_places(installed: Iterable[tuple[Path, Manifest]]) -> dict[tuple[str, int], Place]:
    """(digest, bytes) → where a local file should hold them.

    Args:
        installed: folders of releases and their manifests; files may be missing or unfinished.
    """
    places: dict[tuple[str, int], Place] = {}
    for folder, manifest in installed:
        for file in manifest.files:
            path = folder / file.path
            length = path.stat().st_size if path.is_file() else 0
            for offset, segment in pieces_of(file):
                if offset + segment.bytes <= length:
                    places.setdefault((segment.digest, segment.bytes), Place(path, offset))
            if file.segments and length == file.bytes:
                places.setdefault((file.digest, file.bytes), Place(path, 0))
    return places


def missing_pieces(
    pieces: Iterable[Piece], places: dict[tuple[str, int], Place], have: set[int]
) -> tuple[list[Piece], list[Piece]]:
    """Split what a file still lacks into (to copy, to fetch).

    Args:
        have: offsets of pieces that are there already.
    """
    lacking = [piece for piece in pieces if piece.offset not in have]
    local = [(piece.segment.digest, piece.segment.bytes) in places for piece in lacking]
    fetched = [not here for here in local]
    for index in range(1, len(lacking) - 1):
        before, piece, after = lacking[index - 1 : index + 2]
        adjacent = before.offset + before.segment.bytes == piece.offset
        adjacent &= piece.offset + piece.segment.bytes == after.offset
        if fetched[index - 1] and not local[index + 1] and adjacent and piece.segment.bytes < MERGED_GAP_BYTES:
            fetched[index] = True
    return (
        [piece for piece, fetch in zip(lacking, fetched, strict=True) if not fetch],
        [piece for piece, fetch in zip(lacking, fetched, strict=True) if fetch],
    )


def holds(path: Path, piece: Piece, place_offset: int | None = None) -> bool:
    """Whether a file has a piece's bytes at its offset, or at another one; reads and hashes them."""
    offset = piece.offset if place_offset is None else place_offset
    hasher, left = hashlib.sha256(), piece.segment.bytes
    with path.open("rb") as stream:
        stream.seek(offset)
        while left:
            data = stream.read(min(left, 1 << 20))
            if not data:
                return False
            hasher.update(data)
            left -= len(data)
    return "sha256:" + hasher.hexdigest() == piece.segment.digest
