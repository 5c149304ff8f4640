"""A database that the first schema wrote is taken over; a later one is not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edgegen.errors import ConfigError, DeviceError
from edgegen.fleet.database import Database
from edgegen.fleet.schema import SCHEMA
from edgegen.fleet.telemetry.schema import REPORTS
from tests.fleet.site import Desk

SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL);
CREATE TABLE enrolment_tokens (
    digest TEXT PRIMARY KEY, label TEXT NOT NULL, grp TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL,
    expires_s DOUBLE PRECISION NOT NULL, uses_left BIGINT NOT NULL);
CREATE TABLE operators (digest TEXT PRIMARY KEY, name TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL);
CREATE TABLE devices (
    device TEXT PRIMARY KEY, grp TEXT NOT NULL, token_digest TEXT NOT NULL, attributes TEXT NOT NULL,
    running TEXT NOT NULL, enrolled_s DOUBLE PRECISION NOT NULL, seen_s DOUBLE PRECISION, revoked BIGINT NOT NULL);
CREATE TABLE releases (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, target TEXT NOT NULL,
    manifest TEXT NOT NULL, published_s DOUBLE PRECISION NOT NULL);
CREATE TABLE rollouts (
    id BIGINT PRIMARY KEY, digest TEXT NOT NULL, grp TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    kind TEXT NOT NULL, undone BIGINT NOT NULL, thresholds TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL,
    created_by TEXT NOT NULL, finished_s DOUBLE PRECISION);
CREATE TABLE waves (
    rollout BIGINT NOT NULL, number BIGINT NOT NULL, fraction DOUBLE PRECISION NOT NULL,
    begun_s DOUBLE PRECISION, succeeded_s DOUBLE PRECISION, PRIMARY KEY (rollout, number));
CREATE TABLE actions (
    id BIGINT PRIMARY KEY, rollout BIGINT NOT NULL, device TEXT NOT NULL, wave BIGINT NOT NULL,
    state TEXT NOT NULL, phase TEXT NOT NULL, reason TEXT NOT NULL, from_digest TEXT NOT NULL,
    offered_s DOUBLE PRECISION, finished_s DOUBLE PRECISION, UNIQUE (rollout, device));
CREATE INDEX actions_of_device ON actions (device, id);
CREATE INDEX actions_of_wave ON actions (rollout, wave, state);
CREATE INDEX devices_of_group ON devices (grp);
CREATE TABLE audit (
    id BIGINT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    subject TEXT NOT NULL, detail TEXT NOT NULL);
INSERT INTO meta VALUES ('schema', '1');
INSERT INTO counters VALUES ('audit', 7);
INSERT INTO devices VALUES ('pi-1', 'kitchens', 'digest', '{"arch":"aarch64"}', 'sha256:1', 5.0, 6.0, 0);
INSERT INTO audit VALUES (7, 6.0, 'operator:alice', 'enrolled', 'device:pi-1', '');
"""


@pytest.fixture
def first(store: str) -> str:
    """A database of schema 1."""
    if "://" in store:
        import psycopg

        with psycopg.connect(store, autocommit=True) as connection:
            connection.execute(SCHEMA_1.encode())
    else:
        with sqlite3.connect(store) as connection:
            connection.executescript(SCHEMA_1)
        connection.close()
    return store


def test_schema_1_is_brought_to_this_one(first: str) -> None:
    for _ in range(2):  # and once more, when there is nothing to do
        desk = Desk(first)
        assert desk.run(lambda tx: tx.rows("SELECT value FROM meta WHERE key = 'schema'")) == [{"value": str(SCHEMA)}]
        (device,) = desk.do("devices")
        assert (device.device, device.group, device.attributes) == ("pi-1", "kitchens", {"arch": "aarch64"})
        for table in REPORTS:
            assert desk.run(lambda tx, table=table: tx.rows(f"SELECT cursor, at_s FROM {table}")) == []
        desk.database.close()
    desk = Desk(first)
    desk.do("enrolment-token", group="kitchens")
    assert [entry.id for entry in desk.do("audit")] == [7, 8]
    desk.database.close()


def test_a_migration_that_is_cut_off_changes_nothing(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgegen.fleet import schema

    real = schema.telemetry_tables
    monkeypatch.setattr(schema, "telemetry_tables", lambda dialect: (*real(dialect), "CREATE TABLE devices (x TEXT)"))
    with pytest.raises(Exception, match="devices"):
        Database(first)
    monkeypatch.undo()
    Database(first).close()


def test_a_schema_that_is_none(store: str) -> None:
    desk = Desk(store)
    desk.run(lambda tx: tx.run("UPDATE meta SET value = 'new' WHERE key = 'schema'"))
    desk.database.close()
    with pytest.raises(ConfigError, match="'new'"):
        Database(store)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    desk = Desk(str(path))
    for number in range(200):
        desk.do("enrolment-token", group=f"g{number}")
    desk.database.close()
    size = path.stat().st_size
    with path.open("r+b") as file:  # every page but the first
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    with pytest.raises(ConfigError, match="damaged"):
        desk = Desk(str(path))
        desk.do("audit")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises((ConfigError, DeviceError)):
        Database(str(path))


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "fleet.db"))
    with database.transaction() as tx:
        (row,) = tx.rows("PRAGMA page_count")
        tx.rows(f"PRAGMA max_page_count={row['page_count']}")
    with pytest.raises(DeviceError, match="full"), database.transaction() as tx:
        tx.run("INSERT INTO meta (key, value) VALUES ('much', ?)", "x" * 10_000_000)
    database.close()


def test_a_snapshot_sees_one_state_and_holds_nobody_up(store: str) -> None:
    reading, writing = Database(store), Database(store)
    with reading.snapshot() as still:
        before = still.rows("SELECT COUNT(*) AS n FROM meta")
        with writing.transaction() as tx:
            tx.run("INSERT INTO meta (key, value) VALUES ('new', 'x')")
        assert still.rows("SELECT COUNT(*) AS n FROM meta") == before
    with reading.snapshot() as still:
        assert still.rows("SELECT COUNT(*) AS n FROM meta") != before
    with reading.transaction() as tx:
        tx.run("INSERT INTO meta (key, value) VALUES ('newer', 'x')")
    reading.close()
    writing.close()
