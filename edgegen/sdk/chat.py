"""Talk with an artifact: a conversation by its chat template, or text that it continues. Needs no torch.

A conversation is remembered as far as the context holds it with room for an answer; the oldest questions go first,
each with its answer, and the system message stays. Every answer runs the whole conversation again: sessions keep one
sequence and cannot go back in it, and the templates of reasoning models rewrite earlier turns.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from edgegen.errors import ConfigError
from edgegen.records.answer import Answer, Ended
from edgegen.runtime.checks import settings_here
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.sampling import GREEDY, Sampling
from edgegen.runtime.text import Text

CONTINUES = "this model has no chat template: it continues your text"
"""Said where a conversation would have been expected."""

_ANSWER_SHARE = 4
"""A quarter of the context is kept free for an answer, or as much as it may have if that is less."""


class Chat:
    """An opened artifact with the conversation so far. A context manager.

    Attributes:
        artifact: its record.
        settings: how the runtime was started.
        continues: whether prompts are continued instead of answered.
        answer: the last one; None before the first.
        notes: what is otherwise than one would expect.
    """

    def __init__(
        self, folder: Path, *, runtime: str = "", threads: int | None = None, system: str = "", raw: bool = False
    ) -> None:
        """Open an artifact.

        Args:
            folder: with artifact.json.
            runtime: one that runs the artifact's target; empty: the first that is installed.
            threads: None: the artifact's own number, as far as this machine has cores.
            system: what the model is told before the conversation.
            raw: continue prompts even if the model knows conversations.

        Raises:
            ConfigError: no artifact there, a broken one, or a system message for a model that continues text.
            UnsupportedError: the runtime is not installed.
            DeviceError: the runtime refuses the model.
        """
        text = Text(folder)
        if text.artifact.task == "encoder":
            raise ConfigError(f"{folder}: an encoder, which writes nothing", hint="Use edgegen.sdk.embed.Embedder.")
        self.continues = raw or not text.has_template
        self.notes = (CONTINUES,) if self.continues and not raw else ()
        if system and self.continues:
            raise ConfigError("a system message needs a chat template", hint="Put its words before your text.")
        self._text = text
        self._system = system
        self._history: list[dict[str, str]] = []
        self.answer: Answer | None = None
        self.artifact = text.artifact
        self.settings = settings_here(self.artifact.settings, threads)
        found = runtime_for(self.artifact.target, runtime)
        self.runtime, self.version = found.name, found.version()
        started = time.perf_counter()
        self._session = found.open(folder / self.artifact.model, self.settings)
        self._load_ms = 1000 * (time.perf_counter() - started)

    def ask(
        self, prompt: str, *, max_tokens: int = 256, sampling: Sampling = GREEDY, stop: Sequence[str] = ()
    ) -> Generator[str]:
        """Pieces of the answer as they come. Closing the iterator ends the answer; `answer` then tells about it.

        Args:
            max_tokens: of the answer; the end of the context ends it sooner.
            stop: texts at which it ends.

        Raises:
            ConfigError: a prompt that the context cannot hold, that the template refuses, or sampling out of range.
            DeviceError: the runtime could not compute.
        """
        if max_tokens < 1:
            raise ConfigError(f"max_tokens must be 1 or more, not {max_tokens}", hint="Leave it out for 256.")
        if not all(stop):
            raise ConfigError("stop: an empty text ends nothing", hint="Leave it out.")
        started = time.perf_counter()
        ids, forgotten = self._ids(prompt, max_tokens)
        made = self._session.generate(ids, max_tokens=max_tokens, stop_ids=self.artifact.eos_ids, sampling=sampling)
        return self._follow(prompt, ids, made, max_tokens, stop, forgotten, started)

    def reset(self) -> None:
        """Forget the conversation."""
        self._history.clear()

    def close(self) -> None:
        """Free the model; calling it again does nothing."""
        self._session.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ids(self, prompt: str, max_tokens: int) -> tuple[list[int], int]:
        """Ids to start from, and how many of the oldest questions had to go for them."""
        if self.continues:
            ids = self._text.encode(prompt)
            bos = self.artifact.bos_id
            return (ids if ids or bos is None else [bos]), 0
        forgotten = 0
        room = min(max_tokens, self._session.context_tokens // _ANSWER_SHARE)
        while True:
            before = [{"role": "system", "content": self._system}] if self._system else []
            ids = self._text.conversation([*before, *self._history, {"role": "user", "content": prompt}])
            if not self._history or len(ids) + room <= self._session.context_tokens:
                return ids, forgotten
            del self._history[:2]
            forgotten += 1

    def _follow(
        self,
        prompt: str,
        ids: list[int],
        made: Iterator[int],
        max_tokens: int,
        stop: Sequence[str],
        forgotten: int,
        started: float,
    ) -> Generator[str]:
        times: list[float] = []
        pieces: list[str] = []
        ended: Ended = "interrupted"
        exhausted = False

        def timed() -> Iterator[int]:
            nonlocal exhausted
            for token in made:
                times.append(time.perf_counter())
                yield token
            exhausted = True

        try:
            for piece in self._text.stream(timed(), after=ids if self.continues else (), stop=stop):
                pieces.append(piece)
                yield piece
            if not exhausted:
                ended = "stop_text"
            elif len(times) == max_tokens:
                ended = "length"
            else:
                ended = "context" if len(ids) + len(times) > self._session.context_tokens else "stop"
        finally:
            text = "".join(pieces)
            spent = times[-1] - times[0] if len(times) > 1 else 0.0
            self.answer = Answer(
                schema=1,
                target=self.artifact.target,
                runtime=self.runtime,
                version=self.version,
                threads=self.settings.threads,
                prompt=prompt,
                text=text,
                prompt_tokens=len(ids),
                answer_tokens=len(times),
                ended=ended,
                load_ms=self._load_ms,
                ttft_ms=1000 * (times[0] - started) if times else None,
                decode_tokens_per_s=(len(times) - 1) / spent if spent > 0 else None,
                forgotten_turns=forgotten,
                notes=self.notes,
            )
            if not self.continues and text:
                self._history += [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
