"""The real server over loopback: who may do what, what it refuses, what it serves."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from edgegen.errors import ConfigError, NetworkError
from edgegen.fleet.database import Database
from edgegen.fleet.operate import RemoteFleet
from edgegen.fleet.operations import Admit, WhichDevice, WhichDevices, WhichEntries, WhichRollout
from edgegen.fleet.server import serve
from edgegen.fleet.site import open_site
from tests.fleet.site import ROOT, Desk, post, serving, target_of
from tests.simulators.ddi_device import DdiDevice

PATHS = ["", "/configData", "/deploymentBase/1", "/cancelAction/1", "/installedBase/1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    for part in ("metadata", "targets", "blobs/sha256/ab", "keys"):
        (site / "repository" / part).mkdir(parents=True)
    (site / "repository" / "blobs" / "sha256" / "ab" / ("ab" * 32)).write_bytes(bytes(range(256)) * 40)
    (site / "repository" / "metadata" / "timestamp.json").write_text("{}")
    (site / "repository" / "keys" / "root").write_text("secret")
    (site / "repository" / "metadata" / "link").symlink_to(site / "repository" / "keys" / "root")
    return site


@pytest.fixture(scope="module")
def desk(folder: Path) -> Iterator[Desk]:
    found = Desk(str(folder / "fleet.db"))
    yield found
    found.database.close()


@pytest.fixture(scope="module")
def url(folder: Path, desk: Desk) -> Iterator[str]:
    with serving(folder, "--poll", "2") as (url, _):
        yield url


@pytest.fixture(scope="module")
def operator(desk: Desk) -> str:
    return str(desk.do("operator", name="alice"))


@pytest.fixture(scope="module")
def devices(url: str, operator: str) -> list[DdiDevice]:
    """Two enrolled devices, of which the first is offered a release."""
    fleet = RemoteFleet(url, operator)
    ticket = fleet.do("enrolment-token", Admit("kitchens", uses=2))
    found = [DdiDevice(name, url) for name in ("pi-1", "pi-2")]
    for device in found:
        device.enrol(ticket)
    from tests.fleet.site import manifest_bytes

    post(url, operator, "publish", {"manifest": manifest_bytes("1.0.0").decode(), "target": target_of("1.0.0")})
    post(url, operator, "begin", {"release": "kitchen@1.0.0", "group": "kitchens", "waves": [1.0]})
    return found


def test_a_poll_says_when_to_come_again_and_what_to_do(devices: list[DdiDevice], url: str) -> None:
    status, answer = devices[0].call("GET", "/default/controller/v1/pi-1")
    assert status == 200 and answer["config"] == {"polling": {"sleep": "00:00:02"}}
    href = answer["_links"]["deploymentBase"]["href"]
    assert href.startswith(f"{url}/default/controller/v1/pi-1/deploymentBase/")
    _, told = devices[0].call("GET", urlsplit(href).path)
    (chunk,) = told["deployment"]["chunks"]
    assert told["deployment"]["download"] == told["deployment"]["update"] == "forced"
    assert (chunk["part"], chunk["name"], chunk["version"]) == ("edgegen-bundle", "kitchen", "1.0.0")
    words = {entry["key"]: entry["value"] for entry in chunk["metadata"]}
    assert words["edgegen.target"] == target_of("1.0.0")
    assert words["edgegen.repository"] == f"{url}/repository"
    blob = chunk["artifacts"][1]["_links"]["download-http"]["href"]
    with urllib.request.urlopen(blob, timeout=10) as answered:
        assert len(answered.read()) == 256 * 40


def test_a_device_describes_itself(devices: list[DdiDevice], operator: str, url: str) -> None:
    path = "/default/controller/v1/pi-2/configData"
    assert devices[1].call("PUT", path, {"data": {"arch": "aarch64", "agent": "0.1"}})[0] == 200
    assert devices[1].call("PUT", path, {"mode": "remove", "data": {"agent": ""}})[0] == 200
    assert devices[1].call("PUT", path, {"mode": "burn", "data": {}})[0] == 400
    (view,) = RemoteFleet(url, operator).do("devices", WhichDevices(device="pi-2"))
    assert view.attributes == {"arch": "aarch64"}
    assert "configData" not in devices[1].poll() and "configData" in devices[0].poll()


@pytest.mark.parametrize("path", PATHS)
def test_a_stolen_device_token_opens_no_other_device(devices: list[DdiDevice], path: str) -> None:
    thief = devices[1]
    method = "PUT" if path == "/configData" else "GET"
    body = {"data": {"owned": "yes"}} if method == "PUT" else None
    theirs = f"/default/controller/v1/pi-1{path}"
    unknown = f"/default/controller/v1/nobody{path}"
    for scheme in ("TargetToken", "Bearer", "GatewayToken", "EnrolToken"):
        assert thief.call(method, theirs, body, f"{scheme} {thief.token}")[0] == 401
    assert thief.call(method, unknown, body) == thief.call(method, theirs, body)  # names cannot be told apart


def test_a_stolen_device_token_reports_nothing_for_another(devices: list[DdiDevice], desk: Desk) -> None:
    action = devices[0].poll()["deploymentBase"]["href"].rpartition("/")[2]
    body = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    for path in ("deploymentBase", "cancelAction"):
        theirs = f"/default/controller/v1/pi-1/{path}/{action}/feedback"
        assert devices[1].call("POST", theirs, body)[0] == 401
        through_own = f"/default/controller/v1/pi-2/{path}/{action}/feedback"
        assert devices[1].call("POST", through_own, body)[0] == 404
    assert devices[1].call("GET", f"/default/controller/v1/pi-2/deploymentBase/{action}")[0] == 404
    assert devices[1].call("GET", f"/default/controller/v1/pi-2/../pi-1/deploymentBase/{action}")[0] in (401, 404)
    (view,) = (view for view in desk.do("actions", rollout=1) if view.device == "pi-1")
    assert view.state == "offered" and not view.phase


def test_a_stolen_device_token_operates_nothing(devices: list[DdiDevice], desk: Desk) -> None:
    before = desk.do("audit", limit=1000)
    asked = {
        "pause": {"rollout": 1},
        "abort": {"rollout": 1},
        "rollback": {"rollout": 1},
        "begin": {"release": "kitchen@1.0.0", "group": "kitchens"},
        "publish": {"manifest": "{}", "target": "x"},
        "enrolment-token": {"group": "kitchens"},
        "operator": {"name": "mallory"},
        "devices": {},
        "audit": {},
        "move": {"device": "pi-1", "group": "other"},
        "revoke": {"device": "pi-1"},
        "allow": {"device": "pi-1"},
        "forget": {"device": "pi-1"},
        "close-enrolment": {"group": "kitchens"},
        "dismiss": {"name": "alice"},
    }
    for name, body in asked.items():
        for scheme in ("TargetToken", "Bearer", "EnrolToken"):
            assert devices[1].call("POST", f"/v1/{name}", body, f"{scheme} {devices[1].token}")[0] == 401, name
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        status = devices[1].call(method, "/repository/metadata/timestamp.json", {"evil": 1})[0]
        assert status == 405
    assert (
        devices[1].call("POST", "/enrol", {"device": "x", "token": "x" * 40}, f"EnrolToken {devices[1].token}")[0]
        == 401
    )
    assert desk.do("audit", limit=1000) == before


def test_an_enrolment_token_takes_over_no_device(devices: list[DdiDevice], desk: Desk, url: str) -> None:
    expired = desk.do("enrolment-token", group="kitchens", uses=5)  # the desk's clock stands in 1970
    thief = DdiDevice("pi-1", url)
    assert thief.call("POST", "/enrol", {"device": "pi-1", "token": thief.token}, f"EnrolToken {expired}")[0] == 401
    valid = RemoteFleet(url, str(desk.do("operator", name="bob"))).do("enrolment-token", Admit("kitchens", uses=1))
    assert thief.call("POST", "/enrol", {"device": "pi-1", "token": thief.token}, f"EnrolToken {valid}")[0] == 409
    for body in ({"device": "../x", "token": "x" * 40}, {"device": "ok", "token": "short"}, {"device": "ok"}):
        assert thief.call("POST", "/enrol", body, f"EnrolToken {valid}")[0] == 400
    fresh = DdiDevice("pi-9", url)
    fresh.enrol(valid)
    fresh.enrol(valid)  # the answer was lost
    second = DdiDevice("pi-10", url)
    assert second.call("POST", "/enrol", {"device": "pi-10", "token": second.token}, f"EnrolToken {valid}")[0] == 401


def test_a_revoked_device_is_shut_out(desk: Desk, url: str, operator: str) -> None:
    fleet = RemoteFleet(url, operator)
    device = DdiDevice("stolen", url)
    device.enrol(fleet.do("enrolment-token", Admit("garages")))
    assert device.poll()
    fleet.do("revoke", WhichDevice("stolen"))
    assert device.call("GET", "/default/controller/v1/stolen")[0] == 401
    fleet.do("allow", WhichDevice("stolen"))
    assert device.poll()
    fleet.do("forget", WhichDevice("stolen"))
    assert device.call("GET", "/default/controller/v1/stolen")[0] == 401
    anew = DdiDevice("stolen", url)
    anew.enrol(fleet.do("enrolment-token", Admit("garages")))
    assert anew.poll()


def test_an_operator_is_named_in_the_log_and_cannot_make_operators(url: str, operator: str) -> None:
    fleet = RemoteFleet(url, operator)
    fleet.do("pause", WhichRollout(1))
    fleet.do("resume", WhichRollout(1))
    entries = fleet.do("audit", WhichEntries("rollout:1"))
    assert {entry.who for entry in entries if entry.what in ("paused", "running")} == {"operator:alice"}
    for local in ("operator", "dismiss"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            post(url, operator, local, {"name": "alice"})
    with pytest.raises(ConfigError, match="no rollout 77"):
        fleet.do("pause", WhichRollout(77))
    with pytest.raises(ConfigError, match="token is needed"):
        RemoteFleet(url, "wrong").do("devices", WhichDevices())
    with pytest.raises(ConfigError, match="token is needed"):
        RemoteFleet(url, "")
    with pytest.raises(NetworkError):
        RemoteFleet("http://127.0.0.1:9", "x").do("devices", WhichDevices())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b'{"status": {"execution": "burnt"}}', 400),
        (b"[" * 60000, 400),
        (b"x" * 70000, 413),
    ],
)
def test_broken_messages_are_refused(devices: list[DdiDevice], url: str, body: bytes, status: int) -> None:
    action = devices[0].poll()["deploymentBase"]["href"].rpartition("/")[2]
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request(
        *("POST", f"/default/controller/v1/pi-1/deploymentBase/{action}/feedback", body),
        {"Authorization": f"TargetToken {devices[0].token}"},
    )
    answer = connection.getresponse()
    assert answer.status == status and json.loads(answer.read())["error"]
    connection.close()


def test_blobs_come_in_ranges_and_secrets_not_at_all(url: str) -> None:
    blob = f"/repository/blobs/sha256/ab/{'ab' * 32}"
    request = urllib.request.Request(url + blob, headers={"Range": "bytes=256-511"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 206 and answer.read() == bytes(range(256))
        assert answer.headers["content-range"] == "bytes 256-511/10240"
        assert "immutable" in answer.headers["cache-control"] and answer.headers["etag"]
    with urllib.request.urlopen(f"{url}/repository/metadata/timestamp.json", timeout=10) as answer:
        assert answer.headers["cache-control"] == "no-cache"
    request = urllib.request.Request(url + blob, headers={"Range": "bytes=99999-"})
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(request, timeout=10)
    for path in (
        *("/repository/keys/root", "/fleet.db", "/repository/metadata/../keys/root", "/repository/fleet.db"),
        *("/repository/metadata/%2e%2e/keys/root", "/repository/metadata/..%2fkeys%2froot"),
        *(
            "/repository/blobs/../../fleet.db",
            "/repository/metadata/link",
            "/repository/metadata/",
            "/repository/blobs/",
        ),
    ):
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
            assert b" 404 " in line.recv(64), path


def test_health_and_metrics_name_no_device(url: str, devices: list[DdiDevice]) -> None:
    with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
        assert json.loads(answer.read()) == {"status": "ok"}
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'edgegen_devices{group="kitchens",presence="online"}' in text and "pi-1" not in text


def test_tokens_do_not_cross_a_network_in_clear_text(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    Database(str(tmp_path / "fleet.db")).close()
    with pytest.raises(ConfigError, match="clear text"):
        serve(open_site(tmp_path), host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match="both"):
        serve(open_site(tmp_path), certificate="x")
    with pytest.raises(ConfigError, match="no such site"):
        open_site(tmp_path / "nowhere")


def test_a_taken_port_is_one_line(folder: Path, url: str) -> None:
    done = subprocess.run(
        [*(sys.executable, "-m", "edgegen", "fleet", "serve", str(folder)), "--port", str(urlsplit(url).port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 8 and "Choose another with --port" in done.stderr


def test_the_command_line_works_on_the_folder_and_on_the_server(
    folder: Path, url: str, operator: str, devices: list[DdiDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from edgegen.cli.app import app

    monkeypatch.setenv("EDGEGEN_FLEET_TOKEN", operator)
    runner = CliRunner()
    for where in (str(folder), url):
        shown = runner.invoke(app, ["fleet", "devices", where])
        assert shown.exit_code == 0 and "pi-1" in shown.stdout and "rollout 1: offered" in shown.stdout
        listed = json.loads(runner.invoke(app, ["fleet", "rollouts", where, "--json"]).stdout)
        assert [one["id"] for one in listed] == [1]
        assert "100%" in runner.invoke(app, ["fleet", "rollout", where, "1"]).stdout
        assert "rollout begun" not in runner.invoke(app, ["fleet", "audit", where, "--limit", "3"]).stdout
    assert runner.invoke(app, ["fleet", "token", url, "--group", "garages"]).stdout.startswith("enrol-")
