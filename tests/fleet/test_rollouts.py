"""Rollouts from the first offer to the end, on a clock that the test moves, on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from edgegen.errors import ConfigError
from edgegen.fleet import controller
from edgegen.fleet.credentials import device_of, enrol
from edgegen.fleet.request_error import RequestError
from edgegen.fleet.rollouts import advance_all, forgive_outage
from edgegen.records.deployment import (
    ActionState,
    Enrolment,
    Execution,
    Feedback,
    Finished,
    Outcome,
    Rollout,
    RolloutState,
    Status,
    Thresholds,
)
from tests.fleet.site import Desk

RULES = Thresholds(success_fraction=0.9, abort_fraction=0.5, min_executed=2, deadline_s=600, defer_after_s=86400)


class Devices:
    """A group of devices, each a call away."""

    def __init__(self, desk: Desk, count: int, group: str = "kitchens") -> None:
        self.desk, self.group = desk, group
        self.ticket = desk.do("enrolment-token", group=group, uses=1000)
        self.names = [f"{group}-{number}" for number in range(count)]
        self.running: dict[str, str] = {}
        self.renewed: set[str] = set()
        """Those that have enrolled a second time, with another credential."""
        for name in self.names:
            self.join(name)

    def join(self, name: str) -> None:
        asked = Enrolment(device=name, token=name.ljust(40, "x"))
        self.desk.run(lambda tx: enrol(tx, self.desk.now_s, self.ticket, asked))

    def join_as_new(self, name: str) -> None:
        """Enrol with another credential, as a device does that was set up anew."""
        asked = Enrolment(device=name, token=name.ljust(40, "y"))
        self.desk.run(lambda tx: enrol(tx, self.desk.now_s, self.ticket, asked))
        self.running.pop(name, None)

    def poll(self, name: str, token: str = "") -> dict[str, int]:
        """Kind of link → number of its action."""
        return {
            kind: int(href.rpartition("/")[2])
            for kind, href in self.links(name, token).items()
            if kind in ("deploymentBase", "cancelAction", "installedBase")
        }

    def links(self, name: str, token: str = "") -> dict[str, str]:
        """All that a poll brings: kind of link → where it leads."""
        token = token or name.ljust(40, "y" if name in self.renewed else "x")

        def ask(tx: Any) -> Any:
            row = device_of(tx, name, token)
            running = self.running.get(name, "none")
            return controller.poll(tx, self.desk.now_s, row, running=running, poll_s=60, base="http://h")

        return {kind: link.href for kind, link in self.desk.run(ask).links.items()}

    def say(self, name: str, action: int, execution: Execution, finished: Finished, *details: str) -> None:
        said = Feedback(Status(execution, Outcome(finished), details=details))
        self.desk.run(lambda tx: controller.report(tx, self.desk.now_s, name, action, said))

    def take(self, name: str, *, good: bool = True) -> bool:
        """Poll and, if something is offered, take it to its end."""
        action = self.poll(name).get("deploymentBase")
        if action is None:
            return False
        self.say(name, action, Execution.DOWNLOAD, Finished.NONE, "phase=fetch")
        told = self.desk.run(lambda tx: controller.deployment(tx, name, action, base="http://h"))
        digest = "sha256:" + told.deployment.chunks[0].artifacts[0].hashes.sha256
        if good:
            self.running[name] = digest
            self.say(name, action, Execution.CLOSED, Finished.SUCCESS)
        else:
            self.say(name, action, Execution.CLOSED, Finished.FAILURE, "phase=rolled-back", "reason=golden")
        return True

    def take_all(self, *, good: bool = True) -> int:
        return sum(self.take(name, good=good) for name in self.names)


def begin(
    desk: Desk, version: str = "1.0.0", waves: tuple[float, ...] = (0.2, 1.0), *, publish: bool = True, **rules: Any
) -> Rollout:
    import msgspec

    if publish:
        desk.publish(version)
    thresholds = msgspec.structs.replace(RULES, **rules)
    found = desk.do("begin", release=f"kitchen@{version}", group="kitchens", waves=waves, thresholds=thresholds)
    assert isinstance(found, Rollout)
    return found


def state(desk: Desk, rollout: Rollout) -> Rollout:
    found = desk.do("rollout", rollout=rollout.id)
    assert isinstance(found, Rollout)
    return found


def tick(desk: Desk, seconds: float = 0.0) -> None:
    desk.now_s += seconds
    desk.run(lambda tx: advance_all(tx, desk.now_s))


def test_a_good_release_goes_through_its_waves(desk: Desk) -> None:
    devices = Devices(desk, 10)
    rollout = begin(desk, soak_s=30)
    assert devices.take_all() == 2
    assert devices.take_all() == 0
    assert "soaks" in state(desk, rollout).reason
    tick(desk, 31)
    assert devices.take_all() == 8
    found = state(desk, rollout)
    assert found.state == RolloutState.FINISHED and found.finished_s is not None
    assert [wave.states for wave in found.waves] == [{"confirmed": 2}, {"confirmed": 8}]
    assert {view.running for view in desk.do("devices")} == {rollout.digest}
    assert all("installedBase" in devices.poll(name) for name in devices.names)


def test_a_bad_release_stops_in_the_first_wave(desk: Desk) -> None:
    devices = Devices(desk, 10)
    rollout = begin(desk)
    assert devices.take_all(good=False) == 2
    tick(desk, 3600)
    found = state(desk, rollout)
    assert found.state == RolloutState.ABORTED and "2 of 2" in found.reason
    assert found.waves[0].states == {"failed": 2} and found.waves[1].states == {"canceled": 8}
    assert devices.take_all() == 0
    failed = [view for view in desk.do("actions", rollout=rollout.id) if view.state == "failed"]
    assert {(view.phase, view.reason) for view in failed} == {("rolled-back", "golden")}


def test_silence_after_an_offer_is_a_failure_and_before_it_is_not(desk: Desk) -> None:
    devices = Devices(desk, 10)
    rollout = begin(desk, waves=(1.0,), abort_fraction=1.0)
    for name in devices.names[:2]:
        assert "deploymentBase" in devices.poll(name)  # and never a word again
    for name in devices.names[2:6]:
        assert devices.take(name)
    tick(desk, 601)
    (wave,) = state(desk, rollout).waves
    assert wave.states == {"timed-out": 2, "confirmed": 4, "offered": 4}
    tick(desk, 86400)
    found = state(desk, rollout)
    assert found.waves[0].states == {"timed-out": 2, "confirmed": 4, "deferred": 4}
    assert found.state == RolloutState.FINISHED
    assert devices.take(devices.names[7])  # back after a day
    assert state(desk, rollout).waves[0].states["confirmed"] == 5


def test_a_server_that_was_away_costs_no_device_its_deadline(desk: Desk) -> None:
    devices = Devices(desk, 1)
    rollout = begin(desk, waves=(1.0,))
    desk.run(lambda tx: forgive_outage(tx, desk.now_s, 1.0))
    devices.poll("kitchens-0")
    desk.now_s += 5000
    desk.run(lambda tx: forgive_outage(tx, desk.now_s, 1.0))
    tick(desk)
    assert state(desk, rollout).waves[0].states == {"offered": 1}
    tick(desk, 601)
    assert state(desk, rollout).waves[0].states == {"timed-out": 1}


def test_a_paused_rollout_offers_nothing_and_goes_on_where_it_was(desk: Desk) -> None:
    devices = Devices(desk, 10)
    rollout = begin(desk)
    desk.do("pause", rollout=rollout.id)
    assert devices.take_all() == 0
    with pytest.raises(ConfigError, match="is paused"):
        desk.do("pause", rollout=rollout.id)
    desk.do("resume", rollout=rollout.id)
    assert devices.take_all() >= 2
    devices.take_all()
    assert state(desk, rollout).state == RolloutState.FINISHED


def test_nobody_is_late_for_what_a_pause_withholds(desk: Desk) -> None:
    devices = Devices(desk, 2)
    rollout = begin(desk, waves=(1.0,))
    for name in devices.names:
        assert "deploymentBase" in devices.poll(name)
    desk.do("pause", rollout=rollout.id)
    tick(desk, 100_000)
    assert state(desk, rollout).waves[0].states == {"offered": 2}
    desk.do("resume", rollout=rollout.id)
    devices.take_all()
    assert state(desk, rollout).state == RolloutState.FINISHED


def test_a_wave_that_falls_short_waits_for_a_person(desk: Desk) -> None:
    devices = Devices(desk, 20)
    rollout = begin(desk, abort_fraction=0.6)
    first = [view.device for view in desk.do("actions", rollout=rollout.id) if view.wave == 1]
    for name in first:
        devices.take(name, good=name != first[0])
    found = state(desk, rollout)
    assert found.state == RolloutState.PAUSED and "3 of 4" in found.reason
    assert devices.take_all() == 0
    found = desk.do("resume", rollout=rollout.id)
    assert found.state == RolloutState.RUNNING and devices.take_all() == 16


def test_abort_asks_devices_at_it_to_drop_it(desk: Desk) -> None:
    devices = Devices(desk, 3)
    rollout = begin(desk, waves=(1.0,))
    action = devices.poll("kitchens-0")["deploymentBase"]
    devices.say("kitchens-0", action, Execution.DOWNLOAD, Finished.NONE)
    stubborn = devices.poll("kitchens-1")["deploymentBase"]
    devices.say("kitchens-1", stubborn, Execution.PROCEEDING, Finished.NONE, "phase=probation")
    desk.do("abort", rollout=rollout.id)
    assert devices.poll("kitchens-2") == {}
    assert devices.poll("kitchens-0") == {"cancelAction": action}
    dropped = Feedback(Status(Execution.CLOSED, Outcome(Finished.SUCCESS)))
    for _ in range(2):  # the answer was lost
        desk.run(lambda tx: controller.report_cancelation(tx, desk.now_s, "kitchens-0", action, dropped))
    rejected = Feedback(Status(Execution.REJECTED))
    desk.run(lambda tx: controller.report_cancelation(tx, desk.now_s, "kitchens-1", stubborn, rejected))
    devices.say("kitchens-1", stubborn, Execution.CLOSED, Finished.SUCCESS)
    found = state(desk, rollout)
    assert found.state == RolloutState.ABORTED
    assert found.waves[0].states == {"canceled": 2, "confirmed": 1}
    with pytest.raises(ConfigError, match="is aborted"):
        desk.do("resume", rollout=rollout.id)


def test_roll_back_sends_devices_to_what_they_ran_before(desk: Desk) -> None:
    devices = Devices(desk, 6)
    first = begin(desk, "1.0.0", waves=(1.0,))
    devices.take_all()
    second = begin(desk, "1.1.0", waves=(0.5, 1.0))
    assert devices.take_all() >= 3
    late = next(v.device for v in desk.do("actions", rollout=second.id) if v.state == ActionState.OFFERED)
    action = devices.poll(late)["deploymentBase"]
    devices.say(late, action, Execution.PROCEEDING, Finished.NONE, "phase=probation")
    (back,) = desk.do("rollback", rollout=second.id)
    assert back.kind == "rollback" and back.digest == first.digest
    assert devices.poll(late) == {"cancelAction": action, "installedBase": devices.poll(late)["installedBase"]}
    devices.say(late, action, Execution.CLOSED, Finished.SUCCESS)  # too late to drop it
    devices.running[late] = second.digest
    for _ in range(2):
        devices.take_all()
    assert {view.running for view in desk.do("devices")} == {first.digest}
    assert state(desk, second).state == RolloutState.ABORTED
    with pytest.raises(ConfigError, match="roll-back itself"):
        desk.do("rollback", rollout=back.id)


def test_rolling_a_first_release_back_stops_it(desk: Desk) -> None:
    devices = Devices(desk, 4)
    rollout = begin(desk)
    devices.take_all()
    assert desk.do("rollback", rollout=rollout.id) == ()
    assert state(desk, rollout).state == RolloutState.ABORTED and devices.take_all() == 0


def test_a_rollout_may_roll_back_by_itself(desk: Desk) -> None:
    devices = Devices(desk, 10)
    first = begin(desk, "1.0.0", waves=(1.0,))
    devices.take_all()
    second = begin(desk, "1.1.0", waves=(1.0,), roll_back=True, min_executed=4)
    for number, name in enumerate(devices.names[:4]):
        devices.take(name, good=number < 2)
    assert state(desk, second).state == RolloutState.ABORTED
    assert devices.take_all() == 2
    assert {view.running for view in desk.do("devices")} == {first.digest}


def test_a_later_rollout_supersedes_an_earlier_one(desk: Desk) -> None:
    devices = Devices(desk, 5)
    first = begin(desk, "1.0.0")
    devices.take_all()
    second = begin(desk, "1.1.0", waves=(1.0,))
    assert state(desk, first).state == RolloutState.FINISHED
    third = begin(desk, "1.2.0", waves=(1.0,))
    assert state(desk, second).state == RolloutState.SUPERSEDED
    assert devices.take_all() == 5
    assert {view.running for view in desk.do("devices")} == {third.digest}


def test_a_device_that_enrols_later_gets_what_its_group_has(desk: Desk) -> None:
    devices = Devices(desk, 3)
    rollout = begin(desk, waves=(1.0,))
    devices.take_all()
    devices.join("latecomer")
    assert devices.take("latecomer")
    assert state(desk, rollout).waves[0].states == {"confirmed": 4}
    others = Devices(desk, 1, "garages")
    assert not others.take("garages-0")
    desk.do("move", device="garages-0", group="kitchens")
    assert others.take("garages-0")


def test_the_same_outcome_twice_is_counted_once_and_another_is_refused(desk: Desk) -> None:
    devices = Devices(desk, 1)
    rollout = begin(desk, waves=(1.0,))
    action = devices.poll("kitchens-0")["deploymentBase"]
    for _ in range(3):
        devices.say("kitchens-0", action, Execution.CLOSED, Finished.SUCCESS)
    with pytest.raises(RequestError) as refused:
        devices.say("kitchens-0", action, Execution.CLOSED, Finished.FAILURE)
    assert refused.value.status == 410
    entries = [entry for entry in desk.do("audit", subject="device:kitchens-0") if entry.what == "confirmed"]
    assert len(entries) == 1 and f"rollout={rollout.id}" in entries[0].detail


def test_a_success_after_the_deadline_is_known_but_stays_a_failure(desk: Desk) -> None:
    devices = Devices(desk, 1)
    rollout = begin(desk, waves=(1.0,))
    action = devices.poll("kitchens-0")["deploymentBase"]
    tick(desk, 601)
    devices.say("kitchens-0", action, Execution.CLOSED, Finished.SUCCESS)
    assert state(desk, rollout).waves[0].states == {"timed-out": 1}
    (view,) = desk.do("devices")
    assert view.running == rollout.digest
    assert "confirmed late" in [entry.what for entry in desk.do("audit")]


def test_a_device_that_runs_something_else_than_it_confirmed_is_noticed(desk: Desk) -> None:
    devices = Devices(desk, 1)
    begin(desk, waves=(1.0,))
    devices.take("kitchens-0")
    devices.running["kitchens-0"] = "sha256:" + "00" * 32
    devices.poll("kitchens-0")
    assert desk.do("devices")[0].running == "sha256:" + "00" * 32
    assert "runs another release" in [entry.what for entry in desk.do("audit")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": "nowhere"}, "has no devices"),
        ({"group": "../x"}, "is no name"),
        ({"release": "kitchen@9.9.9"}, "no releases"),
        ({"waves": (0.5,)}, "must ascend"),
        ({"thresholds": Thresholds(abort_fraction=2.0)}, "abort_fraction"),
        ({"thresholds": Thresholds(deadline_s=0)}, "deadline_s"),
    ],
)
def test_what_cannot_be_begun(desk: Desk, changes: dict[str, Any], said: str) -> None:
    Devices(desk, 1)
    desk.publish("1.0.0")
    asked: dict[str, Any] = {"release": "kitchen@1.0.0", "group": "kitchens", "waves": (1.0,)}
    with pytest.raises(ConfigError, match=said):
        desk.do("begin", **(asked | changes))
    assert not desk.do("rollouts")
