"""What the state machine does with each thing that can go wrong; and what a second release costs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgegen.agent.config import Limits
from edgegen.agent.fetch import BusyError, GoneError
from edgegen.agent.journal import Action
from edgegen.agent.update import Verdict
from edgegen.bundle.trust import Proven
from edgegen.errors import DeviceError, NetworkError, TrustError
from edgegen.records.bundle import Compat, Health, Manifest
from edgegen.records.deployment import Phase, Reason
from tests.simulators.device import Device, Release, Repository, make_release, random_tensors, whole

OLD = make_release("1.0.0", random_tensors(1))
NEW = make_release("2.0.0", random_tensors(1) | {"t3": b"new" * 100}, epoch=2)


class Faulty(Repository):
    """Answers by a script: each request takes the next entry, and the last one stays."""

    def __init__(self, *releases: Release, script: tuple[object, ...]) -> None:
        super().__init__(*releases)
        self.script = list(script)

    def fetch(self, digest: str, start: int, end: int) -> Iterator[bytes]:
        what = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        chunks = super().fetch(digest, start, end)
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
        device.journal.state.finished.pop("faulty", None)
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
    assert device.journal.state.finished["one"] == "confirmed"


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
