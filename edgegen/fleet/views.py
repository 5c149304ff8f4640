"""Rows read as records."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.audit import require_limit
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.deployment import (
    ActionState,
    ActionView,
    DeviceView,
    Rollout,
    RolloutState,
    Thresholds,
    Wave,
)

_ACTION = "SELECT actions.*, rollouts.digest AS digest FROM actions JOIN rollouts ON rollouts.id = actions.rollout "


def read_rollout(tx: Transaction, rollout: int) -> Rollout:
    """One rollout with its waves.

    Raises:
        ConfigError: there is none of this number.
    """
    rows = tx.rows("SELECT * FROM rollouts WHERE id = ?", rollout)
    if not rows:
        raise ConfigError(f"there is no rollout {rollout}", hint="See `edgegen fleet rollouts`.")
    return _rollout(tx, rows[0])


def read_rollouts(tx: Transaction, *, group: str = "", limit: int = 50) -> tuple[Rollout, ...]:
    """The latest rollouts, newest first; of one group if it is named.

    Raises:
        ConfigError: a limit below 1.
    """
    require_limit(limit)
    where, arguments = ("WHERE grp = ?", (group,)) if group else ("", ())
    rows = tx.rows(f"SELECT * FROM rollouts {where} ORDER BY id DESC LIMIT ?", *arguments, limit)
    return tuple(_rollout(tx, row) for row in rows)


def read_actions(tx: Transaction, rollout: int) -> tuple[ActionView, ...]:
    """Every device of a rollout, by wave."""
    rows = tx.rows(_ACTION + "WHERE rollout = ? ORDER BY wave, device", rollout)
    return tuple(action_view(row) for row in rows)


def read_devices(tx: Transaction, *, group: str = "", device: str = "") -> tuple[DeviceView, ...]:
    """All devices by name, those of one group, or one, each with its latest action."""
    conditions, arguments = [], []
    for column, value in (("devices.grp", group), ("devices.device", device)):
        if value:
            conditions.append(f"{column} = ?")
            arguments.append(value)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    latest = {
        row["device"]: action_view(row)
        for row in tx.rows(
            _ACTION + "JOIN (SELECT device AS who, MAX(id) AS top FROM actions GROUP BY device) AS newest "
            "ON newest.top = actions.id"
        )
    }
    rows = tx.rows(f"SELECT * FROM devices {where} ORDER BY device", *arguments)
    return tuple(
        DeviceView(
            device=row["device"],
            group=row["grp"],
            attributes=msgspec.json.decode(row["attributes"], type=dict[str, str]),
            running=row["running"],
            enrolled_s=row["enrolled_s"],
            seen_s=row["seen_s"],
            revoked=bool(row["revoked"]),
            action=latest.get(row["device"]),
        )
        for row in rows
    )


def action_view(row: Row) -> ActionView:
    """A row of actions joined with its rollout's `digest`."""
    return ActionView(**{**row, "state": ActionState(row["state"])})


def _rollout(tx: Transaction, row: Row) -> Rollout:
    states: dict[int, dict[str, int]] = defaultdict(dict)
    counted = tx.rows(
        "SELECT wave, state, COUNT(*) AS devices FROM actions WHERE rollout = ? GROUP BY wave, state", row["id"]
    )
    for entry in counted:
        states[entry["wave"]][entry["state"]] = entry["devices"]
    waves = tuple(
        Wave(
            number=wave["number"],
            fraction=wave["fraction"],
            devices=sum(states[wave["number"]].values()),
            states=states[wave["number"]],
            begun_s=wave["begun_s"],
            succeeded_s=wave["succeeded_s"],
        )
        for wave in tx.rows("SELECT * FROM waves WHERE rollout = ? ORDER BY number", row["id"])
    )
    release = tx.rows("SELECT name, version FROM releases WHERE digest = ?", row["digest"])[0]
    return Rollout(
        id=row["id"],
        name=release["name"],
        version=release["version"],
        digest=row["digest"],
        group=row["grp"],
        state=RolloutState(row["state"]),
        reason=row["reason"],
        kind=row["kind"],
        thresholds=msgspec.json.decode(row["thresholds"], type=Thresholds),
        waves=waves,
        created_s=row["created_s"],
        created_by=row["created_by"],
        finished_s=row["finished_s"],
    )
