"""Sessions on graphs of fixed shapes, as LiteRT runs them: a text is cut into the chunks that there are signatures for.

A file has `decode` (one token, with logits), `prefill_T` (T tokens of a prompt, no logits) and `score_T` (T tokens,
with logits). Chunks have exact shapes, so the last one is filled up with tokens that nothing looks at: later tokens
overwrite what they leave in the cache, and masks hide it until then. The cache's write position is clamped by the
runtime instead of refused, so a chunk never reaches over the cache's end: it starts earlier and computes some
positions again, with the same result.

T tokens, V vocabulary entries.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import DeviceError
from edgegen.records.plan import Settings
from edgegen.runtime.base import Logits, Session
from edgegen.runtime.checks import check_context, check_settings, require_file
from edgegen.runtime.flatmodel import require_whole
from edgegen.runtime.quiet import native_stderr

KV_TYPES = ("f32",)
"""The caches' type, fixed in the file."""

_PADDING_WORTH = 8
"""A chunk is worth running half empty from this fraction of it on; below, tokens go one by one."""


class ChunkedSession(Session):
    """What sessions on such files share; adapters compute one chunk."""

    def _describe(
        self, model: Path, settings: Settings, signatures: Iterable[str], cache_tokens: int, vocab_size: int
    ) -> None:
        """Say what the file holds.

        Raises:
            DeviceError: not a file that edgegen wrote.
            ConfigError: a longer context than the file's cache.
        """
        names = set(signatures)
        if "decode" not in names:
            raise DeviceError(f"{model}: has no signature `decode`", hint="Export the model again.")
        check_context(model, settings.context_tokens, cache_tokens)
        self.vocab_size = vocab_size
        self.context_tokens = settings.context_tokens
        self._cache_tokens = cache_tokens
        self._prefills = _sizes(names, "prefill")
        self._scores = _sizes(names, "score")

    @abc.abstractmethod
    def _compute(self, signature: str, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> Logits | None:
        """Run (1, T) tokens at (T,) positions; (T, V) logits where the signature has them."""

    def _prefill(self, ids: list[int]) -> Logits:
        self._run_chunks(ids[:-1], self._prefills, "prefill", lambda at, logits: None)
        return self._decode(ids[-1], len(ids) - 1)

    def _decode(self, token: int, position: int) -> Logits:
        logits = self._compute("decode", np.array([[token]], np.int32), np.array([position], np.int32))
        assert logits is not None, "decode has logits"
        row: Logits = logits[0]
        return row

    def _score(self, ids: list[int]) -> Logits:
        result = np.empty((len(ids), self.vocab_size), dtype=np.float32)

        def keep(at: int, logits: Logits) -> None:
            result[at : at + len(logits)] = logits

        self._run_chunks(ids, self._scores, "score", keep)
        return result

    def _run_chunks(
        self, ids: list[int], sizes: Sequence[int], kind: str, found: Callable[[int, Logits], None]
    ) -> None:
        """Run all ids; `found` gets the position of each chunk's first new token and the new tokens' logits."""
        at = 0
        while at < len(ids):
            left = len(ids) - at
            size = next((size for size in sizes if size <= left), sizes[-1] if sizes else 1)
            if size == 1 or left * _PADDING_WORTH < size:
                found(at, self._decode(ids[at], at)[None])
                at += 1
                continue
            first = min(at, self._cache_tokens - size)
            chunk = np.zeros((1, size), np.int32)
            part = ids[first : first + size]
            chunk[0, : len(part)] = part
            logits = self._compute(f"{kind}_{size}", chunk, np.arange(first, first + size, dtype=np.int32))
            if logits is not None:
                found(at, logits[at - first : len(part)])
            at = first + len(part)


def _sizes(names: set[str], kind: str) -> tuple[int, ...]:
    """Chunk sizes of a kind, largest first."""
    found = (name.partition("_") for name in names)
    return tuple(sorted((int(size) for head, _, size in found if head == kind and size.isdigit()), reverse=True))


@contextlib.contextmanager
def opening(model: Path, settings: Settings) -> Iterator[None]:
    """Inside the block a file is opened: what LiteRT prints is kept off the terminal, what it raises explained.

    Raises:
        ConfigError: no such file, or settings that no file takes.
        DeviceError: LiteRT refuses the file; the message carries its own reason.
    """
    check_settings(settings, KV_TYPES)
    require_file(model)
    require_whole(model)
    with native_stderr() as said:
        try:
            yield
        except Exception as error:  # LiteRT raises bare exceptions
            raise DeviceError(f"{model}: LiteRT refuses this file: {reason(error, said())}") from error


def reason(error: Any, said: str) -> str:
    """Why a runtime refused: its exception's first line, and the errors that it printed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:1]
    printed = [line for line in said.splitlines() if line.lstrip("└ ").startswith(("ERROR", "Error"))]
    printed += [line.lstrip("└ ") for line in said.splitlines() if line.startswith("└")]
    return "; ".join(dict.fromkeys(line[:200] for line in (*lines, *printed[:2])))
