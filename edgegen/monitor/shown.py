"""Values in few cells: `–` is unknown, never 0."""

from __future__ import annotations

import math
import time

from edgegen.common.units import format_bytes
from edgegen.records.monitor import State, Verdict

UNKNOWN = "–"
STALE_S = 120.0
"""A device that was not seen for so long has values of the past."""

STATE_GLYPH = {
    State.ONLINE: ("●", "ok"),
    State.DEGRADED: ("◐", "warn"),
    State.OFFLINE: ("○", "bad"),
    State.NEVER: ("·", "dim"),
    State.REVOKED: ("✗", "bad"),
}
VERDICT_GLYPH = {
    Verdict.OK: ("✓", "ok"),
    Verdict.WATCH: ("!", "warn"),
    Verdict.DRIFT: ("▲", "bad"),
    Verdict.TOO_FEW: ("?", "dim"),
}
LEVEL_GLYPH = {"info": ("·", ""), "warning": ("!", "warn"), "error": ("▲", "bad")}


def number(value: float | None) -> str:
    """Three significant figures, thousands as `k`, millions as `M`; whole numbers whole."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if isinstance(value, int) and abs(value) < 1000:
        return str(value)
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return _three(value / factor) + unit
    return _three(value)


def percent(fraction: float | None) -> str:
    """`0.4%`; below a tenth of a percent but not none `<.1%`."""
    if fraction is None or not math.isfinite(fraction):
        return UNKNOWN
    if 0 < fraction < 0.001:
        return "<.1%"
    return f"{fraction * 100:.0f}%" if fraction >= 0.0995 or fraction == 0 else f"{fraction * 100:.1f}%"


def size(count: float | None) -> str:
    """Bytes with a decimal unit."""
    return UNKNOWN if count is None else format_bytes(count)


def seconds(value: float | None) -> str:
    """A duration in at most five cells: `850ms`, `1.25s`, `12.3s`, `4m05`, `3h12`, `2d04`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    value = max(0.0, value)
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    if value < 59.95:
        return f"{value:.2f}s" if value < 9.995 else f"{value:.1f}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}"


def age(value: float | None) -> str:
    """Time since something in at most four cells: `now`, `12s`, `4m`, `3h`, `2d`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 1:
        return "now"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if value >= length:
            return f"{int(value // length)}{unit}"
    return "now"


def clock(at_s: float | None) -> str:
    """Time of day here."""
    return UNKNOWN if at_s is None else _local(at_s, "%H:%M:%S")


def moment(at_s: float | None) -> str:
    """Date and time here."""
    return UNKNOWN if at_s is None else _local(at_s, "%Y-%m-%d %H:%M:%S")


def day(at_s: float | None) -> str:
    """Date without the year, and time."""
    return UNKNOWN if at_s is None else _local(at_s, "%m-%d %H:%M:%S")


def window(seconds_: float) -> str:
    """`5m`, `1h`, `24h`, `7d`."""
    if seconds_ >= 2 * 86400 and seconds_ % 86400 == 0:
        return f"{seconds_ / 86400:g}d"
    if seconds_ >= 3600:
        return f"{seconds_ / 3600:g}h"
    return f"{seconds_ / 60:g}m" if seconds_ >= 60 else f"{seconds_:g}s"


def digest(value: str) -> str:
    """The first twelve digits."""
    return value.removeprefix("sha256:")[:12] or UNKNOWN


def _local(at_s: float, form: str) -> str:
    try:
        return time.strftime(form, time.localtime(at_s))
    except (OverflowError, ValueError, OSError):  # a clock that is very wrong
        return UNKNOWN


def _three(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
