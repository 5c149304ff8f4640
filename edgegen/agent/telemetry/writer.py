"""The one thread of a process that writes to the spool, behind a queue with an end.

Who answers a request never waits for the disk: what does not fit into the queue is counted, and the count is written
when there is room. The work of making a report, such as blotting out a text, is done here too.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from edgegen.agent.telemetry.spool import Entry, Spool, Stamp, stamp
from edgegen.errors import DeviceError
from edgegen.records.telemetry import Lane, Said

Found = Iterable[tuple[Lane, Said]]
_TOGETHER = 64
"""Reports of one transaction."""
_AGAIN_S = 5.0
"""Until a disk that took nothing is tried again."""


class _Work(NamedTuple):
    lane: Lane
    make: Callable[[], Found]
    stamp: Stamp
    answer: str


class Writer:
    """Takes reports from any thread. Close it."""

    def __init__(
        self,
        open_spool: Callable[[], Spool],
        *,
        tell: Callable[[str], None],
        most_waiting: int = 512,
        again_s: float = _AGAIN_S,
    ) -> None:
        """Start the thread.

        Args:
            open_spool: called there, and again until it works.
            tell: a line for the log.
            most_waiting: reports in the queue.
            again_s: until a disk that took nothing is tried again.
        """
        self._open, self._tell, self._again_s = open_spool, tell, again_s
        self._queue: queue.Queue[_Work | threading.Event | None] = queue.Queue(most_waiting)
        self._lost: Counter[tuple[int, str]] = Counter()
        self._lock = threading.Lock()
        self._spool: Spool | None = None
        self._quiet = False
        self._tried_s = -1e9
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="spool", daemon=True)
        self._thread.start()

    def record(self, lane: Lane, item: Said) -> None:
        """Keep a report soon. Never waits."""
        self.record_later(lane, lambda: ((lane, item),))

    def record_later(self, lane: Lane, make: Callable[[], Found], *, answer: str = "") -> None:
        """Keep what `make` gives when it is called in the writer's thread; its time is now. Never waits.

        Args:
            lane: in which it counts if it is lost.
            make: if it raises, the report is lost and counted.
            answer: id that feedback may name as soon as this is kept.
        """
        try:
            self._queue.put_nowait(_Work(lane, make, stamp(), answer))
        except queue.Full:
            self._lose(lane, "full")

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was recorded before is on the disk, or known to be lost."""
        done = threading.Event()
        try:
            self._queue.put(done, timeout=timeout_s)
        except queue.Full:
            return False
        return done.wait(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and stop; what a disk does not take until then is lost."""
        if self._closed:
            return
        self._closed = True
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _lose(self, lane: int, why: str, count: int = 1) -> None:
        with self._lock:
            self._lost[lane, why] += count

    def _write(self) -> None:
        going = True
        while going:
            works, events = list[_Work](), list[threading.Event]()
            entry: _Work | threading.Event | None = self._queue.get()
            while True:
                if entry is None:
                    going = False
                elif isinstance(entry, threading.Event):
                    events.append(entry)
                else:
                    works.append(entry)
                if not going or len(works) >= _TOGETHER:
                    break
                try:
                    entry = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._keep([made for work in works for made in self._made(work)])
            for event in events:
                event.set()
        if self._spool is not None:
            self._spool.close()

    def _made(self, work: _Work) -> list[Entry]:
        try:
            found = list(work.make())
        except Exception as error:  # a report must never end the thread; the error may quote a text
            self._lose(work.lane, "failed")
            self._say(f"a report could not be made: {type(error).__name__}")
            return []
        return [Entry(lane, item, work.stamp, "" if place else work.answer) for place, (lane, item) in enumerate(found)]

    def _keep(self, entries: list[Entry]) -> None:
        with self._lock:
            lost, self._lost = self._lost, Counter()
        if not entries and not lost:
            return
        try:
            if self._spool is None:
                if time.monotonic() - self._tried_s < self._again_s:
                    raise DeviceError("the spool cannot be opened")
                self._tried_s = time.monotonic()
                self._spool = self._open()
            self._spool.add(entries, [(lane, count, why) for (lane, why), count in lost.items()])
            self._quiet = False
        except DeviceError as error:
            with self._lock:
                self._lost.update(lost)
            for entry in entries:
                self._lose(entry.lane, "disk")
            self._say(f"reports are not kept: {error}")

    def _say(self, words: str) -> None:
        """Once until something is kept again."""
        if not self._quiet:
            self._quiet = True
            self._tell(words)
