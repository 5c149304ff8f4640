"""What a row must be before anything looks at it: readable text of a sensible length in a wanted language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from edgegen.errors import ConfigError
from edgegen.prepare.stage import Stage, text_of, with_text
from edgegen.records.dataset import Row
from edgegen.records.recipe import Clean

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff]")
_SPACES = re.compile(r"[ \t\u00a0]+")
_LINES = re.compile(r"\n{3,}")


def normalise(text: str) -> str:
    """NFC, line ends as `\\n`, no control characters, no trailing blanks, at most one empty line."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _SPACES.sub(" ", _CONTROL.sub("", text))
    return _LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


def clean_rows(rows: Sequence[Row], wanted: Clean) -> Stage:
    """Normalise, and drop what is empty, too short, too long, or in another language.

    Raises:
        ConfigError: an unknown language.
    """
    allowed = language_filter(wanted)
    kept: list[Row] = []
    dropped: Counter[str] = Counter()
    changed = 0
    for row in rows:
        clean = with_text(row, normalise)
        size = len(text_of(clean))
        if not text_of(clean).strip():
            dropped["empty"] += 1
        elif clean.completion and not clean.messages[-1][1].strip():
            dropped["no answer"] += 1
        elif size < wanted.min_characters:
            dropped["too short"] += 1
        elif size > wanted.max_characters:
            dropped["too long"] += 1
        elif not allowed(text_of(clean)):
            dropped["another language"] += 1
        else:
            if clean != row:
                changed += 1
                clean = msgspec.structs.replace(clean, touched=(*row.touched, "clean"))
            kept.append(clean)
    return Stage(kept, changed=changed, dropped=dict(dropped))


def language_filter(wanted: Clean) -> Callable[[str], bool]:
    """Whether a text is in a wanted language, as `lingua` judges; a text that it is unsure of is."""
    if not wanted.languages:
        return lambda text: True
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = {}
    for code in wanted.languages:
        try:
            codes[code] = getattr(IsoCode639_1, code.upper())
        except AttributeError as error:
            raise ConfigError(f"language {code!r} is unknown", hint="Give ISO 639-1 codes such as en or de.") from error
    detector = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
    names = set(codes.values())

    def allowed(text: str) -> bool:
        values = detector.compute_language_confidence_values(text[:2000])
        if not values or values[0].language.iso_code_639_1 in names:
            return True
        return bool(values[0].value < wanted.min_confidence)

    return allowed
