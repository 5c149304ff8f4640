"""Alerts told to another server: `POST` with JSON, at least once each.

What is to be sent lies in the database's outbox until the other side has answered with 2xx, so a restart loses nothing.
Sending is done away from the thread that writes the database, and with a short time limit; after a failure it is tried
again, ever more seldom, for a day.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import urllib.error
import urllib.request
from typing import Any

from edgegen.fleet.monitoring.rules import Webhook, webhook_address, webhook_secret
from edgegen.fleet.telemetry.store import add_event
from edgegen.fleet.transaction import Row, Transaction

SIGNATURE = "X-Edgegen-Signature"
_FIRST_S, _MOST_S = 5.0, 3600.0
_GIVE_UP_S = 86400.0
_log = logging.getLogger("edgegen.fleet")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Bodies and signatures are for the address that was written down."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_Stay)


def due(tx: Transaction, now_s: float, *, most: int = 20) -> list[Row]:
    """What is to be sent now, oldest first."""
    return tx.rows("SELECT * FROM outbox WHERE next_s <= ? ORDER BY id LIMIT ?", now_s, most)


def send(webhook: Webhook, body: str) -> str:
    """Send one body; what went wrong, empty if nothing did.

    Raises:
        ConfigError: the address or the secret is not there any more.
    """
    data = body.encode()
    headers = {"Content-Type": "application/json", "User-Agent": "edgegen"}
    secret = webhook_secret(webhook)
    if secret is not None:
        headers[SIGNATURE] = "sha256=" + hmac.new(secret, data, hashlib.sha256).hexdigest()
    request = urllib.request.Request(webhook_address(webhook), data=data, headers=headers, method="POST")
    try:
        with _opener.open(request, timeout=webhook.timeout_s) as answer:
            return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def settle(tx: Transaction, now_s: float, row: Row, failure: str) -> None:
    """Note how sending went: done with it, or when to try again."""
    if failure and now_s - row["created_s"] < _GIVE_UP_S:
        wait_s = min(_MOST_S, _FIRST_S * 2 ** min(row["tries"], 20))
        tx.run("UPDATE outbox SET tries = tries + 1, next_s = ? WHERE id = ?", now_s + wait_s, row["id"])
        _log.warning("webhook: %s; trying again in %.0f s", failure, wait_s)
        return
    if failure:
        _log.error("webhook: %s; given up", failure)
        add_event(tx, now_s, level="error", what="webhook-given-up", detail=failure)
    tx.run("DELETE FROM outbox WHERE id = ?", row["id"])
