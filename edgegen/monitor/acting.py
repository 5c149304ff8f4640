"""What changes a fleet, with whom it hits: shown before a name has to be typed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from edgegen.fleet.operations import Begin, WhichDevice, WhichRollout
from edgegen.monitor.ink import Line
from edgegen.monitor.plain import plain
from edgegen.monitor.shown import digest
from edgegen.records.base import Record
from edgegen.records.deployment import ActionState, Rollout
from edgegen.records.monitor import DeviceRow, FleetView, State

ALIVE = (State.ONLINE, State.DEGRADED)


@dataclass(frozen=True, slots=True)
class Deed:
    """Something to do.

    Attributes:
        name: to be typed.
        blast: lines that say whom it hits.
    """

    operation: str
    asked: Record
    title: str
    name: str
    blast: tuple[Line, ...]


def label(rollout: Rollout) -> str:
    """`name@version`."""
    return f"{rollout.name}@{rollout.version}"


def of_rollout(operation: str, rollout: Rollout, fleet: FleetView | None) -> Deed:
    """Pause, resume, abort or roll back."""
    states: Counter[str] = Counter()
    for wave in rollout.waves:
        states.update(wave.states)
    whole, confirmed = sum(states.values()), states[ActionState.CONFIRMED]
    under_way = states[ActionState.RUNNING] + states[ActionState.OFFERED] + states[ActionState.CANCELING]
    waiting = states[ActionState.WAITING] + states[ActionState.DEFERRED]
    words = {
        "pause": f"{under_way} devices finish what they began; {waiting} that wait are not offered it",
        "resume": f"{waiting} devices that wait are offered it, wave by wave",
        "abort": f"{under_way} devices under way are told to drop it; {confirmed} that have it "
        + ("go back" if rollout.thresholds.roll_back else "keep it"),
        "rollback": f"{confirmed} devices that have it go back to what they ran before",
    }[operation]
    lines: tuple[Line, ...] = (
        [("rollout ", "dim"), (str(rollout.id), ""), ("  group ", "dim"), (rollout.group, "bold")],
        [(f"{whole} devices, ", ""), (online_share(fleet, rollout.group), "")],
        [(words, "warn")],
    )
    verb = "roll back" if operation == "rollback" else operation
    return Deed(
        operation, WhichRollout(rollout.id), f"{verb} {label(rollout)} in {rollout.group}", label(rollout), lines
    )


def of_release(release: str, name: str, group: str, fleet: FleetView | None) -> Deed:
    """Begin a rollout of a release to a group; the group's name is typed."""
    members = [row for row in fleet.devices if row.group == group] if fleet else []
    have = sum(row.release == release for row in members)
    lines: tuple[Line, ...] = (
        [("release ", "dim"), (name, "bold"), ("  ", ""), (digest(release), "dim")],
        [(f"{len(members)} devices, ", ""), (online_share(fleet, group), ""), (f"; {have} run it already", "")],
        [("in waves of 5%, 25%, 100%; what runs to this group now is superseded", "warn")],
    )
    return Deed("begin", Begin(release=release, group=group), f"bring {name} to {group}", group, lines)


def of_canaries(row: DeviceRow) -> Deed:
    """Let one device answer its golden prompts again; its name is typed."""
    state = "it is online" if row.state in ALIVE else f"it is {row.state}: it hears of it when it is back"
    lines: tuple[Line, ...] = (
        [("device ", "dim"), (plain(row.device), "bold"), ("  group ", "dim"), (plain(row.group), "")],
        [("1 device, ", ""), (state, "")],
        [("its model answers a few prompts when it has nothing else to do; nothing is installed", "warn")],
    )
    return Deed("canary", WhichDevice(row.device), f"ask {plain(row.device)} its golden prompts", row.device, lines)


def online_share(fleet: FleetView | None, group: str) -> str:
    """How many of a group are online, in words."""
    members = [row for row in fleet.devices if row.group == group] if fleet else []
    if not members:
        return "online: unknown"
    online = sum(row.state in ALIVE for row in members)
    return f"{online} of the group's {len(members)} online ({100 * online / len(members):.0f}%)"
