"""What every runtime adapter offers, and what all of them do alike.

An adapter knows how to run tokens through a model and hand back logits. Checking prompts, choosing tokens, stopping
and timing are the same for all and stand here and in `sampling`.

T tokens, V vocabulary entries.
"""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError
from edgegen.records.base import Record
from edgegen.records.plan import Settings
from edgegen.runtime.sampling import GREEDY, Sampler, Sampling

Logits = NDArray[np.float32]


class Timing(Record, frozen=True):
    """One timed generation, seconds of wall time."""

    prefill_s: float
    """Until the prompt's last logits were there; the time to first token without sampling."""
    decode_s: float
    """For `decoded_tokens` tokens after the first."""
    prompt_tokens: int
    decoded_tokens: int


class Opened(abc.ABC):
    """A model file in a runtime, until it is closed. Not thread-safe. A context manager.

    Adapters set `vocab_size` and `context_tokens` and write the methods with an underscore; ids that reach those are
    valid and fit the context.
    """

    vocab_size: int
    context_tokens: int
    _closed = False

    @abc.abstractmethod
    def _close(self) -> None:
        """Free the model. Called once."""

    def close(self) -> None:
        """Free the model; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _require_all(self, ids: Sequence[int]) -> None:
        """Refuse an empty text, one that the context cannot hold, or ids outside the vocabulary."""
        if not self._closed and not len(ids):
            raise ConfigError("no tokens to run", hint="Start with the model's BOS token.")
        self._require(ids)
        if len(ids) > self.context_tokens:
            raise ConfigError(
                f"{len(ids)} tokens do not fit a context of {self.context_tokens}",
                hint="Use fewer tokens or a larger context.",
            )

    def _require(self, ids: Sequence[int]) -> None:
        if self._closed:
            raise ConfigError("this session is closed")
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise ConfigError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size}",
                hint="Were the tokens made by this artifact's own tokenizer?",
            )


class Session(Opened):
    """An opened model that continues one sequence."""

    _position = 0
    """Tokens in the sequence."""
    _run = 0
    """Counts sequences, so that a half-read `generate` notices that its cache is gone."""

    @abc.abstractmethod
    def _prefill(self, ids: list[int]) -> Logits:
        """Forget the sequence before, run a prompt, return the (V,) logits after its last token."""

    @abc.abstractmethod
    def _decode(self, token: int, position: int) -> Logits:
        """Run one more token at a position; (V,) logits after it."""

    @abc.abstractmethod
    def _score(self, ids: list[int]) -> Logits:
        """Forget the sequence before; (T, V) logits after each token, a copy."""

    def start(self, ids: Sequence[int]) -> Logits:
        """Begin a sequence: (V,) float32 logits after the prompt, valid until the next call.

        Raises:
            ConfigError: an empty prompt, one that the context cannot hold, an id outside the vocabulary, or a closed
                session.
            DeviceError: the runtime could not compute.
        """
        self._begin(ids)
        return self._prefill([int(i) for i in ids])

    def step(self, token: int) -> Logits:
        """Append a token: (V,) float32 logits after it, valid until the next call.

        Raises:
            ConfigError: the context is full, an id outside the vocabulary, or a closed session.
            DeviceError: the runtime could not compute.
        """
        self._require([token])
        if self._position >= self.context_tokens:
            raise ConfigError(f"the context of {self.context_tokens} tokens is full", hint="Start a new sequence.")
        self._position += 1
        return self._decode(int(token), self._position - 1)

    def score(self, ids: Sequence[int]) -> Logits:
        """Logits after each token of one sequence: (T, V) float32. The cache is cleared first.

        Raises:
            ConfigError: more tokens than the context holds, an id outside the vocabulary, or a closed session.
            DeviceError: the runtime could not compute.
        """
        self._begin(ids)
        return self._score([int(i) for i in ids])

    def generate(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Sequence[int] = (),
        sampling: Sampling = GREEDY,
    ) -> Iterator[int]:
        """Continue a prompt, one id at a time, without the stop token.

        Ends after `max_tokens`, before a stop token, or when the context is full. Reading on after another call on
        this session raises, since both share one cache.

        Raises:
            ConfigError: an empty prompt, one that the context cannot hold, an id outside the vocabulary, or a closed
                session; all but the last are raised at once, not at the first token.
            DeviceError: the runtime could not compute.
        """
        self._begin(ids)
        return self._generate([int(i) for i in ids], max_tokens, frozenset(stop_ids), Sampler(sampling, ids), self._run)

    def measure(self, ids: Sequence[int], *, decode_tokens: int) -> Timing:
        """Generate exactly `decode_tokens` greedily and say how long each part took.

        Prefill ends when the last prompt token's logits are there; decoding is `decode_tokens` steps after it, each
        with its choice of the next token.

        Raises:
            ConfigError: prompt and decoded tokens together do not fit the context, or an id outside the vocabulary.
            DeviceError: the runtime could not compute.
        """
        self._begin(ids)
        if len(ids) + decode_tokens > self.context_tokens:
            raise ConfigError(
                f"{len(ids)} + {decode_tokens} tokens do not fit a context of {self.context_tokens}",
                hint="Use a shorter prompt, fewer tokens or a larger context.",
            )
        prompt = [int(i) for i in ids]
        started = time.perf_counter()
        logits = self._prefill(prompt)
        filled = time.perf_counter()
        for position in range(len(prompt), len(prompt) + decode_tokens):
            logits = self._decode(int(logits.argmax()), position)
        if decode_tokens:
            logits.argmax()
        done = time.perf_counter()
        return Timing(
            prefill_s=filled - started, decode_s=done - filled, prompt_tokens=len(ids), decoded_tokens=decode_tokens
        )

    def _generate(
        self, ids: list[int], max_tokens: int, stops: frozenset[int], sampler: Sampler, run: int
    ) -> Iterator[int]:
        token = -1
        for count in range(max_tokens):
            if run != self._run:
                raise ConfigError(
                    "another call took this session's cache", hint="Read one generation to its end first."
                )
            if self._closed:
                raise ConfigError("this session is closed")
            if count == 0:
                logits = self._prefill(ids)
            elif self._position < self.context_tokens:
                logits = self.step(token)
            else:
                return
            token = sampler.choose(logits)
            if token in stops:
                return
            yield token

    def _begin(self, ids: Sequence[int]) -> None:
        self._require_all(ids)
        self._run += 1
        self._position = len(ids)


class EncoderSession(Opened):
    """An opened sentence encoder: a text's ids in, one vector out. Nothing is kept between texts.

    Adapters also set `dimension`, the numbers of a vector.
    """

    dimension: int

    @abc.abstractmethod
    def _embed(self, ids: list[int]) -> NDArray[np.float32]:
        """(D,) vector of one text, a copy."""

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The (D,) float32 vector of one text, given with its special tokens.

        Raises:
            ConfigError: an empty text, one that the context cannot hold, an id outside the vocabulary, or a closed
                session.
            DeviceError: the runtime could not compute.
        """
        self._require_all(ids)
        return self._embed([int(i) for i in ids])

    def measure(self, ids: Sequence[int]) -> Timing:
        """Say how long one text takes; nothing is decoded.

        Raises:
            As `embed`.
        """
        self._require_all(ids)
        text = [int(i) for i in ids]
        started = time.perf_counter()
        self._embed(text)
        return Timing(prefill_s=time.perf_counter() - started, decode_s=0.0, prompt_tokens=len(text), decoded_tokens=0)


class Runtime(Protocol):
    """A way to run artifacts of one target."""

    name: str

    def version(self) -> str:
        """The runtime library's own version.

        Raises:
            UnsupportedError: it is not installed; the hint names the extra.
        """
        ...

    def open(self, model: Path, settings: Settings) -> Session:
        """Load a model file.

        Raises:
            UnsupportedError: the runtime is not installed.
            ConfigError: no such file, or settings that the runtime does not take.
            DeviceError: the runtime refuses the file; the message carries its own reason.
        """
        ...


class AdaptableRuntime(Runtime, Protocol):
    """A runtime that puts a LoRA file over a model's weights (see `adapters`)."""

    def open(self, model: Path, settings: Settings, adapter: Path | None = None) -> Session:
        """As `Runtime.open`; the same is raised for the adapter's file, and DeviceError if it fits another model."""
        ...


class EncoderRuntime(Protocol):
    """A way to run one target's artifacts of encoders. As `Runtime`, but for what it opens."""

    name: str

    def version(self) -> str:
        """As `Runtime.version`."""
        ...

    def open(self, model: Path, settings: Settings) -> EncoderSession:
        """As `Runtime.open`."""
        ...
