"""Devices that move, are revoked and found again, or come back as new ones; and epochs, which go one way."""

from __future__ import annotations

from typing import Any

import pytest

from edgegen.errors import ConfigError
from edgegen.fleet import controller
from edgegen.fleet.request_error import RequestError
from edgegen.records.deployment import CANARY_LINK, Execution, Feedback, Finished, Outcome, RolloutState, Status
from tests.fleet.site import Desk, manifest_bytes, target_of
from tests.fleet.test_rollouts import RULES, Devices, begin, state, tick


def publish(desk: Desk, version: str, epoch: int) -> None:
    desk.do("publish", manifest=manifest_bytes(version, epoch=epoch).decode(), target=target_of(version))


def drop(devices: Devices, name: str, action: int) -> None:
    said = Feedback(Status(Execution.CLOSED, Outcome(Finished.SUCCESS)))
    devices.desk.run(lambda tx: controller.report_cancelation(tx, devices.desk.now_s, name, action, said))


def whats(desk: Desk, subject: str) -> list[str]:
    return [entry.what for entry in desk.do("audit", subject=subject)]


@pytest.mark.parametrize("seen", [False, True])
def test_a_device_that_is_moved_away_and_back_gets_its_groups_release(desk: Desk, seen: bool) -> None:
    devices = Devices(desk, 4)
    rollout = begin(desk, waves=(1.0,))
    name = devices.names[0]
    first = devices.poll(name)["deploymentBase"] if seen else None
    desk.do("move", device=name, group="attic")
    if first is not None:
        assert devices.poll(name) == {"cancelAction": first}
        drop(devices, name, first)
    assert devices.poll(name) == {}
    desk.do("move", device=name, group="kitchens")
    again = devices.poll(name)["deploymentBase"]
    assert again != first  # a device does not take a number up again that it has closed
    assert devices.take_all() == 4
    found = state(desk, rollout)
    assert found.state == RolloutState.FINISHED and found.waves[0].states == {"confirmed": 4}
    assert "offered anew" in whats(desk, f"device:{name}")


def test_a_device_that_is_back_before_it_has_dropped_the_release_gets_it_after_that(desk: Desk) -> None:
    devices = Devices(desk, 2)
    begin(desk, waves=(1.0,))
    name = devices.names[0]
    first = devices.poll(name)["deploymentBase"]
    desk.do("move", device=name, group="attic")
    desk.do("move", device=name, group="kitchens")
    assert devices.poll(name) == {"cancelAction": first}
    drop(devices, name, first)
    assert devices.poll(name)["deploymentBase"] != first
    with pytest.raises(RequestError):
        devices.say(name, first, Execution.CLOSED, Finished.SUCCESS)
    assert devices.take(name)


def test_a_device_that_is_back_waits_for_its_wave(desk: Desk) -> None:
    devices = Devices(desk, 10)
    rollout = begin(desk)
    late = next(view.device for view in desk.do("actions", rollout=rollout.id) if view.wave == 2)
    desk.do("move", device=late, group="attic")
    desk.do("move", device=late, group="kitchens")
    assert devices.poll(late) == {} and state(desk, rollout).waves[1].states == {"waiting": 8}
    assert devices.take_all() >= 2
    devices.take_all()
    assert state(desk, rollout).state == RolloutState.FINISHED
    assert devices.running[late] == rollout.digest


def test_a_device_that_took_another_groups_release_takes_its_own_again(desk: Desk) -> None:
    devices, others = Devices(desk, 2), Devices(desk, 1, "attic")
    first = begin(desk, "1.0.0", waves=(1.0,))
    devices.take_all()
    desk.publish("1.1.0")
    second = desk.do("begin", release="kitchen@1.1.0", group="attic", waves=(1.0,), thresholds=RULES)
    others.take_all()
    name = devices.names[0]
    desk.do("move", device=name, group="attic")
    assert devices.take(name) and devices.running[name] == second.digest
    desk.do("move", device=name, group="kitchens")
    assert devices.take(name) and devices.running[name] == first.digest
    desk.do("move", device=name, group="kitchens")
    assert not devices.take(name)


def test_a_device_that_could_not_drop_another_groups_release_takes_its_own_after_it(desk: Desk) -> None:
    devices, _ = Devices(desk, 2), Devices(desk, 1, "attic")
    first = begin(desk, "1.0.0", waves=(1.0,))
    devices.take_all()
    desk.publish("1.1.0")
    second = desk.do("begin", release="kitchen@1.1.0", group="attic", waves=(1.0,), thresholds=RULES)
    name = devices.names[0]
    desk.do("move", device=name, group="attic")
    action = devices.poll(name)["deploymentBase"]
    devices.say(name, action, Execution.PROCEEDING, Finished.NONE, "phase=probation")
    desk.do("move", device=name, group="kitchens")
    devices.running[name] = second.digest
    devices.say(name, action, Execution.CLOSED, Finished.SUCCESS)
    assert devices.take(name) and devices.running[name] == first.digest


def test_what_a_device_called_off_itself_is_not_offered_again(desk: Desk) -> None:
    devices = Devices(desk, 1)
    begin(desk, waves=(1.0,))
    (name,) = devices.names
    action = devices.poll(name)["deploymentBase"]
    devices.say(name, action, Execution.CANCELED, Finished.NONE, "reason=canceled")
    for _ in range(3):
        assert devices.poll(name) == {}


def test_a_revoked_device_may_be_allowed_again(desk: Desk) -> None:
    devices = Devices(desk, 3)
    rollout = begin(desk, waves=(1.0,))
    name = devices.names[0]
    devices.poll(name)
    desk.do("revoke", device=name)
    with pytest.raises(RequestError):
        devices.poll(name)
    desk.do("allow", device=name)
    assert devices.take_all() == 3
    assert state(desk, rollout).waves[0].states == {"confirmed": 3}
    assert whats(desk, f"device:{name}")[1:3] == ["revoked", "allowed"]
    with pytest.raises(ConfigError, match="is not revoked"):
        desk.do("allow", device=name)
    with pytest.raises(ConfigError, match="no device 'nobody'"):
        desk.do("allow", device="nobody")


@pytest.mark.parametrize("revoked", [False, True])
@pytest.mark.parametrize("good", [True, False])
def test_a_forgotten_device_enrols_again_and_starts_with_nothing_done(desk: Desk, revoked: bool, good: bool) -> None:
    devices = Devices(desk, 3)
    rollout = begin(desk, waves=(1.0,), abort_fraction=1.0)
    name = devices.names[0]
    devices.take(name, good=good)
    for other in devices.names[1:]:
        devices.take(other)
    if revoked:
        desk.do("revoke", device=name)
    with pytest.raises(RequestError) as known:
        devices.join_as_new(name)
    assert known.value.status == 409
    desk.do("forget", device=name)
    with pytest.raises(RequestError) as gone:
        devices.poll(name)
    assert gone.value.status == 401 and name not in {view.device for view in desk.do("devices")}
    devices.join_as_new(name)
    with pytest.raises(RequestError):
        devices.poll(name, token=name.ljust(40, "x"))  # the old credential stays shut out
    devices.renewed.add(name)
    assert "installedBase" not in devices.poll(name)
    assert devices.take(name)
    states = state(desk, rollout).waves[0].states
    assert states == ({"confirmed": 4} if good else {"confirmed": 3, "failed": 1})
    assert [view.device for view in desk.do("actions", rollout=rollout.id)].count(f"{name}#1") == 1
    assert "forgotten" in whats(desk, f"device:{name}")
    with pytest.raises(ConfigError, match="no device 'nobody'"):
        desk.do("forget", device="nobody")


def test_forgetting_a_device_that_is_at_it_keeps_no_rollout_waiting(desk: Desk) -> None:
    devices = Devices(desk, 2)
    rollout = begin(desk, waves=(1.0,))
    action = devices.poll(devices.names[0])["deploymentBase"]
    devices.say(devices.names[0], action, Execution.DOWNLOAD, Finished.NONE)
    desk.do("forget", device=devices.names[0])
    assert devices.take(devices.names[1])
    tick(desk)
    found = state(desk, rollout)
    assert found.state == RolloutState.FINISHED and found.waves[0].states == {"canceled": 1, "confirmed": 1}


def test_golden_prompts_are_asked_for_once(desk: Desk) -> None:
    devices = Devices(desk, 2)
    desk.do("canary", device=devices.names[0])
    assert CANARY_LINK not in devices.links(devices.names[1])
    assert CANARY_LINK in devices.links(devices.names[0])
    assert CANARY_LINK not in devices.links(devices.names[0])
    with pytest.raises(ConfigError, match="no device 'nobody'"):
        desk.do("canary", device="nobody")


def test_a_closed_group_lets_nobody_in(desk: Desk) -> None:
    devices = Devices(desk, 2)
    other = Devices(desk, 1, "attic")
    assert desk.do("close-enrolment", group="kitchens") == 1
    assert desk.do("close-enrolment", group="kitchens") == 0
    with pytest.raises(RequestError):
        devices.join("latecomer")
    devices.join(devices.names[0])  # whose answer was lost
    other.join("welcome")


def test_an_operator_may_be_dismissed(desk: Desk) -> None:
    desk.do("operator", name="alice")
    desk.do("dismiss", name="alice")
    assert whats(desk, "operator:alice") == ["operator token made", "operator dismissed"]
    with pytest.raises(ConfigError, match="no operator 'alice'"):
        desk.do("dismiss", name="alice")


def over_an_epoch(desk: Desk, devices: Devices, **rules: Any) -> tuple[Any, Any]:
    """Two rollouts, of which the second raises the epoch."""
    first = begin(desk, "1.0.0", waves=(1.0,))
    devices.take_all()
    publish(desk, "2.0.0", 2)
    second = begin(desk, "2.0.0", waves=(1.0,), publish=False, **rules)
    return first, second


def test_a_roll_back_to_a_lower_epoch_is_refused_before_anything_begins(desk: Desk) -> None:
    devices = Devices(desk, 4)
    _, second = over_an_epoch(desk, devices)
    for name in devices.names[:3]:
        devices.take(name)
    before = desk.do("audit", limit=1000)
    with pytest.raises(ConfigError, match=r"kitchen 1\.0\.0 has epoch 1, below 2 of kitchen 2\.0\.0"):
        desk.do("rollback", rollout=second.id)
    assert state(desk, second).state == RolloutState.RUNNING and desk.do("audit", limit=1000) == before
    assert len(desk.do("rollouts")) == 2 and devices.take(devices.names[3])


def test_a_lower_epoch_than_devices_have_confirmed_is_not_deployed(desk: Desk) -> None:
    devices = Devices(desk, 3)
    over_an_epoch(desk, devices)
    devices.take(devices.names[0])
    with pytest.raises(ConfigError, match=r"1 device of kitchens confirmed kitchen 2\.0\.0 of epoch 2"):
        begin(desk, "1.0.0")
    assert len(desk.do("rollouts")) == 2
    desk.do("move", device=devices.names[0], group="attic")
    begin(desk, "1.0.0")  # the others have not confirmed the higher one


def test_what_a_device_says_of_itself_keeps_no_release_from_others(desk: Desk) -> None:
    devices = Devices(desk, 2)
    publish(desk, "2.0.0", 2)
    liar = devices.names[0]
    devices.running[liar] = begin(desk, "2.0.0", publish=False).digest
    devices.poll(liar)
    begin(desk, "1.0.0")


def test_rolling_back_by_itself_is_refused_where_it_cannot_work(desk: Desk) -> None:
    devices = Devices(desk, 4)
    with pytest.raises(ConfigError, match=r"roll_back: kitchen 1\.0\.0 has epoch 1"):
        over_an_epoch(desk, devices, roll_back=True)
    assert len(desk.do("rollouts")) == 1


def test_an_abort_says_what_it_does_not_bring_back(desk: Desk) -> None:
    devices = Devices(desk, 2)
    publish(desk, "2.0.0", 2)
    rollout = begin(desk, "2.0.0", waves=(1.0,), publish=False, roll_back=True)
    old = desk.publish("1.0.0")
    name = devices.names[0]
    devices.running[name] = old  # was there before it enrolled
    assert devices.take(name)
    assert desk.do("abort", rollout=rollout.id).state == RolloutState.ABORTED
    assert "not all is rolled back: kitchen 1.0.0 has epoch 1" in state(desk, rollout).reason
    assert len(desk.do("rollouts")) == 1
    (entry,) = [entry for entry in desk.do("audit") if entry.what == "not rolled back"]
    assert entry.detail.startswith(f"{name}: kitchen 1.0.0 has epoch 1")
