"""The screens over a real site and a real server: asked by the operations' names, failing and coming back."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgegen.errors import ConfigError, EdgegenError
from edgegen.fleet.database import Database
from edgegen.fleet.operate import TOKEN_VARIABLE
from edgegen.fleet.operations import OPERATIONS, Operation, WhichRollout, WhichRollouts
from edgegen.monitor import source as sources
from edgegen.monitor.mock import MockSource
from edgegen.monitor.source import OperationSource, open_source
from edgegen.records.monitor import Ask, AskComparison, AskEvents, AskOutputs, FleetView
from tests.monitor.driving import BEGUN_S, Driven, drive


def test_each_question_is_its_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repository").mkdir()
    Database(str(tmp_path / "fleet.db")).close()
    asked: list[tuple[str, Any]] = []

    class Recorder:
        def do(self, name: str, record: Any) -> Any:
            asked.append((name, record))
            return ()

    monkeypatch.setattr(sources, "open_fleet", lambda where, store=None: Recorder())
    source = open_source(str(tmp_path))
    source.fleet(Ask())
    source.device(Ask(device="d"))
    source.outputs(AskOutputs(after=3))
    source.events(AskEvents())
    source.compare(AskComparison("d"))
    source.bundles(Ask())
    source.drift(Ask())
    source.rollouts()
    source.actions(7)
    source.act("pause", WhichRollout(7))
    assert asked == [
        ("monitor-fleet", Ask()),
        ("monitor-device", Ask(device="d")),
        ("monitor-outputs", AskOutputs(after=3)),
        ("monitor-events", AskEvents()),
        ("monitor-compare", AskComparison("d")),
        ("monitor-bundles", Ask()),
        ("monitor-drift", Ask()),
        ("rollouts", WhichRollouts()),
        ("actions", WhichRollout(7)),
        ("pause", WhichRollout(7)),
    ]


def test_what_no_waiting_can_mend_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such site"):
        open_source(str(tmp_path))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="token"):
        open_source("http://127.0.0.1:9")


def test_a_broken_database_that_is_mended(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    database = tmp_path / "fleet.db"
    database.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    source = OperationSource(str(tmp_path))
    for _ in range(2):
        with pytest.raises(EdgegenError):
            source.rollouts()
    for file in tmp_path.glob("fleet.db*"):
        file.unlink()
    Database(str(database)).close()
    assert source.rollouts() == ()


class Server:
    """A fleet's server on loopback that answers `monitor-fleet` from a simulated fleet, and can be away."""

    def __init__(self, fleet: Callable[[], FleetView]) -> None:
        self._fleet = fleet
        self.port = 0
        self._server: http.server.HTTPServer | None = None

    def start(self) -> None:
        fleet = self._fleet

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                known = self.path == "/v1/monitor-fleet"
                body = msgspec.json.encode(fleet()) if known else b'{"error": "not here"}'
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token")
    # The same declaration whether or not the server's side is there.
    monkeypatch.setitem(OPERATIONS, "monitor-fleet", Operation(Ask, FleetView, lambda tx, now_s, who, asked: None))
    mock = MockSource(12, 1, clock=lambda: BEGUN_S)
    server = Server(lambda: mock.fleet(Ask()))
    server.start()

    async def test(it: Driven) -> None:
        async def until(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 60
            while not condition():
                assert time.monotonic() < deadline, it.text
                it.now[0] += 0.5
                it.app.tick()
                await it.pilot.pause(0.02)

        await until(lambda: it.app.fleet is not None and it.view.table.total == 12)
        server.stop()
        await until(lambda: it.app.is_failing)
        assert "no answer since" in it.text and it.view.table.total == 12
        await it.press("3")
        await it.press("1")
        server.start()
        await until(lambda: not it.app.is_failing)
        assert it.view.table.total == 12 and not it.view.table.is_dim
        await it.press("7")
        await until(lambda: it.app.is_failing)
        assert "not here" in it.text, "what a server refuses is shown too"

    try:
        drive(test, source=open_source(f"http://127.0.0.1:{server.port}"), inline=False)
    finally:
        server.stop()
