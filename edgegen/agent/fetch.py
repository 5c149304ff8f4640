"""Put a release's files together: what is here is copied, the gaps are fetched, every segment is hashed.

Progress needs no record of its own: the arriving file's bytes *are* the progress, and after any break they are hashed
again. So a flush that was lost, a swapped file or a bad sector costs the segments it touched and nothing else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from edgegen.agent.clock import Clock
from edgegen.agent.disk import Disk, make_folders
from edgegen.agent.sources import Piece, Place, holds, missing_pieces, pieces_of
from edgegen.errors import NetworkError, TrustError
from edgegen.records.bundle import BundleFile, Manifest

RUN_BYTES = 64 << 20
"""Most bytes that one request asks for."""

_WRONG_TRIES = 3
"""Times that a segment may arrive wrong before the release is refused."""

_BUDGET_SLACK_BYTES = 8 << 20


class GoneError(NetworkError):
    """The server says that there is no such file, or that it will not give it: asking again is no use."""

    retryable = False


class BudgetError(NetworkError):
    """More bytes than this link may carry."""

    retryable = False


class BusyError(NetworkError):
    """The server asks to wait.

    Attributes:
        after_s: seconds that it names, 0 if none.
    """

    def __init__(self, message: str, *, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class Fetcher(Protocol):
    """Where blobs come from."""

    def fetch(self, digest: str, start: int, end: int, spend: Callable[[int], None]) -> Iterator[bytes]:
        """Bytes [start, end) of the blob with this digest, in pieces; never more, perhaps fewer.

        Args:
            spend: told of all bytes that arrive, wanted or not, as they do; what it raises ends the request.

        Raises:
            GoneError: it is not there; do not ask again.
            BusyError: ask again later.
            NetworkError: the connection broke or gave nonsense; ask again.
        """
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class Transfer(NamedTuple):
    """What putting together took."""

    bytes_fetched: int
    """Contents of files as they came over the link: also what was not asked for, or came twice."""
    bytes_reused: int
    bytes_finished: int = 0
    """Of fetched segments that are whole and right."""


class Limits(NamedTuple):
    """What a link may carry."""

    fetch_bytes: int | None = None
    """Most bytes that still may come over the link for this release; None: no limit."""
    full_if_delta_fails: bool = True
    """Whether segments are fetched after all whose local copy turned out wrong."""


def bytes_to_fetch(folder: Path, manifest: Manifest, places: dict[tuple[str, int], Place]) -> tuple[int, int]:
    """(bytes that the network must bring, bytes that the disk must take), judged by sizes without hashing."""
    fetch = disk = 0
    for file in manifest.files:
        path = folder / file.path
        length = path.stat().st_size if path.is_file() else 0
        pieces = pieces_of(file)
        have = {piece.offset for piece in pieces if piece.offset + piece.segment.bytes <= length}
        fetch += sum(piece.segment.bytes for piece in missing_pieces(pieces, places, have)[1])
        disk += max(0, file.bytes - length)
    return fetch, disk


class Assembly:
    """Puts one release together in a folder."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        places: dict[tuple[str, int], Place],
        *,
        disk: Disk,
        fetcher: Fetcher,
        clock: Clock,
        limits: Limits = Limits(),
        between: Callable[[Transfer], None] = lambda _: None,
        dice: random.Random | None = None,
    ) -> None:
        """Prepare.

        Args:
            folder: where the files go; it exists.
            places: local bytes that may be reused.
            between: called after each piece of work; what it raises ends the assembly.
            dice: for the waits between tries.
        """
        self._folder, self._manifest, self._places = folder, manifest, places
        self._disk, self._fetcher, self._clock = disk, fetcher, clock
        self._limits, self._between = limits, between
        self._dice = dice or random.Random()
        self._spent = 0
        self._received = 0
        self._finished = 0
        self._reused = 0
        planned = bytes_to_fetch(folder, manifest, places)[0]
        if limits.fetch_bytes is not None and planned > limits.fetch_bytes:
            raise BudgetError(
                f"{planned:,} bytes are to be fetched and this link may still carry {limits.fetch_bytes:,}",
                hint="Raise limits.fetch_bytes or bring the release by another way.",
            )

    def run(self) -> Transfer:
        """Bring all files into place. Bytes are not flushed.

        Raises:
            GoneError: the server does not have a file.
            BudgetError: more bytes than allowed would be needed.
            TrustError: the server gives other bytes than the manifest names, again and again.
            DeviceError: the disk is full or fails.
        """
        for file in self._manifest.files:
            self._assemble(file)
        return self.transfer()

    def transfer(self) -> Transfer:
        """What it took so far."""
        return Transfer(self._spent, self._reused, self._finished)

    def _assemble(self, file: BundleFile) -> None:
        path = self._folder / file.path
        make_folders(self._disk, path.parent)
        if not path.is_file():
            self._disk.write(path, b"")
        if path.stat().st_size > file.bytes:
            self._disk.truncate(path, file.bytes)
        pieces = pieces_of(file)
        length = path.stat().st_size
        there = [piece for piece in pieces if piece.offset + piece.segment.bytes <= length]
        have = {piece.offset for piece in there if holds(path, piece)}
        self._reused += sum(piece.segment.bytes for piece in there if piece.offset in have)
        copied, fetched = missing_pieces(pieces, self._places, have)
        for piece in sorted((*copied, *fetched), key=lambda piece: piece.offset):
            if piece in copied and not self._copy(piece, path):
                if not self._limits.full_if_delta_fails:
                    raise BudgetError(
                        f"{file.path}: a part that this device should have is damaged and may not be fetched",
                        hint="Set limits.full_if_delta_fails to fetch it.",
                    )
                fetched.append(piece)
        for run in _runs(sorted(fetched, key=lambda piece: piece.offset)):
            self._fetch(file, run, path)

    def _copy(self, piece: Piece, path: Path) -> bool:
        """Take a piece from a local file; False: it is not there or not what it should be."""
        place = self._places[piece.segment.digest, piece.segment.bytes]
        try:
            if not holds(place.path, piece, place.offset):
                return False
            with place.path.open("rb") as stream:
                stream.seek(place.offset)
                done = 0
                while done < piece.segment.bytes:
                    data = stream.read(min(1 << 20, piece.segment.bytes - done))
                    self._disk.write_at(path, piece.offset + done, data)
                    done += len(data)
        except FileNotFoundError:
            return False
        self._reused += piece.segment.bytes
        self._between(self.transfer())
        return True

    def _fetch(self, file: BundleFile, run: list[Piece], path: Path) -> None:
        """Fetch adjoining pieces, as often as it takes."""
        fails, wrong = 0, 0
        # Where the file ends inside a piece, an earlier try was interrupted there; its bytes are hashed with the rest.
        kept = path.stat().st_size - run[0].offset
        kept = kept if 0 < kept < run[0].segment.bytes else 0
        while run:
            before = self._received
            try:
                finished = self._stream(file, run, path, kept)
            except _WrongError as error:
                run, kept = run[error.finished :], 0
                wrong = 1 if error.finished else wrong + 1
                if wrong > _WRONG_TRIES:
                    raise TrustError(
                        f"{file.path}: the server gives other bytes than the signed manifest names",
                        hint="The release is damaged on the server or someone changed it; publish it again.",
                    ) from error
                continue
            except _CutError as error:
                run, kept = run[error.finished :], error.kept
                if error.finished:
                    wrong = 0
                if not error.cause.retryable:
                    raise error.cause from error
                fails = 0 if self._received > before else fails + 1
                self._wait(fails, getattr(error.cause, "after_s", 0.0))
                continue
            run, kept = run[finished:], 0

    def _stream(self, file: BundleFile, run: list[Piece], path: Path, kept: int) -> int:
        """One request; returns how many pieces it finished, all unless the answer was short."""
        end = run[-1].offset + run[-1].segment.bytes
        offset, index = run[0].offset + kept, 0
        hasher = _hash_of(path, run[0].offset, kept)
        try:
            for chunk in self._fetcher.fetch(file.digest, offset, end, self._spend):
                self._receive(len(chunk))
                self._disk.write_at(path, offset, chunk)
                view = memoryview(chunk)
                while view:
                    piece = run[index]
                    stop = piece.offset + piece.segment.bytes
                    part, view = view[: stop - offset], view[stop - offset :]
                    hasher.update(part)
                    offset += len(part)
                    if offset == stop:
                        if "sha256:" + hasher.hexdigest() != piece.segment.digest:
                            raise _WrongError(index)
                        index += 1
                        hasher = hashlib.sha256()
                        self._finished += piece.segment.bytes
                        if index == len(run):
                            self._between(self.transfer())
                            return index
                self._between(self.transfer())
        except NetworkError as error:
            raise _CutError(index, offset - run[index].offset, error) from error
        raise _CutError(index, offset - run[index].offset, NetworkError(f"{file.path}: the answer ended too early"))

    def _spend(self, count: int) -> None:
        """Count what comes over the link, be it of use or not."""
        self._spent += count
        if self._limits.fetch_bytes is not None and self._spent > self._limits.fetch_bytes:
            raise BudgetError(
                f"{self._spent:,} bytes came over a link that may still carry {self._limits.fetch_bytes:,}",
                hint="Raise limits.fetch_bytes or bring the release by another way.",
            )
        self._between(self.transfer())

    def _receive(self, count: int) -> None:
        """Count bytes that were asked for; a server that makes the same be fetched for ever is stopped here."""
        self._received += count
        total = sum(file.bytes for file in self._manifest.files)
        if self._received > 2 * total + _BUDGET_SLACK_BYTES:
            raise BudgetError(
                f"{self._received:,} bytes received for a release of {total:,}",
                hint="The server breaks off or gives wrong bytes again and again; look at it before trying again.",
            )

    def _wait(self, fails: int, after_s: float) -> None:
        longest = max(after_s, min(60.0, 0.5 * 2.0 ** min(fails, 10)))
        self._clock.sleep(max(after_s, longest * self._dice.uniform(0.5, 1.0)))
        self._between(self.transfer())


class _WrongError(Exception):
    """A segment is not what the manifest names; `finished` pieces before it are right."""

    def __init__(self, finished: int) -> None:
        super().__init__(finished)
        self.finished = finished


class _CutError(Exception):
    """A request broke after `finished` whole pieces and `kept` bytes of the next."""

    def __init__(self, finished: int, kept: int, cause: NetworkError) -> None:
        super().__init__(finished)
        self.finished = finished
        self.kept = kept
        self.cause = cause


def _runs(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Adjoining pieces together, up to `RUN_BYTES`."""
    run: list[Piece] = []
    size = 0
    for piece in pieces:
        adjoins = run and run[-1].offset + run[-1].segment.bytes == piece.offset
        if run and (not adjoins or size + piece.segment.bytes > RUN_BYTES):
            yield run
            run, size = [], 0
        run.append(piece)
        size += piece.segment.bytes
    if run:
        yield run


def _hash_of(path: Path, offset: int, length: int) -> hashlib._Hash:
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(offset)
        while length:
            data = stream.read(min(1 << 20, length))
            if not data:
                break
            hasher.update(data)
            length -= len(data)
    return hasher
