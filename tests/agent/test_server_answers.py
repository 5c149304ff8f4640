"""What the agent makes of a server's answers: closed orders, numbers that come again, withdrawals, lost credentials."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgegen.agent import agent as agent_module
from edgegen.agent.agent import Agent
from edgegen.agent.config import AgentConfig, Fleet, Limits, Repository, Serve
from edgegen.agent.controller import Controller
from edgegen.agent.disk import Disk
from edgegen.agent.update import Verdict
from edgegen.errors import TrustError
from edgegen.records.bundle import Manifest
from edgegen.records.deployment import Phase, Reason
from tests.simulators.ddi_server import DdiServer
from tests.simulators.device import FIT, Device, make_release, random_tensors, whole
from tests.simulators.device import Repository as Releases

OLD = make_release("1.0.0", random_tensors(1))
NEW = make_release("2.0.0", random_tensors(2), epoch=2)
THIRD = make_release("3.0.0", random_tensors(3), epoch=2)


class Model:
    """What would run the model: it is fit, and serves."""

    def __init__(self, *_: object, **__: object) -> None:
        self.digest, self.port, self.failing = "", 0, False

    def test(self, folder: Path, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        between()
        return FIT

    def start(self, digest: str) -> None:
        self.digest = digest

    def stop(self) -> None:
        self.digest = ""

    def watch(self, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        between()
        return FIT

    def close(self) -> None:
        pass


@pytest.fixture
def server() -> Iterator[DdiServer]:
    with DdiServer() as made:
        yield made


@pytest.fixture
def device(server: DdiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """A device that serves OLD, with the real loop, state machine and wire."""
    releases = Releases(OLD, NEW, THIRD)
    home = tmp_path / "home"
    Device(home, releases).install(OLD, "local-1")
    monkeypatch.setattr(agent_module, "Supervisor", Model)
    monkeypatch.setattr(agent_module, "SelfTest", Model)
    monkeypatch.setattr(agent_module, "fetcher_for", lambda _: releases)
    monkeypatch.setattr(agent_module, "usable_runtimes", lambda _: {"toy": "1.0"})
    monkeypatch.setattr(Agent, "_trust_of", lambda self, action: releases)
    (tmp_path / "ticket").write_text("ticket")
    made = Agent(_config(server, tmp_path))
    yield made
    made.close()


def _config(server: DdiServer, folder: Path) -> AgentConfig:
    return AgentConfig(
        home=str(folder / "home"),
        device="kitchen-1",
        serve=Serve(port=0),
        fleet=Fleet(url=server.url, enrol_token_file=str(folder / "ticket"), poll_s=0.001),
        repository=Repository(url="http://nowhere.invalid"),
        limits=Limits(disk_floor_bytes=0),
    )


def _turn(device: Agent) -> None:
    """Once through the agent's loop."""
    device.work()
    device._poll()
    device.work()


def _ended(device: Agent) -> tuple[Phase, Reason]:
    action = device.journal.state.action
    assert action is not None
    return action.phase, action.reason


def test_an_order_is_taken_and_its_end_reported(server: DdiServer, device: Agent) -> None:
    server.order = ("1", NEW)
    _turn(device)
    assert whole(device.home.folder) == NEW.digest
    assert server.reports[-1] == ("deploymentBase", "1", "closed")


@pytest.mark.parametrize("execution", ["download", "downloaded", "proceeding"])
def test_an_order_that_the_server_has_closed_is_dropped(server: DdiServer, device: Agent, execution: str) -> None:
    server.order, server.closed_at = ("1", NEW), execution
    _turn(device)
    assert _ended(device) == (Phase.FAILED, Reason.CANCELED)
    assert whole(device.home.folder) == OLD.digest and device.serving.digest == OLD.digest
    assert ("deploymentBase", "1", "closed") not in server.reports
    server.order, server.closed_at = ("1", NEW), ""  # a device that was away for long is offered it once more
    _turn(device)
    assert whole(device.home.folder) == NEW.digest


def test_a_number_that_comes_again_is_another_order(server: DdiServer, device: Agent) -> None:
    for release in (NEW, THIRD):
        server.order = ("1", release)
        _turn(device)
        assert whole(device.home.folder) == release.digest


def test_an_unfinished_order_of_a_server_that_was_made_anew_is_dropped(server: DdiServer, device: Agent) -> None:
    device._poll()
    device.updater.order("1", target=NEW.target, digest=NEW.digest)
    server.order, before = ("1", THIRD), len(server.reports)
    time.sleep(0.01)
    device.work()
    assert _ended(device) == (Phase.FAILED, Reason.CANCELED)
    assert server.reports[before:] == []
    device._poll()
    assert whole(device.home.folder) == THIRD.digest


def test_a_withdrawal_is_written_down_before_it_is_answered(server: DdiServer, device: Agent) -> None:
    device._poll()
    device.updater.order("1", target=NEW.target, digest=NEW.digest)
    server.order, server.cancel = ("1", NEW), "1"
    seen: list[bool] = []
    state = device.home.state
    server.on_cancel = lambda: seen.append(json.loads(state.read_bytes())["action"]["withdrawn"])
    time.sleep(0.01)
    device.work()
    assert seen == [True] and _ended(device) == (Phase.FAILED, Reason.CANCELED)
    assert [report for report in server.reports if report[2] == "closed"] == [("cancelAction", "1", "closed")]


def test_an_unfinished_order_can_be_withdrawn_between_two_tries(server: DdiServer, device: Agent) -> None:
    device._poll()
    device.updater.order("1", target=NEW.target, digest=NEW.digest)
    server.cancel = "1"
    device._poll()
    assert server.reports[-1] == ("cancelAction", "1", "closed")
    device.work()
    assert _ended(device) == (Phase.FAILED, Reason.CANCELED) and whole(device.home.folder) == OLD.digest


@pytest.mark.parametrize("content", [b"", b"{", b'{"device": 1}'])
def test_a_damaged_credential_is_put_aside(
    server: DdiServer, device: Agent, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    device._poll()
    path = tmp_path / "home" / "credential.json"
    path.write_bytes(content)
    again = Agent(_config(server, tmp_path))
    assert "credential.json.damaged" in capsys.readouterr().err
    server.order = ("1", NEW)
    _turn(again)
    assert len(set(server.tokens)) == 2 and whole(tmp_path / "home") == NEW.digest
    assert path.with_name("credential.json.damaged").read_bytes() == content
    again.close()


def test_a_release_that_does_not_come_up_is_looked_through(server: DdiServer, device: Agent) -> None:
    server.order = ("1", NEW)
    _turn(device)
    weights = device.home.folder / "current" / "model/weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    device.work()
    assert device.serving.digest == NEW.digest
    device.serving.failing = True  # type: ignore[misc]
    device.work()
    assert device.serving.digest == whole(device.home.folder) == OLD.digest


def test_a_name_that_is_taken_is_said_with_what_frees_it(tmp_path: Path) -> None:
    class Taken(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(409)

        def log_message(self, format: str, *words: object) -> None:
            pass

    (tmp_path / "ticket").write_text("ticket")
    with ThreadingHTTPServer(("127.0.0.1", 0), Taken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        config = AgentConfig(device="kitchen-1", fleet=Fleet(url=url, enrol_token_file=str(tmp_path / "ticket")))
        with pytest.raises(TrustError, match="'kitchen-1' with another credential") as caught:
            Controller(config, tmp_path, Disk()).enrol({})
        server.shutdown()
    assert "`edgegen fleet forget`" in caught.value.hint
