"""How many reports a second a fleet's server takes in on one core: HTTP, unpacking, decoding, indexes and commit.

    python tools/bench_ingest.py [--devices 8] [--batches 40] [--reports 400] [--store FILE|postgresql://…]

The real server runs in a process of its own; simulated devices send over loopback from this one, each on its own
connection, gzipped batches made beforehand. CPU seconds are the server process's own (user and system), so that what
the senders and the machine's other work cost does not count. The same batches are then sent again: a repetition must
store nothing. Exit code 1 below 10,000 samples a CPU second, or if a report is lost or counted twice.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgegen.fleet.database import Database
from edgegen.records.telemetry import Ack
from tests.fleet.site import Desk, serving
from tests.simulators.ddi_device import DdiDevice
from tests.simulators.reporting_device import batch_of, generation, report, send_on

LEAST_PER_CPU_S = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--batches", type=int, default=40, help="of each device")
    parser.add_argument("--reports", type=int, default=400, help="in a batch")
    parser.add_argument("--store", help="another database than a file in a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), asked.store, asked.devices, asked.batches, asked.reports)


def measure(folder: Path, store: str | None, devices: int, batches: int, reports: int) -> int:
    (folder / "repository").mkdir()
    path = store or str(folder / "fleet.db")
    desk = Desk(path, time.time())
    ticket = desk.do("enrolment-token", group="bench", uses=devices)
    words = ("--store", store) if store else ()
    total = devices * batches * reports
    with serving(folder, *words) as (url, process):
        found = [DdiDevice(f"device-{number:04d}", url) for number in range(devices)]
        for device in found:
            device.enrol(ticket)
        bodies = {device.name: _bodies(device.name, batches, reports) for device in found}
        server = psutil.Process(process.pid)
        print(f"{devices} devices × {batches} batches × {reports} generations = {total:,} samples, one server process")
        stored, first_rate = _run(server, found, bodies, total, "new")
        again, _ = _run(server, found, bodies, total, "sent again")
    desk.database.close()
    rows = _rows(path)
    right = stored == rows == total and again == 0
    if store is None:
        size = Path(path).stat().st_size
        print(f"{size / total:.0f} bytes a row on the disk with all indexes; {size / 1e6:.0f} MB")
    print(f"{rows:,} rows: {'each report once' if right else 'WRONG'}")
    return 0 if right and first_rate >= LEAST_PER_CPU_S else 1


def _bodies(device: str, batches: int, reports: int) -> list[bytes]:
    stream = f"stream-of-{device}"
    made = []
    for batch in range(batches):
        first = batch * reports + 1
        some = [report(seq, generation(hash((device, seq))), stream=stream) for seq in range(first, first + reports)]
        made.append(batch_of(some, stream=stream))
    return made


def _run(
    server: psutil.Process, devices: Sequence[DdiDevice], bodies: dict[str, list[bytes]], total: int, what: str
) -> tuple[int, float]:
    """Send everything; how many were stored, and samples a CPU second."""
    stored: list[int] = []
    threads = [threading.Thread(target=_send, args=(device, bodies[device.name], stored)) for device in devices]
    cpu, began = sum(server.cpu_times()[:2]), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s, cpu_s = time.perf_counter() - began, sum(server.cpu_times()[:2]) - cpu
    rate = total / cpu_s
    print(
        f"{what}: {rate:,.0f} samples/s per CPU second ({cpu_s:.1f} CPU s of the server; "
        f"{total / wall_s:,.0f} samples/s by the clock); stored {sum(stored):,}"
    )
    return sum(stored), rate


def _send(device: DdiDevice, bodies: list[bytes], stored: list[int]) -> None:
    connection = http.client.HTTPConnection(urlsplit(device.url).netloc, timeout=60)
    for body in bodies:
        status, answer = send_on(connection, device.name, device.token, body)
        if status != 200:
            raise SystemExit(f"HTTP {status}: {answer.decode()}")
        ack = msgspec.json.decode(answer, type=Ack)
        stored.append(ack.stored)
        time.sleep(ack.wait_s)
    connection.close()


def _rows(store: str) -> int:
    database = Database(store)
    with database.snapshot() as tx:
        (row,) = tx.rows("SELECT COUNT(*) AS reports FROM generations")
    database.close()
    return int(row["reports"])


if __name__ == "__main__":
    sys.exit(main())
