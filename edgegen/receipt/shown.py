"""How a value becomes text: rounded for people, never invented, harmless.

Numbers are rounded to three significant figures with their unit. None and values that are not finite are
said in words: a zero would read as a measurement. Model outputs are hostile text: escaping HTML is the
template's work; here control, direction and invisible format characters are spelled out, so that they can
neither drive a terminal nor reorder a line.
"""

from __future__ import annotations

import math
import unicodedata
from datetime import datetime
from typing import Literal

from edgegen.common.units import format_bytes, format_seconds

Kind = Literal["bytes", "cosine", "count", "fraction", "ms", "number", "seconds"]

NOT_MEASURED = "not measured"

_UNIT_KINDS: dict[str, Kind] = {
    "b": "bytes",
    "byte": "bytes",
    "bytes": "bytes",
    "correlation": "cosine",
    "cosine": "cosine",
    "fraction": "fraction",
    "ms": "ms",
    "s": "seconds",
    "seconds": "seconds",
    "tokens": "count",
}
# Control, format, surrogate, line and paragraph separator.
_ACTING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
# Joiners shape emoji, Indic and Arabic words; a soft hyphen is text. They reorder and hide nothing.
_HARMLESS_FORMATS = frozenset("\u00ad\u200c\u200d")


def kind_of(unit: str) -> tuple[Kind, str]:
    """The way to show values of a unit, and the suffix that this way does not write by itself."""
    kind = _UNIT_KINDS.get(unit.strip().lower())
    return (kind, "") if kind else ("number", unit.strip())


def show(value: float | None, kind: Kind = "number", suffix: str = "", missing: str = NOT_MEASURED) -> str:
    """A number for people.

    Args:
        value: the record's value; fractions are 0..1, bytes and counts whole.
        kind: how to round and which unit to write.
        suffix: a unit to write after it, empty for none.
        missing: the words for None.
    """
    if value is None:
        return missing
    if not math.isfinite(value):
        return "not finite"
    text = _rounded(value, kind)
    return f"{text} {suffix}" if suffix else text


def significant(value: float, digits: int = 3) -> str:
    """Fixed notation with `digits` significant figures, thousands separated; below 0.0001 as `8.2e-05`."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def percent(fraction: float) -> str:
    """`97.3 %`; with more digits below 1 % and where rounding would turn almost all into all."""
    if 0 < abs(fraction) < 0.01:
        return f"{significant(100 * fraction)} %"
    digits = 1
    while fraction != 1 and digits < 4 and round(100 * fraction, digits) == 100:
        digits += 1
    return f"{100 * fraction:.{digits}f} %"


def similarity(value: float) -> str:
    """Four decimals; more where rounding would turn almost 1 into 1."""
    digits = 4
    while value != 1 and digits < 8 and round(value, digits) == 1:
        digits += 1
    return f"{value:.{digits}f}"


def visible(text: str) -> str:
    r"""The text with every character that acts instead of showing spelled out as `\x1b` or `\u202e`.

    Newlines and tabs stay. Carriage returns are spelled out: alone they overwrite a terminal's line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(character) for character in text)


def show_date(created: str) -> str:
    """`2026-03-01 14:05 UTC` from ISO 8601; a text that is no date stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return visible(created)
    offset = moment.strftime("%z")
    return moment.strftime("%Y-%m-%d %H:%M ") + ("UTC" if offset in ("", "+0000") else offset)


def _rounded(value: float, kind: Kind) -> str:
    if kind == "bytes":
        return format_bytes(value)
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "cosine":
        return similarity(value)
    if kind == "fraction":
        return percent(value)
    if kind == "ms":
        return f"{significant(value)} ms"
    if kind == "seconds":
        return format_seconds(value)
    return significant(value)


def _spelled(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    acts = unicodedata.category(character) in _ACTING and character not in _HARMLESS_FORMATS
    if not acts and code & 0xFFFE != 0xFFFE:  # the last two of each plane are no characters at all
        return character
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
