"""Operate a fleet: on its site's folder, or over HTTP on a server.

On the folder the command writes into the database itself, beside a server that may run: both write in whole
transactions, and the server keeps nothing in memory. Over HTTP an operator's token is needed.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgegen.common.host import user_name
from edgegen.common.urls import SCHEMES, require_url
from edgegen.errors import ConfigError, DeviceError, NetworkError
from edgegen.fleet.database import Database
from edgegen.fleet.operations import operation
from edgegen.fleet.site import open_site
from edgegen.records.base import Record

TOKEN_VARIABLE = "EDGEGEN_FLEET_TOKEN"
_PATIENCE_S = 30.0
_LOG_PATIENCE_S = 5.0


class Fleet(Protocol):
    """A fleet that can be operated."""

    def do(self, name: str, asked: Record) -> Any:
        """Carry out an operation of `operations.OPERATIONS`.

        Raises:
            ConfigError: it cannot be done as asked.
        """


class LocalFleet:
    """A fleet whose database is within reach."""

    def __init__(self, store: str, site: Path | None = None) -> None:
        """
        Args:
            site: the site's folder, which some operations look into.
        """
        self._database, self._site = Database(store), site

    def do(self, name: str, asked: Record) -> Any:
        try:
            found = operation(name)
            with self._database.transaction() as tx:
                done = found.carry_out(tx, time.time(), f"operator:{user_name()}", asked, self._site)
            if found.erases and not self._database.clear_log(_LOG_PATIENCE_S):
                raise DeviceError(
                    f"{name}: done, but the database's log still holds what was there, as somebody is reading it",
                    hint="Do it again when that has ended.",
                )
            return done
        except OverflowError as error:
            raise ConfigError(f"{name}: a number is too large", hint="Numbers have at most 18 digits.") from error


class RemoteFleet:
    """A fleet behind its server."""

    def __init__(self, url: str, token: str) -> None:
        """
        Raises:
            ConfigError: no operator's token.
        """
        if not token:
            raise ConfigError(
                f"{url}: an operator's token is needed",
                hint=f"Set {TOKEN_VARIABLE}; on the server, `edgegen fleet operator SITE NAME` makes one.",
            )
        if not token.isprintable():
            raise ConfigError(f"{TOKEN_VARIABLE}: holds a line break or another control character")
        require_url(url)
        self._url, self._token = url.rstrip("/"), token

    def do(self, name: str, asked: Record) -> Any:
        request = urllib.request.Request(
            f"{self._url}/v1/{name}",
            data=msgspec.json.encode(asked),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
                return msgspec.json.decode(answer.read(), type=operation(name).gives)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(self._url, error.code, error.read()) from error
        except (OSError, msgspec.DecodeError) as error:
            reason = getattr(error, "reason", error)
            raise NetworkError(f"{self._url}: {reason}", hint="Is `edgegen fleet serve` running there?") from error


def open_fleet(where: str, store: str | None = None) -> Fleet:
    """The fleet at a site's folder or a server's URL.

    Raises:
        ConfigError: no such folder, no token for the URL, or a URL and a database.
    """
    if where.startswith(SCHEMES):
        if store is not None:
            raise ConfigError("--store goes with a site's folder, not with a URL", hint="Leave it out.")
        return RemoteFleet(where, os.environ.get(TOKEN_VARIABLE, ""))
    if "://" in where:
        raise ConfigError(f"{where}: a server's URL begins with https:// or http://", hint="Or name a site's folder.")
    if not where:
        raise ConfigError("no fleet is named", hint="Name a site's folder, or a server's URL.")
    site = open_site(Path(where), store)
    return LocalFleet(site.store, site.folder)


def _refusal(url: str, status: int, body: bytes) -> Exception:
    """The server's words as an error."""
    try:
        told = json.loads(body)
        message, hint = str(told["error"]), str(told.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        message, hint = f"HTTP {status}", ""
    if status in (400, 401, 403, 404, 409, 413):
        return ConfigError(f"{url}: {message}", hint=hint)
    return NetworkError(f"{url}: {message}", hint=hint)
