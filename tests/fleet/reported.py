"""Rows of a store as reports leave them there."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec

from edgegen.fleet.database import Database
from edgegen.fleet.release import add_release
from edgegen.fleet.telemetry.schema import telemetry_tables
from edgegen.records.bundle import Manifest


class Store:
    """A fleet's database to be filled. Close it before another process reads it."""

    def __init__(self, store: str) -> None:
        self.database = Database(store)
        self._seq = 0
        postgres = store.startswith("postgres")
        tables = "information_schema.tables" if postgres else "sqlite_master"
        name = "table_name" if postgres else "name"
        with self.database.transaction() as tx:
            made = tx.rows(f"SELECT {name} FROM {tables} WHERE {name} = 'generations'")
            for statement in () if made else telemetry_tables("postgresql" if postgres else "sqlite"):
                tx.run(statement)

    def close(self) -> None:
        self.database.close()

    def device(
        self, name: str, *, group: str = "pilot", running: str = "", revoked: int = 0, **attributes: str
    ) -> None:
        self._insert(
            "devices",
            device=name,
            grp=group,
            token_digest="",
            attributes=json.dumps(attributes),
            running=running,
            enrolled_s=0.0,
            seen_s=None,
            revoked=revoked,
        )

    def release(self, manifest: Manifest) -> str:
        with self.database.transaction() as tx:
            where = f"bundles/{manifest.name}/{manifest.version}/manifest.json"
            return add_release(tx, 1.0, "test", manifest=msgspec.json.encode(manifest), target=where)

    def generation(self, device: str, release: str, at_s: float, **columns: Any) -> None:
        self._seq += 1
        with self.database.transaction() as tx:
            tx.run(
                "INSERT INTO served (id, release, template, runtime, low_log_prob) VALUES (?, ?, '', 'llama.cpp', 0) "
                "ON CONFLICT DO NOTHING",
                *(abs(hash(release)) % 10**9, release),
            )
        base: dict[str, Any] = {
            "cursor": self._seq,
            "stream": 1,
            "seq": self._seq,
            "device": device,
            "at_s": at_s,
            "received_s": at_s,
            "late": 0,
            "served": abs(hash(release)) % 10**9,
            "generation": f"gen-{self._seq}",
            "flags": 0,
            "prompt_tokens": 64,
            "answer_tokens": 64,
            "stop": "stop",
            "error": "",
            "missing": "",
            "threads": 1,
        }
        self._insert("generations", **{**base, **columns})

    def health(self, device: str, release: str, at_s: float, **columns: Any) -> None:
        self._seq += 1
        base: dict[str, Any] = {
            "cursor": self._seq,
            "stream": 1,
            "seq": self._seq,
            "device": device,
            "at_s": at_s,
            "received_s": at_s,
            "late": 0,
            "release": release,
            "uptime_s": 1.0,
            "spool_reports": 0,
            "spool_bytes": 0,
            "privacy": "p0",
        }
        self._insert("health", **{**base, **columns})

    def _insert(self, table: str, **columns: Any) -> None:
        names = ", ".join(columns)
        with self.database.transaction() as tx:
            tx.run(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})", *columns.values())


@contextlib.contextmanager
def site_store(folder: Path) -> Any:
    """The store of a site of which only the folders are there."""
    (folder / "repository").mkdir(parents=True, exist_ok=True)
    store = Store(str(folder / "fleet.db"))
    try:
        yield store
    finally:
        store.close()
