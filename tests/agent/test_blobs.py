"""Blobs from web servers that behave, and from those that do not."""

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgegen.agent.blobs import FolderFetcher, HttpFetcher
from edgegen.agent.fetch import BusyError, GoneError
from edgegen.common.files import digest_bytes
from edgegen.errors import NetworkError

DATA = bytes(range(256)) * 20
DIGEST = digest_bytes(DATA)
Handler = http.server.BaseHTTPRequestHandler
Answer = Callable[[Handler], None]


def _free(_: int) -> None:
    """A link without a limit."""


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], HttpFetcher]]:
    """Start a server that answers every request in one way; a fetcher for it."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answer: Answer) -> HttpFetcher:
        class Answering(Handler):
            def do_GET(self) -> None:  # noqa: N802
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return HttpFetcher(f"http://127.0.0.1:{server.server_port}", timeout_s=1.0, window_s=0.5)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _range(handler: Handler) -> tuple[int, int]:
    first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
    return int(first), int(last) + 1


def _send(handler: Handler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def _partial(handler: Handler) -> None:
    start, end = _range(handler)
    _send(handler, 206, DATA[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}")


def test_a_range(serve: Callable[[Answer], HttpFetcher]) -> None:
    assert b"".join(serve(_partial).fetch(DIGEST, 100, 4000, _free)) == DATA[100:4000]


def test_a_server_without_ranges(serve: Callable[[Answer], HttpFetcher]) -> None:
    with contextlib.closing(serve(lambda handler: _send(handler, 200, DATA))) as fetcher:
        assert b"".join(fetcher.fetch(DIGEST, 100, 4000, _free)) == DATA[100:4000]


def test_a_server_without_ranges_is_asked_once_for_many_parts(serve: Callable[[Answer], HttpFetcher]) -> None:
    """And what it sends between them is counted: it came over the link."""
    asked: list[str] = []
    spent: list[int] = []

    def whole(handler: Handler) -> None:
        asked.append(handler.headers["Range"])
        _send(handler, 200, DATA)

    with contextlib.closing(serve(whole)) as fetcher:
        for start, end in ((100, 200), (1000, 1001), (4000, 5000)):
            assert b"".join(fetcher.fetch(DIGEST, start, end, spent.append)) == DATA[start:end]
        assert len(asked) == 1 and sum(spent) == 5000
        # What lies before needs another answer, and so does another blob.
        assert b"".join(fetcher.fetch(DIGEST, 100, 200, spent.append)) == DATA[100:200]
        assert len(asked) == 2 and sum(spent) == 5200
        list(fetcher.fetch("sha256:" + "0" * 64, 300, 400, spent.append))
        assert len(asked) == 3


def test_an_answer_that_breaks_between_two_parts_is_asked_for_again(serve: Callable[[Answer], HttpFetcher]) -> None:
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[:500])
        handler.close_connection = True

    with contextlib.closing(serve(cut)) as fetcher:
        assert b"".join(fetcher.fetch(DIGEST, 0, 200, _free)) == DATA[:200]
        with pytest.raises(NetworkError):
            list(fetcher.fetch(DIGEST, 300, 600, _free))
        assert b"".join(fetcher.fetch(DIGEST, 300, 400, _free)) == DATA[300:400]


def test_never_more_than_asked_for(serve: Callable[[Answer], HttpFetcher]) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-9/10")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(10_000))
        except OSError:
            pass

    assert len(b"".join(serve(endless).fetch(DIGEST, 0, 10, _free))) == 10


@pytest.mark.parametrize(
    ("status", "error"), [(404, GoneError), (410, GoneError), (403, GoneError), (416, GoneError), (301, GoneError)]
)
def test_what_is_final(serve: Callable[[Answer], HttpFetcher], status: int, error: type[NetworkError]) -> None:
    with pytest.raises(error) as caught:
        list(serve(lambda handler: _send(handler, status)).fetch(DIGEST, 0, 10, _free))
    assert not caught.value.retryable


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_passes(serve: Callable[[Answer], HttpFetcher], status: int) -> None:
    with pytest.raises(BusyError) as caught:
        list(serve(lambda handler: _send(handler, status, Retry_After="9")).fetch(DIGEST, 0, 10, _free))
    assert caught.value.retryable and caught.value.after_s == 9


def test_another_range_than_asked_for(serve: Callable[[Answer], HttpFetcher]) -> None:
    fetcher = serve(lambda handler: _send(handler, 206, DATA[:10], Content_Range="bytes 0-9/10"))
    with pytest.raises(NetworkError, match="another range"):
        list(fetcher.fetch(DIGEST, 100, 110, _free))


def test_a_reset_and_a_silence(serve: Callable[[Answer], HttpFetcher]) -> None:
    def cut(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-999/1000")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(bytes(10))

    with pytest.raises(NetworkError):
        list(serve(cut).fetch(DIGEST, 0, 1000, _free))
    with pytest.raises(NetworkError):
        list(serve(lambda _: time.sleep(3)).fetch(DIGEST, 0, 1000, _free))


def test_dripping_bytes(serve: Callable[[Answer], HttpFetcher]) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-4999/5120")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    started = time.monotonic()
    with pytest.raises(NetworkError, match="only"):
        list(serve(drip).fetch(DIGEST, 0, 5000, _free))
    assert time.monotonic() - started < 3


def test_nobody_listens() -> None:
    with pytest.raises(NetworkError):
        list(HttpFetcher("http://127.0.0.1:1", timeout_s=1).fetch(DIGEST, 0, 10, _free))


def test_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "blobs" / "sha256" / DIGEST[7:9] / DIGEST[7:]
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert b"".join(FolderFetcher(tmp_path).fetch(DIGEST, 5, 5000, _free)) == DATA[5:5000]
    with pytest.raises(GoneError):
        list(FolderFetcher(tmp_path).fetch("sha256:" + "0" * 64, 0, 5, _free))
