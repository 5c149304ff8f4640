"""Orders of this device itself, when the agent that should carry them out is gone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgegen.agent.agent import locked
from edgegen.agent.config import load_config
from edgegen.agent.main import main
from edgegen.errors import ConfigError
from tests.agent.releases import ROOT, configure


def test_an_order_whose_agent_stops_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    config = configure(tmp_path, tmp_path)
    orders = tmp_path / "home" / "orders"
    orders.mkdir(parents=True)
    command = [sys.executable, "-m", "edgegen.agent.main", "--config", str(config), "rollback"]
    with locked(tmp_path / "home") as alone:
        assert alone
        waiting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while not list(orders.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert waiting.poll() is None
    said = waiting.communicate(timeout=60)[1]
    assert waiting.returncode == 2
    assert "goes on here" in said and "there is no release to go back to" in said
    assert not list(orders.iterdir())


def test_a_takeover_that_cannot_be_ends_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    config = configure(tmp_path, tmp_path)
    orders = tmp_path / "home" / "orders"
    orders.mkdir(parents=True)
    command = [sys.executable, "-m", "edgegen.agent.main", "--config", str(config), "rollback"]
    with locked(tmp_path / "home"):
        waiting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while not list(orders.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.05)
        (tmp_path / "home" / "outcomes").write_text("in the way")
    said = waiting.communicate(timeout=60)[1]
    assert waiting.returncode not in (0, -signal.SIGKILL) and "Traceback" not in said
    assert not list(orders.iterdir())


def test_an_order_whose_folder_is_removed_ends(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    config = configure(tmp_path, tmp_path)
    orders = tmp_path / "home" / "orders"
    orders.mkdir(parents=True)
    command = [sys.executable, "-m", "edgegen.agent.main", "--config", str(config), "rollback"]
    with locked(tmp_path / "home"):
        waiting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while not list(orders.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.05)
        (tmp_path / "home").rename(tmp_path / "removed")  # at one moment, unlike a removal
        said = waiting.communicate(timeout=60)[1]
    assert waiting.returncode == 7 and "Traceback" not in said
    assert "the order is gone" in said or "No such file" in said  # the latter in the moment that it takes the lock


def test_a_home_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").write_text("in the way")
    (tmp_path / "root.json").write_text("{}")
    for words in ((), ("rollback",), ("allow", "sha256:0")):
        assert main(["--config", str(configure(tmp_path, tmp_path)), *words]) == 7
        assert "File exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("allow", "nonsense"), "no release 'nonsense' is banned here"),
        (("spool", "--tail", "--lines", "0"), "--lines must be at least 1"),
        (("install", "--target", ""), "--target is empty"),
    ],
)
def test_a_wrong_argument_is_one_line(
    words: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root.json").write_text("{}")
    assert main(["--config", str(configure(tmp_path, tmp_path)), *words]) == 2
    told = capsys.readouterr()
    assert not told.out and says in told.err and told.err.count("\n") == 1


def test_a_fleet_that_is_no_url(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('home = "home"\n[fleet]\nurl = "kitchen"\n')
    with pytest.raises(ConfigError, match=r"fleet\.url: must begin with http"):
        load_config(tmp_path / "agent.toml")
