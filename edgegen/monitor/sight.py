"""What all screens look at together: the window, the time, whether the picture stands still."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgegen.monitor.times import WINDOWS

INTERVALS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Failure:
    """A question that the source does not answer."""

    since_s: float
    words: str
    tries: int = 1
    next_s: float = 0.0
    """When it is asked again."""

    def again(self, now_s: float, words: str) -> None:
        """It failed once more: wait longer, up to ten seconds."""
        self.words = words
        self.tries += 1
        self.next_s = now_s + self.wait_s

    @property
    def wait_s(self) -> float:
        return min(10.0, 2.0 ** min(self.tries - 1, 4))


@dataclass(slots=True)
class Sight:
    """Shared by the screens; only the app changes it.

    Attributes:
        until_s: the moment that is shown, by the server's clock; None: now.
        offset_s: the server's clock minus ours.
    """

    window_s: float = 3600.0
    until_s: float | None = None
    interval_s: float = 2.0
    is_paused: bool = False
    offset_s: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    def next_window(self) -> float:
        """The next larger one, or after the largest the smallest."""
        return next((window for window in WINDOWS if window > self.window_s), WINDOWS[0])

    def interval(self, step: int) -> float:
        """The next longer (1) or shorter (-1) time between questions."""
        if step > 0:
            return next((one for one in INTERVALS if one > self.interval_s), INTERVALS[-1])
        return next((one for one in reversed(INTERVALS) if one < self.interval_s), INTERVALS[0])

    def stepped(self, by: int, now_s: float) -> float | None:
        """The moment a twelfth of the window earlier or later; None: now is reached."""
        at_s = (self.until_s if self.until_s is not None else now_s) + by * self.window_s / 12
        return at_s if at_s < now_s - 1 else None
