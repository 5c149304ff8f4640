"""Read and write quantities with units, the same everywhere.

Bytes are decimal (1 MB = 1,000,000) because file sizes and flash are sold that way; KiB, MiB, GiB are
understood too. Rates are per second, durations are seconds.
"""

from __future__ import annotations

import math
import re

from edgegen.errors import ConfigError

_FACTORS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "t": 10**12,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str, *, what: str = "size") -> int:
    """Turn `60MB`, `1.5 GiB` or `4096` into bytes (> 0).

    Raises:
        ConfigError: not a number with a known unit, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].lower() not in _FACTORS:
        raise ConfigError(f"{what}: {text!r} is not a size", hint="Write it like 60MB, 1.5GB, 512MiB or 1048576.")
    number = float(match[1]) * _FACTORS[match[2].lower()]
    if not math.isfinite(number):
        raise ConfigError(f"{what}: {text[:20]!r}... is too large", hint="Leave it out for no limit.")
    value = int(number)
    if value <= 0:
        raise ConfigError(f"{what}: {text!r} must be more than 0 bytes", hint="Leave it out for no limit.")
    return value


def parse_positive(text: str, *, what: str) -> float:
    """Turn text into a finite number above 0.

    Raises:
        ConfigError: not a number, NaN, infinite, zero or negative.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{what}: {text!r} must be a number above 0", hint="Leave it out for no limit.")
    return value


def parse_seconds(text: str, *, what: str) -> float:
    """Turn `90s`, `5m`, `1h`, `24h`, `7d` or a bare number of seconds into seconds (> 0).

    Raises:
        ConfigError: not a length of time, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([smhd]?)\s*", text.lower())
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    if value <= 0:
        raise ConfigError(f"{what}: {text[:30]!r} is no length of time", hint="Write it like 5m, 1h, 24h or 7d.")
    return value


def format_bytes(count: float) -> str:
    """Three significant figures with a decimal unit: `4.99 MB`."""
    sign = "-" if count < 0 else ""
    value = abs(float(count))
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{sign}{value:.0f} B" if unit == "B" else f"{sign}{_three(value)} {unit}"
        value /= 1000
    return f"{sign}{_three(value)} TB"


def format_seconds(seconds: float) -> str:
    """`850 ms`, `12.3 s` or `4 min 05 s`."""
    if seconds < 1:
        return f"{_three(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _three(value: float) -> str:
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    value = float(f"{value:.2e}")  # first, so that 9.999 becomes 10.0 and not 10.00
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
