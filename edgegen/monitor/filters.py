"""What `/` understands: a regular expression, `!` none of it, `-l k=v` labels, `-f` letters in this order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgegen.errors import ConfigError

_MOST = 2000
"""Characters of a row that are looked at."""


@dataclass(frozen=True, slots=True)
class Searchable:
    """A row as filters see it."""

    text: str
    labels: Mapping[str, str]
    is_fault: bool = False
    """Whether a person should look at it."""


Filter = Callable[[Searchable], bool]


def parse_filter(words: str, labels: tuple[str, ...] = ()) -> Filter | None:
    """What was typed as a test of rows; None for nothing.

    Args:
        labels: names that `-l` knows here.

    Raises:
        ConfigError: not a regular expression, or an unknown label.
    """
    words = words.strip()
    if not words:
        return None
    if words.startswith("-l"):
        return _labels(words[2:].strip(), labels)
    if words.startswith("-f"):
        return _fuzzy(words[2:].strip())
    if words.startswith("!"):
        inner = _regex(words[1:].strip())
        return lambda row: not inner(row)
    return _regex(words)


def _regex(pattern: str) -> Filter:
    """Capitals in the pattern make it tell them apart."""
    if not pattern:
        return lambda row: True
    try:
        search = re.compile(pattern, 0 if pattern != pattern.lower() else re.IGNORECASE).search
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"/{pattern[:40]} is no regular expression: {error}") from error
    return lambda row: search(row.text[:_MOST]) is not None


def _labels(words: str, known: tuple[str, ...]) -> Filter:
    wanted: list[tuple[str, str, bool]] = []
    for word in re.split(r"[,\s]+", words):
        if not word:
            continue
        key, sign, value = word.partition("=")
        negative = key.endswith("!")
        key = key.removesuffix("!")
        if not sign or key not in known:
            raise ConfigError(f"/-l {word[:40]}: write it like name=value", hint="Known: " + ", ".join(known) + ".")
        wanted.append((key, value.lower(), negative))
    return lambda row: all(
        (value in row.labels.get(key, "").lower()) is not negative for key, value, negative in wanted
    )


def _fuzzy(letters: str) -> Filter:
    wanted = letters.lower().replace(" ", "")

    def matches(row: Searchable) -> bool:
        place = 0
        text = row.text[:_MOST].lower()
        for letter in wanted:
            place = text.find(letter, place) + 1
            if not place:
                return False
        return True

    return matches
