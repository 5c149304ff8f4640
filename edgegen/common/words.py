"""Texts as sets of their runs of words: how alike two are."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Its words, lower case."""
    return _WORD.findall(text.lower())


def shingles(text: str, size: int = 3) -> frozenset[str]:
    """Its runs of `size` words; a shorter text is one run."""
    words = words_of(text)
    if len(words) < size:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[start : start + size]) for start in range(len(words) - size + 1))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B|."""
    return len(one & other) / max(1, len(one | other))
