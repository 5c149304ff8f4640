"""Devices as members of a group: what it has or is getting is theirs too, when they come late, move or return."""

from __future__ import annotations

from edgegen.common.codec import did_you_mean
from edgegen.errors import ConfigError
from edgegen.fleet.actions import DECLINED, add_action, cancel_actions, end_actions, renew_action
from edgegen.fleet.audit import ENGINE, note
from edgegen.fleet.credentials import require_name
from edgegen.fleet.schema import next_id
from edgegen.fleet.telemetry.retention import forget_reports
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.deployment import ActionState, RolloutState

_CANARY = "canary:"
"""Before a device's name: a key of `meta`."""


def join_late(tx: Transaction, now_s: float, device: str, group: str, *, moved: bool = False) -> None:
    """Give a device what its group has or is getting, if it came later, or was called off it meanwhile.

    Args:
        moved: another group's release may have come over the one that it took here: then it takes this one again.
    """
    newest = tx.rows(
        "SELECT id, digest FROM rollouts WHERE grp = ? AND kind = 'update' AND state IN (?, ?, ?) "
        "ORDER BY id DESC LIMIT 1",
        *(group, RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.FINISHED),
    )
    if not newest:
        return
    rollout = newest[0]["id"]
    known = tx.rows("SELECT * FROM actions WHERE rollout = ? AND device = ?", rollout, device)
    if not known:
        (last,) = tx.rows("SELECT number FROM waves WHERE rollout = ? ORDER BY number DESC LIMIT 1", rollout)
        add_action(tx, rollout, device, last["number"], _state_in(tx, rollout, last["number"]))
        note(tx, now_s, ENGINE, "joined late", f"device:{device}", f"rollout={rollout}")
        return
    (action,) = known
    called_off = action["state"] == ActionState.CANCELED and action["reason"] != DECLINED
    replaced = moved and action["state"] == ActionState.CONFIRMED and _runs(tx, device) != newest[0]["digest"]
    if called_off or replaced:
        renew_action(tx, action["id"], _state_in(tx, rollout, action["wave"]))
        note(tx, now_s, ENGINE, "offered anew", f"device:{device}", f"rollout={rollout}")


def move_device(tx: Transaction, now_s: float, who: str, *, device: str, group: str) -> None:
    """Put a device into another group: it drops what the old one was getting and takes what the new one has.

    Raises:
        ConfigError: there is no such device.
    """
    require_name(group, what="group")
    if not tx.run("UPDATE devices SET grp = ? WHERE device = ?", group, device):
        raise _unknown(device)
    cancel_actions(tx, now_s, "device = ? AND rollout IN (SELECT id FROM rollouts WHERE grp <> ?)", device, group)
    note(tx, now_s, who, "moved", f"device:{device}", f"group={group}")
    join_late(tx, now_s, device, group, moved=True)


def revoke_device(tx: Transaction, now_s: float, who: str, *, device: str) -> None:
    """Refuse a device's credential from now on, as after a theft; it stays in the records.

    Raises:
        ConfigError: there is no such device.
    """
    if not tx.run("UPDATE devices SET revoked = 1 WHERE device = ?", device):
        raise _unknown(device)
    end_actions(tx, now_s, device)
    note(tx, now_s, who, "revoked", f"device:{device}")


def allow_device(tx: Transaction, now_s: float, who: str, *, device: str) -> None:
    """Take a revoked device's credential again, as when it was found; it gets what its group has.

    Raises:
        ConfigError: there is no such device, or it is not revoked.
    """
    if not _device(tx, device)["revoked"]:
        raise ConfigError(f"device {device} is not revoked", hint="There is nothing to do.")
    tx.run("UPDATE devices SET revoked = 0 WHERE device = ?", device)
    note(tx, now_s, who, "allowed", f"device:{device}")


def ask_canaries(tx: Transaction, now_s: float, who: str, *, device: str) -> None:
    """Let a device answer its golden prompts again with its next poll.

    Raises:
        ConfigError: there is no such device.
    """
    _device(tx, device)
    tx.run(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        *(_CANARY + device, repr(now_s)),
    )
    note(tx, now_s, who, "canaries asked", f"device:{device}", "")


def take_canaries(tx: Transaction, device: str) -> bool:
    """Whether a device is to answer its golden prompts; it is told once."""
    return bool(tx.run("DELETE FROM meta WHERE key = ?", _CANARY + device))


def forget_device(tx: Transaction, now_s: float, who: str, *, device: str) -> None:
    """Remove a device and its credential, so that another, or the same after it was set up anew, enrols as it.

    What it did stays in its rollouts, under a name that no device can have (`pi-1#4`): the new one starts with nothing
    done. What it reported is erased.

    Raises:
        ConfigError: there is no such device.
    """
    _device(tx, device)
    end_actions(tx, now_s, device)
    forget_reports(tx, now_s, device)
    former = f"{device}#{next_id(tx, 'forgotten')}"
    tx.run("UPDATE actions SET device = ? WHERE device = ?", former, device)
    tx.run("DELETE FROM devices WHERE device = ?", device)
    note(tx, now_s, who, "forgotten", f"device:{device}", f"its updates are kept as {former}")


def require_group(tx: Transaction, group: str) -> None:
    """
    Raises:
        ConfigError: no device is in such a group; the hint names the nearest.
    """
    if not tx.rows("SELECT device FROM devices WHERE grp = ? LIMIT 1", group):
        groups = [row["grp"] for row in tx.rows("SELECT DISTINCT grp FROM devices")]
        hint = did_you_mean(group, groups) if groups else "No device has enrolled yet."
        raise ConfigError(f"there is no group {group[:64]!r} with devices", hint=hint)


def require_device(tx: Transaction, device: str) -> None:
    """
    Raises:
        ConfigError: there is no such device.
    """
    _device(tx, device)


def _device(tx: Transaction, device: str) -> Row:
    rows = tx.rows("SELECT * FROM devices WHERE device = ?", device)
    if not rows:
        raise _unknown(device)
    return rows[0]


def _unknown(device: str) -> ConfigError:
    return ConfigError(f"there is no device {device[:64]!r}", hint="See `edgegen fleet devices`.")


def _runs(tx: Transaction, device: str) -> str:
    return str(_device(tx, device)["running"])


def _state_in(tx: Transaction, rollout: int, wave: int) -> ActionState:
    (found,) = tx.rows("SELECT begun_s FROM waves WHERE rollout = ? AND number = ?", rollout, wave)
    return ActionState.WAITING if found["begun_s"] is None else ActionState.OFFERED
