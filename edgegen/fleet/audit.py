"""The log of who did what: rows are added in the same transaction as the deed, and never changed."""

from __future__ import annotations

from edgegen.errors import ConfigError
from edgegen.fleet.schema import next_id
from edgegen.fleet.transaction import Transaction
from edgegen.records.deployment import AuditEntry

ENGINE = "engine"


def note(tx: Transaction, at_s: float, who: str, what: str, subject: str, detail: str = "") -> None:
    """Add an entry.

    Args:
        who: `operator:<name>`, `device:<id>` or `engine`.
    """
    tx.run(
        "INSERT INTO audit (id, at_s, who, what, subject, detail) VALUES (?, ?, ?, ?, ?, ?)",
        *(next_id(tx, "audit"), at_s, who, what, subject, detail),
    )


def require_limit(limit: int) -> None:
    """Whether so many rows can be asked for.

    Raises:
        ConfigError: fewer than one.
    """
    if limit < 1:
        raise ConfigError(f"limit: {limit} is below 1")


def read_audit(tx: Transaction, *, subject: str = "", limit: int = 100) -> tuple[AuditEntry, ...]:
    """The latest entries, oldest first; of one subject (`device:…`, `rollout:…`) if it is named.

    Raises:
        ConfigError: a limit below 1.
    """
    require_limit(limit)
    where, arguments = ("WHERE subject = ?", (subject,)) if subject else ("", ())
    rows = tx.rows(f"SELECT * FROM audit {where} ORDER BY id DESC LIMIT ?", *arguments, limit)
    return tuple(AuditEntry(**row) for row in reversed(rows))
