"""Stop the agent at every file operation of an update, in every way, and judge what is left.

A case survives if after the stop the device serves the old or the new release with every byte right, and the update,
ordered again, then comes to the end that it would have come to without the stop.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgegen.agent.update import Verdict
from edgegen.records.deployment import Phase, Reason
from tests.simulators.crashing_disk import CrashingDisk, Killed
from tests.simulators.device import FIT, Device, Release, Repository, make_release, random_tensors, whole


class Scenario(NamedTuple):
    """What is updated."""

    name: str
    before: tuple[Release, ...]
    """Installed, in order, before the stop."""
    new: Release
    test: Verdict = FIT
    watch: Verdict = FIT


def scenarios() -> list[Scenario]:
    """A first install, an update, a light one, a return to the release before, and releases that are worse."""
    first = make_release("1.0.0", random_tensors(1))
    changed = random_tensors(1) | {"t2": b"other" * 60, "t4": b"bytes" * 70}
    second = make_release("2.0.0", changed)
    light = make_release("2.0.1", {}, base=second.digest, settings=b'{"temperature": 0.5}')
    wrong = Verdict(Reason.GOLDEN, "golden prompts are answered wrongly")
    slow = Verdict(Reason.TOO_SLOW, "0.1 tokens/s")
    return [
        Scenario("first install", (), first),
        Scenario("update", (first,), second),
        Scenario("light update", (first, second), light),
        Scenario("back to the release before", (first, second), first),
        Scenario("worse, seen in the self-test", (first,), second, test=wrong),
        Scenario("worse, seen in probation", (first,), second, watch=slow),
    ]


class Outcome(NamedTuple):
    """One stop."""

    operation: str
    survived: bool
    why: str = ""


def stops(scenario: Scenario, mode: str, folder: Path, *, step: int = 1) -> Iterator[Outcome]:
    """Run the scenario once for each operation and stop it there.

    Args:
        folder: for scratch files; on a memory disk this is fast.
        step: try only each step-th operation.
    """
    template = folder / "template"
    shutil.rmtree(template, ignore_errors=True)
    template.mkdir()
    repository = Repository(*scenario.before, scenario.new)
    for number, release in enumerate(scenario.before):
        assert Device(template, repository).install(release, f"before-{number}").phase is Phase.CONFIRMED
    old = whole(template)
    number = 1
    while True:
        home = folder / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(template, home, symlinks=True)
        disk = CrashingDisk(home, stop_at=number, after=mode)
        try:
            _device(scenario, home, disk).install(scenario.new, "update")
        except Killed:
            yield _judge(scenario, home, old, disk.trace[-1])
            number += step
            continue
        return


def _device(scenario: Scenario, home: Path, disk: CrashingDisk) -> Device:
    repository = Repository(*scenario.before, scenario.new)
    return Device(home, repository, disk=disk, test=scenario.test, watch=scenario.watch)


def _judge(scenario: Scenario, home: Path, old: str, operation: str) -> Outcome:
    fit = scenario.test is FIT and scenario.watch is FIT
    try:
        serves = whole(home)
        assert serves in (old, scenario.new.digest), f"serves {serves or 'nothing'}"
        device = _device(scenario, home, CrashingDisk(home))
        action = device.install(scenario.new, "update")
        end = {True: Phase.CONFIRMED, False: Phase.ROLLED_BACK if scenario.test is FIT else Phase.FAILED}[fit]
        assert action.phase is end, f"ended as {action.phase}: {action.detail}"
        assert whole(home) == (scenario.new.digest if fit else old)
        assert device.serves in ("", whole(home)), "serves something else"
        assert (scenario.new.digest in device.journal.state.banned) == (not fit)
    except Exception as error:
        return Outcome(operation, False, f"{type(error).__name__}: {error}")
    return Outcome(operation, True)
