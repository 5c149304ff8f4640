"""Rollouts: begin one, pause, resume, abort, roll back; and move those that run.

`advance` is called after each outcome and by the server's clock. It holds nothing in memory, so a server that was
killed goes on where the database stands.
"""

from __future__ import annotations

import math

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.actions import add_action, cancel_actions
from edgegen.fleet.audit import ENGINE, note
from edgegen.fleet.credentials import require_name
from edgegen.fleet.epochs import require_takable, require_way_back, why_not_back
from edgegen.fleet.gauge import Gauge, accepted_metrics, keep_asked, no_readings
from edgegen.fleet.judge import Move, Verdict, judge, limits_of
from edgegen.fleet.schema import next_id
from edgegen.fleet.transaction import Row, Transaction
from edgegen.fleet.views import read_rollout
from edgegen.fleet.waves import assign, checked_waves
from edgegen.records.deployment import ActionState, Rollout, RolloutState, Thresholds

_LIVE = (RolloutState.RUNNING, RolloutState.PAUSED)
_UNDO = Thresholds(success_fraction=0.0, abort_fraction=2.0)
"""Going back stops for nobody: each device that fails is one less to mend."""


def begin_rollout(
    tx: Transaction,
    now_s: float,
    who: str,
    *,
    digest: str,
    group: str,
    waves: tuple[float, ...],
    thresholds: Thresholds = Thresholds(),
) -> Rollout:
    """Start to bring a release to a group; what the group was still taking is superseded.

    Args:
        digest: of a manifest that was published (`publish.py`).
        waves: cumulative fractions of the group, the last 1.

    Raises:
        ConfigError: an unknown release, a group without devices, thresholds out of range, an epoch that devices of the
            group would refuse.
    """
    require_name(group, what="group")
    checked_waves(waves)
    _check_thresholds(thresholds)
    rows = tx.rows(
        "SELECT device, seen_s, enrolled_s FROM devices WHERE grp = ? AND revoked = 0 ORDER BY device", group
    )
    if not rows:
        groups = [row["grp"] for row in tx.rows("SELECT DISTINCT grp FROM devices ORDER BY grp")]
        raise ConfigError(
            f"group {group!r} has no devices",
            hint=f"Known groups: {', '.join(groups)}." if groups else "No device has enrolled yet.",
        )
    _require_release(tx, digest)
    require_takable(tx, digest, group)
    if thresholds.roll_back:
        require_way_back(tx, digest, group)
    late_s = now_s - thresholds.defer_after_s
    devices = [(row["device"], (row["seen_s"] or row["enrolled_s"]) >= late_s) for row in rows]
    begun = _insert(tx, now_s, who, "update", digest, group, devices, waves, thresholds)
    _supersede(tx, now_s, who, [device for device, _ in devices], group, begun)
    return advance(tx, now_s, begun)


def pause(tx: Transaction, now_s: float, who: str, rollout: int) -> Rollout:
    """Offer the release to no further device; those at it go on."""
    _require(read_rollout(tx, rollout), RolloutState.RUNNING)
    _set_state(tx, now_s, who, rollout, RolloutState.PAUSED, f"paused by {who}")
    return read_rollout(tx, rollout)


def resume(tx: Transaction, now_s: float, who: str, rollout: int) -> Rollout:
    """Go on. A wave that fell short of its threshold, and in which nobody is still at it, counts as accepted; so does,
    for this wave, what its telemetry was paused for (see `gauge`)."""
    found = read_rollout(tx, rollout)
    _require(found, RolloutState.PAUSED)
    _set_state(tx, now_s, who, rollout, RolloutState.RUNNING, "")
    tx.run(
        "UPDATE actions SET offered_s = ? WHERE rollout = ? AND state = ? AND offered_s IS NOT NULL",
        *(now_s, rollout, ActionState.OFFERED),
    )
    waves = [wave for wave in found.waves if wave.begun_s is not None]
    if waves and waves[-1].succeeded_s is None and judge(found.waves, found.thresholds, now_s).move == Move.PAUSE:
        note(tx, now_s, who, "wave accepted", f"rollout:{rollout}", f"wave={waves[-1].number} {found.reason}")
        _mark(tx, now_s, rollout, waves[-1].number)
    return advance(tx, now_s, rollout)


def abort(tx: Transaction, now_s: float, who: str, rollout: int, reason: str = "") -> Rollout:
    """Stop for good: devices that have not begun never do, those at it are asked to drop it."""
    found = read_rollout(tx, rollout)
    _require(found, *_LIVE)
    reason = reason or f"aborted by {who}"
    stuck = why_not_back(tx, found.digest, _ways_back(tx, found)) if found.thresholds.roll_back else ""
    _set_state(
        tx, now_s, who, rollout, RolloutState.ABORTED, f"{reason}; not all is rolled back: {stuck}" if stuck else reason
    )
    cancel_actions(tx, now_s, "rollout = ?", rollout)
    if found.thresholds.roll_back:
        _undo(tx, now_s, who, found)
    return read_rollout(tx, rollout)


def roll_back(tx: Transaction, now_s: float, who: str, rollout: int) -> tuple[Rollout, ...]:
    """Send every device that confirmed the release back to the one that it ran before; also those that confirm late.

    Returns:
        The rollouts that do so, one for each earlier release; none if no device has a known one, and then the rollout
        is only stopped.

    Raises:
        ConfigError: it is a roll-back itself, or an earlier release's epoch is lower: its devices would refuse that.
            Nothing has changed then.
    """
    found = read_rollout(tx, rollout)
    if found.kind == "rollback":
        raise ConfigError(f"rollout {rollout} is a roll-back itself", hint="Deploy the release that you want.")
    stuck = why_not_back(tx, found.digest, _ways_back(tx, found))
    if stuck:
        raise ConfigError(
            f"rollout {rollout} cannot be rolled back: {stuck}",
            hint="Pack the old model again with the present --epoch and deploy it; `abort` stops a rollout that runs.",
        )
    _set_state(tx, now_s, who, rollout, RolloutState.ABORTED, f"rolled back by {who}")
    cancel_actions(tx, now_s, "rollout = ?", rollout)
    return _undo(tx, now_s, who, found)


def undo_late(tx: Transaction, now_s: float, rollout: int, device: str) -> None:
    """A device confirmed a release although its rollout had been rolled back: send it back too."""
    (row,) = tx.rows("SELECT undone FROM rollouts WHERE id = ?", rollout)
    if row["undone"]:
        _undo(tx, now_s, ENGINE, read_rollout(tx, rollout), device)


def advance(tx: Transaction, now_s: float, rollout: int, gauge: Gauge | None = None) -> Rollout:
    """Count who is late, judge, and do what the verdict says, until there is nothing more to do.

    Args:
        gauge: what the telemetry says; None: it is not looked at here, and no wave that depends on it begins.
    """
    found = read_rollout(tx, rollout)
    _expire(tx, now_s, found)
    gate = None
    if gauge is not None and found.state == RolloutState.RUNNING and limits_of(found.thresholds):
        gate = gauge(tx, found, now_s)
    while True:
        found = read_rollout(tx, rollout)
        if found.state != RolloutState.RUNNING:
            return found
        wave = max((wave.number for wave in found.waves if wave.begun_s is not None), default=0)
        verdict = judge(found.waves, found.thresholds, now_s, gate, accepted_metrics(tx, rollout, wave))
        if verdict.move == Move.WAIT:
            if verdict.reason != found.reason:
                tx.run("UPDATE rollouts SET reason = ? WHERE id = ?", verdict.reason, rollout)
            return read_rollout(tx, rollout)
        _carry_out(tx, now_s, found, verdict)


def advance_all(tx: Transaction, now_s: float, gauge: Gauge = no_readings) -> None:
    """Move every rollout that is not over, or of which a device is still at it."""
    for row in tx.rows(
        "SELECT id FROM rollouts WHERE state = ? OR id IN (SELECT rollout FROM actions WHERE state IN (?, ?, ?)) "
        "ORDER BY id",
        *(RolloutState.RUNNING, ActionState.OFFERED, ActionState.RUNNING, ActionState.CANCELING),
    ):
        advance(tx, now_s, row["id"], gauge)


def forgive_outage(tx: Transaction, now_s: float, tick_s: float) -> None:
    """Note that the server lives. If it was away, move deadlines by as long: a device could not report meanwhile."""
    rows = tx.rows("SELECT value FROM meta WHERE key = 'alive_s'")
    away_s = now_s - float(rows[0]["value"]) if rows else 0.0
    if away_s > max(5 * tick_s, 5.0):
        open_states = (ActionState.OFFERED, ActionState.RUNNING, ActionState.CANCELING)
        tx.run(
            "UPDATE actions SET offered_s = offered_s + ? WHERE offered_s IS NOT NULL AND state IN (?, ?, ?)",
            *(away_s, *open_states),
        )
        note(tx, now_s, ENGINE, "server was away", "server", f"{away_s:.0f} s; deadlines moved by as long")
    tx.run(
        "INSERT INTO meta (key, value) VALUES ('alive_s', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        repr(now_s),
    )


def _carry_out(tx: Transaction, now_s: float, found: Rollout, verdict: Verdict) -> None:
    match verdict.move:
        case Move.BEGIN:
            tx.run("UPDATE waves SET begun_s = ? WHERE rollout = ? AND number = ?", now_s, found.id, verdict.wave)
            tx.run(
                "UPDATE actions SET state = ? WHERE rollout = ? AND wave = ? AND state = ?",
                *(ActionState.OFFERED, found.id, verdict.wave, ActionState.WAITING),
            )
            note(tx, now_s, ENGINE, "wave begun", f"rollout:{found.id}", f"wave={verdict.wave}")
            _expire(tx, now_s, read_rollout(tx, found.id))
        case Move.SUCCEED:
            note(tx, now_s, ENGINE, "wave succeeded", f"rollout:{found.id}", f"wave={verdict.wave}")
            _mark(tx, now_s, found.id, verdict.wave)
        case Move.PAUSE:
            if verdict.asked:
                keep_asked(tx, found.id, verdict.wave, verdict.asked)
            _set_state(tx, now_s, ENGINE, found.id, RolloutState.PAUSED, verdict.reason)
        case Move.ABORT:
            abort(tx, now_s, ENGINE, found.id, verdict.reason)
        case Move.FINISH:
            _set_state(tx, now_s, ENGINE, found.id, RolloutState.FINISHED, verdict.reason)
        case Move.WAIT:
            pass


def _expire(tx: Transaction, now_s: float, found: Rollout) -> None:
    """Count devices whose deadline has passed as failed, and defer those that were never there."""
    # While a rollout is paused nothing is offered, so whoever has not begun cannot be late.
    offered = ActionState.RUNNING if found.state == RolloutState.PAUSED else ActionState.OFFERED
    late = tx.rows(
        "SELECT id, device, state FROM actions WHERE rollout = ? AND state IN (?, ?, ?) AND offered_s < ?",
        *(found.id, offered, ActionState.RUNNING, ActionState.CANCELING),
        now_s - found.thresholds.deadline_s,
    )
    for row in late:
        # Whoever was asked to drop the release and never answered is no verdict on it.
        state = ActionState.CANCELED if row["state"] == ActionState.CANCELING else ActionState.TIMED_OUT
        tx.run("UPDATE actions SET state = ?, reason = 'timeout', finished_s = ? WHERE id = ?", state, now_s, row["id"])
        note(tx, now_s, ENGINE, str(state), f"device:{row['device']}", f"rollout={found.id}")
    tx.run(
        "UPDATE actions SET state = ? WHERE rollout = ? AND state = ? AND offered_s IS NULL AND device IN "
        "(SELECT device FROM devices WHERE revoked = 1 OR COALESCE(seen_s, enrolled_s) < ?)",
        *(ActionState.DEFERRED, found.id, ActionState.OFFERED, now_s - found.thresholds.defer_after_s),
    )


def _insert(
    tx: Transaction,
    now_s: float,
    who: str,
    kind: str,
    digest: str,
    group: str,
    devices: list[tuple[str, bool]],
    waves: tuple[float, ...],
    thresholds: Thresholds,
) -> int:
    """Write a rollout down; its number."""
    release = _require_release(tx, digest)
    rollout = next_id(tx, "rollouts")
    tx.run(
        "INSERT INTO rollouts (id, digest, grp, state, reason, kind, undone, thresholds, created_s, created_by) "
        "VALUES (?, ?, ?, ?, '', ?, 0, ?, ?, ?)",
        *(rollout, digest, group, RolloutState.RUNNING, kind),
        *(msgspec.json.encode(thresholds).decode(), now_s, who),
    )
    for number, fraction in enumerate(waves, start=1):
        tx.run("INSERT INTO waves (rollout, number, fraction) VALUES (?, ?, ?)", rollout, number, fraction)
    for device, wave in assign(rollout, devices, waves).items():
        add_action(tx, rollout, device, wave, ActionState.WAITING)
    label = f"{release['name']} {release['version']} group={group} devices={len(devices)}"
    note(tx, now_s, who, f"{kind} begun", f"rollout:{rollout}", label)
    return rollout


def _undo(tx: Transaction, now_s: float, who: str, found: Rollout, device: str = "") -> tuple[Rollout, ...]:
    """Rollouts that bring the devices which confirmed a release (or the one named) back to what they ran before."""
    tx.run("UPDATE rollouts SET undone = 1 WHERE id = ?", found.id)
    going = _ways_back(tx, found, device)
    for digest in list(going):
        stuck = why_not_back(tx, found.digest, [digest])
        if stuck:
            note(tx, now_s, who, "not rolled back", f"rollout:{found.id}", f"{', '.join(going.pop(digest))}: {stuck}")
    thresholds = msgspec.structs.replace(
        _UNDO, deadline_s=found.thresholds.deadline_s, defer_after_s=found.thresholds.defer_after_s
    )
    undone = []
    for digest, devices in going.items():
        ready = [(name, True) for name in devices]
        begun = _insert(tx, now_s, who, "rollback", digest, found.group, ready, (1.0,), thresholds)
        undone.append(advance(tx, now_s, begun))
    return tuple(undone)


def _ways_back(tx: Transaction, found: Rollout, device: str = "") -> dict[str, list[str]]:
    """Earlier release → the devices that confirmed a rollout's (or the one named) and ran that one before."""
    rows = tx.rows(
        "SELECT device, from_digest FROM actions WHERE rollout = ? AND state IN (?, ?) AND from_digest <> ? "
        "AND from_digest IN (SELECT digest FROM releases) AND device IN "
        "(SELECT device FROM devices WHERE running = ? AND revoked = 0) AND device NOT IN "
        "(SELECT actions.device FROM actions JOIN rollouts ON rollouts.id = actions.rollout "
        "WHERE rollouts.kind = 'rollback' AND actions.finished_s IS NULL) ORDER BY device",
        *(found.id, ActionState.CONFIRMED, ActionState.TIMED_OUT, found.digest, found.digest),
    )
    going: dict[str, list[str]] = {}
    for row in rows:
        if not device or row["device"] == device:
            going.setdefault(row["from_digest"], []).append(row["device"])
    return going


def _supersede(tx: Transaction, now_s: float, who: str, devices: list[str], group: str, begun: int) -> None:
    """End the group's other rollouts and its devices' other actions."""
    for row in tx.rows("SELECT id FROM rollouts WHERE grp = ? AND state IN (?, ?) AND id <> ?", group, *_LIVE, begun):
        _set_state(tx, now_s, who, row["id"], RolloutState.SUPERSEDED, f"superseded by rollout {begun}")
    for device in devices:
        cancel_actions(tx, now_s, "device = ? AND rollout <> ?", device, begun)


def _mark(tx: Transaction, now_s: float, rollout: int, wave: int) -> None:
    tx.run("UPDATE waves SET succeeded_s = ? WHERE rollout = ? AND number = ?", now_s, rollout, wave)


def _set_state(tx: Transaction, now_s: float, who: str, rollout: int, state: RolloutState, reason: str) -> None:
    finished_s = None if state in _LIVE else now_s
    tx.run("UPDATE rollouts SET state = ?, reason = ?, finished_s = ? WHERE id = ?", state, reason, finished_s, rollout)
    note(tx, now_s, who, str(state), f"rollout:{rollout}", reason)


def _require_release(tx: Transaction, digest: str) -> Row:
    rows = tx.rows("SELECT name, version FROM releases WHERE digest = ?", digest)
    if not rows:
        raise ConfigError(f"no release {digest[:19]}… is published", hint="Publish it first.")
    return rows[0]


def _require(found: Rollout, *states: RolloutState) -> None:
    if found.state not in states:
        raise ConfigError(
            f"rollout {found.id} is {found.state}{': ' + found.reason if found.reason else ''}",
            hint=f"This works while it is {' or '.join(states)}.",
        )


def _check_thresholds(thresholds: Thresholds) -> None:
    for name in ("success_fraction", "abort_fraction", "max_error_fraction_rise", "max_thumbs_down_rise"):
        value = getattr(thresholds, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name}: {value:g} is not between 0 and 1")
    for name in ("deadline_s", "defer_after_s", "max_ttft_ratio", "min_tokens_per_s_ratio", "drift"):
        value = getattr(thresholds, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name}: {value:g} is no number above 0")
    for name in ("min_executed", "min_generations"):
        if getattr(thresholds, name) < 1:
            raise ConfigError(f"{name} must be at least 1")
    if not 0 <= thresholds.soak_s < math.inf:
        raise ConfigError(f"soak_s: {thresholds.soak_s:g} is no number from 0 on")
    limits = limits_of(thresholds)
    without = [metric for metric in thresholds.abort_on if metric not in limits]
    if without:
        raise ConfigError(f"abort_on: {without[0]} has no threshold", hint="Give it one, or leave it out.")
    if thresholds.require_telemetry and not limits:
        raise ConfigError("require_telemetry: no metric has a threshold", hint="Give at least one a threshold.")
