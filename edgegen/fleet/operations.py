"""What an operator may do: one table, used by the command line on a site's folder and by the server's HTTP API.

Each operation takes a record and gives a value; over HTTP it is `POST /v1/<operation>` with both as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgegen.errors import ConfigError
from edgegen.fleet import members, rollouts
from edgegen.fleet.audit import read_audit
from edgegen.fleet.credentials import close_enrolment, dismiss_operator, make_enrolment_token, make_operator
from edgegen.fleet.release import add_release, find_release
from edgegen.fleet.transaction import Transaction
from edgegen.fleet.views import read_actions, read_devices, read_rollout, read_rollouts
from edgegen.records.base import Record
from edgegen.records.deployment import ActionView, AuditEntry, DeviceView, Rollout, Thresholds


class Nothing(Record, frozen=True):
    """No arguments."""


class WhichDevices(Record, frozen=True):
    group: str = ""
    device: str = ""


class WhichRollouts(Record, frozen=True):
    group: str = ""
    limit: int = 50


class WhichRollout(Record, frozen=True):
    rollout: int


class WhichEntries(Record, frozen=True):
    subject: str = ""
    limit: int = 100


class WhichDevice(Record, frozen=True):
    device: str


class Move(Record, frozen=True):
    device: str
    group: str


class Admit(Record, frozen=True):
    """Let devices enrol."""

    group: str
    label: str = ""
    uses: int = 1
    lifetime_s: float = 86400.0


class Close(Record, frozen=True):
    """Let no further device enrol into a group with the tokens made so far."""

    group: str


class Appoint(Record, frozen=True):
    """Let a person operate the fleet over HTTP, or no longer."""

    name: str


class Publish(Record, frozen=True):
    """Make a release of the repository known."""

    manifest: str
    target: str


class Begin(Record, frozen=True):
    """Begin a rollout."""

    release: str
    """`name@version`, or the beginning of the manifest's digest."""
    group: str
    waves: tuple[float, ...] = (0.05, 0.25, 1.0)
    thresholds: Thresholds = Thresholds()


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to do."""

    asks: type[Record]
    gives: Any
    """Type of the result."""
    run: Callable[[Transaction, float, str, Any], Any]
    """transaction, now_s, who, the record → the result."""
    local: bool = False
    """Only on the site itself, never over HTTP."""


def _begin(tx: Transaction, now_s: float, who: str, asked: Begin) -> Rollout:
    return rollouts.begin_rollout(
        *(tx, now_s, who),
        digest=find_release(tx, asked.release),
        group=asked.group,
        waves=asked.waves,
        thresholds=asked.thresholds,
    )


def _enrolment_token(tx: Transaction, now_s: float, who: str, asked: Admit) -> str:
    return make_enrolment_token(
        *(tx, now_s, who), group=asked.group, label=asked.label, uses=asked.uses, lifetime_s=asked.lifetime_s
    )


OPERATIONS: dict[str, Operation] = {
    "devices": Operation(
        WhichDevices,
        tuple[DeviceView, ...],
        lambda tx, now_s, who, asked: read_devices(tx, group=asked.group, device=asked.device),
    ),
    "rollouts": Operation(
        WhichRollouts,
        tuple[Rollout, ...],
        lambda tx, now_s, who, asked: read_rollouts(tx, group=asked.group, limit=asked.limit),
    ),
    "rollout": Operation(WhichRollout, Rollout, lambda tx, now_s, who, asked: read_rollout(tx, asked.rollout)),
    "actions": Operation(
        WhichRollout, tuple[ActionView, ...], lambda tx, now_s, who, asked: read_actions(tx, asked.rollout)
    ),
    "audit": Operation(
        WhichEntries,
        tuple[AuditEntry, ...],
        lambda tx, now_s, who, asked: read_audit(tx, subject=asked.subject, limit=asked.limit),
    ),
    "publish": Operation(
        Publish,
        str,
        lambda tx, now_s, who, asked: add_release(
            tx, now_s, who, manifest=asked.manifest.encode(), target=asked.target
        ),
    ),
    "begin": Operation(Begin, Rollout, _begin),
    "pause": Operation(
        WhichRollout, Rollout, lambda tx, now_s, who, asked: rollouts.pause(tx, now_s, who, asked.rollout)
    ),
    "resume": Operation(
        WhichRollout, Rollout, lambda tx, now_s, who, asked: rollouts.resume(tx, now_s, who, asked.rollout)
    ),
    "abort": Operation(
        WhichRollout, Rollout, lambda tx, now_s, who, asked: rollouts.abort(tx, now_s, who, asked.rollout)
    ),
    "rollback": Operation(
        WhichRollout,
        tuple[Rollout, ...],
        lambda tx, now_s, who, asked: rollouts.roll_back(tx, now_s, who, asked.rollout),
    ),
    "move": Operation(
        Move,
        type(None),
        lambda tx, now_s, who, asked: members.move_device(tx, now_s, who, device=asked.device, group=asked.group),
    ),
    "revoke": Operation(
        WhichDevice,
        type(None),
        lambda tx, now_s, who, asked: members.revoke_device(tx, now_s, who, device=asked.device),
    ),
    "allow": Operation(
        WhichDevice,
        type(None),
        lambda tx, now_s, who, asked: members.allow_device(tx, now_s, who, device=asked.device),
    ),
    "forget": Operation(
        WhichDevice,
        type(None),
        lambda tx, now_s, who, asked: members.forget_device(tx, now_s, who, device=asked.device),
    ),
    "enrolment-token": Operation(Admit, str, _enrolment_token),
    "close-enrolment": Operation(
        Close, int, lambda tx, now_s, who, asked: close_enrolment(tx, now_s, who, group=asked.group)
    ),
    "operator": Operation(
        Appoint, str, lambda tx, now_s, who, asked: make_operator(tx, now_s, who, name=asked.name), local=True
    ),
    "dismiss": Operation(
        Appoint,
        type(None),
        lambda tx, now_s, who, asked: dismiss_operator(tx, now_s, who, name=asked.name),
        local=True,
    ),
}


def operation(name: str) -> Operation:
    """The operation of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in OPERATIONS:
        raise ConfigError(f"there is no operation {name[:40]!r}", hint="Known: " + ", ".join(OPERATIONS) + ".")
    return OPERATIONS[name]
