"""A rollout that is gated on telemetry: each metric at, below and above its threshold, few reports, and who decides."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegen.errors import ConfigError
from edgegen.fleet.judge import Move, Reading, Standing, describe_limits, judge, limits_of, weigh
from edgegen.fleet.rollouts import advance_all
from edgegen.fleet.transaction import Transaction
from edgegen.records.deployment import GateMetric, Rollout, RolloutState, Thresholds, Wave
from tests.fleet.site import Desk
from tests.fleet.test_rollouts import Devices, begin, state

ERRORS, TTFT, SPEED, DOWN, DRIFT = GateMetric
LIMITS: dict[GateMetric, tuple[str, float]] = {
    ERRORS: ("max_error_fraction_rise", 0.02),
    TTFT: ("max_ttft_ratio", 1.5),
    SPEED: ("min_tokens_per_s_ratio", 0.8),
    DOWN: ("max_thumbs_down_rise", 0.05),
    DRIFT: ("drift", 0.25),
}
ALL = Thresholds(**dict(LIMITS.values()))
"""Every metric gated."""
FIRST_DONE = (Wave(1, 0.5, 2, {"confirmed": 2}, 0.0, 10.0), Wave(2, 1.0, 2, {"waiting": 2}))


def rules(*metrics: GateMetric, **more: Any) -> Thresholds:
    return Thresholds(**{LIMITS[metric][0]: LIMITS[metric][1] for metric in metrics}, **more)


def reading(metric: GateMetric, new: float | None, control: float | None = None, n: int = 500, **more: Any) -> Reading:
    return Reading(metric, new, control, more.pop("n_new", n), more.pop("n_control", n), **more)


BAD = {
    ERRORS: reading(ERRORS, 0.08, 0.01),
    TTFT: reading(TTFT, 3.1, 2.0),
    SPEED: reading(SPEED, 7.9, 10.0),
    DOWN: reading(DOWN, 0.2, 0.1),
    DRIFT: reading(DRIFT, 0.26),
}
GOOD = {
    ERRORS: reading(ERRORS, 0.01, 0.01),
    TTFT: reading(TTFT, 2.0, 2.0),
    SPEED: reading(SPEED, 10.0, 10.0),
    DOWN: reading(DOWN, 0.0, 0.1),
    DRIFT: reading(DRIFT, 0.01),
}


@pytest.mark.parametrize(
    ("metric", "new", "control", "standing"),
    [
        (ERRORS, 0.03, 0.01, Standing.OK),  # exactly the limit, which floats miss by a hair
        (ERRORS, 0.0301, 0.01, Standing.WORSE),
        (ERRORS, 0.0, 0.5, Standing.OK),
        (ERRORS, 0.02, 0.0, Standing.OK),
        (ERRORS, 1.0, 0.99, Standing.OK),
        (TTFT, 1.5, 1.0, Standing.OK),
        (TTFT, 1.501, 1.0, Standing.WORSE),
        (TTFT, 0.45, 0.3, Standing.OK),
        (TTFT, 0.1, 0.0, Standing.WORSE),
        (TTFT, 0.0, 0.0, Standing.OK),
        (SPEED, 8.0, 10.0, Standing.OK),
        (SPEED, 7.999, 10.0, Standing.WORSE),
        (SPEED, 30.0, 10.0, Standing.OK),
        (SPEED, 0.0, 10.0, Standing.WORSE),
        (SPEED, 0.0, 0.0, Standing.OK),
        (DOWN, 0.15, 0.1, Standing.OK),
        (DOWN, 0.1501, 0.1, Standing.WORSE),
        (DRIFT, 0.25, None, Standing.OK),
        (DRIFT, 0.2501, None, Standing.WORSE),
        (DRIFT, 0.0, 9.0, Standing.OK),
        (ERRORS, None, 0.01, Standing.TOO_FEW),
        (ERRORS, 0.9, None, Standing.TOO_FEW),
        (TTFT, math.nan, 1.0, Standing.TOO_FEW),
        (TTFT, 9.0, math.nan, Standing.TOO_FEW),
        (TTFT, math.inf, 1.0, Standing.TOO_FEW),
        (DRIFT, None, None, Standing.TOO_FEW),
        (DRIFT, math.nan, None, Standing.TOO_FEW),
    ],
)
def test_a_reading_against_its_threshold(
    metric: GateMetric, new: float | None, control: float | None, standing: Standing
) -> None:
    (finding,) = weigh((reading(metric, new, control),), ALL)
    assert finding.standing == standing


@pytest.mark.parametrize(
    ("n_new", "n_control", "standing"),
    [
        (200, 200, Standing.WORSE),
        (199, 5000, Standing.TOO_FEW),
        (5000, 199, Standing.TOO_FEW),
        (0, 0, Standing.TOO_FEW),
    ],
)
@pytest.mark.parametrize("metric", list(GateMetric))
def test_few_generations_are_no_verdict(metric: GateMetric, n_new: int, n_control: int, standing: Standing) -> None:
    bad = BAD[metric]
    few = Reading(bad.metric, bad.new, bad.control, n_new, n_control)
    assert weigh((few,), ALL)[0].standing == standing
    assert judge(FIRST_DONE, ALL, 20.0, (few,)).move == (Move.PAUSE if standing == Standing.WORSE else Move.BEGIN)


def test_a_drift_below_what_chance_gives_at_these_n_is_none() -> None:
    (finding,) = weigh((reading(DRIFT, 0.4, floor=0.5, part="answer_tokens"),), ALL)
    assert finding.standing == Standing.OK and finding.limit == 0.5
    (finding,) = weigh((reading(DRIFT, 0.4, floor=0.1, part="answer_tokens"),), ALL)
    assert finding.standing == Standing.WORSE and str(finding).startswith("drift of answer_tokens 0.4 (")


@pytest.mark.parametrize("metric", list(GateMetric))
def test_what_has_no_threshold_is_not_looked_at(metric: GateMetric) -> None:
    others = rules(*(other for other in GateMetric if other != metric))
    assert not weigh((BAD[metric],), others)
    assert judge(FIRST_DONE, others, 20.0, (BAD[metric],)).move == Move.BEGIN
    assert judge(FIRST_DONE, Thresholds(), 20.0, tuple(BAD.values())).move == Move.BEGIN
    assert describe_limits(Thresholds()) == "" and metric in describe_limits(ALL)


@pytest.mark.parametrize("metric", list(GateMetric))
@pytest.mark.parametrize(
    "waves",
    [
        (Wave(1, 0.5, 9, {"confirmed": 1, "running": 8}, 0.0), Wave(2, 1.0, 9, {"waiting": 9})),
        FIRST_DONE,
        (FIRST_DONE[0], Wave(2, 1.0, 2, {"offered": 2}, 20.0)),
        (FIRST_DONE[0], Wave(2, 1.0, 2, {"confirmed": 2}, 20.0, 30.0)),
    ],
    ids=["wave runs", "wave done", "last runs", "last done"],
)
def test_worse_stops_at_any_time(metric: GateMetric, waves: tuple[Wave, ...]) -> None:
    gate = (*(GOOD[other] for other in GateMetric if other != metric), BAD[metric])
    paused = judge(waves, ALL, 40.0, gate)
    assert (paused.move, paused.asked) == (Move.PAUSE, (metric,))
    assert paused.reason.startswith(f"worse in use: {metric} ") and "n 500 and 500" in paused.reason
    aborted = judge(waves, rules(*GateMetric, abort_on=(metric,)), 40.0, gate)
    assert aborted.move == Move.ABORT
    elsewhere = rules(*GateMetric, abort_on=tuple(other for other in GateMetric if other != metric))
    assert judge(waves, elsewhere, 40.0, gate).move == Move.PAUSE
    assert judge(waves, ALL, 40.0, gate, frozenset({metric})).move == judge(waves, ALL, 40.0, tuple(GOOD.values())).move


def test_of_several_bad_metrics_one_to_abort_on_aborts_and_all_are_named() -> None:
    verdict = judge(FIRST_DONE, rules(*GateMetric, abort_on=(ERRORS,)), 20.0, tuple(BAD.values()))
    assert verdict.move == Move.ABORT and verdict.asked == tuple(GateMetric)
    rest = judge(FIRST_DONE, ALL, 20.0, tuple(BAD.values()), frozenset({ERRORS, DRIFT}))
    assert rest.move == Move.PAUSE and rest.asked == (TTFT, SPEED, DOWN)


def test_failed_devices_come_before_the_telemetry() -> None:
    waves = (Wave(1, 0.5, 2, {"failed": 2}, 0.0), FIRST_DONE[1])
    verdict = judge(waves, ALL, 20.0, tuple(BAD.values()))
    assert verdict.move == Move.ABORT and "devices failed" in verdict.reason


def test_nothing_is_judged_before_the_first_wave() -> None:
    waves = (Wave(1, 1.0, 2, {"waiting": 2}),)
    assert judge(waves, ALL, 0.0, tuple(BAD.values())).move == Move.BEGIN


def test_a_wave_that_depends_on_telemetry_waits_for_a_look_at_it() -> None:
    assert judge(FIRST_DONE, ALL, 20.0, None).move == Move.WAIT
    assert judge(FIRST_DONE, Thresholds(), 20.0, None).move == Move.BEGIN
    assert judge(FIRST_DONE, ALL, 20.0, ()).move == Move.BEGIN


def test_required_reports_are_waited_for_and_then_asked_about() -> None:
    thresholds = rules(ERRORS, SPEED, require_telemetry=True, deadline_s=100, soak_s=5)
    few = (GOOD[ERRORS], reading(SPEED, 10.0, 10.0, n_new=120, n_control=900))
    waiting = judge(FIRST_DONE, thresholds, 114.0, few)
    assert waiting.move == Move.WAIT and waiting.reason.endswith("not enough reports yet: tokens_per_s (n 120 and 900)")
    none = judge(FIRST_DONE, thresholds, 114.0, ())
    assert none.reason.endswith("error_fraction (none), tokens_per_s (none)")
    asked = judge(FIRST_DONE, thresholds, 115.0, few)
    assert (asked.move, asked.wave, asked.asked) == (Move.PAUSE, 1, (SPEED,))
    assert judge(FIRST_DONE, thresholds, 115.0, few, frozenset({SPEED})).move == Move.BEGIN
    assert judge(FIRST_DONE, thresholds, 20.0, (GOOD[ERRORS], GOOD[SPEED])).move == Move.BEGIN
    parts = (GOOD[ERRORS], GOOD[SPEED], reading(SPEED, 10.0, 10.0, n=3, part="long"))
    assert "(n 3 and 3)" in judge(FIRST_DONE, thresholds, 20.0, parts).reason
    last = (FIRST_DONE[0], Wave(2, 1.0, 2, {"confirmed": 2}, 20.0, 30.0))
    assert judge(last, thresholds, 40.0, ()).move == Move.FINISH


_NUMBERS = st.none() | st.floats(allow_nan=True, allow_infinity=True)
_READINGS = st.builds(
    Reading, st.sampled_from(GateMetric), _NUMBERS, _NUMBERS, st.integers(0, 1000), st.integers(0, 1000)
)
_LIMITS = st.dictionaries(st.sampled_from([name for name, _ in LIMITS.values()]), st.floats(0.01, 1))


@given(st.lists(_READINGS, max_size=8), _LIMITS, st.booleans())
def test_any_readings_give_a_verdict_and_only_enough_reports_stop(
    gate: list[Reading], limits: dict[str, float], required: bool
) -> None:
    thresholds = Thresholds(**limits, require_telemetry=required and bool(limits))
    verdict = judge(FIRST_DONE, thresholds, 20.0, tuple(gate))
    assert verdict.move in (Move.BEGIN, Move.PAUSE) or (required and verdict.move == Move.WAIT)
    enough = [one for one in gate if one.metric in limits_of(thresholds) and min(one.n_new, one.n_control) >= 200]
    assert verdict.move != Move.PAUSE or enough
    if enough == [] and not required:
        assert verdict.move == Move.BEGIN


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 10), st.sampled_from([ERRORS, TTFT, SPEED, DOWN]))
def test_getting_worse_never_lets_a_release_pass(new: float, control: float, more: float, metric: GateMetric) -> None:
    worse = max(0.0, new - more) if metric == SPEED else new + more
    first = weigh((reading(metric, new, control),), ALL)[0].standing
    second = weigh((reading(metric, worse, control),), ALL)[0].standing
    assert (first, second) != (Standing.WORSE, Standing.OK)


class Made:
    """A gauge that says what a test wants."""

    def __init__(self) -> None:
        self.readings: tuple[Reading, ...] = ()
        self.asked: list[int] = []

    def __call__(self, tx: Transaction, rollout: Rollout, now_s: float) -> tuple[Reading, ...]:
        self.asked.append(rollout.id)
        return self.readings


def look(desk: Desk, gauge: Made, seconds: float = 1.0) -> None:
    desk.now_s += seconds
    desk.run(lambda tx: advance_all(tx, desk.now_s, gauge))


def test_a_release_that_is_worse_in_use_is_paused_and_a_person_decides(desk: Desk) -> None:
    devices, gauge = Devices(desk, 10), Made()
    rollout = begin(desk, waves=(0.2, 0.5, 1.0), max_error_fraction_rise=0.02, max_ttft_ratio=1.5)
    assert devices.take_all() == 2 and devices.take_all() == 0  # a report alone begins no gated wave
    assert "looked at next" in state(desk, rollout).reason
    gauge.readings = (BAD[ERRORS], GOOD[TTFT])
    look(desk, gauge)
    found = state(desk, rollout)
    assert found.state == RolloutState.PAUSED and "error_fraction 0.08" in found.reason
    assert devices.take_all() == 0
    desk.do("resume", rollout=rollout.id)
    gauge.readings = (BAD[ERRORS], BAD[TTFT])  # the errors are accepted, this is not
    look(desk, gauge)
    found = state(desk, rollout)
    assert found.state == RolloutState.PAUSED and "ttft" in found.reason and "error_fraction" not in found.reason
    desk.do("resume", rollout=rollout.id)
    look(desk, gauge)
    assert state(desk, rollout).state == RolloutState.PAUSED  # the second wave began, and is asked about anew
    assert state(desk, rollout).waves[1].begun_s is not None
    gauge.readings = (GOOD[ERRORS], GOOD[TTFT])
    desk.do("resume", rollout=rollout.id)
    for _ in range(2):
        devices.take_all()
        look(desk, gauge)
    devices.take_all()
    assert state(desk, rollout).state == RolloutState.FINISHED


def test_a_release_that_is_worse_in_use_may_be_aborted_and_rolled_back(desk: Desk) -> None:
    devices, gauge = Devices(desk, 6), Made()
    first = begin(desk, "1.0.0", waves=(1.0,))
    devices.take_all()
    look(desk, gauge)
    assert not gauge.asked  # no rollout is gated
    second = begin(desk, "1.1.0", waves=(0.5, 1.0), drift=0.25, abort_on=(DRIFT,), roll_back=True)
    assert devices.take_all() == 3
    gauge.readings = (BAD[DRIFT],)
    look(desk, gauge)
    found = state(desk, second)
    assert found.state == RolloutState.ABORTED and "drift 0.26" in found.reason
    assert devices.take_all() == 3
    assert {view.running for view in desk.do("devices")} == {first.digest}
    assert set(gauge.asked) == {second.id}


def test_a_server_without_telemetry_holds_a_gated_rollout_only_if_it_must(desk: Desk) -> None:
    devices = Devices(desk, 4)
    rollout = begin(desk, waves=(0.5, 1.0), drift=0.25)
    devices.take_all()
    desk.run(lambda tx: advance_all(tx, desk.now_s))
    assert devices.take_all() == 2 and state(desk, rollout).state == RolloutState.FINISHED
    rollout = begin(desk, "1.1.0", waves=(0.5, 1.0), drift=0.25, require_telemetry=True)
    devices.take_all()
    desk.run(lambda tx: advance_all(tx, desk.now_s))
    assert "not enough reports yet: drift (none)" in state(desk, rollout).reason
    desk.now_s += 601
    desk.run(lambda tx: advance_all(tx, desk.now_s))
    assert state(desk, rollout).state == RolloutState.PAUSED
    succeeded_s = state(desk, rollout).waves[0].succeeded_s
    desk.do("resume", rollout=rollout.id)
    desk.run(lambda tx: advance_all(tx, desk.now_s))
    assert state(desk, rollout).waves[0].succeeded_s == succeeded_s
    assert devices.take_all() == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"max_error_fraction_rise": 1.5},
        {"max_error_fraction_rise": math.nan},
        {"max_thumbs_down_rise": -0.1},
        {"max_ttft_ratio": 0.0},
        {"min_tokens_per_s_ratio": math.inf},
        {"drift": -1.0},
        {"drift": 0.1, "min_generations": 0},
        {"drift": 0.1, "abort_on": (ERRORS,)},
        {"require_telemetry": True},
        {"deadline_s": math.nan},
        {"soak_s": math.inf},
        {"defer_after_s": math.inf},
    ],
    ids=str,
)
def test_thresholds_that_are_none(desk: Desk, changes: dict[str, Any]) -> None:
    Devices(desk, 1)
    with pytest.raises(ConfigError, match=next(reversed(changes))):
        begin(desk, **changes)
    assert not desk.do("rollouts")
