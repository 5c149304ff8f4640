"""A bundle goes to a device through a real sshd on loopback."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import msgspec
import pytest

from edgegen.bundle.layout import blob_file, target_file, target_path
from edgegen.common.codec import save_json
from edgegen.common.files import digest_bytes
from edgegen.errors import ConfigError, EdgegenError, NetworkError, TrustError
from edgegen.push.deploy import push_bundle
from edgegen.push.ssh import Remote
from edgegen.records.bundle import Bundle, BundleFile, Manifest
from edgegen.records.deployment import Phase, Reason
from tests.fleet.site import manifest_bytes
from tests.push.conftest import ssh_command

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    digest = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()
    data = manifest_bytes("1.0.0", files=(BundleFile("model.gguf", len(WEIGHTS), digest),))
    manifest = msgspec.json.decode(data, type=Manifest)
    about = Bundle(
        schema=1,
        target=target_path(manifest),
        digest=digest_bytes(data),
        name="kitchen",
        version="1.0.0",
        role="release",
        signed=True,
    )
    for place, content in ((target_file(about.target, about.digest), data), (blob_file(digest), WEIGHTS)):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_bytes(content)
    save_json(folder / "bundle.json", about)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> str:
    """The agent's folder on the device, with a stand-in for the agent."""
    agent = tmp_path / "device" / "venv" / "bin" / "edgegen-agent"
    agent.parent.mkdir(parents=True)
    program = ROOT / "tests" / "simulators" / "installer.py"
    agent.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    agent.chmod(0o755)
    (tmp_path / "device" / "agent.toml").write_text("schema = 1\n")
    return str(tmp_path / "device")


@pytest.mark.slow
def test_a_bundle_is_installed_and_not_sent_twice(device: str, bundle: Path, place: str) -> None:
    found = push_bundle(bundle, device, folder=place)
    assert found.phase == Phase.CONFIRMED and found.bytes_fetched == len(WEIGHTS) and not found.bytes_reused
    again = push_bundle(bundle, device, folder=place)
    assert not again.bytes_fetched and again.bytes_reused == len(WEIGHTS)


@pytest.mark.slow
def test_a_release_that_is_rolled_back_is_a_value(device: str, bundle: Path, place: str) -> None:
    (Path(place) / "bad").touch()
    found = push_bundle(bundle, device, folder=place)
    assert (found.phase, found.reason) == (Phase.ROLLED_BACK, Reason.GOLDEN)


@pytest.mark.slow
def test_a_release_that_the_device_does_not_trust_is_an_error(device: str, bundle: Path, place: str) -> None:
    (Path(place) / "distrust").touch()
    with pytest.raises(TrustError, match="signed by nobody"):
        push_bundle(bundle, device, folder=place)


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


@pytest.mark.slow
def test_the_command_line(device: str, bundle: Path, place: str) -> None:
    from typer.testing import CliRunner

    from edgegen.cli.app import app

    runner = CliRunner()
    shown = runner.invoke(app, ["deploy", str(bundle), "--to", device, "--folder", place])
    assert shown.exit_code == 0 and "confirmed; 1.02 MB sent" in shown.stdout
    (Path(place) / "bad").touch()
    shown = runner.invoke(app, ["deploy", str(bundle), "--to", device, "--folder", place])
    assert shown.exit_code == 5 and "golden prompt 2" in shown.stdout


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
        *("ssh://kitchen/path", "ssh://kitchen:x", "ssh://-u@kitchen", "ssh://kitchen;reboot"),
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
