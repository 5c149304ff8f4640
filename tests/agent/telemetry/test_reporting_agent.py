"""The whole agent: its reports reach a server, its spool is shown, its memory stays small."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from edgegen.agent.controller import Credential
from edgegen.common.codec import save_json
from edgegen.records.telemetry import Canary, Generation, Happening, Health, Report, Sample
from tests.agent.releases import agent, configure, install, make_keys, pack, running
from tests.agent.serving import make_artifact, wait_until_healthy
from tests.agent.telemetry.ingest import Store, ingesting

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("ledger") / "keys")


@pytest.fixture(scope="module")
def bundle(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    pack(make_artifact(folder / "model"), folder / "bundle", keys, "1.0.0")
    return folder / "bundle"


def url_of(config: Path) -> str:
    port = config.parent / "home" / "port"
    until = time.monotonic() + 60
    while not port.is_file():
        assert time.monotonic() < until
        time.sleep(0.05)
    return f"http://127.0.0.1:{port.read_text().strip()}"


def complete(config: Path, words: str = "the cat") -> dict[str, Any]:
    body = json.dumps({"prompt": words, "max_tokens": 4}).encode()
    with urllib.request.urlopen(url_of(config) + "/v1/completions", body, timeout=60) as answer:
        return dict(json.load(answer))


def waited(find: Callable[[], Any], timeout_s: float = 90) -> Any:
    until = time.monotonic() + timeout_s
    while not (found := find()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return found


def spool(config: Path) -> dict[str, Any]:
    return dict(json.loads(agent(config, "spool", "--json").stdout))


def test_everything_of_a_device_reaches_the_server(keys: Path, bundle: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "server.db")
    fast = ["[telemetry]", "send_s = 0.2", "health_s = 1", "canary_hours = 0.0005", "hash_days = 0.00002"]
    with ingesting(store) as server:
        config = configure(tmp_path / "device", keys, "[fleet]", f'url = "{server}"', *fast)
        home = config.parent / "home"
        home.mkdir()
        save_json(home / "credential.json", Credential("kitchen-1", "t", server, server + "/c"))
        install(config, bundle)
        view = spool(config)  # recorded without an agent that runs, and not sent yet
        assert view["enabled"] and view["acked_s"] is None and view["privacy"] == "p0"
        assert view["lanes"][0]["name"] == "deploy"

        def said(kind: type) -> list[Any]:
            return [report.item for report in store.reports() if isinstance(report.item, kind)]

        with running(config) as process:
            wait_until_healthy(url_of(config))
            name = complete(config)["id"]
            (child,) = psutil.Process(process.pid).children()
            waited(lambda: said(Canary) and said(Health) and said(Generation))
            os.kill(child.pid, signal.SIGKILL)
            waited(lambda: [item for item in said(Happening) if item.what == "crashed"])
            wait_until_healthy(url_of(config))
            used = psutil.Process(process.pid).memory_info().rss
            assert used < 60e6, used
        events = [(item.level, item.what) for item in said(Happening)]
        phases = [what for _, what in events]
        for what in ("reserve", "fetch", "verify", "stage", "self-test", "switch", "probation", "confirmed", "started"):
            assert phases.count(what) == 1, phases
        assert phases.index("fetch") < phases.index("confirmed") < phases.index("started")
        assert ("error", "crashed") in events and ("info", "intact") in events
        (generation,) = said(Generation)
        assert generation.id == name and not said(Sample)
        assert {item.agreed for item in said(Canary)} == {8} and {item.prompt for item in said(Canary)} <= {0, 1}
        assert any(item.intact for item in said(Canary))
        assert max(item.log_prob_drop for item in said(Canary)) < 0.01
        health = said(Health)[-1]
        assert health.free_ram_bytes and health.free_bytes and health.uptime_s > 0 and health.privacy == "p0"
        assert len({(report.stream, report.seq) for report in store.reports()}) == len(store.reports())
    assert spool(config)["acked_s"] is not None
    store.close()


def test_without_a_server_the_spool_works_and_is_shown(keys: Path, bundle: Path, tmp_path: Path) -> None:
    lines = ["[telemetry]", "enabled = true", 'privacy = "p2"', "sample_fraction = 1.0"]
    config = configure(tmp_path / "device", keys, *lines)
    assert "waiting   0 reports" in agent(config, "spool").stdout
    assert agent(config, "spool", "--tail").stdout == ""
    install(config, bundle)
    with running(config):
        wait_until_healthy(url_of(config))
        complete(config, "write to a@b.example")
        waited(lambda: [lane for lane in spool(config)["lanes"] if lane["name"] == "text"])
        tail = agent(config, "spool", "--tail", "--lines", "500").stdout.splitlines()
        reports = [msgspec.json.decode(line, type=Report) for line in tail]
        (sample,) = [report.item for report in reports if isinstance(report.item, Sample)]
        assert "[email]" in sample.prompt and not any("a@b.example" in line for line in tail)
        assert len(agent(config, "spool", "--tail", "--lines", "2").stdout.splitlines()) == 2
        shown = agent(config, "spool").stdout
        assert "privacy p2" in shown and "no server" in shown and "last taken never" in shown
        assert json.loads(agent(config, "forget", "--json").stdout) == {"forgotten": 1}
        assert not [lane for lane in spool(config)["lanes"] if lane["name"] == "text"]
        assert "0 reports" in agent(config, "forget").stdout


def test_off_is_off(keys: Path, bundle: Path, tmp_path: Path) -> None:
    config = configure(tmp_path / "device", keys)
    install(config, bundle)
    with running(config):
        wait_until_healthy(url_of(config))
        complete(config)
    assert not list((config.parent / "home").glob("spool*"))
    assert "telemetry off" in agent(config, "spool").stdout


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["[telemetry]", 'privacy = "p3"'], "full_until"),
        (["[telemetry]", 'privacy = "p9"'], "privacy"),
        (["[telemetry]", "redact = 1"], "redact_rules"),
        (["[telemetry]", 'transport = "mqtt"'], "mqtt.host"),
    ],
)
def test_a_wrong_table_is_one_line(keys: Path, tmp_path: Path, lines: list[str], said: str) -> None:
    done = agent(configure(tmp_path, keys, *lines), "spool", code=2)
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
