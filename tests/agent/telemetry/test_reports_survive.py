"""`kill -9` of the device and of the server, again and again: what was kept arrives, and arrives once."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgegen.agent.telemetry.spool import Spool
from edgegen.records.telemetry import Dropped, Feedback
from tests.agent.telemetry.ingest import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
KILLS = 25

DEVICE = """
import os, sys, threading, time
from pathlib import Path
from edgegen.agent.config import AgentConfig, Fleet
from edgegen.agent.controller import Controller
from edgegen.agent.disk import Disk
from edgegen.agent.telemetry.http import http_post
from edgegen.agent.telemetry.sender import Sender
from edgegen.agent.telemetry.spool import Entry, Spool, stamp
from edgegen.records.telemetry import Feedback, Lane

folder, url, number, recording = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "record"
path = folder / "spool.db"
controller = Controller(AgentConfig(home=str(folder), fleet=Fleet(url=url)), folder, Disk())
diary = os.open(folder / "diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def record():
    spool, at = Spool(path, quota_bytes=32 << 20), 0
    while recording:
        names = [f"{number}-{at}-{place}" for place in range(3)]
        lane = Lane.ERRORS if at % 10 == 0 else Lane.NUMBERS
        spool.add([Entry(lane, Feedback(name, 1), stamp()) for name in names])
        os.write(diary, "".join(name + "\\n" for name in names).encode())
        at += 1
        time.sleep(0.001)

threading.Thread(target=record, daemon=True).start()
sender = Sender(Spool(path, quota_bytes=32 << 20), http_post(controller), idle_s=0.01, tell=lambda _: None)
while True:
    time.sleep(min(sender.step(), 0.05))
"""


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command], env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    from tests.agent.telemetry.test_sender import controller

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller(tmp_path, f"http://127.0.0.1:{port}")  # writes the credential
    server_command = ["-m", "tests.agent.telemetry.ingest", str(tmp_path / "server.db"), str(port)]
    dice = random.Random(7)
    server, device = _start(server_command), None
    try:
        for number in range(KILLS):
            device = _start(["-c", DEVICE, str(tmp_path), f"http://127.0.0.1:{port}", str(number), "record"])
            time.sleep(dice.uniform(0.3, 0.9))
            if dice.random() < 0.5:
                server.kill()
                server.wait()
            if server.poll() is not None:
                server = _start(server_command)
            time.sleep(dice.uniform(0, 0.3))
            device.send_signal(signal.SIGKILL)
            device.wait()
        device = _start(["-c", DEVICE, str(tmp_path), f"http://127.0.0.1:{port}", "0", "send"])
        until = time.monotonic() + 120
        with Spool(tmp_path / "spool.db", quota_bytes=32 << 20) as spool:
            while spool.depth().lanes:
                assert time.monotonic() < until
                if server.poll() is not None:
                    server = _start(server_command)
                time.sleep(0.2)
            last = spool.depth().next_seq - 1
    finally:
        for process in (server, device):
            if process is not None:
                process.kill()
                process.wait()
    store = Store(tmp_path / "server.db")
    reports = store.reports()
    store.close()
    names = [report.item.generation for report in reports if isinstance(report.item, Feedback)]
    durable = (tmp_path / "diary").read_text().split()
    assert len(durable) > 100 * KILLS / 5
    assert set(durable) <= set(names), "a report that was kept is lost"
    assert len(names) == len(set(names)), "a report was counted twice"
    assert not [report for report in reports if isinstance(report.item, Dropped)]
    assert sorted(report.seq for report in reports) == list(range(1, last + 1))
    assert len({report.stream for report in reports}) == 1
