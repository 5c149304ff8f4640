"""What an OpenTelemetry collector gets: decoded from the real protobuf that came over HTTP."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgegen.errors import ConfigError
from edgegen.fleet.telemetry.otlp import check_collector
from edgegen.records.telemetry import Feedback, Happening, Privacy, Sample
from tests.fleet.site import Desk, manifest_bytes, serving, target_of
from tests.simulators.ddi_device import DdiDevice
from tests.simulators.reporting_device import RELEASE, batch_of, generation, report, send

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
PATIENCE_S = 90.0


class _Collector:
    """Takes OTLP over HTTP, or refuses for a while."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {"/v1/metrics": [], "/v1/logs": []}
        self.refuses = False
        self.refused = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.refuses:
                    collector.refused += 1
                    self.send_response(400)
                else:
                    collector.bodies[self.path].append(body)
                    self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def metrics(self) -> dict[str, list[Any]]:
        """Name → points of the latest message that has it."""
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found: dict[str, list[Any]] = {}
        for body in self.bodies["/v1/metrics"]:
            for of in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in of.scope_metrics:
                    for metric in scope.metrics:
                        found[metric.name] = list(metric.histogram.data_points)
        return found

    def events(self) -> list[Any]:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

        messages = [ExportLogsServiceRequest.FromString(body) for body in self.bodies["/v1/logs"]]
        scopes = [scope for one in messages for of in one.resource_logs for scope in of.scope_logs]
        return [record for scope in scopes for record in scope.log_records]


@pytest.fixture
def collector() -> Iterator[_Collector]:
    found = _Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()


def _wait(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "in vain"
        time.sleep(0.1)


def _words(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


@pytest.mark.slow
def test_metrics_and_events_under_their_conventional_names(tmp_path: Path, collector: _Collector) -> None:
    (tmp_path / "repository").mkdir()
    desk = Desk(str(tmp_path / "fleet.db"), time.time())
    digest = str(desk.do("publish", manifest=manifest_bytes("1.0.0").decode(), target=target_of("1.0.0")))
    ticket = desk.do("enrolment-token", group="kitchens")
    device = DdiDevice("pi-1", "")

    def tell(first: int, *items: Any) -> None:
        body = batch_of([report(seq, item, stream="s") for seq, item in enumerate(items, first)], stream="s")
        assert send(device.url, "pi-1", device.token, body)[0] == 200

    def answer(number: int, **changes: Any) -> Any:
        return generation(number, release=digest, prompt_tokens=10, answer_tokens=21, queue_s=0.5, **changes)

    def count(name: str) -> float:
        return sum(point.count for point in collector.metrics().get(name, ()))

    def begun() -> bool:
        return bool(desk.run(lambda tx: tx.rows("SELECT value FROM counters WHERE name = 'otlp:events'")))

    with serving(tmp_path, "--otlp", collector.url) as (device.url, _):
        device.enrol(ticket)
        _wait(begun)
        tell(
            1,
            answer(1, ttft_s=1.0, tokens_per_s=10.0),
            answer(2, ttft_s=2.0, tokens_per_s=10.0, error="broke", stop="error"),
            generation(3, release=RELEASE),
            Feedback("chatcmpl-1", -1, "secret comment"),
            Happening("error", "rolled-back", "golden", RELEASE),
            Sample("chatcmpl-1", digest, "secret prompt", "secret answer", Privacy.FULL, "sampled"),
        )
        _wait(lambda: count("gen_ai.client.token.usage") == 6 and len(collector.events()) == 2)
    metrics = collector.metrics()
    usage = {
        (words["gen_ai.request.model"], words["gen_ai.token.type"]): point.sum
        for point in metrics["gen_ai.client.token.usage"]
        for words in [_words(point)]
    }
    assert usage["kitchen@1.0.0", "input"] == 20 and usage["kitchen@1.0.0", "output"] == 42
    durations = {
        words.get("error.type", ""): point.sum
        for point in metrics["gen_ai.server.request.duration"]
        for words in [_words(point)]
        if words["gen_ai.request.model"] == "kitchen@1.0.0"
    }
    assert durations == {"": pytest.approx(3.5), "_OTHER": pytest.approx(4.5)}
    (first,) = [
        point
        for point in metrics["gen_ai.server.time_to_first_token"]
        if _words(point)["gen_ai.request.model"] == "kitchen@1.0.0"
    ]
    assert (first.sum, first.count, _words(first)["edgegen.group"]) == (3.0, 2, "kitchens")
    assert "gen_ai.server.time_per_output_token" in metrics
    assert b"pi-1" not in b"".join(collector.bodies["/v1/metrics"])
    events = {event.event_name: _words(event) for event in collector.events()}
    rating = events["gen_ai.evaluation.result"]
    assert (rating["gen_ai.evaluation.score.value"], rating["gen_ai.evaluation.score.label"]) == (-1.0, "bad")
    assert rating["gen_ai.response.id"] == "chatcmpl-1" and rating["device.id"] == "pi-1"
    assert events["edgegen.device.event"]["edgegen.event"] == "rolled-back"
    assert not [body for bodies in collector.bodies.values() for body in bodies if b"secret" in body]

    collector.refuses = True  # away; then the server is started anew, and nothing is left out
    with serving(tmp_path, "--otlp", collector.url) as (device.url, server):
        tell(7, answer(4), Feedback("chatcmpl-4", 1))
        _wait(lambda: collector.refused)
        server.kill()
    collector.refuses = False
    with serving(tmp_path, "--otlp", collector.url):
        _wait(lambda: len(collector.events()) == 3 and count("gen_ai.client.token.usage") == 2)
    desk.database.close()


def test_what_is_no_collector() -> None:
    assert check_collector("http://collector:4318/") == "http://collector:4318"
    for wrong in ("collector:4318", "ftp://x", "http://", "http://[::1"):
        with pytest.raises(ConfigError, match="--otlp"):
            check_collector(wrong)
