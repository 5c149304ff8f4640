"""A point in time as a person types it, and the windows that screens look through."""

from __future__ import annotations

import re
import time
from datetime import datetime

from edgegen.errors import ConfigError

WINDOWS = (300.0, 3600.0, 86400.0, 604800.0)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_MOST_S = 4e9
"""Beyond it no fleet has records: the year 2096, or a stretch of 126 years."""


def parse_length(words: str) -> float:
    """`90s`, `5m`, `1h`, `24h`, `7d` in seconds.

    Raises:
        ConfigError: something else.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([smhdw])", words.strip().lower())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < value < _MOST_S:
        raise ConfigError(f"{words[:30]!r} is no length of time", hint="Write it like 5m, 1h, 24h or 7d.")
    return value


def parse_moment(words: str, now_s: float) -> float | None:
    """`now` (None), `-2h`, `14:30` (the last one), `2026-08-01 14:30` in seconds since 1970; days and times are local.

    Raises:
        ConfigError: something else, or the future.
    """
    words = words.strip()
    if words in ("", "now", "live"):
        return None
    if words.startswith("-"):
        return now_s - parse_length(words[1:])
    for form in ("%H:%M:%S", "%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"):
        try:
            found = datetime.strptime(words, form)
        except ValueError:
            continue
        if form.startswith("%H"):
            today = datetime.fromtimestamp(now_s)
            at_s = found.replace(year=today.year, month=today.month, day=today.day).timestamp()
            return at_s if at_s <= now_s else at_s - 86400.0
        if 1970 < found.year < 2096 and found.timestamp() <= now_s:
            return found.timestamp()
        raise ConfigError(f"{words[:30]} is not in the past")
    raise ConfigError(
        f"{words[:30]!r} is no time", hint=f"Write it like -2h, 14:30, {time.strftime('%Y-%m-%d 14:30')} or now."
    )
