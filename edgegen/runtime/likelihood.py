"""How sure a model was of its tokens, and which of a prompt's tokens are lone bytes: the same everywhere.

A release's reference profile and what devices report of each answer are both made of these.

V vocabulary entries.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_FALLBACK = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Vocabulary(Protocol):
    """A tokenizer of the `tokenizers` library."""

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]: ...

    def id_to_token(self, id: int) -> str | None: ...


def token_likelihood(logits: NDArray[np.floating], token: int) -> tuple[float, float]:
    """Natural log-probability of a token under the softmax of (V,) logits, and that distribution's entropy in nats.

    Tokens that a constraint forbids have logits of -inf; they count as impossible. Computed in the logits' own type:
    float32 differs from float64 in the seventh digit and takes a small board a tenth of the time.
    """
    shifted = logits - logits.max()
    share = np.exp(shifted)
    total = float(share.sum())
    with np.errstate(invalid="ignore"):
        weighted = float(share @ shifted)
    if not np.isfinite(weighted):  # 0 · -inf
        possible = share > 0
        weighted = float(share[possible] @ shifted[possible])
    of_total = math.log(total)
    return float(shifted[token]) - of_total, max(0.0, of_total - weighted / total)


def byte_ids(tokenizer: Vocabulary) -> frozenset[int] | None:
    """Ids of tokens that stand for one byte for want of a word; None where the vocabulary has none.

    With byte fallback (SentencePiece) these are `<0x00>` … `<0xFF>` but the line feed, which many vocabularies spell
    no other way. A byte-level vocabulary (GPT-2) writes a byte as one letter; those from 0x80 are parts of characters.
    """
    vocabulary = tokenizer.get_vocab()
    fallback = frozenset(
        number for token, number in vocabulary.items() if _FALLBACK.fullmatch(token) and token.upper() != "<0X0A>"
    )
    if fallback:
        return fallback
    letters = _byte_letters()
    if sum(letter in vocabulary for letter in letters.values()) < len(letters) // 2:
        return None
    return frozenset(vocabulary[letter] for byte, letter in letters.items() if byte >= 0x80 and letter in vocabulary)


def byte_fraction(ids: Sequence[int], bytes_: frozenset[int] | None) -> float | None:
    """Share of a prompt's tokens that are lone bytes; None without tokens or where `byte_ids` is None."""
    if bytes_ is None or not len(ids):
        return None
    return sum(int(number) in bytes_ for number in ids) / len(ids)


def missing_characters(ids: Sequence[int], bytes_: frozenset[int] | None, tokenizer: Vocabulary) -> dict[str, int]:
    """Characters of a prompt that took lone bytes → how often, the most frequent first.

    Args:
        bytes_: `byte_ids` of the tokenizer.
    """
    if bytes_ is None:
        return {}
    of_letter = {letter: byte for byte, letter in _byte_letters().items()}
    found: Counter[str] = Counter()
    run = bytearray()
    for number in [*ids, -1]:
        if number in bytes_:
            token = tokenizer.id_to_token(number) or ""
            run.append(int(token[3:5], 16) if _FALLBACK.fullmatch(token) else of_letter[token])
        elif run:
            found.update(run.decode(errors="ignore"))
            run.clear()
    return dict(found.most_common())


def _byte_letters() -> dict[int, str]:
    """Byte → the letter that byte-level vocabularies write it as: itself where it shows, else one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}
