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

from edgegen.errors import ConfigError, DeviceError, NetworkError, UnsupportedError
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

    def close(self) -> None:
        self._connection.close()


class _Sqlite:
    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit mode: transactions begin and end where this class says so.
            self.raw = sqlite3.connect(path.absolute(), timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self.raw.row_factory = _as_dict
            require_own(self.tables(), where=str(path), shared=False)  # before anything is written
            self.raw.execute("PRAGMA journal_mode=WAL")
            self.raw.execute("PRAGMA synchronous=FULL")  # a wave must not be begun twice after a power cut
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path}: {error}", hint="Name a fleet's database, or a place for a new one.") from error
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error

    def rows(self, sql: str, *arguments: Value) -> list[Row]:
        return self.raw.execute(sql, _plain(arguments)).fetchall()

    def run(self, sql: str, *arguments: Value) -> int:
        return self.raw.execute(sql, _plain(arguments)).rowcount

    def tables(self) -> set[str]:
        rows = self.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite#_%' ESCAPE '#'")
        return {row["name"] for row in rows}

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        try:
            self.raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise DeviceError(f"the fleet's database: {error}", hint="Another process holds it; try again.") from error
        try:
            yield
            self.raw.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.raw.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self.raw.close()


class _Postgres:
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

    def tables(self) -> set[str]:
        return {
            row["name"]
            for row in self.rows("SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema()")
        }

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        if self.raw.closed:  # the server went away in an earlier transaction
            self._open()
        try:
            with self.raw.transaction():
                self.raw.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
                yield
        except self._psycopg.OperationalError as error:
            self.raw.close()
            raise NetworkError(f"the fleet's database: {str(error).strip().splitlines()[0]}") from error

    def close(self) -> None:
        self.raw.close()


class Writer:
    """The one thread that touches the database while a server runs."""

    def __init__(self, url: str) -> None:
        """Open the database (see `Database`) and start the thread."""
        self._database = Database(url)
        self._jobs: queue.SimpleQueue[tuple[Callable[[Transaction], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="fleet-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[Transaction], T]) -> Future[T]:
        """Run a job in a transaction soon. The future is done when it is committed, or with the job's exception."""
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

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
            if len(jobs) < len(batch):
                return

    def _commit(self, jobs: Sequence[tuple[Callable[[Transaction], Any], Future[Any]]]) -> None:
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


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> Row:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
