"""A served process that ends, hangs or cannot go on is started again; probation judges, the supervisor keeps alive."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgegen.agent import supervise
from edgegen.agent.config import Serve
from edgegen.agent.disk import Disk
from edgegen.agent.home import Home
from edgegen.agent.supervise import Supervisor
from tests.simulators.device import Device, Repository, make_release, random_tensors

RELEASE = make_release("1.0.0", random_tensors(1))

PROGRAM = """
import http.server, json, pathlib, socket, sys, threading, time

request = json.loads(pathlib.Path(sys.argv[1]).read_text())
lives = pathlib.Path(__file__).with_name("lives")
life = len(lives.read_text()) if lives.exists() else 0
lives.write_text("x" * (life + 1))
script = pathlib.Path(__file__).with_name("script").read_text().split()
what = script[min(life, len(script) - 1)]
if what == "dies":
    sys.exit(9)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if what == "hangs":
            time.sleep(3600)
        crowded = what == "crowded"
        body = b"Service Unavailable" if crowded else json.dumps(
            {"status": "failed" if what == "fails" else "ok", "release": request["release"], "life": life}
        ).encode()
        self.send_response(503 if crowded or what == "fails" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=request["socket"])
server.serve_forever()
"""


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Supervisor]]:
    """Serve RELEASE with a program that behaves by a script, one word a life."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(supervise, "_PROGRAM", (str(tmp_path / "program.py"),))
    monkeypatch.setattr(supervise, "_ASK_S", 0.3)
    monkeypatch.setattr(supervise, "_SILENT_S", 1.0)
    Device(tmp_path / "home", Repository(RELEASE)).install(RELEASE)
    made: list[Supervisor] = []

    def start(script: str) -> Supervisor:
        (tmp_path / "script").write_text(script)
        made.append(Supervisor(Home(tmp_path / "home", Disk()), Serve(port=0), say=said.append))
        made[0].start(RELEASE.digest)
        return made[0]

    said: list[str] = []
    yield start
    for one in made:
        process = one._process
        if process is not None:
            process.kill()
        one.close()


def _await(holds: Callable[[], object], timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def _life(supervisor: Supervisor) -> int:
    seen = supervisor.health()
    return int(seen["life"]) if seen and "life" in seen else -1


def test_a_model_that_cannot_go_on_is_started_again(supervised: Callable[[str], Supervisor]) -> None:
    supervisor = supervised("fails ok")
    _await(lambda: _life(supervisor) == 1)
    assert supervisor.last_words == "its model cannot go on" and supervisor.restarts == 1


def test_a_process_that_hangs_is_started_again(
    supervised: Callable[[str], Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = supervised("ok ok")
    _await(lambda: supervisor._answered_s)
    assert supervisor._process is not None
    os.kill(supervisor._process.pid, signal.SIGSTOP)
    _await(lambda: _life(supervisor) == 1)
    assert supervisor.last_words.startswith("no answer for")


def test_many_clients_are_no_reason(supervised: Callable[[str], Supervisor]) -> None:
    supervisor = supervised("crowded ok")
    _await(lambda: supervisor._answered_s)
    first = supervisor._answered_s
    _await(lambda: supervisor._answered_s is not None and first is not None and supervisor._answered_s > first + 1.5)
    assert supervisor.restarts == 0


@pytest.mark.slow
def test_what_never_comes_up_is_told_from_what_ended_once(supervised: Callable[[str], Supervisor]) -> None:
    supervisor = supervised("dies dies ok")
    _await(lambda: supervisor.failing)
    _await(lambda: _life(supervisor) == 2)
    assert supervisor.restarts == 2


def test_probation_judges_by_itself(supervised: Callable[[str], Supervisor]) -> None:
    """A model that fails in probation is a verdict, and is not covered up by a restart."""
    supervisor = supervised("fails ok")
    verdicts: list[str] = []
    manifest = RELEASE.manifest
    thread = threading.Thread(target=lambda: verdicts.append(supervisor.watch(manifest, lambda: None).reason))
    thread.start()
    thread.join(60)
    assert verdicts == ["errors"]
