"""Where the telemetry that a rollout is gated on comes from.

The engine asks a gauge, in the transaction of the server's clock, for every running rollout that has a telemetry
threshold; it is plugged in at `app.make_app`. What the answer means is decided by `judge.weigh`.

A person who resumes a rollout that its telemetry has paused accepts what was worse then, for that wave: the metrics
that were asked about are kept until another wave begins.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from edgegen.fleet.judge import Reading
from edgegen.fleet.transaction import Transaction
from edgegen.records.deployment import Rollout


class Gauge(Protocol):
    """What the devices of a rollout's group report."""

    def __call__(self, tx: Transaction, rollout: Rollout, now_s: float) -> tuple[Reading, ...]:
        """What generations since the rollout's first wave say of its release and of the control: the devices of the
        group that have not taken it. One reading for each metric that is known, several for one where it has parts
        (`Reading.part`). It is asked at each tick of the server's clock, about once a second.
        """


def no_readings(tx: Transaction, rollout: Rollout, now_s: float) -> tuple[Reading, ...]:
    """The gauge of a server that keeps no telemetry."""
    return ()


class _Asked(msgspec.Struct, frozen=True):
    wave: int
    metrics: tuple[str, ...]


def accepted_metrics(tx: Transaction, rollout: int, wave: int) -> frozenset[str]:
    """The metrics about which a person was asked in this wave, and who let the rollout go on."""
    rows = tx.rows("SELECT value FROM meta WHERE key = ?", _key(rollout))
    asked = msgspec.json.decode(rows[0]["value"], type=_Asked) if rows else _Asked(0, ())
    return frozenset(asked.metrics) if asked.wave == wave else frozenset()


def keep_asked(tx: Transaction, rollout: int, wave: int, metrics: tuple[str, ...]) -> None:
    """Note that the rollout is paused until a person has decided about these metrics."""
    all_asked = accepted_metrics(tx, rollout, wave) | set(metrics)
    tx.run(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        *(_key(rollout), msgspec.json.encode(_Asked(wave, tuple(sorted(all_asked)))).decode()),
    )


def _key(rollout: int) -> str:
    return f"asked:{rollout}"
