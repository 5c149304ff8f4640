"""Actions: one device in one rollout. Added, called off, offered anew.

What is offered anew gets another number: to a device the old one is over, whatever became of it.
"""

from __future__ import annotations

from edgegen.fleet.schema import next_id
from edgegen.fleet.transaction import Transaction
from edgegen.records.deployment import ActionState, Reason

DECLINED = "declined"
"""Reason of a canceled action that the device itself called off: it is not offered to it again."""


def add_action(tx: Transaction, rollout: int, device: str, wave: int, state: ActionState) -> None:
    """Put a device into a wave of a rollout."""
    tx.run(
        "INSERT INTO actions (id, rollout, device, wave, state, phase, reason, from_digest) "
        "VALUES (?, ?, ?, ?, ?, '', '', '')",
        *(next_id(tx, "actions"), rollout, device, wave, state),
    )


def renew_action(tx: Transaction, action: int, state: ActionState) -> None:
    """Let an action that is over begin again."""
    tx.run(
        "UPDATE actions SET id = ?, state = ?, phase = '', reason = '', from_digest = '', offered_s = NULL, "
        "finished_s = NULL WHERE id = ?",
        *(next_id(tx, "actions"), state, action),
    )


def cancel_actions(tx: Transaction, now_s: float, which: str, *arguments: str | int) -> None:
    """End actions that have not begun, and ask for the end of those that have. `which` is an SQL condition."""
    unseen = "state IN (?, ?) OR (state = ? AND offered_s IS NULL)"
    tx.run(
        f"UPDATE actions SET state = ?, reason = ?, finished_s = ? WHERE ({which}) AND ({unseen})",
        *(ActionState.CANCELED, Reason.CANCELED, now_s, *arguments),
        *(ActionState.WAITING, ActionState.DEFERRED, ActionState.OFFERED),
    )
    tx.run(
        f"UPDATE actions SET state = ? WHERE ({which}) AND state IN (?, ?)",
        *(ActionState.CANCELING, *arguments, ActionState.OFFERED, ActionState.RUNNING),
    )


def end_actions(tx: Transaction, now_s: float, device: str) -> None:
    """End all that a device was at without asking it: it will not be heard again."""
    cancel_actions(tx, now_s, "device = ?", device)
    tx.run(
        "UPDATE actions SET state = ?, reason = ?, finished_s = ? WHERE device = ? AND state = ?",
        *(ActionState.CANCELED, Reason.CANCELED, now_s, device, ActionState.CANCELING),
    )
