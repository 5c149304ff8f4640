"""Turns answers and feedback into reports, as far as privacy lets them go. Lives in the serving process.

The model's thread only hands over what it saw; features, likelihood's means, redaction and sensors are the writer's
work. No text is in a report below P2, and of an error that is not our own only its name. What goes wrong with a text
costs the text and not the numbers.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from edgegen.agent.seen import Seen
from edgegen.agent.telemetry.hashing import Window
from edgegen.agent.telemetry.redaction import RedactionError, Redactor, load_redactor, safe_words
from edgegen.agent.telemetry.sensors import Sensors
from edgegen.agent.telemetry.settings import Telemetry, load_refusals
from edgegen.agent.telemetry.writer import Found, Writer
from edgegen.common.process import peak_rss_bytes, rss_bytes
from edgegen.errors import ConfigError
from edgegen.records.telemetry import Feedback, Generation, Happening, Lane, Privacy, Said, Sample
from edgegen.runtime.features import REFUSALS, distinct_fraction, features
from edgegen.runtime.likelihood import byte_fraction, byte_ids, missing_characters
from edgegen.runtime.text import Text

_TEXT = (Privacy.REDACTED, Privacy.FULL)
_LOOKED_CHARACTERS = 48_000
"""Of a text that redaction looks at."""
_KEPT_BYTES = 24_000
"""Of a text in a report, as JSON."""
_MARGIN = 512
"""Characters at the end of a text that was cut: what is half there is not recognised."""
_REMEMBERED = 64
"""Latest answers whose redacted text is kept in memory, for feedback that comes later."""
_MISSING = 16
_COMMENT_CHARACTERS = 2000
_SAID_AGAIN_S = 3600.0


class Served(NamedTuple):
    """What answers."""

    release: str
    """Digest of its manifest."""
    runtime: str
    """Name and version."""
    threads: int
    text: Text


class _Kept(NamedTuple):
    prompt: str
    answer: str
    redactions: int
    cut: bool
    level: Privacy


class Recorder:
    """Writes down what the serving process sees."""

    def __init__(
        self,
        config: Telemetry,
        served: Served,
        writer: Writer,
        *,
        now: Callable[[], float] = time.time,
        dice: random.Random | None = None,
        sensors: Sensors | None = None,
    ) -> None:
        """Prepare.

        Args:
            config: `[telemetry]`.
            writer: of this process.
            now: seconds since 1970, for how long P3 lasts.
            dice: chooses what is sampled.
            sensors: of this machine.
        """
        self._config, self._served, self._writer = config, served, writer
        self._now, self._dice = now, dice or random.Random()
        self._sensors = sensors or Sensors()
        self._lock = threading.Lock()
        self._fresh: OrderedDict[str, None] = OrderedDict()
        self._texts: OrderedDict[str, _Kept] = OrderedDict()
        template = served.text.template
        self._template = hashlib.sha256(template.encode()).hexdigest()[:12] if template else ""
        tokens = served.text.tokenizer.get_added_tokens_decoder().values()
        self._markers = tuple(
            token.content for token in tokens if token.special and len(token.content) >= 5 and token.content in template
        )
        self._lone = byte_ids(served.text.tokenizer)
        self._refusals: tuple[str, ...] = REFUSALS
        self._windows = {what: Window(served.release, what) for what in ("prompts", "answers")}
        self._redactor: Redactor | None = None
        self._said_s: float | None = None
        try:
            self._refusals = load_refusals(config.refusals_file) or REFUSALS
            self._redactor = load_redactor(config.redact_rules, config.hook)
        except ConfigError as error:
            said = Happening(level="error", what="redaction-failed", detail=f"no text is kept: {error}"[:200])
            writer.record(Lane.ERRORS, said)

    def answered(self, seen: Seen) -> None:
        """An answer ended. Quick: called in the model's thread."""
        with self._lock:
            self._fresh[seen.id] = None
            while len(self._fresh) > 10 * _REMEMBERED:
                self._fresh.popitem(last=False)
        lane = Lane.ERRORS if seen.stop == "error" else Lane.NUMBERS
        self._writer.record_later(lane, lambda: self._generation(seen, lane), answer=seen.id)

    def answered_lately(self, name: str) -> bool:
        """Whether an answer of this id ended in this process, lately."""
        with self._lock:
            return name in self._fresh

    def feedback(self, name: str, rating: int, comment: str) -> None:
        """What a user thought of an answer. The comment goes no further than privacy lets it."""
        self._writer.record_later(Lane.NUMBERS, lambda: self._feedback(name, rating, comment))

    def close(self) -> None:
        """Report what is only in memory."""
        for window in self._windows.values():
            self._writer.record_later(Lane.NUMBERS, lambda window=window: _lane(Lane.NUMBERS, window.take()))  # type: ignore[misc]

    def _generation(self, seen: Seen, lane: Lane) -> Found:
        level = self._config.level(self._now())
        served, heat, answer = self._served, self._sensors.read(), "".join(seen.pieces)
        missing = missing_characters(seen.prompt, self._lone, served.text.tokenizer) if level in _TEXT else {}
        yield (
            lane,
            Generation(
                id=seen.id,
                release=served.release,
                template=self._template,
                runtime=served.runtime,
                prompt_tokens=len(seen.prompt),
                answer_tokens=len(seen.tokens),
                stop=seen.stop,
                queue_s=round(seen.queue_s, 6),
                ttft_s=_rounded(seen.ttft_s),
                tokens_per_s=_rounded(seen.tokens_per_s),
                threads=served.threads,
                mean_log_prob=_rounded(seen.mean_log_prob),
                mean_entropy=_rounded(seen.mean_entropy),
                distinct_fraction=_rounded(distinct_fraction(seen.tokens)),
                byte_fraction=_rounded(byte_fraction(seen.prompt, self._lone)),
                missing=dict(list(missing.items())[:_MISSING]),
                rss_bytes=rss_bytes(),
                peak_rss_bytes=peak_rss_bytes(),
                temperature_c=heat.temperature_c,
                throttled=heat.throttled,
                error=self._words(seen, level),
                features=features(answer, wants_json=seen.wants_json, markers=self._markers, refusals=self._refusals)
                if seen.stop != "error" or answer
                else None,
            ),
        )
        if self._config.embedding and level is not Privacy.NUMBERS:
            yield from _lane(Lane.NUMBERS, self._windows["answers"].add(answer))
            yield from _lane(Lane.NUMBERS, self._windows["prompts"].add(served.text.decode(seen.prompt)))
        if level in _TEXT:
            yield from self._texts_of(seen, answer, level)

    def _texts_of(self, seen: Seen, answer: str, level: Privacy) -> Found:
        try:
            kept = self._kept(self._served.text.decode(seen.prompt), answer, level)
        except RedactionError as error:
            yield from self._failed(error)
            return
        self._texts[seen.id] = kept
        while len(self._texts) > _REMEMBERED:
            self._texts.popitem(last=False)
        chosen = self._dice.random() < self._config.sample_fraction
        if seen.stop == "error" or chosen:
            yield Lane.TEXT, self._sample(seen.id, kept, "error" if seen.stop == "error" else "sampled")

    def _feedback(self, name: str, rating: int, comment: str) -> Found:
        level = self._config.level(self._now())
        words = ""
        if comment and level in _TEXT:
            try:
                words = self._safe(comment[:_COMMENT_CHARACTERS].encode(errors="replace").decode(), level)[0]
            except RedactionError as error:
                yield from self._failed(error)
        yield Lane.NUMBERS, Feedback(generation=name, rating=rating, comment=words)
        kept = self._texts.pop(name, None)
        if kept is not None and level in _TEXT and rating < 0 and (level is Privacy.FULL or kept.level == level):
            yield Lane.TEXT, self._sample(name, kept, "feedback")

    def _sample(self, name: str, kept: _Kept, why: str) -> Sample:
        return Sample(
            generation=name,
            release=self._served.release,
            prompt=kept.prompt,
            answer=kept.answer,
            level=kept.level,
            why=why,
            redactions=kept.redactions,
            cut=kept.cut,
        )

    def _kept(self, prompt: str, answer: str, level: Privacy) -> _Kept:
        """Both texts as they may be kept.

        Raises:
            RedactionError: they may not.
        """
        texts, places, was_cut = list[str](), 0, False
        for text in (prompt, answer):
            whole = text[:_LOOKED_CHARACTERS].encode(errors="replace").decode()  # no halves of surrogate pairs
            safe, found = self._safe(whole, level)
            if len(text) > _LOOKED_CHARACTERS:
                safe = safe[:-_MARGIN]
            short = _cut(safe)
            was_cut |= len(text) > _LOOKED_CHARACTERS or len(short) < len(safe)
            places += found
            texts.append(short)
        return _Kept(texts[0], texts[1], places, was_cut, level)

    def _safe(self, text: str, level: Privacy) -> tuple[str, int]:
        if level is Privacy.FULL:
            return text, 0
        if self._redactor is None:
            raise RedactionError("no rules")
        return self._redactor.blot(text)

    def _words(self, seen: Seen, level: Privacy) -> str:
        """What may be said of an error."""
        if seen.error is None:
            return ""
        if seen.foreign and level not in _TEXT:
            return seen.foreign
        return safe_words(self._redactor, seen.error)

    def _failed(self, error: RedactionError) -> Found:
        """Once an hour: numbers go on, texts are gone."""
        now = time.monotonic()
        if self._said_s is None or now - self._said_s >= _SAID_AGAIN_S:
            self._said_s = now
            yield Lane.ERRORS, Happening(level="error", what="redaction-failed", detail=f"no text is kept: {error}")


def _cut(text: str) -> str:
    """A text's beginning that takes at most `_KEPT_BYTES` as JSON."""
    size = 0
    if len(msgspec.json.encode(text)) <= _KEPT_BYTES:
        return text
    for place, sign in enumerate(text):
        size += len(msgspec.json.encode(sign)) - 2
        if size > _KEPT_BYTES:
            return text[:place]
    return text


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _lane(lane: Lane, item: Said | None) -> Found:
    return () if item is None else ((lane, item),)
