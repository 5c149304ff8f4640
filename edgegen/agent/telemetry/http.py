"""Batches over HTTP: gzipped lines of JSON to the fleet's server, with the device's token."""

from __future__ import annotations

import datetime
import email.utils
import gzip
import time
from collections.abc import Callable

import msgspec

from edgegen.agent.controller import Controller
from edgegen.agent.telemetry.sender import Later, Reply, Taken, Unwanted
from edgegen.agent.telemetry.spool import Parcel
from edgegen.errors import EdgegenError
from edgegen.records.telemetry import INGEST_PATH, Ack

_UNWANTED = (400, 413, 422)
_HEADERS = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
_LONG_S = 900.0
"""Until a server that knows no telemetry, or does not know this device, is asked again."""


def http_post(controller: Controller) -> Callable[[bytes, Parcel], Reply]:
    """The way to the server of a controller."""

    def post(body: bytes, _: Parcel) -> Reply:
        try:
            answer = controller.post(INGEST_PATH, gzip.compress(body, 6), _HEADERS)
        except EdgegenError as error:
            return Later(str(error))
        status = answer.status
        if status == 200:
            try:
                return Taken(msgspec.json.decode(answer.body, type=Ack))
            except msgspec.MsgspecError as error:
                return Later(f"the server's answer cannot be read: {error}")
        words = f"the server answers {status}: {answer.body[:200].decode(errors='replace')}"
        if status in _UNWANTED:
            return Unwanted(words)
        asked = retry_after_s(answer.retry_after, time.time())
        return Later(words, _LONG_S if status in (401, 403, 404, 405) and asked is None else asked)

    return post


def retry_after_s(text: str, now_s: float) -> float | None:
    """Seconds that a `Retry-After` asks for, which is a number or a date (RFC 9110, 10.2.3); None: it does not."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=datetime.UTC)
    return max(0.0, when.timestamp() - now_s)
