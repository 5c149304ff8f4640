"""The fleet's tables, and the numbers that rows get.

A database knows its schema (`meta`). A version adds a step that brings the one before to its own; a new database takes
all of them. A database of a later version is left alone.

Times are seconds since 1970 by the server's clock (suffix `_s`). Tokens are never stored, only their SHA-256: they are
random and long, so a plain digest cannot be reversed.
"""

from __future__ import annotations

from edgegen.errors import ConfigError
from edgegen.fleet.monitoring.schema import monitoring_tables
from edgegen.fleet.telemetry.schema import telemetry_tables
from edgegen.fleet.transaction import Transaction

SCHEMA = 3

_META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
_DELIVERY = (
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS enrolment_tokens (
        digest TEXT PRIMARY KEY, label TEXT NOT NULL, grp TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL,
        expires_s DOUBLE PRECISION NOT NULL, uses_left BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS operators (
        digest TEXT PRIMARY KEY, name TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS devices (
        device TEXT PRIMARY KEY, grp TEXT NOT NULL, token_digest TEXT NOT NULL, attributes TEXT NOT NULL,
        running TEXT NOT NULL, enrolled_s DOUBLE PRECISION NOT NULL, seen_s DOUBLE PRECISION,
        revoked BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS releases (
        digest TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, target TEXT NOT NULL,
        manifest TEXT NOT NULL, published_s DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS rollouts (
        id BIGINT PRIMARY KEY, digest TEXT NOT NULL, grp TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
        kind TEXT NOT NULL, undone BIGINT NOT NULL, thresholds TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL,
        created_by TEXT NOT NULL, finished_s DOUBLE PRECISION)""",
    """CREATE TABLE IF NOT EXISTS waves (
        rollout BIGINT NOT NULL, number BIGINT NOT NULL, fraction DOUBLE PRECISION NOT NULL,
        begun_s DOUBLE PRECISION, succeeded_s DOUBLE PRECISION, PRIMARY KEY (rollout, number))""",
    """CREATE TABLE IF NOT EXISTS actions (
        id BIGINT PRIMARY KEY, rollout BIGINT NOT NULL, device TEXT NOT NULL, wave BIGINT NOT NULL,
        state TEXT NOT NULL, phase TEXT NOT NULL, reason TEXT NOT NULL, from_digest TEXT NOT NULL,
        offered_s DOUBLE PRECISION, finished_s DOUBLE PRECISION, UNIQUE (rollout, device))""",
    "CREATE INDEX IF NOT EXISTS actions_of_device ON actions (device, id)",
    "CREATE INDEX IF NOT EXISTS actions_of_wave ON actions (rollout, wave, state)",
    "CREATE INDEX IF NOT EXISTS devices_of_group ON devices (grp)",
    """CREATE TABLE IF NOT EXISTS audit (
        id BIGINT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
        subject TEXT NOT NULL, detail TEXT NOT NULL)""",
)


_OWN = frozenset({"meta", "counters", "devices", "rollouts", "audit"})
"""Tables that every fleet's database has had, made in one transaction."""


def require_own(tables: set[str], *, where: str, shared: bool) -> None:
    """Whether a database is a fleet's, or free for one.

    Args:
        tables: names of its tables.
        where: what it is called in the error.
        shared: whether other programs' tables may stand beside, under other names.

    Raises:
        ConfigError: it is another program's.
    """
    strange = (tables & _OWN if shared else tables) if not tables >= _OWN else set()
    if strange:
        raise ConfigError(
            f"{where}: no fleet's database: it has another program's table {sorted(strange)[0]!r}",
            hint="Name a fleet's database, or a new one.",
        )


def prepare(tx: Transaction) -> None:
    """Bring the database to this version's schema.

    Raises:
        ConfigError: it was written by a later version.
    """
    found = _schema(tx)
    if found == SCHEMA:
        return
    if found > SCHEMA:
        raise ConfigError(f"the fleet's database has schema {found}, this edgegen knows {SCHEMA}", hint="Update it.")
    steps = (_DELIVERY, telemetry_tables(tx.dialect), monitoring_tables())
    for step in steps[found:]:
        for statement in step:
            tx.run(statement)
    tx.run(
        "INSERT INTO meta (key, value) VALUES ('schema', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        str(SCHEMA),
    )


def _schema(tx: Transaction) -> int:
    """The database's, 0 for an empty one."""
    tx.run(_META)
    rows = tx.rows("SELECT value FROM meta WHERE key = 'schema'")
    try:
        return int(rows[0]["value"]) if rows else 0
    except ValueError as error:
        raise ConfigError(f"the fleet's database has schema {rows[0]['value']!r}, which is none") from error


def next_id(tx: Transaction, name: str, count: int = 1) -> int:
    """The next number of a kind, from 1; never used twice. With a count, the first of so many."""
    (row,) = tx.rows(
        "INSERT INTO counters (name, value) VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET value = counters.value + excluded.value RETURNING value",
        *(name, count),
    )
    return int(row["value"]) - count + 1
