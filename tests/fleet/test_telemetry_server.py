"""The real server takes reports over HTTP: who may send, what is refused, what it counts."""

from __future__ import annotations

import gzip
import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from edgegen.fleet.operate import RemoteFleet
from edgegen.fleet.operations import Admit, WhichDevice
from edgegen.fleet.telemetry.retention import Keep
from edgegen.records.telemetry import MOST_BATCH_BYTES, Ack, Dropped, Feedback, Privacy, Sample
from tests.fleet.site import Desk, manifest_bytes, post, serving, target_of
from tests.simulators.ddi_device import DdiDevice
from tests.simulators.reporting_device import RELEASE, batch_of, generation, report, send


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "repository").mkdir()
    found = Desk(str(folder / "fleet.db"), time.time())
    yield found
    found.database.close()


@pytest.fixture(scope="module")
def url(desk: Desk) -> Iterator[str]:
    with serving(Path(desk.database.url).parent) as (url, _):
        yield url


@pytest.fixture(scope="module")
def operator(desk: Desk) -> str:
    return str(desk.do("operator", name="alice"))


@pytest.fixture(scope="module")
def devices(url: str, operator: str) -> list[DdiDevice]:
    ticket = RemoteFleet(url, operator).do("enrolment-token", Admit("kitchens", uses=2))
    found = [DdiDevice(name, url) for name in ("pi-1", "pi-2")]
    for device in found:
        device.enrol(ticket)
    return found


def _send(device: DdiDevice, body: bytes, **headers: str) -> tuple[int, Any]:
    status, answer = send(device.url, device.name, device.token, body, **headers)
    return status, msgspec.json.decode(answer, type=Ack) if status == 200 else json.loads(answer)


def _batch(stream: str, *items: Any, packed: bool = True) -> bytes:
    return batch_of(
        [report(seq, item, stream=stream) for seq, item in enumerate(items, 1)], stream=stream, packed=packed
    )


def test_gzipped_or_plain(devices: list[DdiDevice]) -> None:
    for packed in (True, False):
        status, ack = _send(devices[0], _batch("plain", generation(1), generation(2), packed=packed))
        assert status == 200 and ack.stored + ack.known == 2 and ack.wait_s == 0
    assert _send(devices[0], _batch("plain", generation(1)), **{"Content-Encoding": "br"})[0] == 415


def test_only_with_the_devices_own_token(devices: list[DdiDevice], url: str, operator: str) -> None:
    body = _batch("stolen", generation(1))
    for name, token in (("pi-1", devices[1].token), ("nobody", devices[0].token), ("pi-1", operator), ("pi-1", "")):
        status, _ = send(url, name, token, body)
        assert status == 401
    status, _ = send(url, "pi-1", devices[0].token, body, Authorization=f"Bearer {devices[0].token}")
    assert status == 401
    assert _send(devices[0], body)[1].stored == 1


def test_a_revoked_device_reports_nothing(desk: Desk, url: str, operator: str) -> None:
    fleet = RemoteFleet(url, operator)
    device = DdiDevice("stolen", url)
    device.enrol(fleet.do("enrolment-token", Admit("garages")))
    assert _send(device, _batch("s", generation(1)))[0] == 200
    fleet.do("revoke", WhichDevice("stolen"))
    assert _send(device, _batch("s", generation(1), generation(2)))[0] == 401


def test_a_bomb_stays_small(devices: list[DdiDevice]) -> None:
    bomb = gzip.compress(b"\0" * 200_000_000)
    assert len(bomb) < MOST_BATCH_BYTES
    assert _send(devices[0], bomb)[0] == 413
    assert _send(devices[0], b"x" * (MOST_BATCH_BYTES + 5000))[0] == 413
    assert _send(devices[0], b"\x1f\x8bnonsense")[0] == 400
    assert _send(devices[0], b"")[0] == 400
    assert _send(devices[0], _batch("after", generation(1)))[1].stored == 1


def test_a_sender_that_goes_away_leaves_nothing(devices: list[DdiDevice], desk: Desk) -> None:
    body = _batch("half", *(generation(number) for number in range(50)))
    with socket.create_connection(("127.0.0.1", urlsplit(devices[0].url).port or 0)) as raw:
        head = (
            f"POST /telemetry/v1/pi-1 HTTP/1.1\r\nHost: x\r\nAuthorization: TargetToken {devices[0].token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        raw.sendall(head.encode() + body[: len(body) // 2])
    assert _send(devices[0], body)[1].stored == 50


def test_texts_are_forgotten_over_http(devices: list[DdiDevice], desk: Desk, operator: str) -> None:
    sample = Sample("g", RELEASE, "secret words", "secret answer", Privacy.FULL, "sampled")
    assert _send(devices[1], _batch("texts", sample, Feedback("g", 1, "secret comment")))[1].stored == 2
    fleet = RemoteFleet(devices[1].url, operator)
    erased = fleet.do("forget-text", WhichDevice("pi-2"))
    assert (erased.samples, erased.comments) == (1, 1)
    assert fleet.do("retention", Keep(text_days=7)).text_days == 7
    assert _send(devices[1], _batch("texts", sample))[1].known == 1
    assert desk.run(lambda tx: tx.rows("SELECT prompt FROM samples")) == [{"prompt": ""}]


def test_metrics_are_sums_without_devices(devices: list[DdiDevice], url: str, operator: str) -> None:
    digest = str(
        post(url, operator, "publish", {"manifest": manifest_bytes("1.0.0").decode(), "target": target_of("1.0.0")})
    )
    first = generation(1, release=digest, ttft_s=0.3, tokens_per_s=7.0, prompt_tokens=10, answer_tokens=20)
    second = generation(2, release=digest, ttft_s=3.0, tokens_per_s=None, stop="error")
    body = _batch("metrics", first, second, Dropped(3, 5, 1, 9, "quota"), Feedback("g", -1))
    for _ in range(2):  # a repetition counts nothing twice
        assert _send(devices[0], body)[0] == 200
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    of = 'group="kitchens",release="kitchen@1.0.0"'
    for line in (
        f"edgegen_generations_total{{{of}}} 2",
        f"edgegen_generation_errors_total{{{of}}} 1",
        f'edgegen_ttft_seconds_bucket{{{of},le="0.2"}} 0',
        f'edgegen_ttft_seconds_bucket{{{of},le="0.5"}} 1',
        f'edgegen_ttft_seconds_bucket{{{of},le="+Inf"}} 2',
        f"edgegen_ttft_seconds_sum{{{of}}} 3.300000",
        f"edgegen_tokens_per_second_count{{{of}}} 1",
        'edgegen_dropped_reports_total{group="kitchens"} 5',
        'edgegen_feedback_total{group="kitchens",rating="bad"} 1',
    ):
        assert line in lines, line
    assert any('release="other"' in line for line in lines)
    assert not [line for line in lines if "pi-1" in line or RELEASE in line]
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
