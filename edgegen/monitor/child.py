"""A compression that runs as a child process, so that it can be stopped at any moment and its libraries may print.

The child is the same command without `--tui`. It writes its progress as lines of JSON into a pipe; two more threads
collect what it says on stdout and stderr. Whoever shows it looks at `Progress` when it ticks: however many events come,
a tick draws once. The child has a session of its own: Ctrl-C of the terminal is a key here, not its signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

from edgegen.common.units import format_seconds
from edgegen.sdk.stage_words import stage_words

MOST_LOG_LINES = 2000
_MOST_OUT = 4_000_000
"""Characters of the child's stdout that are kept: its report."""
_BAR = "%|"
"""Is in the progress bars that libraries draw."""
_GRACE_S = 20.0
"""From asking the child to stop to killing it."""


@dataclass(slots=True)
class Stage:
    """One stage of the chain."""

    name: str
    state: str = "waiting"
    """`waiting`, `started`, `running`, `finished` or `skipped`."""
    done: int = 0
    total: int = 0
    began_s: float | None = None
    ended_s: float | None = None

    def seconds(self, now_s: float) -> float | None:
        """How long it runs or ran."""
        return None if self.began_s is None else (self.ended_s if self.ended_s is not None else now_s) - self.began_s

    def left_s(self, now_s: float) -> float | None:
        """Guess of what is left, from the pace so far."""
        ran = self.seconds(now_s)
        if self.state != "running" or ran is None or not 0 < self.done < self.total or ran < 2:
            return None
        return ran / self.done * (self.total - self.done)


@dataclass(slots=True)
class Progress:
    """What a run has told so far; written by the reading threads, read by the screens."""

    stages: dict[str, Stage]
    log: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=MOST_LOG_LINES))
    lines: int = 0
    """Of the log, those that fell out of it included."""

    def tell(self, name: str, state: str, done: int, total: int, now_s: float) -> None:
        """An event came."""
        stage = self.stages.setdefault(name, Stage(name))
        if state in ("started", "running") and stage.began_s is None:
            stage.began_s = now_s
        if state in ("finished", "skipped"):
            stage.ended_s = now_s
        if state == "running":
            stage.done, stage.total = done, total
        elif state != stage.state:
            ran = stage.seconds(now_s)
            took = f" in {format_seconds(ran)}" if state == "finished" and ran is not None else ""
            self.say(f"{stage_words(name)}: {state}{took}", now_s)
        stage.state = state

    def say(self, line: str, now_s: float) -> None:
        """A line for the log. A library's progress bar stays one line, however often it is drawn."""
        if _BAR in line and self.log and _BAR in self.log[-1][1]:
            self.log[-1] = (now_s, line)
        else:
            self.log.append((now_s, line))
        self.lines += 1


class ChildRun:
    """The child and what it has told."""

    def __init__(
        self,
        command: Sequence[str],
        events_variable: str,
        stages: Sequence[str],
        *,
        on_event: Callable[[str, str], None] = lambda stage, state: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start it.

        Args:
            command: after `python -m edgegen`.
            stages: that are expected, in order.
            on_event: called on a reading thread with stage and state, once the event is in `progress`.
        """
        self.progress = Progress({name: Stage(name) for name in stages})
        self.began_s = clock()
        self.stopping_s: float | None = None
        """Since when it is asked to stop."""
        self._clock, self._on_event = clock, on_event
        self._out: list[str] = []
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgegen", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writing,),
                start_new_session=True,
                text=True,
                errors="replace",
                # A parent in the background hands down an ignored SIGINT, which would make the child unstoppable.
                preexec_fn=_heed_interrupts,
                env={**os.environ, events_variable: str(writing), "PYTHONUNBUFFERED": "1"},
            )
        finally:
            os.close(writing)
        assert self._process.stdout and self._process.stderr, "both are pipes"
        readers: list[tuple[Callable[[IO[str]], None], IO[str]]] = [
            (self._read_events, os.fdopen(reading, errors="replace")),
            (self._read_log, self._process.stderr),
            (self._read_out, self._process.stdout),
        ]
        self._threads = [threading.Thread(target=work, args=(stream,), daemon=True) for work, stream in readers]
        for thread in self._threads:
            thread.start()

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""
        code = self._process.poll()
        return code if code is None or not any(thread.is_alive() for thread in self._threads[:2]) else None

    @property
    def out(self) -> str:
        """What it wrote on stdout."""
        return "".join(self._out)

    def stop(self) -> None:
        """Ask it to stop as Ctrl-C does; what is finished is kept."""
        if self.stopping_s is None:
            self.stopping_s = self._clock()
            self._signal(signal.SIGINT)

    def press(self) -> None:
        """Kill it if it was asked to stop long ago."""
        if self.stopping_s is not None and self._clock() - self.stopping_s > _GRACE_S:
            self._signal(signal.SIGKILL)

    def end(self) -> int:
        """Stop it in any case and wait.

        Returns:
            Its exit code.
        """
        if self._process.poll() is None:
            self.stop()
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        code = self._process.wait()
        for thread in self._threads:
            thread.join(5)
        return code

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read_events(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                try:
                    name, state, done, total = json.loads(line)
                except ValueError:
                    continue
                self.progress.tell(str(name), str(state), int(done), int(total), self._clock())
                self._on_event(str(name), str(state))

    def _read_log(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                if line.strip():
                    self.progress.say(line.rstrip(), self._clock())

    def _read_out(self, stream: IO[str]) -> None:
        size = 0
        with stream:
            for line in stream:
                size += len(line)
                if size <= _MOST_OUT:
                    self._out.append(line)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
