"""Server and device are killed at any moment, again and again: no report is lost, and none is there twice."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from edgegen.fleet.database import Database
from tests.fleet.site import ROOT, Desk
from tests.simulators.ddi_device import DdiDevice
from tests.simulators.reporting_device import Spool

KILLS = 24


def _start(*words: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=cwd, stderr=subprocess.DEVNULL
    )


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "in vain"
        time.sleep(0.05)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=5):
        return True
    return False


@pytest.mark.slow
def test_kills_on_both_ends(tmp_path: Path) -> None:
    site, store, spool = tmp_path / "site", tmp_path / "site" / "fleet.db", tmp_path / "spool.db"
    (site / "repository").mkdir(parents=True)
    desk = Desk(str(store), time.time())
    ticket = desk.do("enrolment-token", group="kitchens")
    desk.database.close()
    port, chance = _free_port(), random.Random(5)
    url = f"http://127.0.0.1:{port}"
    device = DdiDevice("pi-1", url)

    def serve() -> subprocess.Popen[bytes]:
        return _start("edgegen", "fleet", "serve", str(site), "--port", str(port), cwd=tmp_path)

    def send(count: int = 10**9) -> subprocess.Popen[bytes]:
        words = (str(spool), url, device.name, device.token, str(count))
        return _start("tests.simulators.reporting_device", *words, cwd=ROOT)

    server = serve()
    _wait(lambda: _answers(url))
    device.enrol(ticket)
    sender = send()
    try:
        for _ in range(KILLS):
            time.sleep(chance.random() * 0.5)
            if chance.random() < 0.6:
                server.kill()
                server.wait()
                server = serve()
                _wait(lambda: _answers(url))
            else:
                sender.kill()
                sender.wait()
                sender = send()
        sender.kill()
        sender.wait()
        made = Spool(spool)
        count = made.made()
        sender = send(count)  # what is left in the spool, and no more
        _wait(lambda: sender.poll() is not None, 300)
        assert sender.returncode == 0
    finally:
        for process in (sender, server):
            process.kill()
            process.wait()
    database = Database(str(store))
    with database.snapshot() as tx:
        rows = tx.rows("SELECT seq FROM generations ORDER BY seq")
        (total,) = tx.rows("SELECT value FROM totals WHERE name = 'generations'")
        (state,) = tx.rows("SELECT stored, refused FROM device_state")
    database.close()
    assert made.made() == count > KILLS and made.oldest(1) == []
    assert [row["seq"] for row in rows] == list(range(1, count + 1))
    assert total["value"] == count and state == {"stored": count, "refused": 0}
    made.close()
