"""Epochs: a device that has confirmed a release takes none of a lower epoch, so none is offered.

What counts is what devices confirmed of what they were offered, not what they say of themselves: one that lies can
keep no release from the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.transaction import Transaction
from edgegen.records.deployment import ActionState


class _Manifest(msgspec.Struct, frozen=True):
    """What is asked of a manifest here; `release.add_release` has read it as a whole."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Release:
    """A published release's name and epoch."""

    label: str
    epoch: int


def read_epoch(tx: Transaction, digest: str) -> Release:
    """A published release."""
    (row,) = tx.rows("SELECT name, version, manifest FROM releases WHERE digest = ?", digest)
    epoch = msgspec.json.decode(row["manifest"], type=_Manifest).epoch
    return Release(f"{row['name']} {row['version']}", epoch)


def require_takable(tx: Transaction, digest: str, group: str) -> None:
    """Whether no device of a group has confirmed a higher epoch.

    Raises:
        ConfigError: one has.
    """
    wanted = read_epoch(tx, digest)
    for row in tx.rows(
        "SELECT rollouts.digest AS digest, COUNT(DISTINCT actions.device) AS devices FROM actions "
        "JOIN rollouts ON rollouts.id = actions.rollout WHERE actions.state = ? AND actions.device IN "
        "(SELECT device FROM devices WHERE grp = ? AND revoked = 0) GROUP BY rollouts.digest ORDER BY rollouts.digest",
        *(ActionState.CONFIRMED, group),
    ):
        had = read_epoch(tx, row["digest"])
        if had.epoch > wanted.epoch:
            devices = f"{row['devices']} device{'s' if row['devices'] > 1 else ''} of {group}"
            raise ConfigError(
                f"{wanted.label} has epoch {wanted.epoch}: {devices} confirmed {had.label} of epoch {had.epoch} "
                "and would refuse it",
                hint=f"Pack it again with --epoch {had.epoch}.",
            )


def require_way_back(tx: Transaction, digest: str, group: str) -> None:
    """Whether what a group's devices confirmed last is not of a lower epoch than a release that they are to take.

    Raises:
        ConfigError: it is: they could not go back by themselves.
    """
    present = tx.rows(
        "SELECT DISTINCT rollouts.digest AS digest FROM actions JOIN rollouts ON rollouts.id = actions.rollout "
        "WHERE actions.id IN (SELECT MAX(id) FROM actions WHERE state = ? AND device IN "
        "(SELECT device FROM devices WHERE grp = ? AND revoked = 0) GROUP BY device)",
        *(ActionState.CONFIRMED, group),
    )
    refused = why_not_back(tx, digest, (row["digest"] for row in present))
    if refused:
        raise ConfigError(f"roll_back: {refused}", hint="Leave it out; to go back, the old model is packed again.")


def why_not_back(tx: Transaction, digest: str, earlier: Iterable[str]) -> str:
    """Why devices that confirmed a release would refuse one of the earlier ones; empty if they take all."""
    now = read_epoch(tx, digest)
    for one in sorted(set(earlier)):
        old = read_epoch(tx, one)
        if old.epoch < now.epoch:
            return (
                f"{old.label} has epoch {old.epoch}, below {now.epoch} of {now.label}: "
                "devices that confirmed this one refuse it"
            )
    return ""
