"""A device that reports: the wire's client with a spool of its own on the disk, for tests and measurements.

As a program it makes reports and sends them until it is told to stop or killed, and goes on where its spool stands:

    python -m tests.simulators.reporting_device SPOOL URL NAME TOKEN COUNT
"""

from __future__ import annotations

import gzip
import http.client
import random
import sqlite3
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgegen.records.telemetry import (
    INGEST_PATH,
    Ack,
    Batch,
    Features,
    Generation,
    Item,
    Lane,
    Report,
)

RELEASE = "sha256:" + "ab" * 32
BOOT = "0c9e6d1e-7a55-4f0a-9b1f-9b53e1a1c001"


def generation(number: int = 1, **changes: Any) -> Generation:
    """An ordinary answer; the same number gives the same one."""
    chance = random.Random(number)
    features = Features(
        characters=chance.randrange(50, 900),
        empty=False,
        repetition=round(chance.random() * 0.2, 4),
        distinct2=round(0.8 + chance.random() * 0.2, 4),
        non_letter_fraction=round(chance.random() * 0.3, 4),
        script="latin",
        refusal=False,
        leaked=False,
    )
    plain = Generation(
        id=f"chatcmpl-{chance.getrandbits(96):024x}",
        release=RELEASE,
        template="0123456789ab",
        runtime="llamacpp 0.3.30",
        prompt_tokens=chance.randrange(10, 400),
        answer_tokens=chance.randrange(10, 200),
        stop="stop",
        queue_s=round(chance.random() * 0.01, 6),
        ttft_s=round(0.3 + chance.random(), 6),
        tokens_per_s=round(8 + 4 * chance.random(), 4),
        threads=4,
        mean_log_prob=round(-0.3 - chance.random(), 6),
        mean_entropy=round(chance.random(), 6),
        distinct_fraction=round(0.5 + chance.random() / 2, 4),
        rss_bytes=700_000_000 + chance.randrange(10**7),
        peak_rss_bytes=800_000_000,
        temperature_c=round(55 + 10 * chance.random(), 1),
        throttled=False,
        features=features,
    )
    return msgspec.structs.replace(plain, **changes)


def report(seq: int, item: Item, *, stream: str, age_s: float = 0.0, **changes: Any) -> Report:
    """A report that was made `age_s` seconds ago."""
    plain = Report(stream, seq, Lane.NUMBERS, time.time() - age_s, time.monotonic() - age_s, BOOT, item)
    return msgspec.structs.replace(plain, **changes)


def batch_of(reports: Sequence[Report | bytes], *, stream: str, packed: bool = True, **changes: Any) -> bytes:
    """A batch's bytes; reports may be lines already, right or wrong."""
    head = msgspec.structs.replace(Batch(stream, time.time(), time.monotonic(), BOOT, len(reports)), **changes)
    lines = [one if isinstance(one, bytes) else msgspec.json.encode(one) for one in reports]
    body = b"\n".join([msgspec.json.encode(head), *lines, b""])
    return gzip.compress(body, 1) if packed else body


def send(url: str, device: str, token: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Post a batch; status and answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        return send_on(connection, device, token, body, **headers)
    finally:
        connection.close()


def send_on(
    connection: http.client.HTTPConnection, device: str, token: str, body: bytes, **headers: str
) -> tuple[int, bytes]:
    """Post a batch on a connection that is kept."""
    plain = {"Authorization": f"TargetToken {token}"}
    if body.startswith(b"\x1f\x8b"):
        plain["Content-Encoding"] = "gzip"
    connection.request("POST", INGEST_PATH.format(device=device), body, plain | headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


class Spool:
    """Numbered reports on the disk until they are acknowledged."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS reports (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
        self._db.execute("CREATE TABLE IF NOT EXISTS self (stream TEXT)")
        self._db.execute("INSERT INTO self SELECT ? WHERE NOT EXISTS (SELECT 1 FROM self)", (uuid.uuid4().hex,))
        self.stream = str(self._db.execute("SELECT stream FROM self").fetchone()[0])

    def made(self) -> int:
        """Reports ever numbered."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'reports'").fetchone()
        return int(row[0]) if row else 0

    def add(self) -> None:
        seq = self.made() + 1
        line = msgspec.json.encode(report(seq, generation(seq), stream=self.stream))
        self._db.execute("INSERT INTO reports (seq, body) VALUES (?, ?)", (seq, line))

    def oldest(self, count: int) -> list[tuple[int, bytes]]:
        return self._db.execute("SELECT seq, body FROM reports ORDER BY seq LIMIT ?", (count,)).fetchall()

    def forget(self, seqs: Sequence[int]) -> None:
        self._db.executemany("DELETE FROM reports WHERE seq = ?", [(seq,) for seq in seqs])

    def close(self) -> None:
        self._db.close()


def main(words: Sequence[str]) -> None:
    path, url, device, token, count = words
    spool = Spool(Path(path))
    while True:
        while spool.made() < int(count) and len(spool.oldest(40)) < 40:
            spool.add()
        some = spool.oldest(random.randrange(1, 40))
        if not some:
            return
        try:
            status, answer = send(
                url, device, token, batch_of([body for _, body in some], stream=spool.stream, packed=False)
            )
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
            continue
        if status == 200:
            ack = msgspec.json.decode(answer, type=Ack)
            assert ack.stored + ack.known == len(some) and not ack.refused, ack
            spool.forget([seq for seq, _ in some])
        else:
            assert status >= 500, (status, answer)
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1:])
