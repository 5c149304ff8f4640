"""Time, as a part that a test can replace."""

from __future__ import annotations

import ctypes
import time
from typing import Protocol

_TIMEX_BYTES = 512
"""More than `struct timex` has anywhere; of zeros it asks and changes nothing."""
_TIME_ERROR = 5
"""What adjtimex answers where nothing keeps the clock right."""


class Clock(Protocol):
    """What the agent asks about time."""

    def now(self) -> float:
        """Seconds since 1970 by this machine, which may be wrong."""
        ...

    def is_set(self) -> bool | None:
        """Whether a time server has set `now`; None: the system does not say."""
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

    def is_set(self) -> bool | None:
        """Whether the kernel holds its clock for synchronised."""
        try:
            state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
        except (AttributeError, OSError):
            return None
        return None if state < 0 else state != _TIME_ERROR

    def monotonic(self) -> float:
        """Seconds since the machine started, sleep left out."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(0.0, seconds))
