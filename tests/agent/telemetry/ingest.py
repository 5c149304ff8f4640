"""What a fleet's server does with batches, written from the records: it commits, then it answers. Test code only.

`python ingest.py DATABASE PORT` is one that can be killed; `Ingest` is one inside a test, with faults.
"""

from __future__ import annotations

import gzip
import os
import random
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from edgegen.records.telemetry import MOST_BATCH_BYTES, MOST_REPORT_BYTES, Ack, Batch, Refused, Report


class Store:
    """Reports by (stream, seq), in a file."""

    def __init__(self, path: Path) -> None:
        self._link = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._link.execute("PRAGMA journal_mode = WAL")
        self._link.execute("CREATE TABLE IF NOT EXISTS report (stream, seq, line, PRIMARY KEY (stream, seq))")
        self._lock = threading.Lock()

    def take(self, body: bytes, refuses: Callable[[Report], bool] = lambda _: False) -> Ack:
        """Commit a batch."""
        assert len(body) <= MOST_BATCH_BYTES
        first, *lines = body.splitlines()
        batch = msgspec.json.decode(first, type=Batch)
        assert batch.reports == len(lines)
        stored, refused, seqs = 0, list[Refused](), list[int]()
        with self._lock:
            self._link.execute("BEGIN IMMEDIATE")
            for number, line in enumerate(lines, start=1):
                assert len(line) <= MOST_REPORT_BYTES
                report = msgspec.json.decode(line, type=Report)
                seqs.append(report.seq)
                assert report.stream == batch.stream
                if refuses(report):
                    refused.append(Refused(number, "not wanted"))
                    continue
                row = self._link.execute(
                    "SELECT line FROM report WHERE stream = ? AND seq = ?", (report.stream, report.seq)
                ).fetchone()
                if row is None:
                    self._link.execute("INSERT INTO report VALUES (?, ?, ?)", (report.stream, report.seq, line))
                    stored += 1
                else:
                    assert row[0] == line, "another report under the same number"
            self._link.execute("COMMIT")
        known = len(lines) - stored - len(refused)
        return Ack(batch.stream, stored, known, tuple(refused), min(seqs, default=0), max(seqs, default=0))

    def reports(self) -> list[Report]:
        """All that is committed."""
        with self._lock:
            rows = self._link.execute("SELECT line FROM report ORDER BY stream, seq").fetchall()
        return [msgspec.json.decode(row[0], type=Report) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._link.close()


class Handler(BaseHTTPRequestHandler):
    """`POST /telemetry/v1/{device}`."""

    protocol_version = "HTTP/1.1"
    store: Store
    fault: Callable[[str], tuple[int, dict[str, str]] | None]
    refuses: Callable[[Report], bool]

    def do_POST(self) -> None:
        """Commit, then answer, unless a fault is asked for before or after."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        before = self.fault("before")
        if before is not None:
            self._answer(before[0], b"fault", before[1])
            return
        assert self.headers["Content-Encoding"] == "gzip"
        assert self.headers["Authorization"].startswith("TargetToken ")
        ack = self.store.take(gzip.decompress(data), self.refuses)
        if self.fault("after") is not None:
            self.close_connection = True  # committed, and nobody hears of it
            return
        self._answer(200, msgspec.json.encode(ack), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def ingesting(
    store: Store,
    *,
    fault: Callable[[str], tuple[int, dict[str, str]] | None] = lambda _: None,
    refuses: Callable[[Report], bool] = lambda _: False,
    port: int = 0,
) -> Iterator[str]:
    """A server in this process; its URL."""
    kind = type("Bound", (Handler,), {"store": store, "fault": staticmethod(fault), "refuses": staticmethod(refuses)})
    with ThreadingHTTPServer(("127.0.0.1", port), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def main(path: str, port: str) -> None:
    """Serve until killed; some answers are lost after the commit, and it ends by itself now and then."""
    dice = random.Random()

    def fault(when: str) -> tuple[int, dict[str, str]] | None:
        chance = dice.random()
        if when == "after" and chance < 0.05:
            os._exit(9)
        return (503, {"Retry-After": "0"}) if chance < 0.15 else None

    class Bound(Handler):
        pass

    Bound.store, Bound.refuses = Store(Path(path)), staticmethod(lambda _: False)
    Bound.fault = staticmethod(fault)
    ThreadingHTTPServer.allow_reuse_address = True
    with ThreadingHTTPServer(("127.0.0.1", int(port)), Bound) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
