"""Who may do what: enrolment tokens bring devices in, a device's token speaks for that device alone, an operator's
token commands the fleet. None of the three opens what another does.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.audit import note
from edgegen.fleet.request_error import RequestError
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.deployment import Enrolment

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of devices, groups and operators: they stand in URLs and file names."""
_LEAST_TOKEN = 32
_MOST_TOKEN = 512
_MOST_ATTRIBUTES = 64
_MOST_CHARACTERS = 1024


def digest_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def require_name(name: str, *, what: str) -> str:
    """The name itself.

    Raises:
        ConfigError: it is empty, too long, or has other characters than letters, digits, `.`, `_` and `-`.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name[:80]!r} is no name",
            hint="Use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first.",
        )
    return name


_LONGEST_TOKEN_S = 10 * 365 * 86400.0


def make_enrolment_token(
    tx: Transaction, now_s: float, who: str, *, group: str, label: str = "", uses: int = 1, lifetime_s: float = 86400.0
) -> str:
    """A new token that lets `uses` devices join `group` within `lifetime_s` seconds. It can be shown only now."""
    require_name(group, what="group")
    if not (1 <= uses <= 1_000_000 and 0 < lifetime_s <= _LONGEST_TOKEN_S):  # NaN holds nowhere
        raise ConfigError("an enrolment token has 1 to 1,000,000 uses and a lifetime above 0 of at most ten years")
    token = "enrol-" + secrets.token_urlsafe(32)
    tx.run(
        "INSERT INTO enrolment_tokens (digest, label, grp, created_s, expires_s, uses_left) VALUES (?, ?, ?, ?, ?, ?)",
        *(digest_token(token), label, group, now_s, now_s + lifetime_s, uses),
    )
    note(tx, now_s, who, "enrolment token made", f"group:{group}", f"{label} uses={uses} lifetime_s={lifetime_s:g}")
    return token


def close_enrolment(tx: Transaction, now_s: float, who: str, *, group: str) -> int:
    """End all enrolment tokens of a group that could still be used, as after one got about; how many there were.

    Devices that have enrolled keep their credentials.

    Raises:
        ConfigError: nothing was ever let into such a group.
    """
    require_name(group, what="group")
    if not tx.rows(
        "SELECT grp FROM enrolment_tokens WHERE grp = ? UNION ALL SELECT grp FROM devices WHERE grp = ? LIMIT 1",
        *(group, group),
    ):
        raise ConfigError(
            f"group {group!r} has neither devices nor enrolment tokens", hint="See `edgegen fleet devices`."
        )
    ended = tx.run(
        "UPDATE enrolment_tokens SET uses_left = 0 WHERE grp = ? AND uses_left > 0 AND expires_s >= ?", group, now_s
    )
    note(tx, now_s, who, "enrolment closed", f"group:{group}", f"tokens={ended}")
    return ended


def make_operator(tx: Transaction, now_s: float, who: str, *, name: str) -> str:
    """A new operator's token, which replaces an older one of that name. It can be shown only now."""
    require_name(name, what="operator")
    token = "operator-" + secrets.token_urlsafe(32)
    tx.run("DELETE FROM operators WHERE name = ?", name)
    tx.run("INSERT INTO operators (digest, name, created_s) VALUES (?, ?, ?)", digest_token(token), name, now_s)
    note(tx, now_s, who, "operator token made", f"operator:{name}")
    return token


def dismiss_operator(tx: Transaction, now_s: float, who: str, *, name: str) -> None:
    """End an operator's token.

    Raises:
        ConfigError: there is no such operator.
    """
    if not tx.run("DELETE FROM operators WHERE name = ?", name):
        names = ", ".join(row["name"] for row in tx.rows("SELECT name FROM operators ORDER BY name"))
        raise ConfigError(f"there is no operator {name[:80]!r}", hint=f"Known: {names or 'none'}.")
    note(tx, now_s, who, "operator dismissed", f"operator:{name}")


def operator_of(tx: Transaction, token: str) -> str:
    """The operator's name.

    Raises:
        RequestError: 401, no operator has this token.
    """
    rows = tx.rows("SELECT name FROM operators WHERE digest = ?", digest_token(token))
    if not token or not rows:
        raise RequestError(401, "an operator's token is needed")
    return str(rows[0]["name"])


def device_of(tx: Transaction, device: str, token: str) -> Row:
    """The device's row, if the token is its own.

    Raises:
        RequestError: 401, the same for an unknown device and for a wrong token.
    """
    rows = tx.rows("SELECT * FROM devices WHERE device = ?", device)
    known = rows[0]["token_digest"] if rows else ""
    if not hmac.compare_digest(digest_token(token), known) or rows[0]["revoked"]:
        raise RequestError(401, "the device's own token is needed")
    return rows[0]


def enrol(tx: Transaction, now_s: float, token: str, asked: Enrolment) -> str:
    """Take a device in. The same request again changes nothing.

    Returns:
        The device's group.

    Raises:
        RequestError: 401 no such token, or used up or expired; 409 the device has another credential; 400 otherwise.
    """
    if not NAME.fullmatch(asked.device):
        raise RequestError(400, "device: up to 64 letters, digits, dots, dashes and underscores")
    if not _LEAST_TOKEN <= len(asked.token) <= _MOST_TOKEN:
        raise RequestError(400, f"token: {_LEAST_TOKEN} to {_MOST_TOKEN} characters")
    attributes = checked_attributes(asked.attributes)
    tickets = tx.rows("SELECT * FROM enrolment_tokens WHERE digest = ?", digest_token(token))
    if not tickets:
        raise RequestError(401, "an enrolment token is needed")
    (ticket,) = tickets
    rows = tx.rows("SELECT * FROM devices WHERE device = ?", asked.device)
    own = rows and hmac.compare_digest(rows[0]["token_digest"], digest_token(asked.token))
    if own and not rows[0]["revoked"]:
        return str(rows[0]["grp"])
    if ticket["uses_left"] < 1 or ticket["expires_s"] < now_s:
        raise RequestError(401, "the enrolment token is used up or expired")
    if rows:
        raise RequestError(409, f"device {asked.device} is known with another credential, or revoked")
    tx.run("UPDATE enrolment_tokens SET uses_left = uses_left - 1 WHERE digest = ?", ticket["digest"])
    tx.run(
        "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, seen_s, revoked) "
        "VALUES (?, ?, ?, ?, '', ?, ?, 0)",
        *(asked.device, ticket["grp"], digest_token(asked.token)),
        *(msgspec.json.encode(attributes).decode(), now_s, now_s),
    )
    note(tx, now_s, f"device:{asked.device}", "enrolled", f"device:{asked.device}", f"group={ticket['grp']}")
    return str(ticket["grp"])


def checked_attributes(attributes: dict[str, str]) -> dict[str, str]:
    """The same attributes.

    Raises:
        RequestError: 400, more or longer ones than a device has a use for.
    """
    if len(attributes) > _MOST_ATTRIBUTES:
        raise RequestError(400, f"more than {_MOST_ATTRIBUTES} attributes")
    if any(len(key) > _MOST_CHARACTERS or len(value) > _MOST_CHARACTERS for key, value in attributes.items()):
        raise RequestError(400, f"an attribute of more than {_MOST_CHARACTERS} characters")
    return attributes
