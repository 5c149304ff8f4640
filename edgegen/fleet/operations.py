"""What an operator may do: one table, used by the command line on a site's folder and by the server's HTTP API.

Each operation takes a record and gives a value; over HTTP it is `POST /v1/<operation>` with both as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegen.errors import ConfigError
from edgegen.fleet import members, rollouts
from edgegen.fleet.audit import read_audit
from edgegen.fleet.credentials import close_enrolment, dismiss_operator, make_enrolment_token, make_operator
from edgegen.fleet.monitoring.bundles import read_bundles
from edgegen.fleet.monitoring.canaries import compare
from edgegen.fleet.monitoring.device import read_device
from edgegen.fleet.monitoring.drift import read_drift
from edgegen.fleet.monitoring.events import read_events
from edgegen.fleet.monitoring.fleet import read_fleet
from edgegen.fleet.monitoring.hard import count_withheld, read_hard
from edgegen.fleet.monitoring.outputs import read_outputs
from edgegen.fleet.monitoring.window import check_window
from edgegen.fleet.observations import read_missing, read_observations, read_trace
from edgegen.fleet.release import add_release, find_release
from edgegen.fleet.telemetry.retention import Erased, Keep, Lifetimes, erase_texts, keep
from edgegen.fleet.transaction import Transaction
from edgegen.fleet.views import read_actions, read_devices, read_rollout, read_rollouts
from edgegen.records.base import Record
from edgegen.records.deployment import ActionView, AuditEntry, DeviceView, Rollout, Thresholds
from edgegen.records.learning import AskMissing, AskObservations, AskTrace, Missing, Observations, Trace
from edgegen.records.monitor import (
    Ask,
    AskComparison,
    AskEvents,
    AskHard,
    AskOutputs,
    BundleRow,
    CanaryRow,
    DeviceDetail,
    DriftCell,
    EventRow,
    FleetView,
    OutputRow,
    Text,
)


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
    run: Callable[..., Any]
    """transaction, now_s, who, the record (, the site's folder or None) → the result."""
    local: bool = False
    """Only on the site itself, never over HTTP."""
    on_site: bool = False
    """Looks into the site's folder, too."""
    erases: bool = False
    """What it deletes must be gone from the database's log, too."""

    def carry_out(self, tx: Transaction, now_s: float, who: str, asked: Any, site: Path | None = None) -> Any:
        """Run it.

        Args:
            site: the site's folder; None: only its database is within reach.
        """
        return self.run(tx, now_s, who, asked, site) if self.on_site else self.run(tx, now_s, who, asked)


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


def _question(
    read: Callable[[Transaction, float, Any], Any],
) -> Callable[[Transaction, float, str, Any], Any]:
    """A question that anybody's answer is the same to."""

    def run(tx: Transaction, now_s: float, who: str, asked: Any) -> Any:
        check_window(asked)
        return read(tx, now_s, asked)

    return run


def _question_on_site(
    read: Callable[[Transaction, float, Any, Path | None], Any],
) -> Callable[[Transaction, float, str, Any, Path | None], Any]:
    def run(tx: Transaction, now_s: float, who: str, asked: Any, site: Path | None) -> Any:
        check_window(asked)
        return read(tx, now_s, asked, site)

    return run


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
    "observations": Operation(
        AskObservations, Observations, lambda tx, now_s, who, asked: read_observations(tx, now_s, asked)
    ),
    "missing": Operation(AskMissing, Missing, lambda tx, now_s, who, asked: read_missing(tx, now_s, asked)),
    "trace": Operation(AskTrace, tuple[Trace, ...], lambda tx, now_s, who, asked: read_trace(tx, now_s, asked)),
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
    "retention": Operation(Keep, Lifetimes, lambda tx, now_s, who, asked: keep(tx, now_s, who, asked)),
    "forget-text": Operation(
        WhichDevice,
        Erased,
        lambda tx, now_s, who, asked: erase_texts(tx, now_s, who, asked.device),
        erases=True,
    ),
    "allow": Operation(
        WhichDevice,
        type(None),
        lambda tx, now_s, who, asked: members.allow_device(tx, now_s, who, device=asked.device),
    ),
    "canary": Operation(
        WhichDevice,
        type(None),
        lambda tx, now_s, who, asked: members.ask_canaries(tx, now_s, who, device=asked.device),
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
    "monitor-fleet": Operation(Ask, FleetView, _question_on_site(read_fleet), on_site=True),
    "monitor-device": Operation(Ask, DeviceDetail, _question_on_site(read_device), on_site=True),
    "monitor-outputs": Operation(AskOutputs, tuple[OutputRow, ...], _question(read_outputs)),
    "monitor-events": Operation(AskEvents, tuple[EventRow, ...], _question(read_events)),
    "monitor-drift": Operation(Ask, tuple[DriftCell, ...], _question(read_drift)),
    "monitor-compare": Operation(AskComparison, tuple[CanaryRow, ...], _question_on_site(compare), on_site=True),
    "monitor-bundles": Operation(Ask, tuple[BundleRow, ...], _question_on_site(read_bundles), on_site=True),
    "monitor-hard": Operation(AskHard, tuple[Text, ...], _question(read_hard)),
    "monitor-withheld": Operation(AskHard, dict[str, int], _question(count_withheld)),
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
