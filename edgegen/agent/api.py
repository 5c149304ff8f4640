"""The local HTTP API: what OpenAI's clients speak, and what a monitor asks.

    GET  /v1/models, /v1/models/{id}
    POST /v1/chat/completions, /v1/completions      streamed as server-sent events if asked
    POST /v1/feedback   {"id": an answer's, "rating": "up", "down", 1 or -1, "comment": "..."}
    GET  /healthz       200 while the model answers, 503 when it cannot go on
    GET  /metrics       Prometheus text

Tokens are asked for on /v1 and /metrics where the configuration names some. /healthz says nothing of what was asked.
What the agent itself asks, by a secret that only the two know, is not reported; /edgegen/golden is for it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edgegen.agent import dialect
from edgegen.agent.engine import BusyEngineError, Engine, Job, Told
from edgegen.common.process import peak_rss_bytes, rss_bytes
from edgegen.errors import ConfigError, DeviceError, EdgegenError
from edgegen.records.bundle import Golden

_LARGEST_BODY = 4 << 20


class Opinions(Protocol):
    """Takes what users think of answers."""

    def knows(self, name: str) -> bool:
        """Whether this device gave an answer of this id."""
        ...

    def feedback(self, name: str, rating: int, comment: str) -> None:
        """A user's opinion."""
        ...


class Api:
    """The app for one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        release: str,
        created: int,
        tokens: Sequence[str],
        max_tokens: int,
        own: str = "",
        opinions: Opinions | None = None,
    ) -> None:
        """Build `app`.

        Args:
            model: name under which the release answers.
            release: digest of its manifest.
            created: seconds since 1970, of the release.
            tokens: that clients may give; none: nobody is asked.
            max_tokens: of an answer whose request names no limit.
            own: token of the agent's own requests; empty: it makes none.
            opinions: where feedback goes; None: nowhere.
        """
        self._own, self._opinions = own.encode(), opinions
        self._engine, self._model, self._release, self._created = engine, model, release, created
        self._tokens = [token.encode() for token in tokens]
        self._reader = dialect.Reader(engine, model, max_tokens=max_tokens)
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{id:path}", self._guarded(self._one_model)),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
                Route("/v1/feedback", self._guarded(self._feedback), methods=["POST"]),
                Route("/edgegen/golden", self._golden, methods=["POST"]),
                Route("/healthz", self._health),
                Route("/metrics", self._guarded(self._metrics)),
            ],
            exception_handlers={HTTPException: _refuse},
        )

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            if self._tokens:
                given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
                matches = [hmac.compare_digest(given, token) for token in self._tokens]  # each, whichever fits
                if not any(matches):
                    body = dialect.problem(
                        "a valid token is needed", kind="authentication_error", code="invalid_api_key"
                    )
                    return JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
            return await handler(request)

        return guarded

    def _is_own(self, request: Request) -> bool:
        """Whether the agent asks."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        return bool(self._own) and hmac.compare_digest(given, self._own)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _one_model(self, request: Request) -> Response:
        if request.path_params["id"] != self._model:
            raise HTTPException(404, f"there is no model {request.path_params['id']!r} here")
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": self._created, "owned_by": "edgegen"}

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, self._reader.chat)

    async def _completion(self, request: Request) -> Response:
        return await self._answer(request, self._reader.completion)

    async def _answer(self, request: Request, read: Callable[[dialect.Json], dialect.Wish]) -> Response:
        try:
            wish = read(await _body(request))
            job = self._engine.submit(wish.ask, wish.constraint, name=wish.id, watched=not self._is_own(request))
        except BusyEngineError as error:
            body = dialect.problem(str(error), kind="rate_limit_error", code="busy")
            return JSONResponse(body, 429, headers={"Retry-After": "1"})
        except ClientDisconnect:
            return Response(status_code=499)
        except EdgegenError as error:
            return _failed(error)
        if wish.stream:
            first = await job.pieces.get()
            if first.error is not None:
                return _failed(first.error)
            return StreamingResponse(
                self._events(wish, job, first), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        return await self._whole(request, wish, job)

    async def _whole(self, request: Request, wish: dialect.Wish, job: Job) -> Response:
        text = ""
        marks: list[tuple[int, float]] = []
        watcher = asyncio.create_task(_disconnected(request, job))
        try:
            while True:
                piece = await job.pieces.get()
                if piece.error is not None:
                    return _failed(piece.error)
                text += piece.text
                marks += piece.marks
                if piece.ended:
                    return JSONResponse(
                        dialect.whole_answer(wish, text, piece.ended, piece.tokens, marks, self._engine)
                    )
        finally:
            job.gone.set()
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _events(self, wish: dialect.Wish, job: Job, first: Told) -> AsyncIterator[str]:
        try:
            if wish.chat:
                yield _event(dialect.chunk(wish, role=True, engine=self._engine))
            piece = first
            while True:
                if piece.error is not None:
                    yield _event(dialect.problem(str(piece.error), kind="server_error"))
                    return
                if piece.text or piece.marks:
                    yield _event(dialect.chunk(wish, text=piece.text, marks=piece.marks, engine=self._engine))
                if piece.ended:
                    yield _event(dialect.chunk(wish, ended=piece.ended, engine=self._engine))
                    if wish.usage_in_stream:
                        yield _event(dialect.usage_chunk(wish, piece.tokens))
                    yield "data: [DONE]\n\n"
                    return
                piece = await job.pieces.get()
        finally:
            job.gone.set()

    async def _feedback(self, request: Request) -> Response:
        if self._opinions is None:
            raise HTTPException(501, "feedback is not kept here: telemetry is off on this device")
        try:
            name, rating, comment = _opinion(await _body(request))
        except ClientDisconnect:
            return Response(status_code=499)
        except ConfigError as error:
            return _failed(error)
        try:
            known = await run_in_threadpool(self._opinions.knows, name)
        except DeviceError as error:
            return _failed(error)
        if not known:
            raise HTTPException(404, f"no answer {name[:80]!r} was given here, or too long ago")
        self._opinions.feedback(name, rating, comment)
        return JSONResponse({"id": name, "object": "feedback", "rating": rating})

    async def _golden(self, request: Request) -> Response:
        if not self._is_own(request):
            raise HTTPException(404, "Not Found")
        try:
            golden = msgspec.convert(await _body(request), Golden)
            answered = await self._engine.check(golden)
        except BusyEngineError as error:
            return JSONResponse(dialect.problem(str(error), kind="rate_limit_error", code="busy"), 429)
        except ClientDisconnect:
            return Response(status_code=499)
        except msgspec.ValidationError as error:
            return _failed(ConfigError(str(error)))
        except EdgegenError as error:
            return _failed(error)
        return Response(msgspec.json.encode(answered), media_type="application/json")

    async def _health(self, _: Request) -> Response:
        counts = self._engine.counts
        body = {
            "status": "failed" if self._engine.failed else "ok",
            "release": self._release,
            "model": self._model,
            "runtime": f"{self._engine.runtime} {self._engine.version}",
            "load_s": self._engine.load_s,
            "requests": counts.requests,
            "errors": counts.errors,
            "answer_tokens": counts.answer_tokens,
            "tokens_per_s": counts.tokens_per_s,
            "rss_bytes": rss_bytes(),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        return JSONResponse(body, 503 if self._engine.failed else 200)

    async def _metrics(self, _: Request) -> Response:
        counts = self._engine.counts
        rows: list[tuple[str, str, str, float]] = [
            ("requests_total", "counter", "Requests that the model began.", counts.requests),
            ("request_errors_total", "counter", "Requests that failed in the model.", counts.errors),
            ("requests_canceled_total", "counter", "Requests whose client went away.", counts.canceled),
            ("prompt_tokens_total", "counter", "Tokens of prompts.", counts.prompt_tokens),
            ("answer_tokens_total", "counter", "Tokens of answers.", counts.answer_tokens),
            ("prefill_seconds_total", "counter", "Seconds until the first logits.", counts.prefill_s),
            ("decode_seconds_total", "counter", "Seconds of decoding.", counts.decode_s),
            ("queue_seconds_total", "counter", "Seconds that requests waited for the model.", counts.waited_s),
            ("requests_waiting", "gauge", "Requests in line.", self._engine.waiting),
            ("resident_bytes", "gauge", "Memory of the serving process.", rss_bytes()),
            ("load_seconds", "gauge", "Seconds that loading the model took.", self._engine.load_s),
            ("up", "gauge", "1 while the model answers.", float(not self._engine.failed)),
        ]
        lines = []
        for name, kind, words, value in rows:
            lines += [f"# HELP edgegen_{name} {words}", f"# TYPE edgegen_{name} {kind}", f"edgegen_{name} {value:g}"]
        lines += [
            "# HELP edgegen_release_info What is served.",
            "# TYPE edgegen_release_info gauge",
            f'edgegen_release_info{{release="{self._release}",model="{self._model}"}} 1',
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _opinion(body: dialect.Json) -> tuple[str, int, str]:
    """Id, rating and comment.

    Raises:
        ConfigError: what is wrong with it.
    """
    unknown = sorted(set(body) - {"id", "rating", "comment"})
    if unknown:
        raise ConfigError(f"{unknown[0]}: this field is not known here")
    name, rating, comment = body.get("id"), body.get("rating"), body.get("comment")
    if not isinstance(name, str) or not name:
        raise ConfigError("id: the id of an answer is needed")
    found = {"up": 1, "down": -1}.get(rating) if isinstance(rating, str) else rating
    if isinstance(found, bool) or found not in (1, -1):
        raise ConfigError('rating: known are "up", "down", 1 and -1')
    if comment is not None and not isinstance(comment, str):
        raise ConfigError("comment: a text is needed")
    return name, int(found), comment or ""


async def _body(request: Request) -> dialect.Json:
    """The request's JSON object.

    Raises:
        ConfigError: too large, or no JSON object.
    """
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _LARGEST_BODY:
            raise ConfigError(f"the request is larger than {_LARGEST_BODY:,} bytes")
    try:
        body = msgspec.json.decode(data)  # which refuses half a surrogate pair: no tokenizer takes that
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ConfigError("the request is not a JSON object")
    return body


async def _disconnected(request: Request, job: Job) -> None:
    """Stop the model when the client goes away."""
    while not job.gone.is_set():
        if await request.is_disconnected():
            job.gone.set()
            job.tell(Told(error=DeviceError("the client went away")))
            return
        await asyncio.sleep(0.1)


def _event(body: dialect.Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _failed(error: EdgegenError) -> Response:
    words = f"{error}. {error.hint}" if error.hint else str(error)
    if isinstance(error, ConfigError):
        return JSONResponse(dialect.problem(words, kind="invalid_request_error"), 400)
    return JSONResponse(dialect.problem(words, kind="server_error"), 500)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(dialect.problem(error.detail, kind="invalid_request_error"), error.status_code)
