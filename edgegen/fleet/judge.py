"""Whether a rollout goes on, waits or stops: a pure function of what its devices have reported.

The rules, in this order, over the waves that have begun (deferred and canceled devices are not counted):

1. Abort when (failed + timed out) ÷ executed ≥ `abort_fraction`, as soon as `min_executed` devices have an outcome, or
   all of them where there are fewer. The denominator is devices with an outcome: silent devices hide no failures.
2. Stop when the release is worse in use than what the group's other devices run (`weigh`): abort for the metrics of
   `abort_on`, pause for others. Fewer generations than `min_generations` on either side are no verdict.
3. The wave has succeeded when confirmed ÷ counted ≥ `success_fraction`. When every device has an outcome and the
   share is not reached, pause: a person decides.
4. `soak_s` later the next wave begins; with `require_telemetry` only when there is a verdict on each metric, and if
   there is none after `deadline_s`, pause.
5. After the last wave, and when no device is still at it, the rollout is finished.

A wave of which no device was seen teaches nothing, so the rollout waits there; only the last may end that way, and its
devices take the release when they return. The last wave needs no verdict of the telemetry either: it leaves no device
to compare with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from edgegen.records.deployment import ActionState, GateMetric, Thresholds, Wave

_ROUNDING = 1e-9
"""Relative: 0.03 is not above 0.01 + 0.02."""


class Move(StrEnum):
    WAIT = "wait"
    BEGIN = "begin"
    """the wave `Verdict.wave`."""
    SUCCEED = "succeed"
    """the wave `Verdict.wave`; then judge again."""
    PAUSE = "pause"
    ABORT = "abort"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and why in words."""

    move: Move
    wave: int = 0
    reason: str = ""
    asked: tuple[GateMetric, ...] = ()
    """Metrics that a person has to decide about, where it pauses for them in `wave`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric in use: with the rollout's release, and without it in the same group."""

    metric: GateMetric
    new: float | None
    """None or not finite: unknown."""
    control: float | None
    """Of the drift nothing: it is a comparison with the control already."""
    n_new: int
    """Generations that it is of."""
    n_control: int
    part: str = ""
    """Of what, where the metric has parts, like the feature that drifts."""
    floor: float = 0.0
    """Least value of `new` that is more than chance at these n; where it is above the drift's threshold, it counts."""


class Standing(StrEnum):
    """What a reading says."""

    OK = "ok"
    WORSE = "worse"
    TOO_FEW = "n too small"


@dataclass(frozen=True, slots=True)
class Finding:
    """A reading against its threshold."""

    reading: Reading
    limit: float
    """As in the thresholds: a difference, a ratio, or the greatest index."""
    standing: Standing

    def __str__(self) -> str:
        reading, control = self.reading, ""
        if reading.metric != GateMetric.DRIFT and reading.control is not None:
            control = f" with the release and {reading.control:.3g} without it"
        known = "unknown" if reading.new is None else f"{reading.new:.3g}"
        part = f" of {reading.part}" if reading.part else ""
        bound = _BOUNDS[reading.metric].format(limit=self.limit)
        return f"{reading.metric}{part} {known}{control} (n {reading.n_new} and {reading.n_control}; {bound})"


_BOUNDS = {
    GateMetric.ERRORS: "may rise by {limit:g}",
    GateMetric.TTFT: "may be {limit:g} times as long",
    GateMetric.SPEED: "must be at least {limit:g} times as high",
    GateMetric.THUMBS_DOWN: "may rise by {limit:g}",
    GateMetric.DRIFT: "may be {limit:.3g}",
}


@dataclass(frozen=True, slots=True)
class _Tally:
    confirmed: int
    bad: int
    open: int

    @property
    def executed(self) -> int:
        return self.confirmed + self.bad

    @property
    def counted(self) -> int:
        return self.executed + self.open


def limits_of(thresholds: Thresholds) -> dict[GateMetric, float]:
    """The metrics that a rollout is gated on, each with its threshold; none: no telemetry is looked at."""
    limits = {
        GateMetric.ERRORS: thresholds.max_error_fraction_rise,
        GateMetric.TTFT: thresholds.max_ttft_ratio,
        GateMetric.SPEED: thresholds.min_tokens_per_s_ratio,
        GateMetric.THUMBS_DOWN: thresholds.max_thumbs_down_rise,
        GateMetric.DRIFT: thresholds.drift,
    }
    return {metric: limit for metric, limit in limits.items() if limit is not None}


def describe_limits(thresholds: Thresholds) -> str:
    """The telemetry thresholds in words, empty if there are none."""
    return ", ".join(
        f"{metric} {_BOUNDS[metric].format(limit=limit)}" for metric, limit in limits_of(thresholds).items()
    )


def weigh(gate: tuple[Reading, ...], thresholds: Thresholds) -> tuple[Finding, ...]:
    """Each reading of a metric that has a threshold, against it. Exactly at the threshold is not worse."""
    limits = limits_of(thresholds)
    return tuple(_weigh(reading, limits[reading.metric], thresholds) for reading in gate if reading.metric in limits)


def judge(
    waves: tuple[Wave, ...],
    thresholds: Thresholds,
    now_s: float,
    gate: tuple[Reading, ...] | None = (),
    accepted: frozenset[str] = frozenset(),
) -> Verdict:
    """Judge a running rollout.

    Args:
        waves: in order, with the counts of their devices.
        gate: what the telemetry says; None: nobody has looked, and where it matters the next wave waits for that.
        accepted: metrics that a person has accepted in the present wave, whatever they say.
    """
    begun = [wave for wave in waves if wave.begun_s is not None]
    if not begun:
        return Verdict(Move.BEGIN, 1)
    total = _tally(*begun)
    if total.bad and total.executed >= min(max(1, thresholds.min_executed), total.counted):
        share = total.bad / total.executed
        if share >= thresholds.abort_fraction:
            return Verdict(
                Move.ABORT,
                reason=f"{total.bad} of {total.executed} devices failed or timed out "
                f"({share:.0%}, stops at {thresholds.abort_fraction:.0%})",
            )
    wave = begun[-1]
    findings = weigh(gate or (), thresholds)
    worse = [
        finding for finding in findings if finding.standing == Standing.WORSE and finding.reading.metric not in accepted
    ]
    if worse:
        metrics = tuple(dict.fromkeys(finding.reading.metric for finding in worse))
        move = Move.ABORT if set(metrics) & set(thresholds.abort_on) else Move.PAUSE
        return Verdict(move, wave.number, "worse in use: " + ", ".join(map(str, worse)), metrics)
    last = wave.number == waves[-1].number
    if wave.succeeded_s is None:
        return _judge_wave(wave, total, thresholds, last=last)
    if last:
        return Verdict(Move.FINISH) if not total.open else Verdict(Move.WAIT, reason=f"{total.open} devices are at it")
    rest_s = wave.succeeded_s + thresholds.soak_s - now_s
    if rest_s > 0:
        return Verdict(Move.WAIT, reason=f"wave {wave.number} soaks for another {rest_s:.0f} s")
    if limits_of(thresholds):
        if gate is None:
            return Verdict(Move.WAIT, reason=f"wave {wave.number}: the telemetry is looked at next")
        wanting = _wanting(findings, thresholds, accepted) if thresholds.require_telemetry else ()
        if wanting:
            reason = f"wave {wave.number}: not enough reports yet: " + ", ".join(_short(findings, wanting))
            if -rest_s < thresholds.deadline_s:
                return Verdict(Move.WAIT, reason=reason)
            return Verdict(Move.PAUSE, wave.number, reason, wanting)
    return Verdict(Move.BEGIN, wave.number + 1)


def _weigh(reading: Reading, limit: float, thresholds: Thresholds) -> Finding:
    if reading.metric == GateMetric.DRIFT:
        limit = max(limit, reading.floor)
    new, control = _known(reading.new), _known(reading.control)
    if min(reading.n_new, reading.n_control) < thresholds.min_generations or new is None:
        return Finding(reading, limit, Standing.TOO_FEW)
    if reading.metric == GateMetric.DRIFT:
        bound = limit
    elif control is None:
        return Finding(reading, limit, Standing.TOO_FEW)
    elif reading.metric in (GateMetric.TTFT, GateMetric.SPEED):
        bound = limit * control
    else:
        bound = limit + control
    worse = new < bound if reading.metric == GateMetric.SPEED else new > bound
    near = math.isclose(new, bound, rel_tol=_ROUNDING)
    return Finding(reading, limit, Standing.WORSE if worse and not near else Standing.OK)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _wanting(findings: tuple[Finding, ...], thresholds: Thresholds, accepted: frozenset[str]) -> tuple[GateMetric, ...]:
    """Metrics without a verdict, or of which a part has none."""
    told = {finding.reading.metric for finding in findings}
    few = {finding.reading.metric for finding in findings if finding.standing == Standing.TOO_FEW}
    return tuple(
        metric for metric in limits_of(thresholds) if (metric not in told or metric in few) and metric not in accepted
    )


def _short(findings: tuple[Finding, ...], wanting: tuple[GateMetric, ...]) -> list[str]:
    """Each metric with the generations that it has, with the release and without, at its poorest part."""
    words = []
    for metric in wanting:
        own = [finding.reading for finding in findings if finding.reading.metric == metric]
        poorest = min(own, key=lambda reading: min(reading.n_new, reading.n_control), default=None)
        words.append(f"{metric} (n {poorest.n_new} and {poorest.n_control})" if poorest else f"{metric} (none)")
    return words


def _judge_wave(wave: Wave, total: _Tally, thresholds: Thresholds, *, last: bool) -> Verdict:
    """Whether the wave that runs has succeeded."""
    tally = _tally(wave)
    if not tally.counted:
        if wave.devices and not last:
            return Verdict(Move.WAIT, reason=f"no device of wave {wave.number} has been seen lately")
        return Verdict(Move.SUCCEED, wave.number)
    if tally.confirmed / tally.counted >= thresholds.success_fraction:
        return Verdict(Move.SUCCEED, wave.number)
    if tally.open:
        return Verdict(Move.WAIT, reason=f"wave {wave.number}: {tally.confirmed} of {tally.counted} confirmed")
    short = (
        f"wave {wave.number}: {tally.confirmed} of {tally.counted} confirmed, needs {thresholds.success_fraction:.0%}"
    )
    if last:
        return Verdict(Move.FINISH, reason=short) if not total.open else Verdict(Move.WAIT, reason=short)
    return Verdict(Move.PAUSE, reason=short)


def _tally(*waves: Wave) -> _Tally:
    def count(*states: ActionState) -> int:
        return sum(wave.states.get(state, 0) for wave in waves for state in states)

    return _Tally(
        confirmed=count(ActionState.CONFIRMED),
        bad=count(ActionState.FAILED, ActionState.TIMED_OUT),
        open=count(ActionState.OFFERED, ActionState.RUNNING, ActionState.CANCELING),
    )
