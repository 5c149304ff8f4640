"""200 devices over real HTTP go through the waves of two rollouts while the server is killed and started again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgegen.records.deployment import RolloutState, Thresholds
from tests.fleet.site import Desk, serving
from tests.simulators.ddi_device import BAD, SILENT, DdiDevice

pytestmark = pytest.mark.slow
COUNT = 200


def _until_quiet(
    desk: Desk, devices: list[DdiDevice], site: Path, store: str, rollout: int, kills: int, port: int
) -> tuple[int, int]:
    """Let the devices work until the rollout is over, killing the server in between.

    Returns:
        Requests that nobody answered, and how often the server was killed.
    """
    before = sum(device.unanswered for device in devices)
    killed = 0
    deadline = time.monotonic() + 240
    with ThreadPoolExecutor(12) as pool:
        while desk.do("rollout", rollout=rollout).state == RolloutState.RUNNING:
            with serving(site, "--poll", "1", "--store", store, port=port) as (_, process):
                rounds = 0
                while desk.do("rollout", rollout=rollout).state == RolloutState.RUNNING:
                    assert time.monotonic() < deadline
                    work = [pool.submit(device.step) for device in devices]
                    rounds += 1
                    if killed < kills and rounds == 2:
                        while sum(job.done() for job in work) < COUNT // 2:
                            time.sleep(0.002)
                        process.kill()  # in the middle of a hundred requests
                        process.wait()
                        killed += 1
                    for job in work:
                        job.result()
                    if process.poll() is not None:
                        break
    return sum(device.unanswered for device in devices) - before, killed


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_device_is_lost_and_each_reports_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "repository").mkdir()
    store = str(tmp_path / "fleet.db") if kind == "sqlite" else str(request.getfixturevalue("postgres_store"))
    desk = Desk(store, now_s=time.time())
    ticket = desk.do("enrolment-token", group="kitchens", uses=COUNT)
    with serving(tmp_path, "--store", store) as (url, process), ThreadPoolExecutor(12) as pool:
        devices = [DdiDevice(f"pi-{number:03d}", url) for number in range(COUNT)]
        list(pool.map(lambda device: device.enrol(ticket), devices[: COUNT // 2]))
        process.kill()
        process.wait()
    port = int(url.rpartition(":")[2])
    with serving(tmp_path, "--store", store, port=port), ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda device: device.enrol(ticket), devices))
    assert all(device.enrolled for device in devices) and len(desk.do("devices")) == COUNT

    good = desk.publish("1.0.0")
    rules = Thresholds(success_fraction=0.9, abort_fraction=0.3, min_executed=5, deadline_s=300)
    first = desk.do("begin", release="kitchen@1.0.0", group="kitchens", waves=(0.05, 0.25, 1.0), thresholds=rules)
    broken, silent = devices[10], devices[20]
    broken.verdicts[good] = BAD
    unanswered, killed = _until_quiet(desk, devices, tmp_path, store, first.id, 3, port)
    assert killed == 3 and unanswered > 0
    found = desk.do("rollout", rollout=first.id)
    assert found.state == RolloutState.FINISHED
    assert [wave.devices for wave in found.waves] == [10, 40, 150]
    views = desk.do("actions", rollout=first.id)
    assert len(views) == COUNT and {view.device for view in views} == {device.name for device in devices}
    assert {view.device: view.state for view in views if view.state != "confirmed"} == {broken.name: "failed"}
    for device in devices:
        assert device.installed == ([] if device is broken else [good])
        outcomes = [
            entry.what
            for entry in desk.do("audit", subject=f"device:{device.name}")
            if entry.what in ("confirmed", "failed", "timed-out", "canceled")
        ]
        assert outcomes == ["failed" if device is broken else "confirmed"]

    bad = desk.publish("2.0.0")
    for device in devices:
        device.verdicts[bad] = BAD
    silent.verdicts[bad] = SILENT
    second = desk.do("begin", release="kitchen@2.0.0", group="kitchens", waves=(0.05, 0.25, 1.0), thresholds=rules)
    _until_quiet(desk, devices, tmp_path, store, second.id, 1, port)
    found = desk.do("rollout", rollout=second.id)
    assert found.state == RolloutState.ABORTED
    assert found.waves[1].begun_s is None and found.waves[2].begun_s is None
    assert found.waves[0].states["failed"] >= 5 and found.waves[2].states == {"canceled": 150}
    assert all(device.running == good for device in devices if device is not broken)
    desk.database.close()
