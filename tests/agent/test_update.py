"""What the state machine does with each thing that can go wrong; and what a second release costs."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgegen.agent import update
from edgegen.agent.config import Limits
from edgegen.agent.fetch import BusyError, GoneError
from edgegen.agent.journal import Action
from edgegen.agent.update import Verdict
from edgegen.bundle.trust import Proven
from edgegen.errors import DeviceError, Fault, NetworkError, TrustError
from edgegen.records.bundle import Compat, Health, Manifest
from edgegen.records.deployment import Phase, Reason
from tests.simulators.crashing_disk import MODES, CrashingDisk, Killed
from tests.simulators.device import Device, Release, Repository, make_release, random_tensors, whole

OLD = make_release("1.0.0", random_tensors(1))
NEW = make_release("2.0.0", random_tensors(1) | {"t3": b"new" * 100}, epoch=2)


class Faulty(Repository):
    """Answers by a script: each request takes the next entry, and the last one stays."""

    def __init__(self, *releases: Release, script: tuple[object, ...]) -> None:
        super().__init__(*releases)
        self.script = list(script)

    def fetch(self, digest: str, start: int, end: int, spend: Callable[[int], None]) -> Iterator[bytes]:
        what = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        chunks = super().fetch(digest, start, end, spend)
        if isinstance(what, Exception):
            raise what
        for chunk in chunks:
            if what == "wrong":
                yield bytes(len(chunk))
            elif what == "short":
                yield chunk[: len(chunk) // 2]
                return
            elif what == "broken":
                yield chunk[: len(chunk) // 2]
                raise NetworkError("connection reset")
            else:
                yield chunk


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A device that serves OLD."""
    Device(tmp_path, Repository(OLD)).install(OLD)
    return tmp_path


def _refused(home: Path, device: Device, release: Release, reason: Reason, phase: Phase = Phase.FAILED) -> Action:
    action = device.install(release, "faulty")
    assert (action.phase, action.reason) == (phase, reason), action.detail
    assert "\n" not in action.detail and action.detail
    assert whole(home) == OLD.digest
    return action


def test_only_what_changed_is_fetched(home: Path) -> None:
    repository = Repository(NEW)
    action = Device(home, repository).install(NEW)
    assert action.phase is Phase.CONFIRMED
    assert repository.sent == action.bytes_fetched == 300
    assert action.bytes_fetched + action.bytes_reused == sum(map(len, NEW.files.values()))
    assert whole(home) == NEW.digest and whole(home, "previous") == OLD.digest


def test_phases_are_reported_in_order(home: Path) -> None:
    device = Device(home, Repository(NEW))
    device.install(NEW)
    phases = list(Phase)
    order = [phases.index(action.phase) for action in device.reports]
    assert order == sorted(order)
    assert device.reports[-1].phase is Phase.CONFIRMED
    assert [action.phase for action in device.reports].count(Phase.CONFIRMED) == 1


@pytest.mark.parametrize(
    "script",
    [
        ("broken", "ok"),
        ("short", "short", "ok"),
        ("wrong", "ok"),
        (NetworkError("refused"), "ok"),
        (BusyError("503", after_s=7), "ok"),
    ],
    ids=str,
)
def test_a_bad_moment_is_survived(home: Path, script: tuple[object, ...]) -> None:
    device = Device(home, Faulty(NEW, script=script))
    assert device.install(NEW).phase is Phase.CONFIRMED
    assert whole(home) == NEW.digest
    if isinstance(script[0], BusyError):
        assert device.clock.slept[0] >= 7


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (("wrong",), Reason.TRUST),
        ((GoneError("404"),), Reason.NOT_FOUND),
        ((NetworkError("no route"),), Reason.TIMEOUT),
        (("short",), Reason.TIMEOUT),
    ],
    ids=str,
)
def test_a_server_that_stays_bad_changes_nothing(home: Path, script: tuple[object, ...], reason: Reason) -> None:
    limits = Limits(disk_floor_bytes=0, deadlines_s={"fetch": 600.0})
    device = Device(home, Faulty(make_release("3.0.0", random_tensors(9)), script=script), limits=limits)
    release = make_release("3.0.0", random_tensors(9))
    _refused(home, device, release, reason)
    assert release.digest not in device.journal.state.banned


def test_what_a_broken_try_left_is_not_fetched_again(home: Path) -> None:
    release = make_release("3.0.0", random_tensors(9))
    limits = Limits(disk_floor_bytes=0, deadlines_s={"fetch": 600.0})
    broken = Faulty(release, script=("ok", "ok", GoneError("410")))
    Device(home, broken, limits=limits).install(release, "first")
    again = Repository(release)
    action = Device(home, again).install(release, "second")
    assert action.phase is Phase.CONFIRMED
    assert again.sent < sum(map(len, release.files.values()))


def test_refusals_before_a_byte_is_fetched(home: Path) -> None:
    for changes, reason in [
        ({"epoch": 0}, Reason.DOWNGRADE),
        ({"compat": Compat(arch=("vax",), runtimes=("toy",))}, Reason.INCOMPATIBLE),
        ({"compat": Compat(arch=(), runtimes=("other",))}, Reason.INCOMPATIBLE),
        ({"compat": Compat(arch=(), runtimes=("toy",), runtime_versions=">=2")}, Reason.INCOMPATIBLE),
        ({"compat": Compat(arch=(), runtimes=("toy",), min_ram_bytes=1 << 40)}, Reason.INCOMPATIBLE),
        ({"compat": Compat(arch=(), runtimes=("toy",), min_agent="99.0")}, Reason.INCOMPATIBLE),
    ]:
        release = make_release("3.0.0", random_tensors(9), **changes)
        repository = Repository(release)
        device = Device(home, repository)
        action = device.install(release, f"try-{reason}-{len(str(changes))}")
        assert (action.phase, action.reason) == (Phase.FAILED, reason), changes
        assert not repository.requests
    assert whole(home) == OLD.digest


def test_a_missing_base_is_named(home: Path) -> None:
    light = make_release("3.0.0", {}, base="sha256:" + "1" * 64)
    _refused(home, Device(home, Repository(light)), light, Reason.BASE_MISSING)


def test_a_light_release_costs_its_own_bytes(home: Path) -> None:
    light = make_release("1.0.1", {}, base=OLD.digest, settings=b'{"temperature": 0.5}')
    repository = Repository(light)
    action = Device(home, repository).install(light)
    assert action.phase is Phase.CONFIRMED
    assert repository.sent == 20
    assert whole(home) == light.digest
    # And the next one, though what serves now is itself a light release.
    third = make_release("1.0.2", {}, base=OLD.digest, settings=b"{ }")
    assert Device(home, Repository(third)).install(third).phase is Phase.CONFIRMED


def test_a_metered_link(home: Path) -> None:
    limits = Limits(disk_floor_bytes=0, fetch_bytes=299)
    repository = Repository(NEW)
    _refused(home, Device(home, repository, limits=limits), NEW, Reason.METERED)
    assert not repository.requests
    enough = Limits(disk_floor_bytes=0, fetch_bytes=300)
    assert Device(home, Repository(NEW), limits=enough).install(NEW).phase is Phase.CONFIRMED


def test_a_damaged_source_is_fetched_or_refused(home: Path) -> None:
    path = home / "current" / "model/weights.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    strict = Limits(disk_floor_bytes=0, on_delta_fail="fail")
    action = Device(home, Repository(NEW), limits=strict).install(NEW, "strict")
    assert action.reason is Reason.METERED
    assert Device(home, Repository(NEW)).install(NEW, "full").phase is Phase.CONFIRMED
    assert whole(home) == NEW.digest


def test_a_full_disk_is_said_before_anything_is_fetched(home: Path) -> None:
    repository = Repository(NEW)
    _refused(home, Device(home, repository, limits=Limits(disk_floor_bytes=1 << 60)), NEW, Reason.NO_SPACE)
    assert not repository.requests


@pytest.mark.parametrize("reason", [Reason.GOLDEN, Reason.CRASHED, Reason.TOO_SLOW, Reason.LOAD_FAILED])
def test_a_worse_release_is_banned_until_it_is_allowed(home: Path, reason: Reason) -> None:
    repository = Repository(NEW)
    device = Device(home, repository, watch=Verdict(reason, "worse"))
    _refused(home, device, NEW, reason, Phase.ROLLED_BACK)
    assert device.serves == OLD.digest
    assert NEW.digest in device.journal.state.banned
    again = Device(home, repository)
    assert again.install(NEW, "again").reason is Reason.BANNED
    assert again.tested == []


def test_a_first_release_that_is_worse_leaves_nothing(tmp_path: Path) -> None:
    device = Device(tmp_path, Repository(NEW), watch=Verdict(Reason.CRASHED, "worse"))
    assert device.install(NEW).phase is Phase.ROLLED_BACK
    assert whole(tmp_path) == "" and device.serves == ""


def test_a_withdrawal_counts_up_to_the_switch(home: Path) -> None:
    at = Device(home, Repository(NEW), canceled=lambda action: action.phase is Phase.FETCH)
    _refused(home, at, NEW, Reason.CANCELED)
    late = Device(home, Repository(NEW), canceled=lambda action: action.phase is Phase.PROBATION)
    assert late.install(NEW, "late").phase is Phase.CONFIRMED


def test_an_order_that_is_over_is_not_begun_again(home: Path) -> None:
    device = Device(home, Repository(NEW, OLD))
    device.install(NEW, "one")
    device.install(NEW, "two")
    assert device.updater.order("one", target=NEW.target, digest=NEW.digest) is None
    assert device.journal.state.ended("one", NEW.digest) is Phase.CONFIRMED


def test_another_manifest_than_the_ordered_one(home: Path) -> None:
    class Swapped(Repository):
        def manifest(self, target: str, *, digest: str = "") -> Proven:
            return Proven(OLD.manifest, OLD.data, OLD.digest, target)

    _refused(home, Device(home, Swapped(NEW)), NEW, Reason.TRUST)


def test_untrusted_metadata(home: Path) -> None:
    class Forged(Repository):
        def manifest(self, target: str, *, digest: str = "") -> Proven:
            raise TrustError("not signed by enough of the keys that it needs")

    _refused(home, Device(home, Forged(NEW)), NEW, Reason.TRUST)


def test_an_unreadable_journal_does_not_stop_the_device(home: Path) -> None:
    (home / "state.json").write_bytes(b"\x00" * 100)
    device = Device(home, Repository(NEW))
    assert device.serves == OLD.digest
    assert "could not be read" in device.journal.state.notes[0]
    assert device.install(NEW).phase is Phase.CONFIRMED


def test_a_lost_current_link_falls_back(home: Path) -> None:
    Device(home, Repository(NEW)).install(NEW)
    (home / "current").unlink()
    assert Device(home, Repository(NEW)).serves == OLD.digest
    assert whole(home) == OLD.digest


def test_old_releases_are_removed(home: Path) -> None:
    third = make_release("3.0.0", random_tensors(9), epoch=2)
    Device(home, Repository(NEW)).install(NEW)
    Device(home, Repository(third)).install(third)
    kept = {path.name for path in (home / "releases").iterdir()}
    assert kept == {NEW.digest[7:], third.digest[7:]}
    assert not list((home / "incoming").iterdir())


def test_a_release_may_ask_for_a_longer_probation_than_the_usual_deadline(home: Path) -> None:
    release = make_release("3.0.0", random_tensors(3), health=Health(probation_s=7200.0))

    class Patient(Device):
        def watch(self, manifest: Manifest, between: Callable[[], None]) -> Verdict:
            until = self.clock.time + manifest.health.probation_s
            while self.clock.time < until:
                between()
                self.clock.sleep(60)
            return super().watch(manifest, between)

    assert Patient(home, Repository(release)).install(release).phase is Phase.CONFIRMED


def test_going_back_to_a_release_that_cannot_be_served_ends_and_lets_another_come(home: Path) -> None:
    """Its manifest is damaged on the disk: nothing serves until a whole release comes."""
    bad, good = make_release("3.0.0", random_tensors(3)), make_release("4.0.0", random_tensors(4))

    class Damaged(Device):
        def start(self, digest: str) -> None:
            if digest not in (bad.digest, good.digest):
                raise DeviceError(f"{digest}: its manifest cannot be read")
            super().start(digest)

    device = Damaged(home, Repository(bad, good), watch=Verdict(Reason.ERRORS, "many"))
    action = device.install(bad)
    assert action.phase is Phase.ROLLED_BACK and "many; and then: " in action.detail
    device._watch = Verdict(Reason.NONE)
    assert device.install(good).phase is Phase.CONFIRMED and device.serves == good.digest


@pytest.mark.parametrize("phase", [Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.SELF_TEST, Phase.SWITCH])
def test_what_the_server_has_closed_is_not_installed(home: Path, phase: Phase) -> None:
    """The report of a phase finds out: then the journal says so, and nothing is switched."""
    device = Device(home, Repository(NEW))

    def report(action: Action) -> None:
        if action.phase is phase:
            device.journal.act(withdrawn=True)

    device.updater._report = report
    action = device.install(NEW)
    assert (action.phase, action.reason) == (
        Phase.ROLLED_BACK if phase is Phase.SWITCH else Phase.FAILED,
        Reason.CANCELED,
    )
    assert whole(home) == device.serves == OLD.digest
    # Ordered again it begins anew: a device that was not seen for long is offered its release once more.
    assert Device(home, Repository(NEW)).install(NEW).phase is Phase.CONFIRMED


def test_a_withdrawal_survives_a_stop(home: Path) -> None:
    device = Device(home, Repository(NEW))
    device.updater.order("one", target=NEW.target, digest=NEW.digest)
    device.journal.act(withdrawn=True)
    action = Device(home, Repository(NEW)).updater.run()
    assert action is not None and action.reason is Reason.CANCELED


def test_a_number_that_is_used_again_for_another_release_is_another_order(home: Path) -> None:
    """A server whose database was made anew begins again at 1."""
    third = make_release("3.0.0", random_tensors(9), epoch=2)
    assert Device(home, Repository(NEW)).install(NEW, "1").digest == NEW.digest
    assert Device(home, Repository(third)).install(third, "1").digest == third.digest
    assert whole(home) == third.digest


def test_a_journal_of_an_earlier_version_is_read(home: Path) -> None:
    Device(home, Repository(NEW)).install(NEW, "7")
    state = json.loads((home / "state.json").read_bytes())
    state["finished"] = {"6": "failed", "7": "confirmed"}
    del state["action"]["withdrawn"]
    (home / "state.json").write_bytes(json.dumps(state).encode())
    device = Device(home, Repository(NEW, OLD))
    assert not device.journal.state.notes
    found = device.updater.order("7", target=NEW.target, digest=NEW.digest)
    assert found is not None and found.phase is Phase.CONFIRMED
    third = make_release("3.0.0", random_tensors(9), epoch=2)
    assert Device(home, Repository(third)).install(third, "6").phase is Phase.CONFIRMED


@pytest.mark.parametrize("phase", [Phase.SELF_TEST, Phase.PROBATION])
def test_stops_that_somebody_asked_for_do_not_count_against_a_release(home: Path, phase: Phase) -> None:
    def stopped(action: Action) -> bool:
        if action.phase is phase:
            raise SystemExit(0)
        return False

    for _ in range(40):
        with pytest.raises(SystemExit):
            Device(home, Repository(NEW), canceled=stopped).install(NEW)
    assert Device(home, Repository(NEW)).install(NEW).phase is Phase.CONFIRMED


def test_a_metered_link_carries_no_more_than_it_may(home: Path) -> None:
    """Bytes that were of no use were carried too, and a restart does not begin to count anew."""
    limits = Limits(disk_floor_bytes=0, fetch_bytes=500)
    action = Device(home, Faulty(NEW, script=("wrong", "ok")), limits=limits).install(NEW, "wrong")
    assert (action.phase, action.reason) == (Phase.FAILED, Reason.METERED)
    assert 500 < action.bytes_fetched <= 600
    enough = Limits(disk_floor_bytes=0, fetch_bytes=600)
    action = Device(home, Faulty(NEW, script=("wrong", "ok")), limits=enough).install(NEW, "enough")
    assert action.phase is Phase.CONFIRMED and action.bytes_fetched == 600


def test_a_restart_goes_on_counting_what_a_link_carried(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "_NOTED_BYTES", 256)
    release = make_release("3.0.0", random_tensors(9))
    total = len(release.files["model/weights.bin"])
    limits = Limits(disk_floor_bytes=0, fetch_bytes=total + 256)

    class PulledError(Exception):
        """The plug."""

    device = Device(home, Repository(release), limits=limits)
    seen: list[int] = []

    def pull(action: Action) -> bool:
        seen.append(action.bytes_fetched)
        if action.bytes_fetched > total // 2:
            raise PulledError
        return False

    device.updater._canceled = pull
    with pytest.raises(PulledError):
        device.install(release)
    spent = device.journal.state.action.bytes_fetched  # type: ignore[union-attr]
    assert total // 2 < spent < total
    (home / "incoming" / release.digest[7:] / "model/weights.bin").unlink()  # nothing of it was flushed
    action = Device(home, Repository(release), limits=limits).updater.run()
    assert action is not None and action.reason is Reason.METERED and action.bytes_fetched == spent
    unlimited = Device(home, Repository(release)).install(release, "again")
    assert unlimited.phase is Phase.CONFIRMED


def _flip(path: Path) -> None:
    """A bit, in this file and not in others that share its bytes."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["manifest", "length", "bits"])
def test_a_damaged_current_release_gives_way_to_the_one_before(home: Path, damage: str) -> None:
    Device(home, Repository(NEW)).install(NEW)
    weights = home / "current" / "model/weights.bin"
    if damage == "manifest":
        (home / "current" / "manifest.json").write_bytes(b"\0" * 100)
    elif damage == "length":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        _flip(weights)
    device = Device(home, Repository(NEW))
    if damage == "bits":  # every byte is read only when it does not come up
        assert device.serves == NEW.digest
        device.updater.fall_back(thorough=True)
    else:
        assert device.serves == OLD.digest
    assert whole(home) == OLD.digest and whole(home, "previous") == ""
    assert "damaged on the disk" in device.journal.state.notes[-1]
    repository = Repository(NEW)
    action = Device(home, repository).install(NEW, "repair")
    assert action.phase is Phase.CONFIRMED and whole(home) == NEW.digest and whole(home, "previous") == OLD.digest
    assert repository.sent < 1000
    assert not list((home / "incoming").iterdir())


def test_without_a_whole_release_before_the_damaged_one_stays_and_is_repaired(home: Path) -> None:
    (home / "current" / "manifest.json").write_bytes(b"{}")
    _flip(home / "current" / "generation.json")
    device = Device(home, Repository(OLD))
    assert "order it again" in device.updater.fall_back(thorough=True)
    assert device.home.current() == OLD.digest
    action = device.install(OLD, "repair")
    assert action.phase is Phase.CONFIRMED and whole(home) == OLD.digest and device.serves == OLD.digest
    assert not list((home / "incoming").iterdir())


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[:-1]] + [MODES[-1]])
def test_a_repair_that_is_stopped_anywhere_goes_on(home: Path, mode: str) -> None:
    Device(home, Repository(NEW)).install(NEW)
    (home / "current" / "manifest.json").write_bytes(b"{}")
    for name in ("generation.json", "model/weights.bin"):
        _flip(home / "current" / name)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder, stop = Path(scratch) / "copy", 0
        while True:
            stop += 1
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(home, folder, symlinks=True)
            try:
                Device(folder, Repository(NEW), disk=CrashingDisk(folder, stop_at=stop, after=mode)).install(NEW, "r")
            except Killed:
                device = Device(folder, Repository(NEW))
                assert whole(folder) in (OLD.digest, NEW.digest), stop
                assert device.install(NEW, "r").phase is Phase.CONFIRMED, stop
                assert whole(folder) == NEW.digest
                continue
            break
    assert stop > 60


def test_a_light_release_with_damaged_weights_is_repaired_from_its_base(home: Path) -> None:
    light = make_release("1.0.1", {}, base=OLD.digest, settings=b'{"temperature": 0.5}')
    Device(home, Repository(light)).install(light)
    _flip(home / "current" / "model/weights.bin")
    repository = Repository(light)
    action = Device(home, repository).install(light, "repair")
    assert action.phase is Phase.CONFIRMED and repository.sent == 0
    assert (home / "current/model/weights.bin").read_bytes() == OLD.files["model/weights.bin"]


def test_a_device_that_gives_less_time_than_a_release_asks_for_says_so(home: Path) -> None:
    release = make_release("3.0.0", random_tensors(3), health=Health(load_timeout_s=3600.0))

    class Slow(Device):
        def test(self, folder: Path, manifest: Manifest, between: Callable[[], None]) -> Verdict:
            until = self.clock.time + manifest.health.load_timeout_s
            while self.clock.time < until:
                between()
                self.clock.sleep(60)
            return Verdict(Reason.LOAD_FAILED, "not loaded")

    action = Slow(home, Repository(release)).install(release)
    assert (action.phase, action.reason) == (Phase.FAILED, Reason.TIMEOUT)
    assert "limits.deadlines_s.self-test" in action.detail and "3600 s" in action.detail
    assert whole(home) == OLD.digest


class Undated(Repository):
    """Cannot be judged by this device's clock, until somebody sets it."""

    def __init__(self, *releases: Release, refusals: int) -> None:
        super().__init__(*releases)
        self.refusals = refusals

    def manifest(self, target: str, *, digest: str = "") -> Proven:
        self.refusals -= 1
        if self.refusals >= 0:
            raise TrustError("expired by this device's clock", fault=Fault.CLOCK)
        return super().manifest(target, digest=digest)


def test_a_clock_that_cannot_be_trusted_is_waited_for_and_then_named(home: Path) -> None:
    device = Device(home, Undated(NEW, refusals=10**6))
    _refused(home, device, NEW, Reason.CLOCK)
    assert 180 <= sum(device.clock.slept) < 600
    assert Device(home, Undated(NEW, refusals=3)).install(NEW, "set").phase is Phase.CONFIRMED
