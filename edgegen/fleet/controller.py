"""What a device is told and what it reports: the DDI messages (see `records.deployment`) on the database.

The caller has checked that the device is who it says it is (`credentials.device_of`); everything here looks only at
that device's own actions.
"""

from __future__ import annotations

import msgspec

from edgegen.fleet.actions import DECLINED
from edgegen.fleet.audit import note
from edgegen.fleet.credentials import checked_attributes
from edgegen.fleet.members import join_late, take_canaries
from edgegen.fleet.release import describe_release
from edgegen.fleet.request_error import RequestError
from edgegen.fleet.rollouts import advance, undo_late
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.deployment import (
    CANARY_LINK,
    TENANT,
    ActionState,
    Attributes,
    CancelBase,
    Chunk,
    Deployment,
    DeploymentBase,
    Execution,
    Feedback,
    Finished,
    Link,
    Phase,
    Poll,
    PollConfig,
    Polling,
    Reason,
    RolloutState,
    StopId,
    Thresholds,
)

_OVER = (ActionState.CONFIRMED, ActionState.FAILED, ActionState.TIMED_OUT, ActionState.CANCELED)
_ACTION = (
    "SELECT actions.*, rollouts.digest AS digest, rollouts.state AS rollout_state, rollouts.kind AS kind, "
    "rollouts.grp AS grp, rollouts.thresholds AS thresholds FROM actions "
    "JOIN rollouts ON rollouts.id = actions.rollout "
)
_MOST_DIGEST = 80


def poll(tx: Transaction, now_s: float, device: Row, *, running: str, poll_s: float, base: str) -> Poll:
    """What a device is to do next.

    Args:
        device: its row.
        running: digest of the manifest that it says it serves; `none` or empty where it says nothing.
        poll_s: seconds until it should ask again.
        base: URL of the server, without a slash at the end.
    """
    name = device["device"]
    _note_presence(tx, now_s, device, running, poll_s)
    _return(tx, name)
    join_late(tx, now_s, name, device["grp"])
    root = f"{base}/{TENANT}/controller/v1/{name}"
    links = {}
    rows = tx.rows(
        _ACTION + "WHERE actions.device = ? AND (actions.state IN (?, ?) OR (actions.state = ? AND rollouts.state IN "
        "(?, ?))) ORDER BY actions.id",
        *(name, ActionState.CANCELING, ActionState.RUNNING),
        *(ActionState.OFFERED, RolloutState.RUNNING, RolloutState.FINISHED),
    )
    rows.sort(key=lambda row: row["state"] != ActionState.CANCELING)
    if rows and rows[0]["state"] == ActionState.CANCELING:
        links["cancelAction"] = Link(f"{root}/cancelAction/{rows[0]['id']}")
    elif rows:
        if rows[0]["offered_s"] is None:
            running = running if running.startswith("sha256:") else device["running"]
            tx.run("UPDATE actions SET offered_s = ?, from_digest = ? WHERE id = ?", now_s, running, rows[0]["id"])
        links["deploymentBase"] = Link(f"{root}/deploymentBase/{rows[0]['id']}")
    if device["attributes"] == "{}":
        links["configData"] = Link(f"{root}/configData")
    installed = tx.rows(
        "SELECT MAX(id) AS id FROM actions WHERE device = ? AND state = ?", name, ActionState.CONFIRMED
    )[0]["id"]
    if installed is not None:
        links["installedBase"] = Link(f"{root}/installedBase/{installed}")
    if take_canaries(tx, name):
        links[CANARY_LINK] = Link(f"{root}/configData")
    return Poll(PollConfig(Polling(_clock(poll_s))), links)


def deployment(tx: Transaction, device: str, action: int, *, base: str, installed: bool = False) -> DeploymentBase:
    """One action of the device: the release that it is to take, or (`installed`) that it has taken.

    Raises:
        RequestError: 404 not an action of this device, 410 it is over.
    """
    row = _action(tx, device, action)
    if not installed and row["state"] in (*_OVER, ActionState.WAITING, ActionState.DEFERRED):
        raise RequestError(410, "this action is over")
    thresholds = msgspec.json.decode(row["thresholds"], type=Thresholds)
    chunk: Chunk = describe_release(tx, row["digest"], base=base, reason=row["kind"], deadline_s=thresholds.deadline_s)
    return DeploymentBase(str(action), Deployment(download="forced", update="forced", chunks=(chunk,)))


def cancelation(tx: Transaction, device: str, action: int) -> CancelBase:
    """The request to drop an action.

    Raises:
        RequestError: 404 not an action of this device, 410 it is not to be dropped any more.
    """
    if _action(tx, device, action)["state"] != ActionState.CANCELING:
        raise RequestError(410, "nothing is to be canceled")
    return CancelBase(str(action), StopId(str(action)))


def describe_itself(tx: Transaction, device: Row, said: Attributes) -> None:
    """Keep what a device says of itself.

    Raises:
        RequestError: 400, an unknown mode or too much.
    """
    known = msgspec.json.decode(device["attributes"], type=dict[str, str])
    if said.mode == "merge":
        known |= said.data
    elif said.mode == "replace":
        known = said.data
    elif said.mode == "remove":
        known = {key: value for key, value in known.items() if key not in said.data}
    else:
        raise RequestError(400, "mode: merge, replace or remove")
    attributes = msgspec.json.encode(checked_attributes(known)).decode()
    tx.run("UPDATE devices SET attributes = ? WHERE device = ?", attributes, device["device"])


def report(tx: Transaction, now_s: float, device: str, action: int, said: Feedback) -> None:
    """Take a device's word on an action. The same outcome twice is taken once.

    Raises:
        RequestError: 404 not an action of this device, 410 the action is over with another outcome.
    """
    row = _action(tx, device, action)
    outcome = _outcome(said)
    phase, reason = _details(said)
    if row["state"] in _OVER:
        _report_late(tx, now_s, row, outcome)
        return
    if row["state"] in (ActionState.WAITING, ActionState.DEFERRED):
        raise RequestError(410, "this action was not offered")
    if outcome is None:
        state = ActionState.RUNNING if row["state"] == ActionState.OFFERED else row["state"]
        tx.run("UPDATE actions SET state = ?, phase = ? WHERE id = ?", state, phase or row["phase"], action)
        return
    if outcome == ActionState.CANCELED:
        reason = Reason.CANCELED if row["state"] == ActionState.CANCELING else DECLINED
    _close(tx, now_s, row, outcome, phase, reason, " ".join(said.status.details)[:500])


def report_cancelation(tx: Transaction, now_s: float, device: str, action: int, said: Feedback) -> None:
    """Take a device's answer to a request to drop an action: done, or too late for that.

    Raises:
        RequestError: 404 not an action of this device, 410 it is over.
    """
    row = _action(tx, device, action)
    if row["state"] == ActionState.CANCELED:
        return
    if row["state"] != ActionState.CANCELING:
        raise RequestError(410, "nothing is to be canceled")
    if said.status.execution == Execution.REJECTED or said.status.result.finished == Finished.FAILURE:
        tx.run("UPDATE actions SET state = ? WHERE id = ?", ActionState.RUNNING, action)
        note(tx, now_s, f"device:{device}", "cancel rejected", f"device:{device}", f"rollout={row['rollout']}")
    elif said.status.execution in (Execution.CLOSED, Execution.CANCELED):
        _close(tx, now_s, row, ActionState.CANCELED, "", Reason.CANCELED, "")


def _close(tx: Transaction, now_s: float, row: Row, outcome: ActionState, phase: str, reason: str, detail: str) -> None:
    """An action's one outcome."""
    device = row["device"]
    tx.run(
        "UPDATE actions SET state = ?, phase = ?, reason = ?, finished_s = ? WHERE id = ?",
        *(outcome, phase or row["phase"], "" if outcome == ActionState.CONFIRMED else reason, now_s, row["id"]),
    )
    note(tx, now_s, f"device:{device}", str(outcome), f"device:{device}", f"rollout={row['rollout']} {detail}".strip())
    if outcome == ActionState.CONFIRMED:
        _note_installed(tx, now_s, row)
    advance(tx, now_s, row["rollout"])


def _note_installed(tx: Transaction, now_s: float, row: Row) -> None:
    """A device runs an action's release now; if that is no longer what it should, send it on."""
    tx.run("UPDATE devices SET running = ? WHERE device = ?", row["digest"], row["device"])
    undo_late(tx, now_s, row["rollout"], row["device"])
    (device,) = tx.rows("SELECT grp FROM devices WHERE device = ?", row["device"])
    if device["grp"] != row["grp"]:  # it was moved when it could not drop this any more
        join_late(tx, now_s, row["device"], device["grp"], moved=True)


def _report_late(tx: Transaction, now_s: float, row: Row, outcome: ActionState | None) -> None:
    """Word on an action that is over: a repetition is fine, a success after the deadline is noted, more is refused."""
    if outcome == row["state"] or (row["state"] == ActionState.TIMED_OUT and outcome == ActionState.FAILED):
        return
    if outcome == ActionState.CONFIRMED and row["state"] in (ActionState.TIMED_OUT, ActionState.CANCELED):
        device = row["device"]
        note(tx, now_s, f"device:{device}", "confirmed late", f"device:{device}", f"rollout={row['rollout']}")
        _note_installed(tx, now_s, row)
        return
    raise RequestError(410, "this action is over")


def _action(tx: Transaction, device: str, action: int) -> Row:
    rows = tx.rows(_ACTION + "WHERE actions.id = ? AND actions.device = ?", action, device)
    if not rows:
        raise RequestError(404, "no such action of this device")
    return rows[0]


def _return(tx: Transaction, device: str) -> None:
    """A device that was deferred is back."""
    tx.run(
        "UPDATE actions SET state = ? WHERE device = ? AND state = ?",
        *(ActionState.OFFERED, device, ActionState.DEFERRED),
    )


def _note_presence(tx: Transaction, now_s: float, device: Row, running: str, poll_s: float) -> None:
    """Keep when a device was seen, to half a poll (each write costs), and what it runs."""
    if device["seen_s"] is None or now_s - device["seen_s"] >= poll_s / 2:
        tx.run("UPDATE devices SET seen_s = ? WHERE device = ?", now_s, device["device"])
    known = running.startswith("sha256:") and len(running) <= _MOST_DIGEST
    if known and running != device["running"]:
        tx.run("UPDATE devices SET running = ? WHERE device = ?", running, device["device"])
        if device["running"]:
            name = f"device:{device['device']}"
            note(tx, now_s, name, "runs another release", name, f"{running}, was {device['running']}")


def _outcome(said: Feedback) -> ActionState | None:
    """What a message says about the end, None if the device is still at it."""
    if said.status.execution == Execution.CANCELED:
        return ActionState.CANCELED
    if said.status.execution != Execution.CLOSED:
        return None
    return ActionState.CONFIRMED if said.status.result.finished == Finished.SUCCESS else ActionState.FAILED


def _details(said: Feedback) -> tuple[str, str]:
    """Phase and reason, each empty where the device named none that is known."""
    found = dict(detail.split("=", 1) for detail in said.status.details if "=" in detail)
    phase, reason = found.get("phase", ""), found.get("reason", "")
    return phase if phase in list(Phase) else "", reason if reason in list(Reason) else ""


def _clock(seconds: float) -> str:
    """DDI's `HH:MM:SS`; at least a second, as a client may take 0 for its own default."""
    whole = max(1, round(seconds))
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
