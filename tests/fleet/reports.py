"""Devices and their reports, written straight into a store: what ingest would have left there."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

from edgegen.fleet.schema import next_id
from edgegen.fleet.telemetry.schema import REPORTS
from edgegen.fleet.transaction import Transaction
from tests.fleet.site import Desk

_COLUMNS: dict[str, dict[str, Any]] = {
    "generations": dict.fromkeys(
        (
            *("queue_s", "ttft_s", "tokens_per_s", "threads", "mean_log_prob", "mean_entropy", "distinct_fraction"),
            *("byte_fraction", "rss_bytes", "peak_rss_bytes", "temperature_c", "throttled", "characters", "repetition"),
            *("distinct2", "non_letter_fraction", "script", "json_valid"),
        )
    )
    | {"flags": 0, "prompt_tokens": 10, "answer_tokens": 20, "stop": "stop", "error": "", "missing": ""},
    "samples": {
        "release": "",
        "prompt": "p",
        "answer": "a",
        "level": "p2",
        "why": "sampled",
        "redactions": 0,
        "cut": 0,
    },
    "feedback": {"rating": 1, "comment": ""},
    "canaries": {"prompt": 0, "agreed": 8, "expected": 8, "log_prob_drop": 0.0, "tokens_per_s": None, "intact": None}
    | {"ids": ""},
    "health": {"uptime_s": 1.0, "spool_reports": 0, "spool_bytes": 0, "privacy": "p0"}
    | dict.fromkeys(
        ("load_s", "rss_bytes", "peak_rss_bytes", "temperature_c", "throttled", "free_bytes", "free_ram_bytes")
    ),
    "events": {"level": "info", "what": "started", "detail": "", "release": "", "grp": ""},
    "dropped": {"lane": 2, "count": 1, "first_seq": 1, "last_seq": 1, "why": "quota"},
}
_numbers = itertools.count(1)


class Reports:
    """Adds rows. Times are the desk's unless they are given."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.served: dict[str, int] = {}
        self._waiting: list[tuple[str, dict[str, Any]]] | None = None

    def device(
        self, device: str, group: str = "kitchen", *, release: str = "", seen_s: float | None = -1, **told: str
    ) -> None:
        """A device that is there now; `seen_s` None: never."""
        self.desk.run(
            lambda tx: tx.run(
                "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, seen_s, revoked) "
                "VALUES (?, ?, '', ?, ?, ?, ?, 0)",
                *(device, group, json.dumps(told), release, self.desk.now_s - 86400.0 * 5),
                self.desk.now_s if seen_s == -1 else seen_s,
            )
        )

    def state(self, device: str, **columns: Any) -> None:
        """The latest of a device."""
        row = {"device": device, "heard_s": self.desk.now_s, "boot": "b"} | dict.fromkeys(
            ("stored", "known", "refused", "dropped"), 0
        )
        self.desk.run(lambda tx: _insert(tx, "device_state", row | columns))

    def add(self, table: str, device: str, at_s: float | None = None, **columns: Any) -> str:
        """One report; for answers, its id."""
        number = next(_numbers)
        at_s = self.desk.now_s if at_s is None else at_s
        row = {
            "stream": 1,
            "seq": number,
            "device": device,
            "at_s": at_s,
            "received_s": at_s,
            "late": 0,
        }
        row |= _COLUMNS[table]
        if table == "generations":
            release = columns.pop("release", "sha256:r")
            row |= {"served": self._served(release), "generation": f"g{number}"}
        row |= columns
        assert (
            not row.keys()
            - {"cursor", "stream", "seq", "device", "at_s", "received_s", "late"}
            - set(REPORTS[table].replace(",", " ").split())
        )
        if self._waiting is None:
            self.desk.run(lambda tx: _insert(tx, table, row))
        else:
            self._waiting.append((table, row))
        return str(row.get("generation", ""))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is added inside is written in one transaction."""
        waiting = self._waiting = []
        yield
        self._waiting = None
        self.desk.run(lambda tx: [_insert(tx, table, row) for table, row in waiting])

    def _served(self, release: str) -> int:
        if release not in self.served:
            number = self.served[release] = len(self.served) + 1
            row = {"id": number, "release": release, "template": "t", "runtime": "r", "low_log_prob": -3.0}
            self.desk.run(lambda tx: _insert(tx, "served", row))
        return self.served[release]


def _insert(tx: Transaction, table: str, row: dict[str, Any]) -> None:
    if table in REPORTS:
        row = {"cursor": next_id(tx, f"cursor:{table}"), **row}
    tx.run(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", *row.values())
