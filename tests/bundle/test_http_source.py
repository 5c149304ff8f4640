"""Small files from a web server: every way it can misbehave has a name."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgegen.bundle.sources import FolderSource, HttpSource, MissingError
from edgegen.bundle.trust import Trust
from edgegen.errors import Fault, NetworkError, TrustError
from tests.bundle.releases import NOW, make_site


class Odd(BaseHTTPRequestHandler):
    """Answers as the path says."""

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        if kind.isdecimal():
            self.send_error(int(kind))
            return
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Length", "100" if kind == "short" else str(1 << 40))
        self.end_headers()
        with contextlib.suppress(OSError):
            if kind == "short":
                self.wfile.write(b"x" * 10)
            while kind in ("endless", "slow"):
                self.wfile.write(b"x" * (1 if kind == "slow" else 65536))
                time.sleep(0.05 if kind == "slow" else 0)


@contextlib.contextmanager
def serving(handler: object) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    with serving(Odd) as url:
        yield url


@pytest.mark.parametrize("path", ["403", "404", "410"])
def test_a_missing_file_is_not_asked_for_again(odd: str, path: str) -> None:
    with pytest.raises(MissingError) as caught:
        HttpSource(odd).read(path, 100)
    assert not caught.value.retryable and caught.value.exit_code == 8


@pytest.mark.parametrize("path", ["500", "503", "429", "reset", "short"])
def test_a_failing_server_is_a_network_error(odd: str, path: str) -> None:
    with pytest.raises(NetworkError) as caught:
        HttpSource(odd).read(path, 100)
    assert caught.value.retryable and "\n" not in str(caught.value)


def test_an_endless_answer_is_cut_off(odd: str) -> None:
    with pytest.raises(TrustError) as caught:
        HttpSource(odd).read("endless", 1000)
    assert caught.value.fault == Fault.SIZE


def test_a_dripping_answer_is_given_up(odd: str) -> None:
    started = time.monotonic()
    with pytest.raises(NetworkError, match="not whole after"):
        HttpSource(odd, deadline_s=0.3).read("slow", 1 << 20)
    assert time.monotonic() - started < 5


def test_a_closed_port_and_a_wrong_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "nonsense"):
        with pytest.raises(NetworkError):
            HttpSource(url).read("x", 10)


def test_any_static_server_holds_a_repository(tmp_path: Path) -> None:
    keys, site, packed = make_site(tmp_path)
    with serving(partial(Quiet, directory=str(site))) as url:
        found = Trust(
            tmp_path / "state", (keys / "root.json").read_bytes(), HttpSource(url), now=lambda: NOW.timestamp()
        )
        found.refresh()
        assert found.manifest(packed.about.target).data == packed.data


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        FolderSource(tmp_path / "nowhere").read("metadata/timestamp.json", 10)
