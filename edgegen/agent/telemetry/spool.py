"""Reports on the disk until a server has them: one SQLite file that the agent's processes share.

Written ahead (WAL). Reports of lanes 0 and 1 are flushed to the disk before `add` returns; others survive a kill at
once and a power cut a little later. A number that a server has seen must never name another report, so everything in a
batch is flushed before it is given out: after a power cut the device may send again, but never something else under
the same number. Numbers are never used twice, also not those of reports that are gone (AUTOINCREMENT).

Too many bytes: the oldest reports of the lowest lane go. What goes is counted in `gone`, in the same transaction, and
becomes one `Dropped` report for each lane and reason when the next batch is made up. Deleted text is overwritten.

A file that is damaged, or of a newer version, is put aside and another stream begins. The other process sees that its
file is no longer the one of that name and opens the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import psutil

from edgegen.agent.telemetry.settings import PLAUSIBLE_S
from edgegen.errors import DeviceError
from edgegen.records.base import Record
from edgegen.records.telemetry import MOST_REPORT_BYTES, Batch, Dropped, Happening, Lane, Said

T = TypeVar("T")

SPOOL = "spool.db"
_VERSION = 1
_ENVELOPE_BYTES = 512
"""Of a line around its item, at most."""
_PAGE = 4096
_LOG_BYTES = 1 << 20
"""That the write-ahead log may keep, at most; it is written back every half of it."""
_KNOWN_ANSWERS = 10_000
"""Ids that feedback may name, at most."""
_BUSY_S = 15.0
_EXPIRED_AGAIN_S = 3600.0

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE report (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, lane INTEGER NOT NULL, bytes INTEGER NOT NULL, kind TEXT NOT NULL,
    at_s REAL NOT NULL, mono_s REAL NOT NULL, boot TEXT NOT NULL, item BLOB NOT NULL
);
CREATE INDEX report_lane ON report (lane, seq, bytes, at_s);
CREATE TABLE gone (
    lane INTEGER, why TEXT, waiting INTEGER NOT NULL, first INTEGER, last INTEGER, total INTEGER NOT NULL,
    PRIMARY KEY (lane, why)
) WITHOUT ROWID;
CREATE TABLE answer (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL);
"""


class Stamp(NamedTuple):
    """When something happened."""

    at_s: float
    mono_s: float
    boot: str


class Entry(NamedTuple):
    """What is to be kept."""

    lane: Lane
    item: Said
    stamp: Stamp
    answer: str = ""
    """Id that feedback may name from now on; empty: none."""


class Line(msgspec.Struct, frozen=True):
    """A `Report` whose item is not read again."""

    stream: str
    seq: int
    lane: int
    at_s: float
    mono_s: float
    boot: str
    item: msgspec.Raw


class Parcel(NamedTuple):
    """Reports to send together."""

    stream: str
    seqs: tuple[int, ...]
    """In the order of the lines."""
    lines: tuple[bytes, ...]

    def body(self, stamp: Stamp) -> bytes:
        """Lines of JSON, the `Batch` first."""
        head = Batch(
            stream=self.stream,
            sent_s=stamp.at_s,
            mono_s=stamp.mono_s,
            boot=stamp.boot,
            reports=len(self.lines),
        )
        return b"\n".join([msgspec.json.encode(head), *self.lines, b""])


class LaneDepth(Record, frozen=True):
    """What waits in one lane."""

    lane: int
    name: str
    reports: int
    bytes: int
    oldest_s: float | None


class Gone(Record, frozen=True):
    """What was given up since the stream began."""

    lane: int
    why: str
    count: int


class Depth(Record, frozen=True):
    """What a spool holds."""

    stream: str
    lanes: tuple[LaneDepth, ...]
    file_bytes: int
    quota_bytes: int
    gone: tuple[Gone, ...]
    acked_s: float | None
    """When a server last took something."""
    next_seq: int


def stamp() -> Stamp:
    """Now, by this machine's clocks."""
    return Stamp(time.time(), time.monotonic(), _boot())


class Spool:
    """The file, as one process uses it, from any of its threads. Close it."""

    def __init__(
        self,
        path: Path,
        *,
        quota_bytes: int,
        retention_s: dict[int, float] | None = None,
        now: Callable[[], Stamp] = stamp,
    ) -> None:
        """Open it, or begin a new one.

        Args:
            quota_bytes: of the file and its log.
            retention_s: lane → seconds that a report waits at most.
            now: the clocks.

        Raises:
            DeviceError: the disk is full, read-only or broken.
        """
        self._path, self._now = path, now
        self._quota, self._retention = quota_bytes, retention_s or {}
        self._link: sqlite3.Connection | None = None
        self._inode = 0
        self._expired_s: float | None = None
        self._lock = threading.RLock()
        self._log = max(64 * 1024, min(_LOG_BYTES, quota_bytes // 8))
        self._answers = max(100, min(_KNOWN_ANSWERS, quota_bytes // 1000))
        self._pages = (quota_bytes - 2 * self._log - 32 * 1024) // _PAGE
        self.stream = ""
        """Changes when a damaged file was put aside."""
        self._do(lambda _: None)

    def close(self) -> None:
        """Close the file."""
        if self._link is not None:
            with contextlib.suppress(sqlite3.Error):
                self._link.close()
            self._link = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, entries: Sequence[Entry], lost: Sequence[tuple[int, int, str]] = ()) -> list[int]:
        """Keep reports; their numbers. They survive a kill from here on, and of lanes 0 and 1 a power cut.

        Args:
            entries: what to keep; one that no line can hold is given up and counted, its number is 0.
            lost: lane, count and reason of what could not even be brought here.

        Raises:
            DeviceError: the disk is full or broken; nothing was kept.
        """

        def work(link: sqlite3.Connection) -> list[int]:
            numbers = []
            for entry in entries:
                try:
                    item = msgspec.json.encode(entry.item)
                except (UnicodeEncodeError, TypeError):  # half a surrogate pair, for one
                    item = b""
                if not 0 < len(item) <= MOST_REPORT_BYTES - _ENVELOPE_BYTES:
                    self._skip(link, entry.lane, 1, "refused" if item else "failed")
                    numbers.append(0)
                    continue
                numbers.append(_insert(link, entry, item))
                if entry.answer:
                    link.execute("INSERT OR REPLACE INTO answer (id) VALUES (?)", (entry.answer,))
            for lane, count, why in lost:
                self._skip(link, lane, count, why)
            link.execute("DELETE FROM answer WHERE number <= (SELECT max(number) FROM answer) - ?", (self._answers,))
            self._shrink(link)
            return numbers

        return self._do(work, flush=any(entry.lane <= Lane.ERRORS for entry in entries))

    def take(self, most_bytes: int, *, most: int = 2000, without: frozenset[int] = frozenset()) -> Parcel | None:
        """What is to be sent next, lane after lane and old before new; None: nothing.

        Args:
            most_bytes: of the lines together; one line may have more.
            most: reports.
            without: numbers to leave out.

        Raises:
            DeviceError: as `add`.
        """

        def work(link: sqlite3.Connection) -> Parcel | None:
            self._expire(link)
            self._report_gone(link)
            seqs, lines, size = list[int](), list[bytes](), 1024  # the batch's own line
            rows = link.execute("SELECT seq, lane, at_s, mono_s, boot, item FROM report ORDER BY lane, seq")
            for seq, lane, at_s, mono_s, boot, item in rows:
                if seq in without:
                    continue
                line = msgspec.json.encode(Line(self.stream, seq, lane, at_s, mono_s, boot, msgspec.Raw(item)))
                size += len(line) + 1
                if lines and (size > most_bytes or len(lines) >= most):
                    break
                seqs.append(seq)
                lines.append(line)
            rows.close()
            if not seqs:
                return None
            if max(seqs) > int(str(_get(link, "shown") or 0)):
                # A change, so that the flush at the end of this transaction takes all before it to the disk.
                _set(link, "shown", max(seqs))
            return Parcel(self.stream, tuple(seqs), tuple(lines))

        if not self._any():
            return None
        return self._do(work, flush=True)

    def settle(self, parcel: Parcel, refused: Sequence[int] = ()) -> None:
        """Forget what a server has: all of a parcel, of which it will never take the refused numbers.

        Raises:
            DeviceError: as `add`; then the server gets them again.
        """

        def work(link: sqlite3.Connection) -> None:
            if parcel.stream != self.stream:
                return
            for seq in refused:
                row = link.execute("SELECT lane, kind FROM report WHERE seq = ?", (seq,)).fetchone()
                if row is not None:
                    # A refused word about what is gone makes no further one: that would not end.
                    _count_gone(link, row[0], "refused", 1, seq, seq, silent=row[1] == "dropped")
            link.executemany("DELETE FROM report WHERE seq = ?", [(seq,) for seq in parcel.seqs])
            _set(link, "acked_s", self._now().at_s)

        self._do(work)

    def drop(self, parcel: Parcel, seqs: Sequence[int]) -> None:
        """Give up reports that no server takes."""
        self.settle(Parcel(parcel.stream, tuple(seqs), ()), refused=seqs)

    def forget(self, lanes: Sequence[int]) -> int:
        """Delete what waits in these lanes, from the disk as well; how many reports that were.

        Raises:
            DeviceError: as `add`.
        """

        def work(link: sqlite3.Connection) -> int:
            return sum(link.execute("DELETE FROM report WHERE lane = ?", (lane,)).rowcount for lane in lanes)

        found = self._do(work, flush=True)
        assert self._link is not None
        until = time.monotonic() + _BUSY_S
        while self._link.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:  # another process reads
            if time.monotonic() > until:
                raise DeviceError(f"{self._path}: its log is in use", hint="Run the command again.")
            time.sleep(0.05)
        for path in self._path.parent.glob(f"{self._path.name}.damaged*"):
            path.unlink(missing_ok=True)
        return found

    def knows_answer(self, name: str) -> bool:
        """Whether an answer of this id was recorded here; the latest ones are remembered."""
        return self._do(lambda link: link.execute("SELECT 1 FROM answer WHERE id = ?", (name,)).fetchone() is not None)

    def remember(self, key: str, value: float) -> None:
        """Keep a number by name."""
        self._do(lambda link: _set(link, key, value))

    def recall(self, key: str) -> float | None:
        """A number that was kept."""
        found = self._do(lambda link: _get(link, key))
        return None if found is None else float(str(found))

    def depth(self) -> Depth:
        """What is in it."""

        def work(link: sqlite3.Connection) -> Depth:
            lanes = [
                LaneDepth(lane, Lane(lane).name.lower(), count, size, oldest)
                for lane, count, size, oldest in link.execute(
                    "SELECT lane, count(*), sum(bytes), min(at_s) FROM report GROUP BY lane ORDER BY lane"
                )
            ]
            gone = [Gone(*row) for row in link.execute("SELECT lane, why, total FROM gone ORDER BY lane, why")]
            acked = _get(link, "acked_s")
            last = link.execute("SELECT seq FROM sqlite_sequence WHERE name = 'report'").fetchone()
            return Depth(
                stream=self.stream,
                lanes=tuple(lanes),
                file_bytes=file_bytes(self._path),
                quota_bytes=self._quota,
                gone=tuple(gone),
                acked_s=None if acked is None else float(str(acked)),
                next_seq=(last[0] if last else 0) + 1,
            )

        return self._do(work)

    def waiting(self, most: int) -> list[bytes]:
        """The lines that would be sent next."""

        def work(link: sqlite3.Connection) -> list[bytes]:
            rows = link.execute(
                "SELECT seq, lane, at_s, mono_s, boot, item FROM report ORDER BY lane, seq LIMIT ?", (most,)
            )
            return [
                msgspec.json.encode(Line(self.stream, seq, lane, at_s, mono_s, boot, msgspec.Raw(item)))
                for seq, lane, at_s, mono_s, boot, item in rows
            ]

        return self._do(work)

    def _any(self) -> bool:
        """Whether there is something to send; nothing is written to find out."""
        question = "SELECT EXISTS (SELECT 1 FROM report) OR EXISTS (SELECT 1 FROM gone WHERE waiting > 0)"
        return bool(self._do(lambda link: link.execute(question).fetchone()[0]))

    def _skip(self, link: sqlite3.Connection, lane: int, count: int, why: str) -> None:
        """Use up numbers for reports that were never kept, so that no number is missing without a word."""
        row = link.execute("SELECT seq FROM sqlite_sequence WHERE name = 'report'").fetchone()
        last = int(row[0]) if row else 0
        if row:
            link.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'report'", (last + count,))
        else:
            link.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('report', ?)", (last + count,))
        _count_gone(link, lane, why, count, last + 1, last + count)

    def _shrink(self, link: sqlite3.Connection) -> None:
        """Keep to the quota: the lowest lane's oldest go, a twentieth of the room at a time."""
        if _used_pages(link) <= self._pages:
            return
        aim = self._pages * 19 // 20
        while (over := _used_pages(link) - aim) > 0:
            row = link.execute("SELECT max(lane) FROM report").fetchone()
            if row[0] is None:
                return
            seqs = list[int]()
            wanted = over * _PAGE
            for seq, size in link.execute("SELECT seq, bytes FROM report WHERE lane = ? ORDER BY seq", row):
                seqs.append(seq)
                wanted -= size
                if wanted <= 0:
                    break
            self._give_up(link, row[0], seqs, "quota")

    def _expire(self, link: sqlite3.Connection) -> None:
        """Give up what has waited too long. A clock that was set meanwhile makes nothing old by itself."""
        now = self._now()
        if self._expired_s is not None and now.mono_s - self._expired_s < _EXPIRED_AGAIN_S:
            return
        self._expired_s = now.mono_s
        for lane, limit_s in self._retention.items():
            rows = link.execute(
                "SELECT seq, at_s, mono_s, boot FROM report WHERE lane = ? AND at_s < ?", (lane, now.at_s - limit_s)
            ).fetchall()
            old = [
                seq
                for seq, at_s, mono_s, boot in rows
                if (now.mono_s - mono_s > limit_s if boot == now.boot else at_s >= PLAUSIBLE_S)
            ]
            self._give_up(link, lane, old, "expired")

    def _give_up(self, link: sqlite3.Connection, lane: int, seqs: Sequence[int], why: str) -> None:
        if seqs:
            link.executemany("DELETE FROM report WHERE seq = ?", [(seq,) for seq in seqs])
            _count_gone(link, lane, why, len(seqs), min(seqs), max(seqs))

    def _report_gone(self, link: sqlite3.Connection) -> None:
        for lane, why, count, first, last in link.execute(
            "SELECT lane, why, waiting, first, last FROM gone WHERE waiting > 0"
        ).fetchall():
            item = Dropped(lane=lane, count=count, first_seq=first, last_seq=last, why=why)
            _insert(link, Entry(Lane.ERRORS, item, self._now()), msgspec.json.encode(item))
        link.execute("UPDATE gone SET waiting = 0, first = NULL, last = NULL WHERE waiting > 0")

    def _do(self, work: Callable[[sqlite3.Connection], T], *, flush: bool = False) -> T:
        """One transaction; on a damaged file once more, on a new one."""
        with self._lock:
            return self._once(work, flush)

    def _once(self, work: Callable[[sqlite3.Connection], T], flush: bool) -> T:
        for attempt in range(2):
            try:
                link = self._current()
                link.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
                link.execute("BEGIN IMMEDIATE")
                try:
                    result = work(link)
                    link.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        link.execute("ROLLBACK")
                    raise
                return result
            except sqlite3.Error as error:
                if attempt == 0 and _is_damage(error):
                    self._put_aside(str(error))
                    continue
                raise DeviceError(f"{self._path}: {error}", hint="Is the disk full or read-only?") from error
            except OSError as error:
                raise DeviceError(f"{self._path}: {error.strerror or error}", hint="Check the disk.") from error
        raise AssertionError

    def _current(self) -> sqlite3.Connection:
        """The file of this name: another process may have put the one that was open aside."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    return self._link
            self.close()
        with _alone(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._inode = self._path.stat().st_ino
            self._link = self._opened()
        return self._link

    def _opened(self) -> sqlite3.Connection:
        link = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            version = link.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"of version {version}, this agent knows {_VERSION}")
            link.execute(f"PRAGMA page_size = {_PAGE}")
            link.execute("PRAGMA journal_mode = WAL")
            link.execute(f"PRAGMA wal_autocheckpoint = {self._log // 2 // _PAGE}")
            link.execute(f"PRAGMA journal_size_limit = {self._log}")
            link.execute("PRAGMA secure_delete = ON")
            link.execute("PRAGMA cache_size = -512")
            if version == 0:
                link.execute("PRAGMA synchronous = FULL")
                link.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} INSERT INTO meta VALUES ('stream', '{uuid.uuid4()}');"
                    f"PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            self.stream = str(_get(link, "stream"))
        except BaseException:
            link.close()
            raise
        return link

    def _put_aside(self, why: str) -> None:
        """Begin anew; of damaged files the last one stays, for a person to look at."""
        self.close()
        with _alone(self._path):
            if self._path.exists() and self._path.stat().st_ino != self._inode:
                return  # the other process was faster
            for path in self._path.parent.glob(f"{self._path.name}.damaged*"):
                path.unlink(missing_ok=True)
            for ending in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self._path}{ending}").replace(f"{self._path}.damaged{ending}")
        said = Happening(level="warning", what="spool-damaged", detail=f"a new stream begins: {why}"[:200])
        self.add([Entry(Lane.ERRORS, said, self._now())])


def file_bytes(path: Path) -> int:
    """What a spool takes on the disk."""
    total = 0
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            total += Path(f"{path}{ending}").stat().st_size
    return total


def _insert(link: sqlite3.Connection, entry: Entry, item: bytes) -> int:
    kind = type(entry.item).__struct_config__.tag
    row = (entry.lane, len(item) + 100, kind, *entry.stamp, item)
    cursor = link.execute(
        "INSERT INTO report (lane, bytes, kind, at_s, mono_s, boot, item) VALUES (?, ?, ?, ?, ?, ?, ?)", row
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _count_gone(
    link: sqlite3.Connection, lane: int, why: str, count: int, first: int, last: int, *, silent: bool = False
) -> None:
    waiting = 0 if silent else count
    link.execute(
        "INSERT INTO gone VALUES (:lane, :why, :waiting, :first, :last, :count) ON CONFLICT (lane, why) DO UPDATE SET"
        " waiting = waiting + :waiting, first = min(ifnull(first, :first), :first),"
        " last = max(ifnull(last, :last), :last), total = total + :count",
        {
            "lane": lane,
            "why": why,
            "waiting": waiting,
            "first": None if silent else first,
            "last": None if silent else last,
            "count": count,
        },
    )


def _used_pages(link: sqlite3.Connection) -> int:
    return int(link.execute("PRAGMA page_count").fetchone()[0] - link.execute("PRAGMA freelist_count").fetchone()[0])


def _get(link: sqlite3.Connection, key: str) -> object:
    row = link.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def _set(link: sqlite3.Connection, key: str, value: object) -> None:
    link.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised here
        return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.ProgrammingError)
    missing = code == sqlite3.SQLITE_ERROR and "no such" in str(error)
    return missing or (code & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


_here = threading.Lock()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process or thread opens or puts aside this spool meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _here, path.with_name(path.name + ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@cache
def _boot() -> str:
    """What names this run of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"
