"""Telemetry passed on to an OpenTelemetry collector, under the names of its conventions for generative AI.

Metrics, as histograms, of all answers (attributes: model, group, never a device):

    gen_ai.client.token.usage              tokens, by gen_ai.token.type input | output
    gen_ai.server.time_to_first_token      seconds
    gen_ai.server.time_per_output_token    seconds
    gen_ai.server.request.duration         seconds, with error.type where it failed

Log events: `gen_ai.evaluation.result` for each user's rating, `edgegen.device.event` for what devices tell, both with
the device's name (`device.id`). No prompts, answers or comments leave this way.

The conventions are in development; they stand here and nowhere else. The store's cursor is kept in the database when
the collector has taken what came before it, so a collector may be away for as long as the telemetry is kept; what was
measured meanwhile is then counted late, as metrics have the time at which they are passed on. The first start begins
with what comes from then on. One server of a store passes it on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgegen import __version__
from edgegen.errors import ConfigError, EdgegenError, NetworkError, UnsupportedError
from edgegen.fleet.telemetry.store import rows_after, top_cursor
from edgegen.fleet.transaction import Row, Transaction

Do = Callable[[Callable[[Transaction], Any]], Awaitable[Any]]
"""Runs a job in a transaction of the server's writer."""

_EVERY_S = 10.0
_PAGE = 2000
_TABLES = ("generations", "feedback", "events")
_TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_SEVERITIES = {"info": 9, "warning": 13, "error": 17}
_log = logging.getLogger("edgegen.fleet")


class Noted(NamedTuple):
    """A row to pass on."""

    table: str
    row: Row
    model: str
    """`name@version` of the release that answered, `other` if the server does not know it."""
    group: str


def check_collector(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        ConfigError: no URL of a collector.
        UnsupportedError: OpenTelemetry is not installed.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"--otlp: {error}", hint="Write it like http://collector:4318.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--otlp {url!r}: no URL", hint="Write it like http://collector:4318.")
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "--otlp needs OpenTelemetry's SDK, which is not installed", hint="pip install 'edgegen[otlp]'"
        ) from error
    return url.rstrip("/")


class Collector:
    """What a collector was told, in OpenTelemetry's own SDK."""

    def __init__(self, url: str) -> None:
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.resources import Resource

        resource = Resource.create({"service.name": "edgegen-fleet", "service.version": __version__})
        self._metrics: Any = OTLPMetricExporter(endpoint=f"{url}/v1/metrics", timeout=_EVERY_S)
        self._logs: Any = OTLPLogExporter(endpoint=f"{url}/v1/logs", timeout=_EVERY_S)
        self._reader: Any = InMemoryMetricReader()
        meters: Any = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        self._records: Any = InMemoryLogRecordExporter()
        loggers: Any = LoggerProvider(resource=resource, shutdown_on_exit=False)
        loggers.add_log_record_processor(SimpleLogRecordProcessor(self._records))
        self._logger: Any = loggers.get_logger("edgegen.fleet", __version__)
        meter = meters.get_meter("edgegen.fleet", __version__)

        def histogram(name: str, unit: str, edges: tuple[float, ...]) -> Any:
            return meter.create_histogram(name, unit=unit, explicit_bucket_boundaries_advisory=edges)

        self._tokens = histogram("gen_ai.client.token.usage", "{token}", _TOKENS)
        self._ttft = histogram("gen_ai.server.time_to_first_token", "s", _SECONDS)
        self._per_token = histogram("gen_ai.server.time_per_output_token", "s", _PER_TOKEN)
        self._duration = histogram("gen_ai.server.request.duration", "s", _SECONDS)

    def add(self, one: Noted) -> None:
        """Note a row; it is sent by `send`."""
        note = {"generations": self._generation, "feedback": self._feedback, "events": self._event}[one.table]
        note(one.row, one.model, one.group)

    def send(self) -> None:
        """Pass on what was noted; after a failure it is all still there.

        Raises:
            NetworkError: the collector does not take it.
        """
        metrics = self._reader.get_metrics_data()
        if metrics is not None and self._metrics.export(metrics).name != "SUCCESS":
            raise NetworkError("the OpenTelemetry collector does not take metrics")
        records = self._records.get_finished_logs()
        if records and self._logs.export(records).name != "SUCCESS":
            raise NetworkError("the OpenTelemetry collector does not take log events")
        self._records.clear()

    def _generation(self, row: Row, model: str, group: str) -> None:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "edgegen",
            "gen_ai.request.model": model,
            "edgegen.group": group,
        }
        self._tokens.record(row["prompt_tokens"], {**attributes, "gen_ai.token.type": "input"})
        self._tokens.record(row["answer_tokens"], {**attributes, "gen_ai.token.type": "output"})
        ttft_s, speed = row["ttft_s"], row["tokens_per_s"]
        if ttft_s is not None:
            self._ttft.record(ttft_s, attributes)
        if speed:
            self._per_token.record(1 / speed, attributes)
        if ttft_s is not None and speed:
            decoding_s = max(0, row["answer_tokens"] - 1) / speed
            failed = {"error.type": "_OTHER"} if row["error"] or row["stop"] == "error" else {}
            self._duration.record((row["queue_s"] or 0.0) + ttft_s + decoding_s, {**attributes, **failed})

    def _feedback(self, row: Row, model: str, group: str) -> None:
        self._emit(
            *("gen_ai.evaluation.result", row, group),
            {
                "gen_ai.evaluation.name": "user_feedback",
                "gen_ai.evaluation.score.value": float(row["rating"]),
                "gen_ai.evaluation.score.label": {1: "good", -1: "bad"}.get(row["rating"], "neutral"),
                "gen_ai.response.id": row["generation"],
            },
        )

    def _event(self, row: Row, model: str, group: str) -> None:
        told = {"edgegen.event": row["what"], "edgegen.detail": row["detail"], "gen_ai.request.model": model}
        self._emit("edgegen.device.event", row, group, told, row["level"])

    def _emit(self, name: str, row: Row, group: str, attributes: dict[str, Any], level: str = "info") -> None:
        from opentelemetry._logs import LogRecord, SeverityNumber

        self._logger.emit(
            LogRecord(
                timestamp=int(row["at_s"] * 1e9),
                observed_timestamp=int(row["received_s"] * 1e9),
                severity_text=level.upper(),
                severity_number=SeverityNumber(_SEVERITIES.get(level, 9)),
                attributes={**attributes, "device.id": row["device"], "edgegen.group": group},
                event_name=name,
            )
        )


async def pass_on_forever(url: str, do: Do, every_s: float = _EVERY_S) -> None:
    """Follow the store's tails and tell the collector, until cancelled."""
    collector, told = Collector(url), False
    positions: dict[str, int] | None = None
    pending = False
    while True:
        full = False
        try:
            if positions is None:
                positions = await do(_read_positions)
            if not pending:
                found = await do(functools.partial(_read_page, positions=positions))
                for one in found:
                    collector.add(one)
                    positions[one.table] = one.row["cursor"]
                full, pending = len(found) >= _PAGE, True
            await asyncio.to_thread(collector.send)
            await do(functools.partial(_save_positions, positions=positions))
            pending = told = False
        except EdgegenError as error:
            if not told:
                _log.error("%s; trying again", error)
            told = True
        except Exception:
            _log.exception("telemetry is not passed on")
        await asyncio.sleep(0.0 if full and not pending else every_s)


def _read_page(tx: Transaction, positions: dict[str, int]) -> list[Noted]:
    """What came after these cursors, at most a page of each table."""
    names = {
        row["digest"]: f"{row['name']}@{row['version']}"
        for row in tx.rows("SELECT digest, name, version FROM releases")
    }
    found = []
    for table in _TABLES:
        rows = rows_after(tx, table, positions[table], _PAGE)
        groups = {
            device: known[0]["grp"]
            for device in {row["device"] for row in rows}
            if (known := tx.rows("SELECT grp FROM devices WHERE device = ?", device))
        }
        for row in rows:
            group = row.get("grp") or groups.get(row["device"], "")
            found.append(Noted(table, row, names.get(row.get("release", ""), "other"), group))
    return found


def _read_positions(tx: Transaction) -> dict[str, int]:
    found: dict[str, int] = {}
    for table in _TABLES:
        rows = tx.rows("SELECT value FROM counters WHERE name = ?", f"otlp:{table}")
        found[table] = int(rows[0]["value"]) if rows else top_cursor(tx, table)
    _save_positions(tx, found)
    return found


def _save_positions(tx: Transaction, positions: dict[str, int]) -> None:
    for table, cursor in positions.items():
        tx.run(
            "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            *(f"otlp:{table}", cursor),
        )
