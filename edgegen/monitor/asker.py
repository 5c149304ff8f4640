"""Questions to a source, asked on a thread of their own, one at a time, the newest of each kind only.

A source may block for half a minute, and a local one is a database connection for one thread. So one thread asks, a
question that waits is replaced by a newer one of the same key, and acts go before questions. The answer is handed to
`deliver`, which posts a message to the app; nothing here touches a widget. The thread is a daemon: leaving does not
wait for a server that is away.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ACT = "act"
"""Key of what changes something: never replaced, always first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question."""

    key: str
    ticket: int
    value: Any
    error: Exception | None


class Asker:
    """Asks in the background."""

    def __init__(self, deliver: Callable[[Answer], None], *, inline: bool = False) -> None:
        """
        Args:
            deliver: called on the asking thread.
            inline: ask at once in the caller's thread: for tests and pictures.
        """
        self._deliver = deliver
        self._inline = inline
        self._waiting: dict[str, tuple[int, Callable[[], Any]]] = {}
        self._acts: deque[tuple[int, Callable[[], Any]]] = deque()
        self._running = ""
        self._ticket = 0
        self._closed = False
        self._wake = threading.Condition()
        if not inline:
            threading.Thread(target=self._work, name="monitor-asker", daemon=True).start()

    def ask(self, key: str, work: Callable[[], Any]) -> int:
        """Ask soon.

        Returns:
            The question's number, which its answer carries.
        """
        with self._wake:
            self._ticket += 1
            ticket = self._ticket
            if not self._inline:
                if key == ACT:
                    self._acts.append((ticket, work))
                else:
                    self._waiting[key] = (ticket, work)
                self._wake.notify()
        if self._inline:
            self._answer(key, ticket, work)
        return ticket

    def busy(self, key: str) -> bool:
        """Whether a question of this key waits or is being asked."""
        return key in self._waiting or self._running == key

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being asked."""
        return not self._waiting and not self._acts and not self._running

    def close(self) -> None:
        """Ask nothing more. What is being asked is not waited for, and its answer is not delivered."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._running = ""
                while not (self._waiting or self._acts or self._closed):
                    self._wake.wait()
                if self._closed:
                    return
                if self._acts:
                    key, (ticket, work) = ACT, self._acts.popleft()
                else:
                    key = next(iter(self._waiting))
                    ticket, work = self._waiting.pop(key)
                self._running = key
            self._answer(key, ticket, work)

    def _answer(self, key: str, ticket: int, work: Callable[[], Any]) -> None:
        value, failure = None, None
        try:
            value = work()
        except Exception as error:  # whatever a store or a server raises is shown, and asked again later
            failure = error
        if not self._closed:
            self._deliver(Answer(key, ticket, value, failure))
