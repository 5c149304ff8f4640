"""One writer, whole transactions, and what is said when there is no database."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from edgegen.errors import ConfigError, NetworkError
from edgegen.fleet.database import Database, Writer
from edgegen.fleet.schema import next_id
from edgegen.fleet.transaction import Transaction


def _add(key: str) -> Any:
    return lambda tx: tx.run("INSERT INTO meta (key, value) VALUES (?, 'x')", key)


def _keys(tx: Transaction) -> set[str]:
    return {row["key"] for row in tx.rows("SELECT key FROM meta WHERE value = 'x'")}


def test_a_job_that_fails_undoes_itself_alone(store: str) -> None:
    writer = Writer(store)

    def half(tx: Transaction) -> None:
        _add("half")(tx)
        raise ValueError("no")

    gate = threading.Event()
    waiting = writer.submit(lambda tx: gate.wait(10))  # so that the others are committed together
    futures = [writer.submit(job) for job in (_add("a"), half, _add("b"), _add("a"), _add("c"))]
    gate.set()
    assert waiting.result(10)
    assert [future.exception(10) is None for future in futures] == [True, False, True, False, True]
    assert writer.submit(_keys).result(10) == {"a", "b", "c"}
    writer.close()


def test_two_processes_worth_of_writers_lose_nothing(store: str) -> None:
    numbers: list[int] = []

    def count() -> None:
        database = Database(store)
        for _ in range(40):
            with database.transaction() as tx:
                number = next_id(tx, "test")
            numbers.append(number)
        database.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    Database(store).close()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 161))


@pytest.mark.slow
def test_a_lost_connection_is_opened_again(postgres_store: str) -> None:
    import psycopg

    writer = Writer(postgres_store)
    writer.submit(_add("before")).result(10)
    with psycopg.connect(postgres_store, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    with pytest.raises(NetworkError):
        writer.submit(_add("lost")).result(10)
    writer.submit(_add("after")).result(10)
    assert writer.submit(_keys).result(10) == {"before", "after"}
    writer.close()


def test_what_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(ConfigError, match="not a database"):
        Database(str(tmp_path / "text"))
    with pytest.raises(ConfigError, match="mysql"):
        Database("mysql://host/name")
    with pytest.raises((ConfigError, NetworkError)):
        Database(str(tmp_path / "text" / "below"))


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE photos (name TEXT)")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another program's table 'photos'"):
        Database(str(path))
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["photos.db"]


@pytest.mark.slow
def test_a_shared_postgresql_may_hold_other_tables_but_not_of_the_same_names(postgres_store: str) -> None:
    import psycopg

    with psycopg.connect(postgres_store, autocommit=True) as other:
        other.execute("CREATE TABLE photos (name TEXT)")
    Database(postgres_store).close()
    with psycopg.connect(postgres_store, autocommit=True) as other:
        other.execute("DROP TABLE meta")
    with pytest.raises(ConfigError, match="another program's table 'audit'"):
        Database(postgres_store)
    with pytest.raises(ConfigError, match="invalid URI"):
        Database("postgresql://user@host/name?nonsense=1")


def test_a_later_schema_is_refused(store: str) -> None:
    database = Database(store)
    with database.transaction() as tx:
        tx.run("UPDATE meta SET value = '99' WHERE key = 'schema'")
    database.close()
    with pytest.raises(ConfigError, match="schema 99"):
        Database(store)


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(NetworkError, match="does not answer"):
        Database(f"postgresql://nobody@/x?host={tmp_path}")


def test_a_job_that_nobody_waits_for_any_more_does_not_stop_the_writer(store: str) -> None:
    writer = Writer(store)
    gate = threading.Event()
    waiting = writer.submit(lambda tx: gate.wait(10))
    gone, after = writer.submit(_add("gone")), writer.submit(_add("after"))
    assert gone.cancel()
    gate.set()
    assert waiting.result(10)
    after.result(10)
    assert writer.submit(_keys).result(10) == {"after"}
    writer.close()
