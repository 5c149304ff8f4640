"""What the telemetry says of a rollout, as its judge reads it: the gauge of a server that keeps telemetry.

Rates and speed are of everything since the first wave began; speed is the median, since a few slow answers say little
of a release. Each type of hardware is a part of its own. Drift is the index of each metric of answers against the
control group; a reading's `floor` is the index that is more than chance, and while a difference is not seen in two
windows in a row it is the index itself, so that it does not count.

The server asks about once a second; the answer is worked out anew every `REST_S`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgegen.bundle.profile import INPUTS
from edgegen.fleet.drift import compare
from edgegen.fleet.drift.read import Answers, read_kinds
from edgegen.fleet.judge import Reading
from edgegen.fleet.transaction import Transaction
from edgegen.records.deployment import GateMetric, Rollout
from edgegen.records.monitor import Verdict

REST_S = 30.0

_NO_DRIFT = frozenset(("error", "thumbs_down", *compare.SPEED, *INPUTS))
"""Gated by themselves, or not about answers."""


class TelemetryGauge:
    """A `gauge.Gauge`. Keeps the latest readings of each rollout."""

    def __init__(self, *, window_s: float = compare.GATE_WINDOW_S, rest_s: float = REST_S) -> None:
        self._window_s, self._rest_s = window_s, rest_s
        self._kept: dict[int, tuple[float, tuple[Reading, ...]]] = {}

    def __call__(self, tx: Transaction, rollout: Rollout, now_s: float) -> tuple[Reading, ...]:
        """See `Gauge`."""
        kept = self._kept.get(rollout.id)
        if kept is None or not 0 <= now_s - kept[0] < self._rest_s:
            kept = now_s, read_gauge(tx, rollout, now_s, window_s=self._window_s)
            self._kept = {number: each for number, each in self._kept.items() if now_s - each[0] < 10 * self._rest_s}
            self._kept[rollout.id] = kept
        return kept[1]


def read_gauge(
    tx: Transaction, rollout: Rollout, now_s: float, *, window_s: float = compare.GATE_WINDOW_S
) -> tuple[Reading, ...]:
    """Every metric of a rollout that is known."""
    pairs = compare.sides(tx, rollout, read_kinds(tx, rollout.group), compare.begun(rollout), now_s)
    found: list[Reading] = []
    for kind, (new, control) in pairs.items():
        part = kind if len(pairs) > 1 else ""
        for metric, values in (
            (GateMetric.ERRORS, [_rate(side, "error") for side in (new, control)]),
            (GateMetric.THUMBS_DOWN, [_rate(side, "thumbs_down") for side in (new, control)]),
            (GateMetric.TTFT, [_median(side.values["ttft_s"]) for side in (new, control)]),
            (GateMetric.SPEED, [_median(side.values["tokens_per_s"]) for side in (new, control)]),
        ):
            (first, n_new), (second, n_control) = values
            found.append(Reading(metric, first, second, n_new, n_control, part))
    for reading in compare.gate(tx, rollout, now_s, window_s=window_s, brief=True):
        finding = reading.finding
        if finding.metric in _NO_DRIFT:
            continue
        named = f"{finding.metric} on {reading.kind}" if len(pairs) > 1 else finding.metric
        index, threshold = finding.psi, finding.threshold
        floor = max(threshold or 0.0, 0.0 if finding.verdict is Verdict.DRIFT else (index or 0.0))
        found.append(Reading(GateMetric.DRIFT, index, None, finding.n, reading.control_n, named, floor))
    return tuple(found)


def _rate(answers: Answers, metric: str) -> tuple[float | None, int]:
    """Share of all answers that it is true of; those of which it is not known count as false."""
    count = len(answers.devices)
    return (float(np.nansum(answers.values[metric])) / count if count else None), count


def _median(values: NDArray[np.float64]) -> tuple[float | None, int]:
    known = values[~np.isnan(values)]
    return (float(np.median(known)) if len(known) else None), len(known)
