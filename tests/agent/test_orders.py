"""Orders of this device itself, when the agent that should carry them out is gone."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from edgegen.agent.agent import locked
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
