"""The reporting half of the serving process: one writer, one recorder, and what feedback asks."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from edgegen.agent.telemetry.recorder import Recorder, Served
from edgegen.agent.telemetry.settings import Telemetry
from edgegen.agent.telemetry.spool import Spool
from edgegen.agent.telemetry.writer import Writer


class Reports:
    """Close it after the last answer."""

    def __init__(self, config: Telemetry, served: Served, path: Path, quota_bytes: int) -> None:
        """Begin; the spool is opened by the writer, so that a broken disk does not keep a model from answering.

        Args:
            config: `[telemetry]`.
            path: of the spool.
            quota_bytes: of it.
        """
        self._path, self._quota = path, quota_bytes
        self._lock = threading.Lock()
        self._reading: Spool | None = None
        self._writer = Writer(self._open, tell=lambda words: print(words, file=sys.stderr, flush=True))
        self.recorder = Recorder(config, served, self._writer)

    def knows(self, name: str) -> bool:
        """Whether this device gave an answer of this id.

        Raises:
            DeviceError: the spool cannot be read.
        """
        if self.recorder.answered_lately(name):
            return True
        with self._lock:
            if self._reading is None:
                self._reading = self._open()
            return self._reading.knows_answer(name)

    def feedback(self, name: str, rating: int, comment: str) -> None:
        """A user's opinion of an answer that is known."""
        self.recorder.feedback(name, rating, comment)

    def close(self) -> None:
        """Write what waits."""
        self.recorder.close()
        self._writer.close()
        with self._lock:
            if self._reading is not None:
                self._reading.close()

    def _open(self) -> Spool:
        return Spool(self._path, quota_bytes=self._quota)
