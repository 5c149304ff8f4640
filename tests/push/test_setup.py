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
from edgegen.push.setup import Setup, set_up_device

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
