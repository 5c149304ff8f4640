"""Whether a rollout goes on, waits or stops: a pure function of what its devices have reported.

The rules, in this order, over the waves that have begun (deferred and canceled devices are not counted):

1. Abort when (failed + timed out) ÷ executed ≥ `abort_fraction`, as soon as `min_executed` devices have an outcome, or
   all of them where there are fewer. The denominator is devices with an outcome: silent devices hide no failures.
2. The wave has succeeded when confirmed ÷ counted ≥ `success_fraction`. When every device has an outcome and the
   share is not reached, pause: a person decides.
3. `soak_s` later the next wave begins.
4. After the last wave, and when no device is still at it, the rollout is finished.

A wave of which no device was seen teaches nothing, so the rollout waits there; only the last may end that way, and its
devices take the release when they return.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgegen.records.deployment import ActionState, Thresholds, Wave


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


def judge(waves: tuple[Wave, ...], thresholds: Thresholds, now_s: float) -> Verdict:
    """Judge a running rollout; `waves` in order, with the counts of their devices."""
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
    last = wave.number == waves[-1].number
    if wave.succeeded_s is None:
        return _judge_wave(wave, total, thresholds, last=last)
    if last:
        return Verdict(Move.FINISH) if not total.open else Verdict(Move.WAIT, reason=f"{total.open} devices are at it")
    rest_s = wave.succeeded_s + thresholds.soak_s - now_s
    if rest_s > 0:
        return Verdict(Move.WAIT, reason=f"wave {wave.number} soaks for another {rest_s:.0f} s")
    return Verdict(Move.BEGIN, wave.number + 1)


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
