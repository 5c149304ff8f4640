"""The server's HTTP side: routes, who may call them, and limits. What is done stands in `controller` and `operations`.

/healthz /metrics                    anybody
/repository/{metadata,targets,blobs} anybody: static files with Range, whose trust is in their signatures
/enrol                               EnrolToken
/default/controller/v1/{device}/…    TargetToken: that device's own
/telemetry/v1/{device}               TargetToken: that device's own reports
/v1/{operation}                      Bearer: an operator's
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from edgegen.bundle.repository import refresh
from edgegen.errors import ConfigError, EdgegenError
from edgegen.fleet import controller
from edgegen.fleet.credentials import device_of, enrol, operator_of
from edgegen.fleet.database import Writer
from edgegen.fleet.drift.gauge import TelemetryGauge
from edgegen.fleet.gauge import Gauge
from edgegen.fleet.metrics import describe_fleet
from edgegen.fleet.monitoring.presence import note_life
from edgegen.fleet.monitoring.tick import Watch
from edgegen.fleet.operations import OPERATIONS
from edgegen.fleet.release import REPOSITORY
from edgegen.fleet.request_error import RequestError
from edgegen.fleet.rollouts import advance_all, forgive_outage
from edgegen.fleet.site import PARTS, Site
from edgegen.fleet.telemetry.batches import MOST_PACKED_BYTES
from edgegen.fleet.telemetry.broker import Broker, parse_address
from edgegen.fleet.telemetry.intake import Intake
from edgegen.fleet.telemetry.metrics import describe_reports
from edgegen.fleet.telemetry.otlp import check_collector, pass_on_forever
from edgegen.fleet.telemetry.retention import expire, sweep
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.deployment import RUNNING_HEADER, TENANT, Attributes, Enrolled, Enrolment, Feedback
from edgegen.records.telemetry import INGEST_PATH, Ack

T = TypeVar("T")
Clock = Callable[[], float]

_MOST_BYTES = 64 * 1024
"""Of a device's message."""
_MOST_OPERATOR_BYTES = 16 * 1024 * 1024
"""Of an operator's, which may hold a manifest."""
_BODY_PATIENCE_S = 20.0
_RENEW_EVERY_S = 3600.0
_DELIVER_EVERY_S = 2.0
_SWEEP_EVERY_S = 3600.0
_EXPIRE_EVERY_S = 60.0
_BREATH_S = 0.1
"""Between two slices of what expires, for everybody else."""
_RENEW_WITHIN_DAYS = 4.0
"""A timestamp lasts a week: this leaves days to notice that it is not renewed."""
_log = logging.getLogger("edgegen.fleet")


def make_app(
    site: Site,
    *,
    poll_s: float = 60.0,
    tick_s: float = 1.0,
    public_url: str | None = None,
    clock: Clock = time.time,
    mqtt: str | None = None,
    otlp: str | None = None,
    gauge: Gauge | None = None,
) -> Starlette:
    """The ASGI application of a site.

    Args:
        poll_s: seconds between a device's polls.
        tick_s: seconds between looks at deadlines and soaking times.
        public_url: what devices call the server; None: what each request was addressed to.
        clock: seconds since 1970.
        mqtt: URL of a broker that brings reports, too.
        otlp: URL of an OpenTelemetry collector that they are passed on to.
        gauge: where the telemetry comes from that rollouts are gated on; None: what devices report here.

    Raises:
        ConfigError, UnsupportedError: a URL is none, what it needs is not installed, or `alerts.toml` is wrong.
    """
    broker = parse_address(mqtt) if mqtt else None
    collector = check_collector(otlp) if otlp else None
    handler = _Handlers(site, poll_s, public_url, clock, gauge or TelemetryGauge())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        handler.writer = Writer(site.store)
        handler.intake = Intake(handler.writer, clock)
        jobs: list[Coroutine[Any, Any, None]] = [
            *(handler.tick_forever(tick_s), handler.renew_forever(), handler.expire_forever()),
            *(handler.watch_forever(tick_s), handler.deliver_forever()),
            *([pass_on_forever(collector, handler._do)] if collector else []),
        ]
        work = [asyncio.create_task(job) for job in jobs]
        reports = Broker(broker, handler.intake) if broker else None
        if reports:
            reports.start()
        try:
            yield
        finally:
            if reports:
                await reports.stop()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await asyncio.to_thread(handler.writer.close)

    root = f"/{TENANT}/controller/v1/{{device}}"
    routes: list[Any] = [
        Route("/healthz", handler.healthz),
        Route("/metrics", handler.metrics),
        Route("/enrol", handler.enrol, methods=["POST"]),
        Route(root, handler.poll),
        Route(f"{root}/configData", handler.attributes, methods=["PUT"]),
        Route(f"{root}/deploymentBase/{{action:number}}", handler.deployment),
        Route(f"{root}/deploymentBase/{{action:number}}/feedback", handler.feedback, methods=["POST"]),
        Route(f"{root}/cancelAction/{{action:number}}", handler.cancelation),
        Route(f"{root}/cancelAction/{{action:number}}/feedback", handler.cancel_feedback, methods=["POST"]),
        Route(f"{root}/installedBase/{{action:number}}", handler.installed),
        Route(INGEST_PATH, handler.reports, methods=["POST"]),
        Route("/v1/{operation}", handler.operate, methods=["POST"]),
    ]
    routes += [
        Mount(f"{REPOSITORY}/{part}", _Files(directory=site.repository / part, check_dir=False), name=part)
        for part in PARTS
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _as_json})


class _Handlers:
    def __init__(self, site: Site, poll_s: float, public_url: str | None, clock: Clock, gauge: Gauge) -> None:
        self.site, self.poll_s, self.clock, self.gauge = site, poll_s, clock, gauge
        self.public_url = public_url.rstrip("/") if public_url else None
        self.watch = Watch(site.folder, clock)
        self.writer: Writer
        self.intake: Intake

    async def tick_forever(self, tick_s: float) -> None:
        while True:
            try:
                await self._do(lambda tx: self._tick(tx, tick_s))
            except EdgegenError as error:
                _log.error("%s", error)
            except Exception:
                _log.exception("a rollout could not be moved")
            await asyncio.sleep(tick_s)

    async def watch_forever(self, tick_s: float) -> None:
        """Roll up what devices report and look at the rules of alerts."""
        while True:
            try:
                await self.watch.tick(self._do)
            except EdgegenError as error:
                _log.error("%s", error)
            except Exception:
                _log.exception("monitoring failed")
            await asyncio.sleep(tick_s)

    async def deliver_forever(self) -> None:
        """Tell the webhook of alerts, whatever time that takes."""
        while True:
            try:
                await self.watch.deliver(self._do, asyncio.to_thread)
            except EdgegenError as error:
                _log.error("%s", error)
            except Exception:
                _log.exception("alerts could not be told")
            await asyncio.sleep(_DELIVER_EVERY_S)

    async def renew_forever(self) -> None:
        """Sign the repository's snapshot and timestamp anew before they expire, if their keys are here."""
        while self.site.keys is not None:
            try:
                signed = await asyncio.to_thread(
                    refresh, self.site.repository, self.site.keys, within_days=_RENEW_WITHIN_DAYS
                )
                if signed:
                    _log.info("signed anew: %s", ", ".join(signed))
            except EdgegenError as error:
                _log.error("the repository is not renewed: %s", error)
            except Exception:
                _log.exception("the repository is not renewed")
            await asyncio.sleep(_RENEW_EVERY_S)

    async def expire_forever(self) -> None:
        """Throw telemetry away when its time is over, a slice at a time."""
        swept_s = -_SWEEP_EVERY_S
        while True:
            more = False
            try:
                more, texts = await self._do(lambda tx: expire(tx, self.clock()))
                if texts and not more:
                    self.writer.clear_log()
                if time.monotonic() - swept_s >= _SWEEP_EVERY_S:
                    swept_s = time.monotonic()
                    await self._do(lambda tx: sweep(tx, self.clock()))
            except EdgegenError as error:
                _log.error("%s", error)
            except Exception:
                _log.exception("telemetry does not expire")
            await asyncio.sleep(_BREATH_S if more else _EXPIRE_EVERY_S)

    def _tick(self, tx: Transaction, tick_s: float) -> None:
        now_s = self.clock()
        note_life(tx, now_s, tick_s, self.poll_s)
        forgive_outage(tx, now_s, tick_s)
        advance_all(tx, now_s, self.gauge)

    async def healthz(self, request: Request) -> Response:
        async def look() -> dict[str, str]:
            await self._do(lambda tx: tx.rows("SELECT 1 AS one"))
            return {"status": "ok"}

        return await _answered(look())

    async def metrics(self, request: Request) -> Response:
        text = await self._do(lambda tx: describe_fleet(tx, self.clock(), self.poll_s) + describe_reports(tx))
        return Response(text, media_type="text/plain; version=0.0.4")

    async def enrol(self, request: Request) -> Response:
        async def take() -> Enrolled:
            token = _credential(request, "EnrolToken")
            asked = await _body(request, Enrolment)
            group = await self._do(lambda tx: enrol(tx, self.clock(), token, asked))
            base = self._base(request)
            return Enrolled(
                device=asked.device,
                group=group,
                controller=f"{base}/{TENANT}/controller/v1/{asked.device}",
                repository=base + REPOSITORY,
                poll_s=self.poll_s,
            )

        return await _answered(take())

    async def poll(self, request: Request) -> Response:
        running, base = request.headers.get(RUNNING_HEADER, ""), self._base(request)
        return await self._for_device(
            request,
            lambda tx, device: controller.poll(
                tx, self.clock(), device, running=running, poll_s=self.poll_s, base=base
            ),
        )

    async def attributes(self, request: Request) -> Response:
        return await self._for_device(
            request, lambda tx, device, said: controller.describe_itself(tx, device, said), Attributes
        )

    async def deployment(self, request: Request) -> Response:
        return await self._show(request, installed=False)

    async def installed(self, request: Request) -> Response:
        return await self._show(request, installed=True)

    async def _show(self, request: Request, *, installed: bool) -> Response:
        action, base = request.path_params["action"], self._base(request)
        return await self._for_device(
            request,
            lambda tx, device: controller.deployment(tx, device["device"], action, base=base, installed=installed),
        )

    async def feedback(self, request: Request) -> Response:
        action = request.path_params["action"]
        return await self._for_device(
            request,
            lambda tx, device, said: controller.report(tx, self.clock(), device["device"], action, said),
            Feedback,
        )

    async def cancelation(self, request: Request) -> Response:
        action = request.path_params["action"]
        return await self._for_device(request, lambda tx, device: controller.cancelation(tx, device["device"], action))

    async def cancel_feedback(self, request: Request) -> Response:
        action = request.path_params["action"]
        return await self._for_device(
            request,
            lambda tx, device, said: controller.report_cancelation(tx, self.clock(), device["device"], action, said),
            Feedback,
        )

    async def reports(self, request: Request) -> Response:
        """A device's telemetry; answered when it is committed."""

        async def run() -> Ack:
            name, token = request.path_params["device"], _credential(request, "TargetToken")
            if request.headers.get("content-encoding", "identity").strip().lower() not in ("gzip", "identity"):
                raise RequestError(415, "a batch is gzip or plain")

            def admission(tx: Transaction) -> Row:
                return device_of(tx, name, token)

            await self.intake.admit(admission)
            with self.intake.place():
                return await self.intake.take(await _bytes(request, MOST_PACKED_BYTES), admission)

        return await _answered(run())

    async def operate(self, request: Request) -> Response:
        async def operate() -> Any:
            name = request.path_params["operation"]
            token = _credential(request, "Bearer")
            await self._do(lambda tx: operator_of(tx, token))  # before the body is read
            found = OPERATIONS.get(name)
            if found is None or found.local:
                raise RequestError(404, "no such operation")
            asked = await _body(request, found.asks, _MOST_OPERATOR_BYTES)
            done = await self._do(
                lambda tx: found.carry_out(
                    tx, self.clock(), f"operator:{operator_of(tx, token)}", asked, self.site.folder
                )
            )
            if found.erases:
                self.writer.clear_log()
            return done

        return await _answered(operate())

    async def _for_device(self, request: Request, job: Callable[..., Any], kind: Any = None) -> Response:
        """Run `job(transaction, device's row[, message])` if the device's own token came along."""

        async def run() -> Any:
            name, token = request.path_params["device"], _credential(request, "TargetToken")
            if kind is None:
                return await self._do(lambda tx: job(tx, device_of(tx, name, token)))
            await self._do(lambda tx: device_of(tx, name, token))  # before the body is read
            said = await _body(request, kind)
            return await self._do(lambda tx: job(tx, device_of(tx, name, token), said))

        return await _answered(run())

    def _base(self, request: Request) -> str:
        return self.public_url or str(request.base_url).rstrip("/")

    async def _do(self, job: Callable[[Transaction], T]) -> T:
        return await asyncio.wrap_future(self.writer.submit(job))


class _Number(Convertor[int]):
    """Digits that a database's column holds."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())


class _Files(StaticFiles):
    """Static files: content-addressed ones may be kept for ever, metadata must be asked for again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if not Path(self.directory or "").is_dir():  # nothing was published yet
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        kept = "blobs" in scope.get("root_path", "")
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if kept else "no-cache"
        return response


async def _answered(work: Awaitable[Any]) -> Response:
    """The result as JSON, or a refusal with its status."""
    try:
        return Response(msgspec.json.encode(await work), media_type="application/json")
    except RequestError as error:
        return _refusal(error.status, str(error))
    except ConfigError as error:
        return _refusal(400, str(error), error.hint)
    except OverflowError:
        return _refusal(400, "a number is too large")
    except ClientDisconnect:
        return _refusal(400, "the client went away")
    except EdgegenError as error:
        _log.error("%s", error)
        return _refusal(503, str(error), error.hint)


def _refusal(status: int, message: str, hint: str = "") -> Response:
    body = {"error": message} | ({"hint": hint} if hint else {})
    headers = {401: {"www-authenticate": "TargetToken"}, 503: {"retry-after": "5"}}.get(status, {})
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


async def _as_json(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _refusal(status, "no such thing here" if status == 404 else f"HTTP {status}")


def _credential(request: Request, scheme: str) -> str:
    """The token of `Authorization: <scheme> <token>`.

    Raises:
        RequestError: 401, another scheme or none.
    """
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != scheme.lower() or not token.strip():
        raise RequestError(401, f"Authorization: {scheme} <token> is needed")
    return token.strip()


async def _body(request: Request, kind: type[T], most_bytes: int = _MOST_BYTES) -> T:
    """The message in a request.

    Raises:
        RequestError: 413 too long, 408 too slow, 400 not what it should be.
    """
    data = await _bytes(request, most_bytes)
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, str(error)) from error


async def _bytes(request: Request, most_bytes: int) -> bytes:
    """A request's body.

    Raises:
        RequestError: 413 too long, 408 too slow.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_PATIENCE_S):
            async for piece in request.stream():
                data += piece
                if len(data) > most_bytes:
                    raise RequestError(413, f"more than {most_bytes} bytes")
    except TimeoutError as error:
        raise RequestError(408, "the request took too long") from error
    return bytes(data)
