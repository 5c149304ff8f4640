"""Golden prompts asked again while a release serves, and its files read again.

The same digest, the same prompt and other tokens: then it is this device (flash, heat, memory, a runtime that was
exchanged), whatever users ask. The model that serves answers, when it has nothing else to do, so no second one is
loaded. When it last happened stands in the spool: a restart does not ask anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

from edgegen.agent.golden import Answered
from edgegen.agent.home import Home, damaged_files, read_manifest
from edgegen.agent.telemetry.spool import Spool, Stamp
from edgegen.records.bundle import Golden, Manifest
from edgegen.records.telemetry import Canary, Happening, Lane, Said

_HOUR_S, _DAY_S = 3600.0, 86400.0
_SPREAD = 0.1
"""A device is up to so much early or late, so that a fleet does not do it all at once."""
_MOST_DROP = 1e4
"""Said where the runtime computes no number: no sound model comes near it."""
_ASKED, _HASHED = "canary_s", "hashed_s"


class Model(Protocol):
    """What serves."""

    @property
    def digest(self) -> str:
        """Of its manifest; empty: nothing serves."""
        ...

    def ask_golden(self, golden: Golden) -> Answered | None:
        """Its answer; None: it has something else to do."""
        ...


class Canaries:
    """Of one device. `step` asks at most one prompt."""

    def __init__(
        self,
        home: Home,
        model: Model,
        spool: Spool,
        record: Callable[[Lane, Said], None],
        *,
        hours: float,
        hash_days: float,
        now: Callable[[], Stamp],
        dice: random.Random | None = None,
    ) -> None:
        """Prepare.

        Args:
            home: where releases lie.
            model: what serves.
            spool: remembers when it was last done.
            record: where reports go.
            hours: between runs; 0: never.
            hash_days: between readings of the files; 0: never.
            now: the clocks.
            dice: for the spread.
        """
        self._home, self._model, self._spool, self._record = home, model, spool, record
        self._hours, self._days, self._now = hours, hash_days, now
        self._dice = dice or random.Random()
        self._late = self._spread()
        self._waiting: Iterator[tuple[int, Golden]] | None = None
        self._next: tuple[int, Golden] | None = None
        self._release = ""
        self._manifest: Manifest | None = None
        self._intact: bool | None = None
        self._wanted = False

    def step(self) -> None:
        """Do what is due, one piece of it.

        Raises:
            DeviceError: the spool cannot be read.
        """
        digest = self._model.digest
        if digest != self._release:
            self._release, self._waiting, self._next = digest, None, None
            self._manifest = read_manifest(self._home.release(digest)) if digest else None
        manifest = self._manifest
        if manifest is None:
            return
        if self._waiting is None:
            if self._is_due(_HASHED, self._days * _DAY_S):
                self._read_files(digest, manifest)
            elif self._wanted or self._is_due(_ASKED, self._hours * _HOUR_S):
                self._wanted = False
                self._waiting = iter(enumerate(manifest.golden))
                self._next = next(self._waiting, None)
            else:
                return
        if self._waiting is not None:
            self._ask(digest)

    def begin(self) -> None:
        """Make the golden prompts due now, whatever the clock says."""
        self._wanted = True

    def _ask(self, digest: str) -> None:
        if self._next is None:
            self._waiting = None
            self._done(_ASKED)
            return
        number, golden = self._next
        answered = self._model.ask_golden(golden)
        if answered is None or self._model.digest != digest:
            return  # later
        changed = answered.prefix < len(golden.tokens)
        self._record(
            Lane.ERRORS if changed else Lane.NUMBERS,
            Canary(
                release=digest,
                prompt=number,
                agreed=answered.prefix,
                expected=len(golden.tokens),
                log_prob_drop=min(_MOST_DROP, golden.log_prob - answered.log_prob),
                tokens_per_s=answered.tokens_per_s,
                intact=self._intact,
                ids=answered.tokens[: len(golden.tokens)],
            ),
        )
        self._intact = None
        assert self._waiting is not None
        self._next = next(self._waiting, None)

    def _read_files(self, digest: str, manifest: Manifest) -> None:
        """Every byte; then the golden prompts, whose first report says what came out."""
        folder = self._home.release(digest)
        damaged = damaged_files(folder, manifest.files)
        self._intact = not damaged
        what, level = ("damaged", "error") if damaged else ("intact", "info")
        detail = f"files are not what the release says: {', '.join(damaged)}"[:300] if damaged else ""
        self._record(Lane.DEPLOY, Happening(level=level, what=what, detail=detail, release=digest))
        self._done(_HASHED)
        if self._hours > 0:
            self._waiting = iter(enumerate(manifest.golden))
            self._next = next(self._waiting, None)

    def _is_due(self, key: str, every_s: float) -> bool:
        """Whether it is time; a first time, or a clock that was set back, begins to wait now."""
        if every_s <= 0:
            return False
        last, now_s = self._spool.recall(key), self._now().at_s
        if last is None or last > now_s:
            self._spool.remember(key, now_s)
            return False
        return now_s - last >= every_s * self._late

    def _done(self, key: str) -> None:
        self._spool.remember(key, self._now().at_s)
        self._late = self._spread()

    def _spread(self) -> float:
        return self._dice.uniform(1 - _SPREAD, 1 + _SPREAD)
