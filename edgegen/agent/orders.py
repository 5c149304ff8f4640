"""Orders from this device itself: `edgegen-agent install` hands them to the agent that runs, and waits.

orders/<id>.json     what is wanted; the agent removes it when it is over
outcomes/<id>.json   how it ended; whoever ordered removes it
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError
from edgegen.records.base import Record
from edgegen.records.deployment import Installed


class LocalOrder(Record, frozen=True):
    """Install a release, or (`roll_back`) go back to the one before."""

    repository: str = ""
    target: str = ""
    roll_back: bool = False


class LocalOutcome(Record, frozen=True):
    """How it ended: what was installed, or why nothing was begun."""

    installed: Installed | None = None
    exit_code: int = 0
    message: str = ""
    hint: str = ""


def place_order(folder: Path, order: LocalOrder) -> str:
    """Hand an order over; its id."""
    name = f"local-{int(time.time() * 1000)}-{secrets.token_hex(3)}"
    save_json(folder / "orders" / f"{name}.json", order)
    return name


def waiting_orders(folder: Path) -> Iterator[tuple[str, LocalOrder]]:
    """Orders that are not over, oldest first; a broken file is answered and removed."""
    for path in sorted((folder / "orders").glob("local-*.json")):
        try:
            yield path.stem, load_json(path, LocalOrder)
        except ConfigError as error:
            settle(folder, path.stem, LocalOutcome(exit_code=error.exit_code, message=str(error)))


def settle(folder: Path, name: str, outcome: LocalOutcome) -> None:
    """Answer an order and remove it."""
    save_json(folder / "outcomes" / f"{name}.json", outcome)
    (folder / "orders" / f"{name}.json").unlink(missing_ok=True)


def take_outcome(folder: Path, name: str) -> LocalOutcome | None:
    """The agent's answer, which is then removed; None: there is none yet."""
    path = folder / "outcomes" / f"{name}.json"
    if not path.is_file():
        return None
    found = load_json(path, LocalOutcome)
    path.unlink()
    return found


def is_known(folder: Path, name: str) -> bool:
    """Whether an order waits or is answered. The answer is there before the order goes."""
    return any((folder / place / f"{name}.json").is_file() for place in ("orders", "outcomes"))


def drop_order(folder: Path, name: str) -> None:
    """Take an order back that nobody has begun."""
    (folder / "orders" / f"{name}.json").unlink(missing_ok=True)
