"""Only tokens that a grammar allows, on any runtime.

The model's favourite is tried first and nearly always fits; only where several do not, the whole vocabulary is tested
and the result kept, since a grammar comes to the same state again and again. Choosing among allowed tokens gives the
model's own distribution over them, whichever way they were found.

V vocabulary entries.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgegen.agent.grammar import Grammar, State
from edgegen.errors import DeviceError
from edgegen.runtime.sampling import Sampler

_TRIES = 8
"""Favourites that are tried before the whole vocabulary is tested."""
_MASKS = 256


class TokenBytes:
    """What each token adds to a text, in bytes; control tokens add nothing and are never allowed."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """Read the vocabulary.

        Args:
            size: V of the model; ids without a token are never allowed.
        """
        self.bytes: list[bytes] = [b""] * size
        added = tokenizer.get_added_tokens_decoder()
        byte_level = "ByteLevel" in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
        table = _byte_alphabet()
        for text, token in tokenizer.get_vocab(with_added_tokens=True).items():
            if token >= size or (token in added and added[token].special):
                continue
            if token in added:
                self.bytes[token] = added[token].content.encode()
            elif byte_level:
                self.bytes[token] = bytes(table[sign] for sign in text) if all(s in table for s in text) else b""
            elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                self.bytes[token] = bytes([int(text[3:5], 16)])
            else:
                self.bytes[token] = text.replace("▁", " ").encode()
        self.by_first: dict[int, list[int]] = defaultdict(list)
        for token, data in enumerate(self.bytes):
            if data:
                self.by_first[data[0]].append(token)


class Constraint:
    """Follows one answer."""

    def __init__(self, grammar: Grammar, tokens: TokenBytes, *, tries: int = _TRIES) -> None:
        """Begin an answer.

        Args:
            tries: 0 where a sampler remembers what it chose, as with a repetition penalty.
        """
        self._grammar, self._tokens, self._tries = grammar, tokens, tries
        self._state = grammar.begin()
        self._masks: dict[State, NDArray[np.bool_]] = {}

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return None in self._state

    @property
    def finished(self) -> bool:
        """Whether it must end here."""
        return self._state == frozenset([None])

    def choose(self, logits: NDArray[np.float32], sampler: Sampler, stops: Set[int]) -> int:
        """The next token of (V,) logits, which are not changed: one that fits, or a stop token where one may come.

        Raises:
            DeviceError: the vocabulary has no token that fits.
        """
        logits = logits.astype(np.float32, copy=True)
        if not self.complete:
            logits[list(stops)] = -np.inf
        for _ in range(self._tries):
            token = sampler.choose(logits)
            if token in stops or self._take(token):
                return token
            logits[token] = -np.inf
            if not np.isfinite(logits.max()):
                break
        logits[~self._mask(stops)] = -np.inf
        if not np.isfinite(logits.max()):
            raise DeviceError("the model's vocabulary has no token that the JSON schema allows here")
        token = sampler.choose(logits)
        if token not in stops:
            self._take(token)
        return token

    def _take(self, token: int) -> bool:
        data = self._tokens.bytes[token]
        after = self._grammar.follow(self._state, data) if data else frozenset[None]()
        if after:
            self._state = after
        return bool(after)

    def _mask(self, stops: Set[int]) -> NDArray[np.bool_]:
        """(V,) which tokens fit."""
        mask = self._masks.get(self._state)
        if mask is None:
            mask = np.zeros(len(self._tokens.bytes), dtype=np.bool_)
            for first in self._grammar.first_bytes(self._state):
                after = self._grammar.follow(self._state, bytes([first]))
                for token in self._tokens.by_first.get(first, ()):
                    mask[token] = bool(self._grammar.follow(after, self._tokens.bytes[token][1:]))
            if len(self._masks) < _MASKS:
                self._masks[self._state] = mask
        allowed = mask.copy()
        if self.complete:
            allowed[list(stops)] = True
        return allowed


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (Radford et al. 2019)."""
    plain: Sequence[int] = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(value): value for value in plain}
    others = [value for value in range(256) if value not in plain]
    return table | {chr(256 + index): value for index, value in enumerate(others)}
