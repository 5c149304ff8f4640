"""Online, degraded and why, offline: from when a device was heard, and what it says.

A device is there if it was heard within three polls. Time in which the server itself was away does not count against
it. Of the past only reports tell, which come less often than polls: there ten minutes are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgegen.fleet.transaction import Transaction
from edgegen.records.monitor import State

MISSED_POLLS = 3
POLL_S = 60.0
"""Where no server has said how often devices ask."""
SKEW_S = 60.0
"""A clock that is off by more is wrong."""
_PAST_PATIENCE_S = 600.0
_LEAST_ANSWERS = 5
_MOST_ERRORS = 0.05
_MOST_LEAKS = 0.01
_LEAST_FREE_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class Life:
    """What the server knows of itself."""

    poll_s: float = POLL_S
    alive_s: float | None = None
    """When it last was."""
    away: tuple[float, float] = (0.0, 0.0)
    """Its last absence: from, until."""

    def patience_s(self, *, live: bool) -> float:
        """How long a device may be silent."""
        most_s = MISSED_POLLS * self.poll_s
        return most_s if live else max(most_s, _PAST_PATIENCE_S)

    def silence_s(self, heard_s: float, now_s: float) -> float:
        """How long a device has been silent while somebody listened."""
        begun_s, ended_s = self.away
        missed_s = max(0.0, min(ended_s, now_s) - max(begun_s, heard_s))
        return now_s - heard_s - missed_s


@dataclass(frozen=True, slots=True)
class Condition:
    """What may be wrong with a device that is there. None: unknown."""

    fault: str = ""
    failed_release: str = ""
    answers: int = 0
    errors: int = 0
    leaked: int = 0
    throttled: bool | None = None
    drifted: bool = False
    dropped: int = 0
    """Reports that it had to give up in the window."""
    free_bytes: int | None = None


def read_life(tx: Transaction) -> Life:
    """As the server wrote it down."""
    found = {
        row["key"]: row["value"]
        for row in tx.rows("SELECT key, value FROM meta WHERE key IN ('poll_s', 'alive_s', 'away_s', 'back_s')")
    }
    alive_s = found.get("alive_s")
    return Life(
        poll_s=float(found.get("poll_s", POLL_S)),
        alive_s=float(alive_s) if alive_s else None,
        away=(float(found.get("away_s", 0.0)), float(found.get("back_s", 0.0))),
    )


def note_life(tx: Transaction, now_s: float, tick_s: float, poll_s: float) -> None:
    """Write down how often devices ask, and from when to when the server was away. To be called before the moment at
    which it last lived is written anew (`rollouts.forgive_outage`).
    """
    life = read_life(tx)
    if life.poll_s != poll_s or not tx.rows("SELECT 1 AS one FROM meta WHERE key = 'poll_s'"):
        _set(tx, "poll_s", poll_s)
    if life.alive_s is not None and now_s - life.alive_s > max(5 * tick_s, 5.0):
        _set(tx, "away_s", life.alive_s)
        _set(tx, "back_s", now_s)


def judge(
    *, revoked: bool, heard_s: float | None, now_s: float, life: Life, live: bool, condition: Condition
) -> tuple[State, str]:
    """A device's state, and in words why it is not well."""
    if revoked:
        return State.REVOKED, ""
    if heard_s is None:
        return State.NEVER, ""
    if life.silence_s(heard_s, now_s) > life.patience_s(live=live):
        return State.OFFLINE, ""
    reasons = _reasons(condition)
    return (State.DEGRADED, "; ".join(reasons)) if reasons else (State.ONLINE, "")


def _reasons(found: Condition) -> Sequence[str]:
    """The worst first."""
    reasons = []
    if found.fault:
        reasons.append(found.fault)
    if found.failed_release:
        reasons.append(found.failed_release)
    if found.answers >= _LEAST_ANSWERS and found.errors / found.answers >= _MOST_ERRORS:
        reasons.append(f"{found.errors} of {found.answers} answers failed")
    if found.answers >= _LEAST_ANSWERS and found.leaked / found.answers >= _MOST_LEAKS:
        reasons.append(f"{found.leaked} of {found.answers} answers hold template markers")
    if found.throttled:
        reasons.append("throttled")
    if found.drifted:
        reasons.append("drift")
    if found.dropped:
        reasons.append(f"gave up {found.dropped} reports")
    if found.free_bytes is not None and found.free_bytes < _LEAST_FREE_BYTES:
        reasons.append(f"{found.free_bytes / 1e6:.0f} MB of storage left")
    return reasons


def _set(tx: Transaction, key: str, value: float) -> None:
    tx.run(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        *(key, repr(value)),
    )
