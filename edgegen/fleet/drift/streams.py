"""Changes within one device's stream of answers: log-probability, time to first token, tokens a second.

A stream's first `BASELINE` values are its baseline. Every later value becomes the normal score of its rank among them,
so that what follows depends on no unit, no scale and no distribution, and one wild value does no harm. Two detectors
read the scores, each for both directions:

- CUSUM (Page 1954) against the baseline, with an allowance of a quarter of a deviation: quick for shifts of half one.
- Page-Hinkley against the running mean since the baseline: finds a change even if the baseline was unlucky.

The decision limits are for a mean time between false alarms (ARL0) of 20,000 answers: calibrated by simulation so that
1 - exp(-1/10) = 9.5 % of streams without a change alarm within the first 2,000 answers, over baselines that are as
short as they really are. (With limits for a known mean it would be more than twice as many.) Answers count as
independent; a device that heats up in bursts alarms more often. Delays (median) of CUSUM: 59 answers for a shift of
half a deviation, 270 for a quarter. See `tools/drift_simulation.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

BASELINE = 400
ARL0 = 20_000
"""Answers between false alarms of one detector on one stream."""
CUSUM_ALLOWANCE = 0.25
CUSUM_LIMIT = 17.4
PAGE_HINKLEY_TOLERANCE = 0.1
PAGE_HINKLEY_LIMIT = 31.8

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Change:
    """A stream that is not what it was."""

    detector: str
    """`cusum` or `page-hinkley`."""
    upwards: bool
    began: int
    """Value at which it probably began; the stream's first is 0."""
    found: int
    """Value that gave the alarm."""


class Detector(Protocol):
    """Reads scores one by one."""

    name: str

    def add(self, score: float) -> tuple[bool, int] | None:
        """Take the next score; on an alarm whether it is upwards, and the number of the score where it began."""


class Scores:
    """Values → normal scores of their ranks among a baseline."""

    def __init__(self, baseline: Iterable[float]) -> None:
        self._sorted = sorted(baseline)
        count = len(self._sorted) + 1
        self._table = [_NORMAL.inv_cdf((rank + 0.5) / count) for rank in range(count)]

    def score(self, value: float) -> float:
        """Of equal values in the baseline, the middle one's."""
        low, high = bisect_left(self._sorted, value), bisect_right(self._sorted, value)
        return (self._table[low] + self._table[high]) / 2


class _TwoSided:
    """Sums that begin anew whenever they fall to 0, upwards and downwards."""

    name = ""
    limit: float

    def __init__(self) -> None:
        self._sums, self._since, self._count = [0.0, 0.0], [0, 0], 0

    def _take(self, up: float, down: float) -> tuple[bool, int] | None:
        self._count += 1
        for side, step in enumerate((up, down)):
            self._sums[side] += step
            if self._sums[side] <= 0:
                self._sums[side], self._since[side] = 0.0, self._count
        for side in (0, 1):
            if self._sums[side] > self.limit:
                return side == 0, self._since[side]
        return None


class Cusum(_TwoSided):
    """Cumulative sums of what exceeds the baseline's mean by an allowance."""

    name = "cusum"

    def __init__(self, *, allowance: float = CUSUM_ALLOWANCE, limit: float = CUSUM_LIMIT) -> None:
        super().__init__()
        self._allowance, self.limit = allowance, limit

    def add(self, score: float) -> tuple[bool, int] | None:
        """See `Detector`."""
        return self._take(score - self._allowance, -score - self._allowance)


class PageHinkley(_TwoSided):
    """Cumulative sums of what exceeds the mean so far by a tolerance."""

    name = "page-hinkley"

    def __init__(self, *, tolerance: float = PAGE_HINKLEY_TOLERANCE, limit: float = PAGE_HINKLEY_LIMIT) -> None:
        super().__init__()
        self._tolerance, self.limit = tolerance, limit
        self._mean = 0.0

    def add(self, score: float) -> tuple[bool, int] | None:
        """See `Detector`."""
        self._mean += (score - self._mean) / (self._count + 1)
        return self._take(score - self._mean - self._tolerance, self._mean - score - self._tolerance)


def find_change(values: Sequence[float], *, baseline: int = BASELINE) -> Change | None:
    """The first alarm in a stream; None: none, or no more values than the baseline takes."""
    if len(values) <= baseline:
        return None
    scores = Scores(values[:baseline])
    detectors: tuple[Detector, ...] = (Cusum(), PageHinkley())
    for place, value in enumerate(values[baseline:], start=baseline):
        score = scores.score(value)
        for detector in detectors:
            alarm = detector.add(score)
            if alarm is not None:
                upwards, since = alarm
                return Change(detector.name, upwards, baseline + since, place)
    return None
