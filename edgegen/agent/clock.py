"""Time, as a part that a test can replace."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the agent asks about time."""

    def now(self) -> float:
        """Seconds since 1970 by this machine, which may be wrong."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow, from an unknown start; a restart of the machine begins anew."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the machine started, sleep left out."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(0.0, seconds))
