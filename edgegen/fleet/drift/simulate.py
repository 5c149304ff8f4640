"""False alarms of windows without a shift, and detections of planted ones, by the very code that judges a fleet.

A release is simulated by the distribution of each of its metrics over the edges that releases are signed with. Its
reference is one sample, kept for a year, as a real one is; windows are others. Metrics are drawn independently of each
other, which is where the correction for many of them has most to do.

References and windows are drawn from seeds: the same call gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

import numpy as np

from edgegen.bundle.profile import EDGES
from edgegen.fleet.drift.streams import ARL0, BASELINE, Cusum, PageHinkley, Scores
from edgegen.fleet.drift.verdicts import Finding, judge_window
from edgegen.records.base import Record

SHAPES: dict[str, tuple[float, float]] = {
    "prompt_tokens": (4.0, 0.9),
    "byte_fraction": (0.01, 0.01),
    "answer_tokens": (3.6, 1.0),
    "characters_per_token": (4.2, 0.5),
    "mean_log_prob": (-1.1, 0.4),
    "mean_entropy": (1.4, 0.5),
    "distinct_fraction": (0.75, 0.12),
    "distinct2": (0.95, 0.05),
    "repetition": (0.03, 0.05),
    "non_letter_fraction": (0.06, 0.04),
}
"""Metric → mean and standard deviation; of the counts of tokens, of their logarithm."""
RATES: dict[str, float] = {"empty": 0.005, "refusal": 0.01, "leaked": 0.0005}
_LOGARITHMIC = ("prompt_tokens", "answer_tokens")


class Quiet(Record, frozen=True):
    """Windows without a shift."""

    n: int
    """Answers in a window."""
    reference: int
    """Answers in the reference."""
    windows: int
    """Simulated, over all references."""
    references: int
    windows_a_year: int
    watched: int
    """Windows in which any metric went beyond."""
    alarmed: int
    """Windows in which any metric was beyond for the second time in a row."""
    alarms_a_year: float
    """Times that a metric began to alarm, over all metrics."""
    references_alarmed: int
    """References with any alarm in their windows."""


class Planted(Record, frozen=True):
    """Windows with a shift from the first one on."""

    shift: str
    n: int
    reference: int
    trials: int
    windows: int
    """Looked at in each trial."""
    found: int
    """Trials in which the shifted metric alarmed."""
    delay: float | None
    """Median windows until it did, 2 at least; None if it never did."""


class Stream(Record, frozen=True):
    """Single answers, one after another."""

    detector: str
    shift: float
    """In standard deviations; 0: none."""
    trials: int
    answers: int
    """Looked at in each trial."""
    found: int
    delay: float | None
    """Median answers until the alarm, of those that came."""


def shares(metric: str, *, shift: float = 0.0) -> tuple[float, ...]:
    """The chance of each bin.

    Args:
        shift: of the mean in standard deviations; of a rate, what is added to it.
    """
    if metric in RATES:
        rate = RATES[metric] + shift
        return (1 - rate, rate)
    mean, deviation = SHAPES[metric]
    edges = [math.log(edge) if metric in _LOGARITHMIC else edge for edge in EDGES[metric]]
    below = [math.erfc((mean + shift * deviation - edge) / deviation / math.sqrt(2)) / 2 for edge in edges]
    bounds = [0.0, *below, 1.0]
    return tuple(float(step) for step in np.diff(bounds))


def simulate_quiet(
    *, n: int, reference: int, windows: int, references: int, windows_a_year: int, seed: int = 0
) -> Quiet:
    """No shift: `windows` windows after each other for each of some references."""
    dice = np.random.default_rng((seed, n, reference))
    truth = {metric: shares(metric) for metric in (*SHAPES, *RATES)}
    watched = alarmed = begun = unlucky = 0
    for _ in range(references):
        kept, before, ringing, any_alarm = _draw(dice, truth, reference), set[str](), set[str](), False
        for _ in range(windows):
            beyond = _beyond(kept, _draw(dice, truth, n))
            alarm = beyond & before
            watched += bool(beyond)
            alarmed += bool(alarm)
            begun += len(alarm - ringing)
            any_alarm |= bool(alarm)
            before, ringing = beyond, alarm
        unlucky += any_alarm
    total = windows * references
    return Quiet(
        *(n, reference, total, references, windows_a_year, watched, alarmed),
        alarms_a_year=begun / total * windows_a_year,
        references_alarmed=unlucky,
    )


def simulate_planted(
    metric: str,
    *,
    shift: float,
    words: str,
    n: int,
    reference: int,
    trials: int,
    windows: int = 10,
    seed: int = 0,
) -> Planted:
    """A shift of one metric from the first window on, the others stay."""
    dice = np.random.default_rng((seed, n, reference, trials))
    truth = {name: shares(name) for name in (*SHAPES, *RATES)}
    moved = {**truth, metric: shares(metric, shift=shift)}
    delays = []
    for _ in range(trials):
        kept, before = _draw(dice, truth, reference), False
        for window in range(1, windows + 1):
            now = metric in _beyond(kept, _draw(dice, moved, n))
            if now and before:
                delays.append(window)
                break
            before = now
    return Planted(
        *(words, n, reference, trials, windows, len(delays)), delay=float(median(delays)) if delays else None
    )


def simulate_stream(detector: str, *, shift: float, trials: int, answers: int = ARL0 // 10, seed: int = 0) -> Stream:
    """Answers one by one after a baseline; for Page-Hinkley, whose mean runs along, the shift comes after 400 more."""
    dice = np.random.default_rng((seed, trials, answers))
    begins = 0 if detector == Cusum.name or not shift else 400
    delays = []
    for _ in range(trials):
        scores = Scores(dice.standard_normal(BASELINE).tolist())
        values = dice.standard_normal(answers + begins)
        values[begins:] += shift
        watch = Cusum() if detector == Cusum.name else PageHinkley()
        for place, value in enumerate(values.tolist()):
            if watch.add(scores.score(value)) is not None:
                delays.append(place + 1 - begins)
                break
    return Stream(*(detector, shift, trials, answers, len(delays)), delay=float(median(delays)) if delays else None)


def _draw(dice: np.random.Generator, truth: Mapping[str, tuple[float, ...]], n: int) -> dict[str, tuple[int, ...]]:
    return {metric: tuple(int(count) for count in dice.multinomial(n, row)) for metric, row in truth.items()}


def _beyond(reference: dict[str, tuple[int, ...]], window: dict[str, tuple[int, ...]]) -> set[str]:
    found: dict[str, Finding] = judge_window(EDGES, reference, window, brief=True)
    return {metric for metric, finding in found.items() if finding.beyond}
