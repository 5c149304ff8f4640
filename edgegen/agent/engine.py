"""The active artifact behind a queue: one model, one sequence, requests in the order they came.

A session is not thread-safe and a small device has no memory for a second one, so one thread owns it. Callers hand in a
request and read an asyncio queue of pieces; a caller that goes away stops the model at its next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgegen.agent.constrain import Constraint
from edgegen.agent.golden import Answered, ask_golden
from edgegen.agent.seen import Seen
from edgegen.errors import ConfigError, DeviceError, EdgegenError
from edgegen.records.base import Record
from edgegen.records.bundle import Golden
from edgegen.records.plan import Settings
from edgegen.runtime.adapters import open_model
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.sampling import Sampler, Sampling
from edgegen.runtime.text import Text


class Ask(Record, frozen=True):
    """What the model is to continue."""

    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: bool = False


class Told(Record, frozen=True):
    """A piece of the answer; the last one has a reason."""

    text: str = ""
    marks: tuple[tuple[int, float], ...] = ()
    """Tokens since the piece before with their natural log-probabilities under the model's own distribution; only where
    asked for. A character whose tokens are not all there yet shows later than they."""
    ended: str = ""
    """`stop` or `length`."""
    tokens: int = 0
    """Of the answer so far."""
    error: EdgegenError | None = None


class BusyEngineError(EdgegenError):
    """Too many requests wait already."""


@dataclass
class Counts:
    """What this process has done since it started."""

    requests: int = 0
    errors: int = 0
    canceled: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    waited_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed; None before anything was decoded."""
        return self.answer_tokens / self.decode_s if self.decode_s > 0 and self.answer_tokens else None


@dataclass(eq=False)
class Job:
    """A request in the queue. Iterate over `pieces`; set `gone` when nobody reads on."""

    ask: Ask
    constraint: Constraint | None
    loop: asyncio.AbstractEventLoop
    seen: Seen
    watched: bool = True
    """Whether it is reported."""
    pieces: asyncio.Queue[Told] = field(default_factory=asyncio.Queue)
    gone: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.perf_counter)

    def tell(self, piece: Told) -> None:
        """Hand a piece to the reader, from the model's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


@dataclass(eq=False)
class Check:
    """A golden prompt in the queue."""

    golden: Golden
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Answered]

    def tell(self, answer: Answered | None, error: EdgegenError | None = None) -> None:
        """Hand the answer or the error to who waits, from the model's thread."""

        def settle() -> None:
            if self.answer.done():
                return
            if answer is not None:
                self.answer.set_result(answer)
            else:
                self.answer.set_exception(error or DeviceError("the model ends"))

        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(settle)


class Engine:
    """An opened artifact and its thread. A context manager.

    Attributes:
        text: its tokenizer and template.
        counts: what was done.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Settings,
        runtime: str = "",
        adapter: Path | None = None,
        max_waiting: int = 8,
        watch: Callable[[Seen], None] | None = None,
        likelihood_fraction: float = 0.0,
    ) -> None:
        """Load an artifact.

        Args:
            folder: with artifact.json.
            runtime: one that runs its target; empty: the first that is installed.
            adapter: LoRA file that lies over its weights.
            settings: how the runtime is started.
            max_waiting: requests that may wait behind the running one.
            watch: told of every answer when it ends, in the model's thread; must be quick and not raise.
            likelihood_fraction: most of the decoding time that measuring likelihood may take; 0: none is measured.

        Raises:
            ConfigError, UnsupportedError, DeviceError: as `open_model`.
        """
        self.text = Text(folder)
        artifact = self.text.artifact
        found = runtime_for(artifact.target, runtime)
        self.runtime, self.version = found.name, found.version()
        started = time.perf_counter()
        self._session = open_model(found, folder / artifact.model, settings, adapter)
        self.load_s = time.perf_counter() - started
        self.context_tokens = self._session.context_tokens
        self.vocab_size = self._session.vocab_size
        self.counts = Counts()
        self.failed = ""
        """Why the model cannot go on; empty: it can."""
        self._max_waiting = max_waiting
        self.watch, self._likelihood = watch, likelihood_fraction
        self._running = 0
        self._jobs: queue.Queue[Job | Check | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return self._jobs.qsize()

    def submit(self, ask: Ask, constraint: Constraint | None = None, *, name: str = "", watched: bool = True) -> Job:
        """Stand in line. Call it in an asyncio loop.

        Args:
            name: id of the answer.
            watched: whether `watch` is told of it.

        Raises:
            BusyEngineError: the line is full.
            ConfigError: the sampling asks for what there is not.
        """
        Sampler(ask.sampling)
        if self._jobs.qsize() + self._running > self._max_waiting:
            raise BusyEngineError("too many requests wait for the model", hint="Ask again later.")
        fraction = self._likelihood if watched and self.watch is not None else 0.0
        seen = Seen(name, ask.ids, wants_json=constraint is not None, likelihood_fraction=fraction)
        job = Job(ask, constraint, asyncio.get_running_loop(), seen, watched)
        self._jobs.put(job)
        return job

    async def check(self, golden: Golden) -> Answered:
        """Answer a golden prompt, if nobody waits for the model.

        Raises:
            BusyEngineError: somebody does.
            ConfigError: the prompt does not fit this model.
            DeviceError: the runtime could not compute.
        """
        if self._running or self._jobs.qsize():
            raise BusyEngineError("the model has something else to do", hint="Ask again later.")
        loop = asyncio.get_running_loop()
        check = Check(golden, loop, loop.create_future())
        self._jobs.put(check)
        return await check.answer

    def close(self) -> None:
        """Finish the running request and free the model."""
        self._jobs.put(None)
        self._thread.join()
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._running = 1
            try:
                if isinstance(job, Check):
                    self._answer_check(job)
                else:
                    self._answer_job(job)
            finally:
                self._running = 0

    def _answer_check(self, check: Check) -> None:
        try:
            check.tell(ask_golden(self._session, check.golden))
        except EdgegenError as error:
            check.tell(None, error)
        except Exception as error:
            check.tell(None, DeviceError(f"the model failed: {type(error).__name__}: {error}"))

    def _answer_job(self, job: Job) -> None:
        seen = job.seen
        self.counts.requests += 1
        seen.begun_s = time.perf_counter()
        seen.queue_s = seen.begun_s - job.since
        self.counts.waited_s += seen.queue_s
        last: Told | None = None
        try:
            last = self._answer(job)
        except EdgegenError as error:
            self.counts.errors += not isinstance(error, ConfigError)  # a wrong request says nothing of the release
            if isinstance(error, DeviceError):
                self.failed = str(error)
            seen.stop, seen.error = "error", error
            last = Told(error=error)
        except Exception as error:
            self.counts.errors += 1
            self.failed = f"{type(error).__name__}: {error}"
            seen.stop, seen.error = "error", DeviceError(f"the model failed: {self.failed}")
            seen.foreign = type(error).__name__
            last = Told(error=seen.error)
        if job.watched and self.watch is not None:
            self.watch(seen)  # before the reader hears that it is over: what it asks next finds the answer known
        if last is not None:
            job.tell(last)

    def _answer(self, job: Job) -> Told | None:
        """All pieces but the last, which is returned; None if nobody reads on."""
        ask, seen = job.ask, job.seen
        seen.stop = "canceled"
        if job.gone.is_set():
            self.counts.canceled += 1
            return None
        self.counts.prompt_tokens += len(ask.ids)
        walk = _Walk(self, job)
        for piece in self.text.stream(walk.ids(), stop=ask.stop):
            seen.pieces.append(piece)
            job.tell(Told(text=piece, marks=walk.take_marks(), tokens=walk.count))
            if job.gone.is_set():
                self.counts.canceled += 1
                return None
        # A stop text ends the stream while tokens could still come.
        seen.stop = walk.ended or ("canceled" if job.gone.is_set() else "stop")
        return Told(marks=walk.take_marks(), ended=walk.ended or "stop", tokens=walk.count)


class _Walk:
    """The tokens of one answer, with what is known about the last of them."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job
        self.count, self.ended = 0, ""
        self._marks: list[tuple[int, float]] = []

    def take_marks(self) -> tuple[tuple[int, float], ...]:
        """What was marked since the last call."""
        marks, self._marks = tuple(self._marks), []
        return marks

    def ids(self) -> Iterator[int]:
        """Choose token after token. Ends at a stop token, the limit, the context's end, or when nobody reads on."""
        ask, session, counts = self._job.ask, self._engine._session, self._engine.counts
        stops = frozenset(self._engine.text.artifact.eos_ids)
        sampler = Sampler(ask.sampling, ask.ids)
        started = time.perf_counter()
        logits = session.start(ask.ids)
        counts.prefill_s += time.perf_counter() - started
        room = min(ask.max_tokens, session.context_tokens - len(ask.ids) + 1)
        while self.count < room:
            started = time.perf_counter()
            constraint = self._job.constraint
            if constraint is not None and constraint.finished:
                self.ended = "stop"
                return
            token = sampler.choose(logits) if constraint is None else constraint.choose(logits, sampler, stops)
            if token in stops:
                self.ended = "stop"
                return
            if ask.logprobs:
                self._marks.append((token, log_probability(logits, token)))
            self.count += 1
            counts.answer_tokens += 1
            self._job.seen.token(token, logits)
            yield token
            if self._job.gone.is_set():
                return
            if self.count < room:
                logits = session.step(token)
            counts.decode_s += time.perf_counter() - started
        self.ended = "length"


def log_probability(logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]], token: int) -> float:
    """Natural log-probability of a token under the softmax of (V,) logits."""
    values = logits.astype(np.float64)
    largest = values.max()
    return float(values[token] - largest - np.log(np.exp(values - largest).sum()))
