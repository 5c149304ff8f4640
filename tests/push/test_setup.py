"""A bare machine becomes a device through a real sshd, and a second run changes nothing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgegen import __version__
from edgegen.agent.config import load_config
from edgegen.errors import ConfigError
from edgegen.push.places import Places
from edgegen.push.setup import Setup, _configure, _known_settings, set_up_device
from edgegen.push.ssh import Remote

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [*(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)],
        capture_output=True,
        check=True,
    )
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_a_bare_machine_is_set_up_and_then_left_alone(device: str, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    root = tmp_path / "root.json"
    root.write_text('{"signed": {}}')
    wanted = Setup(
        runtime="",
        wheel=wheel,
        root=root,
        fleet="https://fleet.example",
        token="enrol-x",
        device="pi",
        profile="raspberry-pi-4-4gb",
        service=False,
    )
    said: list[str] = []
    done = set_up_device(device, wanted, folder=str(folder), version=__version__, say=said.append)
    assert len(done.changed) == 5 and all(line.startswith("✓") for line in said)
    for words in (["-c", "import edgegen"], ["-m", "pip", "check"]):
        subprocess.run([folder / "venv/bin/python", *words], check=True, cwd=tmp_path)
    config = tomllib.loads((folder / "agent.toml").read_text())
    assert load_config(folder / "agent.toml").profile == "raspberry-pi-4-4gb"
    assert config["device"] == "pi" and config["home"] == f"{folder}/home"
    assert config["fleet"] == {"url": "https://fleet.example", "enrol_token_file": f"{folder}/trust/enrol"}
    assert (folder / "trust/root.json").read_bytes() == root.read_bytes()
    assert (folder / "trust/enrol").stat().st_mode & 0o777 == 0o600
    again = set_up_device(device, wanted, folder=str(folder), version=__version__)
    assert not again.changed
    root.write_text('{"signed": {"version": 2}}')
    assert set_up_device(device, wanted, folder=str(folder), version=__version__).changed == ["trusted root"]


def test_what_cannot_be_set_up_is_said_before_the_device_is_asked(tmp_path: Path) -> None:
    for wanted in (Setup(runtime="tpu"), Setup(runtime="gguf", wheel=tmp_path / "none.whl")):
        with pytest.raises(ConfigError):
            set_up_device("ssh://nowhere.invalid", wanted, version="1")
    with pytest.raises(ConfigError, match="plain absolute path"):
        set_up_device("ssh://nowhere.invalid", Setup(runtime=""), folder="x; reboot", version="1")


def _configured(device: str, folder: Path, wanted: Setup) -> bool:
    remote, places = Remote(device), Places(False, str(folder), f"{folder}/home")
    return _configure(remote, places, wanted, _known_settings(remote, places))


def test_settings_that_no_option_names_are_kept(device: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    first = Setup(runtime="", root=tmp_path, fleet="https://fleet.example", token="x", device="pi", serve_port=9000)
    assert _configured(device, tmp_path, first)
    byhand = path.read_text() + "\n[limits]\nfetch_bytes = 5\n[limits.deadlines_s]\nself-test = 12.5 # slow\n"
    path.write_text(byhand.replace("[fleet]", "[fleet]\npoll_s = 30.0"))
    before = path.read_text()
    assert not _configured(device, tmp_path, Setup(runtime=""))
    assert path.read_text() == before
    assert _configured(device, tmp_path, Setup(runtime="", fleet="https://other.example"))
    kept = tomllib.loads(before)
    kept["fleet"]["url"] = "https://other.example"
    assert tomllib.loads(path.read_text()) == kept


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Setup(runtime="nonsense"), "--runtime 'nonsense'"),
        (Setup(runtime="", fleet="kitchen"), "--fleet 'kitchen' is no URL"),
        (Setup(runtime="", repository="kitchen"), "--repository 'kitchen' is no URL"),
        (Setup(runtime="", serve_port=99999), "--port 99999"),
        (Setup(runtime="", wheelhouse=Path("/nowhere")), "no wheels in it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wishes_that_cannot_be_are_said_before_the_device_is_asked(wanted: Setup, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        set_up_device("ssh://127.0.0.1:1", wanted, version="1.0.0")


def test_a_configuration_that_cannot_be_kept_is_said(device: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    for text, said in (("serve = [", "not valid TOML"), ("since = 2026-01-01", "no use for")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            _configured(device, tmp_path, Setup(runtime="", device="\u00e9 \U0001f600 \x7f"))
        assert path.read_text() == text
    path.unlink()
    assert _configured(device, tmp_path, Setup(runtime="", device="\u00e9 \U0001f600 \x7f"))
    assert tomllib.loads(path.read_text())["device"] == "\u00e9 \U0001f600 \x7f"
