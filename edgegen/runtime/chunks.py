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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.common.files import disk_errors
from edgegen.errors import ConfigError, DeviceError
from edgegen.records.plan import Settings
from edgegen.runtime.base import Logits, Session

KV_TYPE = "f32"
"""The caches' type, fixed in the file."""

_PADDING_WORTH = 8
"""A chunk is worth running half empty from this fraction of it on; below, tokens go one by one."""


def check_file(model: Path, settings: Settings) -> None:
    """Refuse a missing file and settings that no LiteRT file takes.

    Raises:
        ConfigError: no such file, a number below 1, or another cache type.
    """
    for name in ("context_tokens", "ubatch_tokens", "threads"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    if settings.kv_type != KV_TYPE:
        raise ConfigError(f"kv_type {settings.kv_type!r} is unknown to LiteRT files", hint=f"Known: {KV_TYPE}.")
    if not model.is_file():
        raise ConfigError(f"{model}: no such file")
    with disk_errors(model), model.open("rb"):
        pass


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
        if settings.context_tokens > cache_tokens:
            raise ConfigError(
                f"{model}: made for a context of {cache_tokens} tokens, not {settings.context_tokens}",
                hint="Use a smaller context, or export the model again with a larger one.",
            )
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


def reason(error: Any, said: str) -> str:
    """Why a runtime refused: its exception's first line, and the errors that it printed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:1]
    printed = [line for line in said.splitlines() if line.lstrip("└ ").startswith(("ERROR", "Error"))]
    printed += [line.lstrip("└ ") for line in said.splitlines() if line.startswith("└")]
    return "; ".join(dict.fromkeys(line[:200] for line in (*lines, *printed[:2])))
