"""Answers of simulated devices, written into a store as they are kept there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from edgegen.bundle.profile import EDGES
from edgegen.fleet.drift.simulate import RATES, SHAPES
from edgegen.fleet.telemetry.schema import Flag, telemetry_tables
from edgegen.records.bundle import ReferenceProfile
from tests.fleet.site import Desk, manifest_bytes, target_of

_NUMBERS = itertools.count(1)
_FLAGS = {"empty": Flag.EMPTY, "refusal": Flag.REFUSE, "leaked": Flag.LEAK}


def draw_answer(dice: np.random.Generator, **shifts: float) -> dict[str, Any]:
    """An answer as a row of `generations`; shifts are in standard deviations, of rates what is added."""
    values = {
        metric: float(dice.normal(mean + shifts.get(metric, 0.0) * deviation, deviation))
        for metric, (mean, deviation) in SHAPES.items()
    }
    flags = 0
    for metric, rate in RATES.items():
        flags |= _FLAGS[metric] if dice.random() < rate + shifts.get(metric, 0.0) else 0
    tokens = max(1, int(np.exp(values["answer_tokens"])))
    share = {metric: min(1.0, max(0.0, values[metric])) for metric in ("byte_fraction", "distinct_fraction")}
    share |= {metric: min(1.0, max(0.0, values[metric])) for metric in ("distinct2", "repetition")}
    share["non_letter_fraction"] = min(1.0, max(0.0, values["non_letter_fraction"]))
    return {
        **share,
        "prompt_tokens": max(1, int(np.exp(values["prompt_tokens"]))),
        "answer_tokens": tokens,
        "characters": int(tokens * values["characters_per_token"]),
        "mean_log_prob": min(0.0, values["mean_log_prob"]),
        "mean_entropy": max(0.0, values["mean_entropy"]),
        "flags": int(flags),
        "stop": "stop",
        "ttft_s": float(dice.lognormal(-1, 0.2)),
        "tokens_per_s": float(dice.normal(12 * (1 + shifts.get("tokens_per_s", 0.0)), 1)),
    }


def reference_profile(dice: np.random.Generator, n: int = 400) -> ReferenceProfile:
    """A profile of n simulated answers."""
    rows = [draw_answer(dice) for _ in range(n)]
    values: dict[str, list[float]] = {metric: [row[metric] for row in rows] for metric in EDGES if metric in rows[0]}
    values["characters_per_token"] = [row["characters"] / row["answer_tokens"] for row in rows]
    values |= {metric: [float(bool(row["flags"] & flag)) for row in rows] for metric, flag in _FLAGS.items()}
    counts = {
        metric: tuple(
            np.bincount(np.searchsorted(EDGES[metric], given, side="right"), minlength=len(EDGES[metric]) + 1).tolist()
        )
        for metric, given in values.items()
    }
    return ReferenceProfile(edges={metric: EDGES[metric] for metric in counts}, counts=counts)


class Reports:
    """Writes reports into a fleet's store."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        dialect = "postgresql" if desk.database.url.startswith("postgresql") else "sqlite"
        try:
            desk.run(lambda tx: tx.rows("SELECT COUNT(*) AS n FROM served"))
        except Exception:  # each driver has its own; the tables are made with the database or here
            desk.run(lambda tx: [tx.run(statement) for statement in telemetry_tables(dialect)])

    def publish(self, version: str, reference: ReferenceProfile) -> str:
        """A release with a reference profile; its digest."""
        raw = manifest_bytes(version, reference=reference).decode()
        return str(self.desk.do("publish", manifest=raw, target=target_of(version)))

    def device(self, name: str, group: str = "kitchen", **attributes: str) -> None:
        self.desk.run(
            lambda tx: tx.run(
                "INSERT INTO devices (device, grp, token_digest, attributes, running, enrolled_s, seen_s, revoked) "
                "VALUES (?, ?, ?, ?, '', 0, 0, 0)",
                *(name, group, name, json.dumps(attributes)),
            )
        )

    def answers(
        self, device: str, release: str, count: int, since_s: float, until_s: float, draw: Callable[[], dict[str, Any]]
    ) -> None:
        """Answers spread over a stretch of time."""

        def write(tx: Any) -> None:
            served = self._served(tx, release)
            for place in range(count):
                at_s = since_s + (until_s - since_s) * (place + 1) / count
                number = next(_NUMBERS)
                row = {
                    **{"stream": 1, "seq": number, "device": device, "at_s": at_s, "received_s": at_s, "late": 0},
                    **{"served": served, "generation": f"g{number}", "error": "", "missing": ""},
                    **draw(),
                }
                _insert(tx, "generations", row)

        self.desk.run(write)

    def feedback(self, device: str, generation: str, rating: int) -> None:
        number = next(_NUMBERS)
        row = {"stream": 1, "seq": number, "device": device, "at_s": 0.0, "received_s": 0.0, "late": 0}
        self.desk.run(
            lambda tx: _insert(tx, "feedback", {**row, "generation": generation, "rating": rating, "comment": ""})
        )

    def canary(self, device: str, release: str, at_s: float, **values: Any) -> None:
        number = next(_NUMBERS)
        row = {
            **{"stream": 1, "seq": number, "device": device, "at_s": at_s, "received_s": at_s, "late": 0},
            **{"release": release, "prompt": 0, "agreed": 8, "expected": 8, "log_prob_drop": 0.0, "ids": "[]"},
        }
        self.desk.run(lambda tx: _insert(tx, "canaries", {**row, **values}))

    def embedding(self, device: str, release: str, at_s: float, what: str, mean: list[float], n: int = 50) -> None:
        number = next(_NUMBERS)
        row = {
            **{"stream": 1, "seq": number, "device": device, "at_s": at_s, "received_s": at_s, "late": 0},
            **{"release": release, "what": what, "n": n, "mean": json.dumps(mean)},
            "variance": json.dumps([1.0] * len(mean)),
        }
        self.desk.run(lambda tx: _insert(tx, "embeddings", row))

    def _served(self, tx: Any, release: str) -> int:
        rows = tx.rows("SELECT id FROM served WHERE release = ?", release)
        if rows:
            return int(rows[0]["id"])
        number = next(_NUMBERS)
        _insert(tx, "served", {"id": number, "release": release, "template": "t", "runtime": "r", "low_log_prob": -9.0})
        return number


def _insert(tx: Any, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    key = ("cursor, ", "?, ") if table != "served" else ("", "")
    values = [*([next(_NUMBERS)] if table != "served" else []), *row.values()]
    tx.run(f"INSERT INTO {table} ({key[0]}{names}) VALUES ({key[1]}{', '.join('?' * len(row))})", *values)


def plain(value: Any) -> Any:
    """A record through JSON and back, as a script reads it."""
    return json.loads(msgspec.json.encode(value))
