"""The agent is stopped at every file operation, and the device still serves one whole release."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgegen.agent.disk import Disk
from tests.simulators import kills
from tests.simulators.crashing_disk import MODES, CrashingDisk, Killed
from tests.simulators.device import Device, Repository, make_release, random_tensors, whole

SCENARIOS = kills.scenarios()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of tiny files are written."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def _lost(scenario: kills.Scenario, mode: str, folder: Path) -> list[str]:
    outcomes = list(kills.stops(scenario, mode, folder))
    assert len(outcomes) > 30
    return [f"{outcome.operation}: {outcome.why}" for outcome in outcomes if not outcome.survived]


@pytest.mark.parametrize("mode", MODES)
def test_an_update_survives_a_stop_at_any_operation(mode: str, scratch: Path) -> None:
    assert _lost(SCENARIOS[1], mode, scratch) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS[:1] + SCENARIOS[2:], ids=lambda scenario: scenario.name)
def test_so_does_every_other_kind(scenario: kills.Scenario, mode: str, scratch: Path) -> None:
    assert _lost(scenario, mode, scratch) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_stops_one_after_another(mode: str, scratch: Path) -> None:
    """Every start of the agent is stopped a little later than the one before, until the update is through."""
    old, new = SCENARIOS[1].before[0], SCENARIOS[1].new
    repository = Repository(old, new)
    Device(scratch, repository).install(old, "first")
    for stop in range(4, 400, 3):
        disk = CrashingDisk(scratch, stop_at=stop, after=mode, seed=stop)
        try:
            Device(scratch, repository, disk=disk).install(new, "second")
        except Killed:
            assert whole(scratch) in (old.digest, new.digest)
            continue
        break
    # Probation that is stopped three times counts against the release, so either end is right, but one it must be.
    device = Device(scratch, repository)
    assert device.journal.state.action is not None
    assert whole(scratch) == (old.digest if device.journal.state.banned else new.digest)


@pytest.mark.parametrize("forgotten", ["sync", "sync_folder"])
def test_a_missing_flush_would_be_seen(forgotten: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator is only worth something if it catches an agent that does not flush."""
    monkeypatch.setattr(CrashingDisk, forgotten, lambda self, path: self.operate("forgotten") and self.crash())
    assert any(_lost(SCENARIOS[1], mode, scratch) for mode in MODES[1:])


def test_every_change_goes_through_the_disk(scratch: Path) -> None:
    """What the simulator believes to be there is what is there, so no change went past it."""
    release = make_release("1.0.0", random_tensors(3))
    disk = CrashingDisk(scratch)
    Device(scratch, Repository(release), disk=disk).install(release)
    found = {path.relative_to(scratch).as_posix() for path in scratch.rglob("*")}
    disk.after = "no data"
    with pytest.raises(Killed):
        disk.crash()
    assert {path.relative_to(scratch).as_posix() for path in scratch.rglob("*")} == found
    public = {name for name in vars(Disk) if not name.startswith("_")} - {"free_bytes"}
    assert public <= set(vars(CrashingDisk)), "an operation that the simulator does not know"
