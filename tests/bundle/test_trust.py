"""What a device believes of a repository: real metadata, each attack refused by name."""

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Timestamp

from edgegen.bundle.keys import load_signers, make_key
from edgegen.bundle.ledger import open_keys, rotate_keys
from edgegen.bundle.repository import publish, refresh
from edgegen.bundle.trust import FLOOR, check_root
from edgegen.errors import Fault, NetworkError, TrustError
from tests.bundle.releases import NOW, copy, later, make_bundle, make_keys, make_site, trust

TARGET = "bundles/kitchen/1.0.0/manifest.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """keys, site, b1. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    make_site(folder)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return copy(made, tmp_path / "place")


def refused(place: Path, fault: Fault, *, days: float = 0, state: str = "state") -> str:
    with pytest.raises(TrustError) as caught:
        found = trust(place / state, place / "keys", place / "site", days=days)
        found.refresh()
        found.manifest(TARGET)
    assert caught.value.fault == fault, caught.value
    return str(caught.value)


def accepted(place: Path, *, days: float = 0, state: str = "state", target: str = TARGET) -> None:
    found = trust(place / state, place / "keys", place / "site", days=days)
    found.refresh()
    found.manifest(target)


def newest(place: Path, role: str) -> Path:
    return max((place / "site/metadata").glob(f"*.{role}.json"), key=lambda path: int(path.name.split(".")[0]))


def test_a_signed_manifest_is_believed(place: Path) -> None:
    found = trust(place / "state", place / "keys", place / "site")
    fresh = found.refresh()
    proven = found.manifest(TARGET)
    assert proven.manifest.version == "1.0.0" and proven.digest.startswith("sha256:")
    assert fresh.versions["root"] == 1 and fresh.clock_behind_s == 0
    assert list(found.targets()) == [TARGET]
    assert not list((place / "state").glob("**/*.tmp"))


def test_again_with_what_was_stored(place: Path) -> None:
    accepted(place)
    accepted(place, days=1)


@pytest.mark.parametrize("days", [8, 31, 91, 3660])
def test_a_frozen_repository_expires(place: Path, days: float) -> None:
    accepted(place)
    assert "expired" in refused(place, Fault.EXPIRED, days=days)


def test_a_release_role_that_expired_is_refused_though_the_timestamp_is_fresh(place: Path) -> None:
    refresh(place / "site", place / "keys", now=later(95))
    with pytest.raises(TrustError, match="expired"):
        accepted(place, days=95)


def test_an_older_copy_of_the_repository_is_refused(place: Path) -> None:
    old = copy(place / "site", place / "old")
    make_bundle(place / "b2", place / "keys", "1.1.0", b"two" * 20, at=1)
    publish(place / "site", place / "b2", now=lambda: later(1).timestamp())
    accepted(place, days=1)
    shutil.rmtree(place / "site")
    old.rename(place / "site")
    assert "older than what was seen" in refused(place, Fault.ROLLBACK, days=1)


def test_a_pushed_bundle_with_older_metadata_is_judged_by_the_newer(place: Path) -> None:
    make_bundle(place / "b2", place / "keys", "1.1.0", b"two" * 20, at=1)
    publish(place / "site", place / "b2", now=lambda: later(1).timestamp())
    accepted(place, days=1)
    pushed = trust(place / "state", place / "keys", place / "b1", days=1, allow_older=True)
    pushed.refresh()
    assert pushed.manifest(TARGET).manifest.version == "1.0.0"
    open_keys(place / "keys", now=later(2)).withdraw("release", TARGET)
    refresh(place / "site", place / "keys", now=later(2))
    trust(place / "state", place / "keys", place / "site", days=2).refresh()
    # The role's file is read only when it is asked for, so ask.
    with pytest.raises(TrustError) as caught:
        accepted(place, days=2)
    assert caught.value.fault == Fault.UNLISTED
    pushed = trust(place / "state", place / "keys", place / "b1", days=2, allow_older=True)
    pushed.refresh()
    with pytest.raises(TrustError) as caught:
        pushed.manifest(TARGET)
    assert caught.value.fault == Fault.UNLISTED


def test_parts_of_two_states_are_refused(place: Path) -> None:
    old = newest(place, "snapshot").read_bytes()
    make_bundle(place / "b2", place / "keys", "1.1.0", b"two" * 20, at=1)
    publish(place / "site", place / "b2", now=lambda: later(1).timestamp())
    newest(place, "snapshot").write_bytes(old)
    refused(place, Fault.DIGEST, days=1)


def test_a_snapshot_of_another_version_is_told_as_mixed(place: Path) -> None:
    """Where the timestamp names no digest, the version alone tells."""
    signers = load_signers(place / "keys")
    path = place / "site/metadata/timestamp.json"
    timestamp = Metadata[Timestamp].from_bytes(path.read_bytes())
    snapshot = newest(place, "snapshot")
    named = timestamp.signed.snapshot_meta
    named.hashes, named.length, named.version = None, None, named.version + 1
    timestamp.signed.version += 1
    (place / "site/metadata" / f"{named.version}.snapshot.json").write_bytes(snapshot.read_bytes())
    keyid = open_keys(place / "keys").load("root").signed.roles["timestamp"].keyids[0]
    timestamp.sign(signers[keyid])
    path.write_bytes(timestamp.to_bytes())
    refused(place, Fault.MIXED)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "release"])
def test_altered_metadata_is_refused(place: Path, role: str) -> None:
    path = place / "site/metadata/timestamp.json" if role == "timestamp" else newest(place, role)
    data = path.read_bytes().replace(b'"expires": "20', b'"expires": "21', 1)
    path.write_bytes(data)
    refused(place, Fault.SIGNATURE if role == "timestamp" else Fault.DIGEST)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b'{"signed": 1, "signatures": []}', b"[" * 100_000])
def test_metadata_that_is_none_is_refused(place: Path, data: bytes) -> None:
    (place / "site/metadata/timestamp.json").write_bytes(data)
    with pytest.raises(TrustError):
        accepted(place)


def test_truncated_metadata_is_refused(place: Path) -> None:
    path = newest(place, "release")
    path.write_bytes(path.read_bytes()[:-40])
    refused(place, Fault.DIGEST)


def test_endless_metadata_is_cut_off(place: Path) -> None:
    (place / "site/metadata/timestamp.json").write_bytes(b" " * (1 << 20))
    refused(place, Fault.SIZE)


def test_a_stranger_with_his_own_keys_is_refused(place: Path) -> None:
    make_keys(place / "stranger")
    make_bundle(place / "evil", place / "stranger", "1.0.0", b"evil" * 9)
    shutil.rmtree(place / "site")
    copy(place / "evil", place / "site")
    refused(place, Fault.SIGNATURE)


def test_a_manifest_with_other_bytes_is_refused(place: Path) -> None:
    (path,) = (place / "site/targets/bundles/kitchen/1.0.0").iterdir()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"kitchen", b"bathtub"))
    refused(place, Fault.DIGEST)
    path.write_bytes(data + b" ")
    refused(place, Fault.SIZE)
    path.write_bytes(data[:-5])
    refused(place, Fault.DIGEST)


def test_another_release_than_the_one_asked_for_is_refused(place: Path) -> None:
    found = trust(place / "state", place / "keys", place / "site")
    found.refresh()
    with pytest.raises(TrustError, match="is asked for") as caught:
        found.manifest(TARGET, digest="sha256:" + "0" * 64)
    assert caught.value.fault == Fault.DIGEST


def test_what_nobody_signed_is_refused(place: Path) -> None:
    found = trust(place / "state", place / "keys", place / "site")
    found.refresh()
    for target in ("bundles/kitchen/9.0.0/manifest.json", "dev/kitchen/1.0.0/manifest.json", "../x", "metadata/x"):
        with pytest.raises(TrustError) as caught:
            found.manifest(target)
        assert caught.value.fault == Fault.UNLISTED


def test_a_developers_key_cannot_sign_a_release(place: Path) -> None:
    """The role `dev` may list what it likes; only `dev/*` counts."""
    roles = open_keys(place / "keys", now=NOW)
    name = "bundles/kitchen/2.0.0/manifest.json"
    roles.add_target("dev", name, b"{}")
    refresh(place / "site", place / "keys", now=NOW)
    found = trust(place / "state", place / "keys", place / "site")
    found.refresh()
    assert name not in found.targets()
    with pytest.raises(TrustError) as caught:
        found.manifest(name)
    assert caught.value.fault == Fault.UNLISTED


def test_fewer_signatures_than_the_threshold_are_refused(place: Path) -> None:
    """Root version 2 signed by one of the two keys that it needs."""
    rotate_keys(place / "keys", "timestamp", now=NOW)
    refresh(place / "site", place / "keys", now=NOW)
    path = place / "site/metadata/2.root.json"
    tree = json.loads(path.read_bytes())
    tree["signatures"] = tree["signatures"][:1]
    path.write_text(json.dumps(tree))
    assert "keys" in refused(place, Fault.SIGNATURE)


def test_a_threshold_of_two_needs_two_keys(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys", release_keys=2, release_threshold=2)
    away = tmp_path / "away.pem"
    (keys / "private/release-2.pem").rename(away)
    about = make_bundle(tmp_path / "b", keys, "1.0.0", b"x" * 30).about
    assert [state.pending for state in open_keys(keys).states() if state.role == "release"] == [2]
    assert not (tmp_path / "b/metadata").exists() and not about.signed
    from edgegen.bundle.sign import sign_bundle

    assert sign_bundle(tmp_path / "b", keys, more=(away,), now=NOW).signed
    found = trust(tmp_path / "state", keys, tmp_path / "b")
    found.refresh()
    assert found.manifest(TARGET).manifest.name == "kitchen"


@pytest.mark.parametrize("role", ["root", "targets", "release", "snapshot", "timestamp"])
def test_devices_follow_new_keys_and_drop_the_old(place: Path, role: str) -> None:
    accepted(place)
    old = load_signers(place / "keys")
    assert rotate_keys(place / "keys", role, now=later(1)) == []
    refresh(place / "site", place / "keys", now=later(1))
    accepted(place, days=1)
    accepted(place, days=1, state="fresh")
    kept = {keyid for state in open_keys(place / "keys").states() if state.role == role for keyid in state.keyids}
    assert not kept & set(old)


def test_what_a_revoked_timestamp_key_signs_is_refused(place: Path) -> None:
    stolen = copy(place / "keys", place / "stolen")
    rotate_keys(place / "keys", "timestamp", now=later(1))
    refresh(place / "site", place / "keys", now=later(1))
    accepted(place, days=1)
    refresh_old = open_keys(stolen, now=later(2))
    refresh_old.renew(["timestamp"])
    shutil.copyfile(stolen / "metadata/timestamp.json", place / "site/metadata/timestamp.json")
    refused(place, Fault.SIGNATURE, days=2)


def test_a_stolen_timestamp_key_is_recovered_from(place: Path) -> None:
    """Its thief signs a far future version and time; new keys bring devices back."""
    stolen = copy(place / "keys", place / "stolen")
    thief = open_keys(stolen, now=later(300))
    thief.renew(["timestamp"])
    shutil.copyfile(stolen / "metadata/timestamp.json", place / "site/metadata/timestamp.json")
    accepted(place)
    with pytest.raises(TrustError) as caught:
        shutil.copyfile(place / "keys/metadata/timestamp.json", place / "site/metadata/timestamp.json")
        accepted(place)
    assert caught.value.fault in (Fault.ROLLBACK, Fault.EXPIRED)
    rotate_keys(place / "keys", "timestamp", now=later(1))
    shutil.copytree(place / "keys/metadata", place / "site/metadata", dirs_exist_ok=True)
    accepted(place, days=1)


def test_a_clock_that_stands_in_1970_does_not_bring_back_the_old(place: Path) -> None:
    refresh(place / "site", place / "keys", now=later(5))
    accepted(place, days=5)
    assert json.loads((place / "state" / FLOOR).read_bytes())["unix_s"] == later(5).timestamp()
    found = trust(place / "state", place / "keys", place / "site", days=-365 * 60)
    fresh = found.refresh()
    assert fresh.now_s == later(5).timestamp() and fresh.clock_behind_s > 60 * 364 * 86400


def test_a_floor_later_than_the_expiry_refuses(place: Path) -> None:
    """A device that was told of day 9 does not believe what expired on day 7, though its clock says day 0."""
    other = copy(place / "site", place / "other")
    refresh(place / "site", place / "keys", now=later(9))
    accepted(place, days=9)
    for name in ("timestamp.json", "snapshot.json"):
        (place / "state" / name).unlink()
    shutil.rmtree(place / "site")
    other.rename(place / "site")
    refused(place, Fault.EXPIRED, days=0)


def test_an_expiry_by_a_clock_that_nothing_keeps_right_is_the_clocks_fault(place: Path) -> None:
    accepted(place)
    for is_set, fault in ((False, Fault.CLOCK), (True, Fault.EXPIRED), (None, Fault.EXPIRED)):
        with pytest.raises(TrustError) as caught:
            trust(place / "state", place / "keys", place / "site", days=3660, is_set=is_set).refresh()
        assert caught.value.fault == fault, caught.value
    assert trust(place / "state", place / "keys", place / "site", days=1, is_set=False).refresh().versions


def test_what_the_floor_calls_expired_is_expired_whatever_the_clock(place: Path) -> None:
    other = copy(place / "site", place / "other")
    refresh(place / "site", place / "keys", now=later(9))
    accepted(place, days=9)
    for name in ("timestamp.json", "snapshot.json"):
        (place / "state" / name).unlink()
    with pytest.raises(TrustError) as caught:
        trust(place / "state", place / "keys", other, days=0, is_set=False).refresh()
    assert caught.value.fault == Fault.EXPIRED


def test_a_clock_in_1970_judges_nothing_until_a_time_was_verified(place: Path) -> None:
    with pytest.raises(TrustError, match="1970-01-01") as caught:
        trust(place / "state", place / "keys", place / "site", days=-365 * 60 - 16).refresh()
    assert caught.value.fault == Fault.CLOCK
    accepted(place)
    accepted(place, days=-365 * 60 - 16)


def test_a_damaged_state_folder_does_not_lock_the_device_out(place: Path) -> None:
    accepted(place)
    for path in (place / "state").rglob("*.json"):
        path.write_bytes(b"\0" * 10)
    accepted(place)


def test_a_missing_file_is_the_networks_fault(place: Path) -> None:
    (place / "site/metadata/timestamp.json").unlink()
    with pytest.raises(NetworkError):
        accepted(place)


def test_a_root_that_does_not_sign_itself_is_no_anchor(place: Path) -> None:
    data = (place / "keys/root.json").read_bytes()
    assert check_root(data).version == 1
    tree = json.loads(data)
    tree["signatures"] = []
    for wrong in (json.dumps(tree).encode(), b"{}", (place / "site/metadata/timestamp.json").read_bytes()):
        with pytest.raises(TrustError):
            check_root(wrong)


def test_the_device_needs_no_cryptography(place: Path) -> None:
    """ed25519 in pure Python: the compiled library is hidden from a fresh process."""
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from pathlib import Path\n"
        "from edgegen.bundle.sources import FolderSource\n"
        "from edgegen.bundle.trust import Trust\n"
        f"place = Path({str(place)!r})\n"
        "trust = Trust(place / 'state', (place / 'keys/root.json').read_bytes(), FolderSource(place / 'site'),\n"
        f"    now=lambda: {NOW.timestamp()})\n"
        "trust.refresh()\n"
        f"print(trust.manifest({TARGET!r}).manifest.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "kitchen\n", done.stderr


def test_the_parts_of_python_tuf_that_are_used_are_there() -> None:
    """Two are private: the reference time and how files are stored."""
    from tuf.ngclient import Updater
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

    for name in ("_persist_file", "_update_root_symlink", "_load_targets", "_load_root"):
        assert callable(getattr(Updater, name))
    assert "reference_time" in TrustedMetadataSet.__init__.__code__.co_names


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path, "a")
    path = tmp_path / "private/a.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(Exception, match="others may read"):
        load_signers(tmp_path)


def test_keys_may_have_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEGEN_KEY_PASSWORD", "secret")
    made = make_key(tmp_path, "a").public_key.keyid
    assert b"ENCRYPTED" in (tmp_path / "private/a.pem").read_bytes()
    assert list(load_signers(tmp_path)) == [made]
    monkeypatch.delenv("EDGEGEN_KEY_PASSWORD")
    with pytest.raises(Exception, match=r"cannot be opened|can be opened"):
        load_signers(tmp_path)


def test_days_are_utc(place: Path) -> None:
    states = {state.role: state for state in open_keys(place / "keys", now=NOW).states()}
    assert states["timestamp"].days_left == 7
    assert datetime.datetime.fromisoformat(states["root"].expires) == later(365)
