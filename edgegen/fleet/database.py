"""One database, one writer: SQLite for a site, PostgreSQL at scale, through the same SQL.

Every access is a transaction that may write. On SQLite it takes the write lock at once (`BEGIN IMMEDIATE`), so that two
transactions never find out half-way that they collide; on PostgreSQL an advisory lock has the same effect across
several servers. Inside a server, `Writer` runs them in one thread and commits those that wait together in one go: a
commit costs a flush to the disk, whatever is in it.

The SQL is what both databases share: `?` for arguments (no literal `?` or `%` stands in a statement), `BIGINT`, `TEXT`,
`DOUBLE PRECISION`, `ON CONFLICT`, `RETURNING`.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from edgegen.errors import ConfigError, DeviceError, EdgegenError, NetworkError, UnsupportedError
from edgegen.fleet.schema import prepare, require_own
from edgegen.fleet.transaction import Row, Transaction, Value

T = TypeVar("T")

_BUSY_S = 30.0
_BATCH = 256
_LOCK_KEY = 0x65646765  # "edge"


class Database:
    """A connection, used by one thread at a time."""

    def __init__(self, url: str) -> None:
        """Open, and make the tables that are missing.

        Args:
            url: a file's path, `sqlite:///path` or `postgresql://user@host/name`.

        Raises:
            ConfigError: another kind of URL, a file that is no database, or another program's database.
            UnsupportedError: PostgreSQL's driver is not installed.
            NetworkError: PostgreSQL does not answer.
        """
        self.url = url
        path = sqlite_path(url)
        self._connection: _Sqlite | _Postgres = _Postgres(url) if path is None else _Sqlite(path)
        try:
            with self.transaction() as tx:
                prepare(tx)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Everything inside is kept, or on an exception nothing is."""
        with self._connection.whole():
            yield self._connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        """Read one state of the database, for as long as it takes, and write nothing; writers are not held up."""
        with self._connection.still():
            yield self._connection

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """Inside a transaction: on an exception only what was done inside the part is undone."""
        self._connection.run("SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._connection.run("ROLLBACK TO SAVEPOINT part")
            raise
        finally:
            self._connection.run("RELEASE SAVEPOINT part")

    def clear_log(self, wait_s: float = 0.0) -> bool:
        """Outside a transaction: make SQLite's log forget what it holds of deleted rows. False: somebody is reading."""
        return self._connection.clear_log(wait_s)

    def close(self) -> None:
        self._connection.close()


class _Sqlite:
    dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit mode: transactions begin and end where this class says so.
            self.raw = sqlite3.connect(path.absolute(), timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            require_own(self.tables(), where=str(path), shared=False)  # before anything is written
            self.raw.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file; an older one stays as it is
            self.raw.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten: texts must be gone
            self.raw.execute("PRAGMA journal_mode=WAL")
            self.raw.execute("PRAGMA synchronous=FULL")  # a wave must not be begun twice after a power cut
        except sqlite3.OperationalError as error:
            raise ConfigError(f"{path}: {error}", hint="Is it a file that this user may write?") from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: {error}", hint="Name a fleet's database, or a place for a new one.") from error
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error

    def rows(self, sql: str, *arguments: Value) -> list[Row]:
        try:
            cursor = self.raw.execute(sql, _plain(arguments))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except sqlite3.DatabaseError as error:
            raise _told(error) from error

    def run(self, sql: str, *arguments: Value) -> int:
        try:
            return self.raw.execute(sql, _plain(arguments)).rowcount
        except sqlite3.DatabaseError as error:
            raise _told(error) from error

    def many(self, sql: str, rows: Sequence[Sequence[Value]]) -> int:
        try:
            return self.raw.executemany(sql, rows).rowcount if rows else 0
        except sqlite3.DatabaseError as error:
            raise _told(error) from error

    def tables(self) -> set[str]:
        rows = self.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite#_%' ESCAPE '#'")
        return {row["name"] for row in rows}

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.raw.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        self.run("BEGIN")
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                self.raw.execute("ROLLBACK")

    def clear_log(self, wait_s: float) -> bool:
        self.run(f"PRAGMA busy_timeout={int(wait_s * 1000)}")
        try:
            return not self.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0]["busy"]
        except DeviceError:  # it is locked
            return False
        finally:
            self.run(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")

    def close(self) -> None:
        self.raw.close()


class _Postgres:
    dialect = "postgresql"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                "a PostgreSQL store needs psycopg, which is not installed",
                hint="pip install 'edgegen[server,postgres]'",
            ) from error
        self._psycopg: Any = psycopg
        self._url = url
        self._open()
        require_own(self.tables(), where="--store", shared=True)  # the URL may hold a password

    def _open(self) -> None:
        from psycopg.rows import dict_row

        try:
            self.raw = self._psycopg.connect(self._url, autocommit=True, row_factory=dict_row, connect_timeout=10)
        except self._psycopg.OperationalError as error:
            line = str(error).strip().splitlines()[0]
            raise NetworkError(f"the fleet's database does not answer: {line}") from error
        except self._psycopg.ProgrammingError as error:
            line = str(error).strip().splitlines()[0]
            raise ConfigError(f"--store: {line}", hint="Write it like postgresql://user@host/name.") from error

    def rows(self, sql: str, *arguments: Value) -> list[Row]:
        found: list[Row] = self.raw.execute(sql.replace("?", "%s"), _plain(arguments)).fetchall()
        return found

    def run(self, sql: str, *arguments: Value) -> int:
        return int(self.raw.execute(sql.replace("?", "%s"), _plain(arguments)).rowcount)

    def many(self, sql: str, rows: Sequence[Sequence[Value]]) -> int:
        if not rows:
            return 0
        with self.raw.cursor() as cursor:
            cursor.executemany(sql.replace("?", "%s"), rows)
            return int(cursor.rowcount)

    def tables(self) -> set[str]:
        return {
            row["name"]
            for row in self.rows("SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema()")
        }

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        with self._answering(), self.raw.transaction():
            self.raw.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
            yield

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        with self._answering(), self.raw.transaction():
            self.raw.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        if self.raw.closed:  # the server went away in an earlier transaction
            self._open()
        try:
            yield
        except self._psycopg.OperationalError as error:
            self.raw.close()
            raise NetworkError(f"the fleet's database: {str(error).strip().splitlines()[0]}") from error

    def clear_log(self, wait_s: float) -> bool:
        return True  # the server's own affair

    def close(self) -> None:
        self.raw.close()


_Job = tuple[Callable[[Transaction], Any], Future[Any]]


class Writer:
    """The one thread that touches the database while a server runs."""

    def __init__(self, url: str) -> None:
        """Open the database (see `Database`) and start the thread."""
        self._database = Database(url)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._log_to_clear = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fleet-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[Transaction], T]) -> Future[T]:
        """Run a job in a transaction soon. The future is done when it is committed, or with the job's exception."""
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def waiting(self) -> int:
        """Jobs that are not begun, about."""
        return self._jobs.qsize()

    def clear_log(self) -> None:
        """See `Database.clear_log`; soon, between two transactions."""
        self._log_to_clear.set()

    def close(self) -> None:
        """Finish what was submitted, then stop."""
        self._jobs.put(None)
        self._thread.join()
        self._database.close()

    def _work(self) -> None:
        while True:
            batch = [self._jobs.get()]
            while len(batch) < _BATCH and not self._jobs.empty():
                batch.append(self._jobs.get())
            jobs = [job for job in batch if job is not None]
            # Whoever asked may have gone away while it waited; once it runs, nobody can call it off.
            self._commit([(job, future) for job, future in jobs if future.set_running_or_notify_cancel()])
            if self._log_to_clear.is_set():
                with contextlib.suppress(EdgegenError):  # tried again after the next jobs
                    if self._database.clear_log():
                        self._log_to_clear.clear()
            if len(jobs) < len(batch):
                return

    def _commit(self, jobs: Sequence[_Job]) -> None:
        results: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with self._database.transaction() as tx:
                for job, future in jobs:
                    try:
                        with self._database.part():
                            results.append((future, job(tx), None))
                    except Exception as error:
                        results.append((future, None, error))
        except Exception as error:  # nothing of the batch is kept
            results = [(future, None, error) for _, future in jobs]
        for future, value, failure in results:
            if failure is None:
                future.set_result(value)
            else:
                future.set_exception(failure)


def _told(error: sqlite3.DatabaseError) -> Exception:
    """What is wrong with the file or the disk as one line; anything else is a mistake in this program and stays it."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return ConfigError(
            f"the fleet's database is damaged: {error}",
            hint="Bring back a copy; `sqlite3 FILE .recover` saves the rest.",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DeviceError(f"the fleet's database: {error}", hint="Another process holds it; try again.")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return DeviceError(f"the fleet's database: {error}", hint="Is there room on the disk, and may this user write?")
    return error


def sqlite_path(url: str) -> Path | None:
    """The file of a store on SQLite, None for one on PostgreSQL.

    Raises:
        ConfigError: another kind of URL.
    """
    if url.startswith(("postgresql://", "postgres://")):
        return None
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///"))
    if "://" in url:
        raise ConfigError(
            f"--store {url.partition('://')[0]}://… is not known", hint="Known: a file, sqlite:///…, postgresql://…."
        )
    return Path(url)


def _plain(arguments: tuple[Value, ...]) -> tuple[Value, ...]:
    """Members of string enumerations as their values: PostgreSQL's driver would send their names."""
    return tuple(str(value) if isinstance(value, str) else value for value in arguments)
