"""How long telemetry stays, and what is erased before its time.

Lifetimes stand in the database (`meta`), so that all servers of a store keep the same ones, a person can set them from
anywhere, and the audit log says who did. Rows go in slices of one transaction each, the oldest first: polls and batches
pass in between. A row's age counts from when it was received.

Space: later rows fill what earlier ones left, so a fleet's file stops growing once the first lifetime is over. Where
much was freed (a lifetime was cut), SQLite's file is given back in small steps; a file that an earlier schema began
cannot shrink (`VACUUM` by hand can). SQLite overwrites what is deleted (`secure_delete`), and its log is emptied after.
"""

from __future__ import annotations

import math

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.audit import note
from edgegen.fleet.telemetry.schema import REPORTS
from edgegen.fleet.transaction import Transaction
from edgegen.records.base import Record

_DAY_S = 86400.0
_LONGEST_DAYS = 36500.0
_SLICE = 2000
"""Rows of one transaction: some 20 ms."""
_PAGES = 500
_FREE_FRACTION = 0.25
_KEY = "retention"
_ERASE = "erase:"


class Lifetimes(Record, frozen=True):
    """Days from a report's receipt."""

    numbers_days: float = 90.0
    """Of generations without their texts, ratings, health, canaries, embeddings."""
    text_days: float = 14.0
    """Of prompts, answers and comments."""
    events_days: float = 365.0
    """Of events and of reports that devices had to drop."""


class Keep(Record, frozen=True):
    """New lifetimes; None leaves one as it is."""

    numbers_days: float | None = None
    text_days: float | None = None
    events_days: float | None = None


class Erased(Record, frozen=True):
    """What was erased of a device."""

    samples: int
    comments: int
    characters: int
    """Generations whose list of characters without a token is gone."""


_LIFETIME = {
    "generations": "numbers_days",
    "feedback": "numbers_days",
    "embeddings": "numbers_days",
    "canaries": "numbers_days",
    "health": "numbers_days",
    "samples": "text_days",
    "events": "events_days",
    "dropped": "events_days",
}


def read_lifetimes(tx: Transaction) -> Lifetimes:
    rows = tx.rows("SELECT value FROM meta WHERE key = ?", _KEY)
    return msgspec.json.decode(rows[0]["value"], type=Lifetimes) if rows else Lifetimes()


def keep(tx: Transaction, now_s: float, who: str, asked: Keep) -> Lifetimes:
    """Change lifetimes.

    Raises:
        ConfigError: one is negative, or longer than a century.
    """
    changes = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    if any(not (math.isfinite(value) and 0 <= value <= _LONGEST_DAYS) for value in changes.values()):
        raise ConfigError("a lifetime is a number of days from 0 to 36500")
    lifetimes = msgspec.structs.replace(read_lifetimes(tx), **changes)
    if changes:
        tx.run(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            *(_KEY, msgspec.json.encode(lifetimes).decode()),
        )
        words = " ".join(f"{name}={value:g}" for name, value in changes.items())
        note(tx, now_s, who, "retention changed", "telemetry", words)
    return lifetimes


def erase_texts(tx: Transaction, now_s: float, who: str, device: str) -> Erased:
    """Blank everything of a device that is text: prompts, answers, comments, characters of prompts.

    Its rows stay, so that a report that the device sends once more, because it missed the answer, brings nothing back.

    Raises:
        ConfigError: nothing is known of such a device.
    """
    if not tx.rows("SELECT device FROM devices WHERE device = ?", device) and not tx.rows(
        "SELECT device FROM device_state WHERE device = ?", device
    ):
        raise ConfigError(f"there is no device {device!r}", hint="See `edgegen fleet devices`.")
    samples = tx.run("UPDATE samples SET prompt = '', answer = '', level = '' WHERE device = ? AND level <> ''", device)
    comments = tx.run("UPDATE feedback SET comment = '' WHERE device = ? AND comment <> ''", device)
    characters = tx.run("UPDATE generations SET missing = '' WHERE device = ? AND missing <> ''", device)
    erased = Erased(samples, comments, characters)
    words = " ".join(f"{name}={value}" for name, value in msgspec.structs.asdict(erased).items())
    note(tx, now_s, who, "texts erased", f"device:{device}", words)
    return erased


def forget_reports(tx: Transaction, now_s: float, device: str) -> None:
    """Erase all that a device reported up to now, soon (`expire` does it): another may take its name."""
    tx.run(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        *(_ERASE + device, repr(now_s)),
    )
    tx.run("DELETE FROM device_state WHERE device = ?", device)
    tx.run("DELETE FROM refused WHERE device = ?", device)


def expire(tx: Transaction, now_s: float) -> tuple[bool, bool]:
    """Throw away one slice of what is over its time or is to be forgotten.

    Returns:
        Whether there is more to do, and whether texts were among it.
    """
    lifetimes = read_lifetimes(tx)
    more = texts = False
    for table, lifetime in _LIFETIME.items():
        before_s = now_s - getattr(lifetimes, lifetime) * _DAY_S
        gone = _delete_oldest(tx, table, before_s, now_s)
        more |= gone > 0
        texts |= gone > 0 and table == "samples"
    blanked = _blank_comments(tx, now_s - lifetimes.text_days * _DAY_S)
    erased = _erase_forgotten(tx)
    _shrink(tx)
    return more or blanked or erased, texts or blanked or erased


def sweep(tx: Transaction, now_s: float) -> None:
    """Remove what nothing refers to any more: now and then."""
    tx.run("DELETE FROM refused WHERE last_s < ?", now_s - read_lifetimes(tx).events_days * _DAY_S)
    tx.run("DELETE FROM served WHERE NOT EXISTS (SELECT 1 FROM generations WHERE generations.served = served.id)")
    used = " AND ".join(f"NOT EXISTS (SELECT 1 FROM {table} WHERE {table}.stream = streams.id)" for table in REPORTS)
    tx.run(f"DELETE FROM streams WHERE {used}")


def _delete_oldest(tx: Transaction, table: str, before_s: float, now_s: float) -> int:
    """Delete a slice at the table's old end; the number of rows."""
    first = tx.rows(f"SELECT cursor, received_s FROM {table} ORDER BY cursor LIMIT 1")
    if first and first[0]["received_s"] > now_s + _DAY_S:  # taken in while the server's clock was wrong: look behind
        first = tx.rows(
            f"SELECT cursor, received_s FROM {table} WHERE received_s < ? ORDER BY cursor LIMIT 1", before_s
        )
    if not first or first[0]["received_s"] >= before_s:
        return 0
    return tx.run(
        f"DELETE FROM {table} WHERE cursor >= ? AND cursor < ? AND received_s < ?",
        *(first[0]["cursor"], first[0]["cursor"] + _SLICE, before_s),
    )


def _blank_comments(tx: Transaction, before_s: float) -> bool:
    """Ratings outlive what was said with them."""
    changed = tx.run(
        "UPDATE feedback SET comment = '' WHERE cursor IN "
        "(SELECT cursor FROM feedback WHERE comment <> '' AND received_s < ? ORDER BY cursor LIMIT ?)",
        *(before_s, _SLICE),
    )
    return changed > 0


def _erase_forgotten(tx: Transaction) -> bool:
    """Delete a slice of what a forgotten device reported."""
    rows = tx.rows("SELECT key, value FROM meta WHERE SUBSTR(key, 1, ?) = ? LIMIT 1", len(_ERASE), _ERASE)
    if not rows:
        return False
    device, until_s = rows[0]["key"].removeprefix(_ERASE), float(rows[0]["value"])
    gone = sum(
        tx.run(
            f"DELETE FROM {table} WHERE cursor IN "
            f"(SELECT cursor FROM {table} WHERE device = ? AND received_s <= ? LIMIT ?)",
            *(device, until_s, _SLICE),
        )
        for table in REPORTS
    )
    if not gone:
        tx.run("DELETE FROM meta WHERE key = ?", rows[0]["key"])
    return True


def _shrink(tx: Transaction) -> None:
    """Give a little of the file back where much of it is empty."""
    if tx.dialect != "sqlite":
        return
    (pages,), (free,) = tx.rows("PRAGMA page_count"), tx.rows("PRAGMA freelist_count")
    if free["freelist_count"] > max(_PAGES, _FREE_FRACTION * pages["page_count"]):
        for _ in range(_PAGES):  # Python's driver takes one step of it, which is one page
            tx.run("PRAGMA incremental_vacuum")
