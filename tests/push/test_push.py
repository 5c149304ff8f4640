"""A bundle goes to a device through a real sshd on loopback."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, EdgegenError, NetworkError, TrustError
from edgegen.push.deploy import push_bundle
from edgegen.push.ssh import Remote
from edgegen.records.bundle import Bundle, Manifest
from edgegen.records.deployment import Phase, Reason
from tests.agent.releases import configure, make_keys, pack
from tests.agent.serving import make_artifact
from tests.push.conftest import ssh_command
from tests.simulators.device import whole

ROOT = Path(__file__).resolve().parents[2]


class Bundles(NamedTuple):
    """Signed releases of a tiny model."""

    keys: Path
    good: Path
    wrong: Path
    """Its golden answers are others than the model's."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    keys = make_keys(folder / "keys")
    artifact = make_artifact(folder / "model")
    pack(artifact, folder / "good", keys, "1.0.0")
    (manifest,) = (folder / "good" / "targets").rglob("*.manifest.json")
    known = load_json(manifest, Manifest).golden
    golden = tuple(msgspec.structs.replace(one, tokens=one.tokens[::-1]) for one in known)
    pack(artifact, folder / "wrong", keys, "1.1.0", golden=golden)
    return Bundles(keys, folder / "good", folder / "wrong")


@pytest.fixture
def bundle(bundles: Bundles, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(bundles.good, tmp_path / "bundle")


def make_device(folder: Path, keys: Path) -> str:
    """The agent's folder on a device, as `edgegen device setup` leaves it but for the environment."""
    program = folder / "venv" / "bin" / "edgegen-agent"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m edgegen.agent.main "$@"\n')
    program.chmod(0o755)
    configure(folder, keys)
    return str(folder)


@pytest.mark.slow
def test_a_bundle_is_installed_and_not_sent_twice(device: str, bundles: Bundles, tmp_path: Path) -> None:
    place = make_device(tmp_path / "device", bundles.keys)
    found = push_bundle(bundles.good, device, folder=place)
    assert found.phase == Phase.CONFIRMED and found.bytes_fetched > 10_000 and not found.bytes_reused
    again = push_bundle(bundles.good, device, folder=place)
    assert again.phase == Phase.CONFIRMED and not again.bytes_fetched


@pytest.mark.slow
def test_a_worse_release_is_a_value_and_the_command_says_why(device: str, bundles: Bundles, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from edgegen.cli.app import app

    place = make_device(tmp_path / "device", bundles.keys)
    runner = CliRunner()
    shown = runner.invoke(app, ["deploy", str(bundles.good), "--to", device, "--folder", place])
    assert shown.exit_code == 0 and "confirmed; " in shown.stdout
    found = push_bundle(bundles.wrong, device, folder=place)
    assert found.phase != Phase.CONFIRMED and found.reason == Reason.GOLDEN
    assert whole(Path(place) / "home") == load_json(bundles.good / "bundle.json", Bundle).digest
    shown = runner.invoke(app, ["deploy", str(bundles.wrong), "--to", device, "--folder", place])
    assert shown.exit_code == 5 and "was worse here before" in shown.stdout


@pytest.mark.slow
def test_a_release_that_the_device_does_not_trust_is_an_error(device: str, bundles: Bundles, tmp_path: Path) -> None:
    place = make_device(tmp_path / "device", make_keys(tmp_path / "others"))
    with pytest.raises(TrustError, match="not signed by enough"):
        push_bundle(bundles.good, device, folder=place)


def test_a_device_without_an_agent_is_named(device: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no agent") as told:
        push_bundle(bundle, device, folder=str(tmp_path / "empty"))
    assert "edgegen device setup" in told.value.hint


def test_what_is_no_bundle_is_refused_before_anything_is_sent(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(ConfigError, match="not a bundle"):
        push_bundle(tmp_path, "ssh://nowhere.invalid")
    about = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(about | {"signed": False}))
    with pytest.raises(ConfigError, match="not signed"):
        push_bundle(bundle, "ssh://nowhere.invalid")


def test_a_key_that_is_not_accepted_and_a_host_that_is_not_known(
    sshd: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = sshd
    monkeypatch.setenv("EDGEGEN_SSH", ssh_command(folder, key="stranger"))
    with pytest.raises(NetworkError, match="Permission denied") as told:
        Remote(address).run("true")
    assert "ssh-copy-id" in told.value.hint
    monkeypatch.setenv("EDGEGEN_SSH", ssh_command(folder, known="empty"))
    with pytest.raises(NetworkError, match="Host key verification failed"):
        Remote(address).run("true")


@pytest.mark.parametrize(
    "address",
    [
        *("kitchen", "http://kitchen", "ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://pi:secret@kitchen"),
        *("ssh://kitchen/path", "ssh://kitchen:x", "ssh://-u@kitchen", "ssh://kitchen;reboot", "ssh://[x"),
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="no ssh address"):
        Remote(address)


@pytest.mark.slow
def test_files_are_written_once_and_whole(device: str, tmp_path: Path) -> None:
    remote, path = Remote(device), tmp_path / "a b" / "it's.txt"
    assert remote.put(str(path), b"one", mode=0o600) and path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not remote.put(str(path), b"one", mode=0o600)
    assert remote.put(str(path), b"two", mode=0o600) and path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    with pytest.raises(EdgegenError):
        remote.run("cat /nowhere/at/all")
