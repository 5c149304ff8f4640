"""Publishing: verified like a device would, in any order that is safe, and never half."""

from pathlib import Path

import pytest

from edgegen.bundle.layout import blob_file
from edgegen.bundle.ledger import online_keys, open_keys, rotate_keys
from edgegen.bundle.repository import check, check_whole, init_repository, prove_bundle, publish, refresh, withdraw
from edgegen.bundle.sign import released, sign_bundle
from edgegen.errors import ConfigError, Fault, NetworkError, TrustError
from tests.bundle.releases import NOW, copy, later, make_bundle, make_keys, make_site, trust


def at(days: float = 0):  # type: ignore[no-untyped-def]
    return lambda: later(days).timestamp()


def names(site: Path, keys: Path, days: float = 0) -> list[str]:
    return [item.version for item in check(site, (keys / "root.json").read_bytes(), now=at(days))[1]]


def test_releases_add_up_and_share_blobs(tmp_path: Path) -> None:
    keys, site, _ = make_site(tmp_path)
    make_bundle(tmp_path / "b2", keys, "1.1.0", b"two" * 20, at=1)
    done = publish(site, tmp_path / "b2", now=at(1))
    assert done.bytes_shared == 2 and done.bytes_copied == 60
    assert names(site, keys, 1) == ["1.0.0", "1.1.0"]
    assert check_whole(site, (keys / "root.json").read_bytes(), now=at(1)) == (2, 122)
    assert [manifest.version for _, manifest in released(keys, "kitchen")] == ["1.1.0", "1.0.0"]


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    _, site, _ = make_site(tmp_path)
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert publish(site, tmp_path / "b1", now=at()).bytes_copied == 0
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before


def test_an_older_bundle_may_come_later_if_it_is_listed(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    make_bundle(tmp_path / "b1", keys, "1.0.0", b"one" * 9)
    make_bundle(tmp_path / "b2", keys, "1.1.0", b"two" * 9, at=1)
    site = tmp_path / "site"
    publish(site, tmp_path / "b2", now=at(1))
    with pytest.raises(NetworkError, match="no such file"):
        check_whole(site, (keys / "root.json").read_bytes(), now=at(1))
    publish(site, tmp_path / "b1", now=at(1))
    assert check_whole(site, (keys / "root.json").read_bytes(), now=at(1))[0] == 2


def test_a_withdrawn_release_cannot_be_published_again(tmp_path: Path) -> None:
    keys, site, packed = make_site(tmp_path)
    assert withdraw(site, keys, packed.about.target, now=NOW) == ""
    with pytest.raises(TrustError) as caught:
        publish(site, tmp_path / "b1", now=at())
    assert caught.value.fault == Fault.ROLLBACK


def test_an_altered_bundle_is_refused(tmp_path: Path) -> None:
    _, site, packed = make_site(tmp_path)
    (tmp_path / "b1" / blob_file(packed.manifest.files[0].digest)).write_bytes(b"evil" * 15)
    with pytest.raises(TrustError, match="altered") as caught:
        publish(site, tmp_path / "b1", now=at())
    assert caught.value.fault == Fault.DIGEST


def test_a_strangers_bundle_is_refused(tmp_path: Path) -> None:
    _, site, _ = make_site(tmp_path)
    make_bundle(tmp_path / "evil", make_keys(tmp_path / "stranger"), "2.0.0", b"evil")
    with pytest.raises(TrustError) as caught:
        publish(site, tmp_path / "evil", now=at())
    assert caught.value.fault == Fault.SIGNATURE


def test_an_unsigned_bundle_is_refused(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    make_bundle(tmp_path / "b", None, "1.0.0", b"x")
    with pytest.raises(ConfigError, match="not signed"):
        prove_bundle(tmp_path / "b", (keys / "root.json").read_bytes(), now=at())


def test_a_version_is_never_reused(tmp_path: Path) -> None:
    keys, _, _ = make_site(tmp_path)
    with pytest.raises(ConfigError, match="another release of this name"):
        make_bundle(tmp_path / "again", keys, "1.0.0", b"other")


def test_a_server_renews_by_itself_with_two_keys(tmp_path: Path) -> None:
    """And a bundle that was signed before the renewal can still be published, with those keys."""
    keys, site, _ = make_site(tmp_path)
    online_keys(keys, tmp_path / "online")
    assert len(list((tmp_path / "online/private").iterdir())) == 2
    make_bundle(tmp_path / "b2", keys, "1.1.0", b"two" * 9, at=1)
    assert refresh(site, tmp_path / "online", within_days=3, now=later(1)) == []
    assert refresh(site, tmp_path / "online", within_days=3, now=later(5)) == ["timestamp"]
    with pytest.raises(TrustError, match="renewed after"):
        publish(site, tmp_path / "b2", now=at(5))
    publish(site, tmp_path / "b2", keys=tmp_path / "online", now=at(5))
    assert names(site, keys, 6) == ["1.0.0", "1.1.0"]
    assert refresh(site, tmp_path / "online", now=later(29)) == ["snapshot", "timestamp"]
    assert names(site, keys, 29) == ["1.0.0", "1.1.0"]


def test_a_device_follows_packer_and_server_in_turn(tmp_path: Path) -> None:
    keys, site, _ = make_site(tmp_path)
    for day in range(1, 8):
        if day % 2:
            refresh(site, keys, now=later(day))
        else:
            make_bundle(tmp_path / f"b{day + 1}", keys, f"1.{day}.0", b"x" * day, at=day)
            publish(site, tmp_path / f"b{day + 1}", keys=keys, now=at(day))
        trust(tmp_path / "state", keys, site, days=day).refresh()


def test_new_keys_reach_a_repository_by_refresh(tmp_path: Path) -> None:
    keys, site, _ = make_site(tmp_path)
    rotate_keys(keys, "root", now=later(1))
    rotate_keys(keys, "release", now=later(1))
    refresh(site, keys, now=later(1))
    found = trust(tmp_path / "state", keys, site, days=1)
    assert found.refresh().versions["root"] == 2
    assert found.targets()
    states = {state.role: state for state in open_keys(keys).states()}
    assert states["root"].threshold == 2 and len(states["root"].keyids) == 3


def test_a_root_change_waits_for_the_other_keys(tmp_path: Path) -> None:
    keys, site, _ = make_site(tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    for name in ("root-1", "root-2"):
        (keys / f"private/{name}.pem").rename(away / f"{name}.pem")
    assert rotate_keys(keys, "timestamp", now=NOW) == ["root"]
    refresh(site, keys, now=NOW)
    assert trust(tmp_path / "state", keys, site).refresh().versions["root"] == 1
    with pytest.raises(ConfigError, match="waits for more signatures"):
        rotate_keys(keys, "snapshot", now=NOW)
    assert open_keys(keys, more=(away / "root-1.pem",), now=NOW).sign() == []
    refresh(site, keys, now=NOW)
    assert trust(tmp_path / "state", keys, site).refresh().versions["root"] == 2


def test_without_any_of_its_keys_a_role_cannot_be_changed(tmp_path: Path) -> None:
    keys, _, _ = make_site(tmp_path)
    (keys / "private/release-1.pem").unlink()
    with pytest.raises(TrustError, match="0 of the 1 keys") as caught:
        make_bundle(tmp_path / "b", keys, "2.0.0", b"x")
    assert caught.value.fault == Fault.SIGNATURE


def test_a_repository_is_not_started_twice(tmp_path: Path) -> None:
    keys, site, _ = make_site(tmp_path)
    with pytest.raises(ConfigError, match="already"):
        init_repository(site, keys)
    with pytest.raises(ConfigError, match="holds something"):
        make_keys(keys)


def test_signing_again_is_the_same(tmp_path: Path) -> None:
    keys, _, packed = make_site(tmp_path)
    before = copy(keys, tmp_path / "before")
    assert sign_bundle(tmp_path / "b1", keys, now=NOW).digest == packed.about.digest
    assert {p.name for p in (keys / "metadata").iterdir()} == {p.name for p in (before / "metadata").iterdir()}
