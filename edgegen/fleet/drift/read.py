"""The store's answers as arrays and histograms. Metrics of the answer are read from those that came to their end.

Of one window of one release in one group at most `MOST_ANSWERS` are read, the latest: more make no verdict surer, and
the server's one writer must not be held up. Booleans are 0 and 1, unknown values NaN, which no histogram counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgegen.bundle.profile import INPUTS
from edgegen.common.codec import decode_json
from edgegen.errors import ConfigError
from edgegen.fleet.telemetry.schema import Flag
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.records.bundle import Manifest, ReferenceProfile
from edgegen.records.telemetry import Canary, Embedding

MOST_ANSWERS = 20_000

_COLUMNS = (
    *("prompt_tokens", "byte_fraction", "answer_tokens", "mean_log_prob", "mean_entropy", "distinct_fraction"),
    *("distinct2", "repetition", "non_letter_fraction", "characters", "json_valid", "ttft_s", "tokens_per_s"),
)
_NEVER = frozenset(("characters", "json_valid"))
"""Columns that are no metrics themselves."""
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of a window: (N,) values of each metric, and the device that each came from."""

    values: Mapping[str, NDArray[np.float64]]
    devices: NDArray[np.str_]

    def histogram(self, metric: str, edges: Sequence[float], *, device: str = "") -> tuple[int, ...]:
        """Counts of the known values between edges; of one device if it is named."""
        values = self.values.get(metric, np.empty(0))
        if device:
            values = values[self.devices == device]
        values = values[~np.isnan(values)]
        places = np.searchsorted(np.asarray(edges, dtype=np.float64), values, side="right")
        return tuple(int(count) for count in np.bincount(places, minlength=len(edges) + 1))


@dataclass(frozen=True, slots=True)
class Where:
    """Which answers. Empty strings and None: any."""

    release: str
    since_s: float
    until_s: float
    group: str = ""
    device: str = ""
    other_than: str = ""
    """Not this device."""


def read_answers(tx: Transaction, where: Where) -> Answers:
    """The window's latest answers, feedback with them."""
    condition, arguments = _condition(where)
    rows = tx.rows(
        "SELECT generations.device, generation, flags, stop, "
        + ", ".join(_COLUMNS)
        + f" FROM generations JOIN devices ON devices.device = generations.device WHERE {condition} "
        "ORDER BY generations.at_s DESC LIMIT ?",
        *(*arguments, MOST_ANSWERS),
    )
    return _answers(rows, _ratings(tx, where) if rows else {})


def answering(tx: Transaction, since_s: float, until_s: float, *, group: str = "", device: str = "") -> list[Row]:
    """`grp` and `release` of what answered in a stretch of time."""
    words, arguments = "", list[Value]((since_s, until_s))
    for column, value in (("devices.grp", group), ("generations.device", device)):
        if value:
            words += f"AND {column} = ? "
            arguments.append(value)
    return tx.rows(
        "SELECT DISTINCT devices.grp AS grp, served.release AS release FROM generations "
        "JOIN devices ON devices.device = generations.device JOIN served ON served.id = generations.served "
        f"WHERE generations.at_s > ? AND generations.at_s <= ? {words}ORDER BY grp, release",
        *arguments,
    )


def read_reference(tx: Transaction, release: str) -> tuple[str, ReferenceProfile, Manifest | None]:
    """A release's label and what it was packed with; an empty label and profile where the server does not know it.

    Histograms that are none are left out: another version of edgegen may have written them.
    """
    rows = tx.rows("SELECT name, version, manifest, target FROM releases WHERE digest = ?", release)
    if not rows:
        return "", ReferenceProfile(), None
    label = f"{rows[0]['name']}@{rows[0]['version']}"
    try:
        manifest = decode_json(rows[0]["manifest"].encode(), Manifest, where=rows[0]["target"])
    except ConfigError:  # signed by a later version: its answers can be seen, not judged
        return label, ReferenceProfile(), None
    given = manifest.reference
    edges = {
        metric: bounds
        for metric, bounds in given.edges.items()
        if bounds
        and all(np.isfinite(bounds))
        and all(a < b for a, b in pairwise(bounds))
        and len(given.counts.get(metric, ())) == len(bounds) + 1
        and min(given.counts[metric]) >= 0
    }
    return label, ReferenceProfile(edges=edges, counts={metric: given.counts[metric] for metric in edges}), manifest


def read_kinds(tx: Transaction, group: str) -> dict[str, str]:
    """Device of a group → its type of hardware."""
    rows = tx.rows("SELECT device, attributes FROM devices WHERE grp = ?", group)
    return {row["device"]: device_kind(row["attributes"]) for row in rows}


def device_kind(attributes: str) -> str:
    """The type of hardware from a device's attributes as JSON: what it says, or its processor and memory."""
    found = json.loads(attributes)
    named = str(found.get("kind") or found.get("device_type") or "")
    if named:
        return named
    memory = str(found.get("ram_bytes", ""))
    known = memory.isascii() and memory.isdigit() and len(memory) < 19
    words = [str(found.get("arch", "")), f"{round(int(memory) / _GIB)} GiB" if known else ""]
    return " ".join(word for word in words if word) or "unknown"


def read_canaries(tx: Transaction, release: str, until_s: float, *, group: str) -> dict[str, dict[int, list[Canary]]]:
    """Device → golden prompt → its runs with a release, in order of time: the first and the last, if there are two."""
    rows = tx.rows(
        "SELECT canaries.* FROM canaries JOIN devices ON devices.device = canaries.device "
        "JOIN (SELECT device AS who, prompt AS which, MIN(cursor) AS first, MAX(cursor) AS last FROM canaries "
        "WHERE release = ? AND at_s <= ? GROUP BY device, prompt) AS ends "
        "ON ends.first = canaries.cursor OR ends.last = canaries.cursor "
        "WHERE devices.grp = ? AND ends.who = canaries.device AND ends.which = canaries.prompt "
        "ORDER BY canaries.cursor",
        *(release, until_s, group),
    )
    found: dict[str, dict[int, list[Canary]]] = {}
    for row in rows:
        run = Canary(
            release=row["release"],
            prompt=row["prompt"],
            agreed=row["agreed"],
            expected=row["expected"],
            log_prob_drop=row["log_prob_drop"],
            tokens_per_s=row["tokens_per_s"],
            intact=None if row["intact"] is None else bool(row["intact"]),
            ids=tuple(json.loads(row["ids"] or "[]")),
        )
        found.setdefault(row["device"], {}).setdefault(run.prompt, []).append(run)
    return found


def read_embeddings(tx: Transaction, where: Where, what: str) -> list[Embedding]:
    """Reports of hashed features of `prompts` or `answers`, the latest 2,000."""
    words, arguments = "", list[Value]()
    for column, value in (("devices.grp", where.group), ("embeddings.device", where.device)):
        if value:
            words += f"AND {column} = ? "
            arguments.append(value)
    rows = tx.rows(
        "SELECT embeddings.* FROM embeddings JOIN devices ON devices.device = embeddings.device "
        f"WHERE embeddings.at_s > ? AND embeddings.at_s <= ? AND embeddings.release = ? AND what = ? {words}"
        "ORDER BY embeddings.at_s DESC LIMIT 2000",
        *(where.since_s, where.until_s, where.release, what, *arguments),
    )
    return [
        Embedding(
            release=row["release"],
            what=row["what"],
            n=row["n"],
            mean=tuple(json.loads(row["mean"])),
            variance=tuple(json.loads(row["variance"])),
        )
        for row in rows
    ]


def _condition(where: Where) -> tuple[str, list[Value]]:
    words = (
        "generations.served IN (SELECT id FROM served WHERE release = ?) "
        "AND generations.at_s > ? AND generations.at_s <= ?"
    )
    arguments: list[Value] = [where.release, where.since_s, where.until_s]
    for condition, value in (
        ("devices.grp = ?", where.group),
        ("generations.device = ?", where.device),
        ("generations.device <> ?", where.other_than),
    ):
        if value:
            words += f" AND {condition}"
            arguments.append(value)
    return words, arguments


def _answers(rows: list[Row], ratings: Mapping[tuple[str, str], int]) -> Answers:
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in _COLUMNS}
    flags = np.array([row["flags"] for row in rows], dtype=np.int64)
    failed = (flags & Flag.ERROR) != 0
    ended = np.array([row["stop"] in ("stop", "length") for row in rows], dtype=bool) & ~failed
    unknown = np.isnan(columns["characters"])
    empty = (flags & Flag.EMPTY) != 0
    values = {name: column for name, column in columns.items() if name not in _NEVER}
    tokens = np.where(columns["answer_tokens"] > 0, columns["answer_tokens"], np.nan)
    values["characters_per_token"] = columns["characters"] / tokens
    values["repetition"] = np.where(empty, np.nan, columns["repetition"])
    for name, flag in (("empty", Flag.EMPTY), ("refusal", Flag.REFUSE), ("leaked", Flag.LEAK)):
        values[name] = np.where(unknown, np.nan, ((flags & flag) != 0).astype(np.float64))
    values["bad_json"] = 1 - columns["json_valid"]
    for name in values.keys() - set(INPUTS):
        values[name] = np.where(ended, values[name], np.nan)
    values["error"] = failed.astype(np.float64)
    given = [ratings.get((row["device"], row["generation"])) for row in rows]
    values["thumbs_down"] = np.array([None if rating is None else rating < 0 for rating in given], dtype=np.float64)
    return Answers(values, np.array([row["device"] for row in rows], dtype=np.str_))


def _ratings(tx: Transaction, where: Where) -> dict[tuple[str, str], int]:
    """(device, answer) → what its user thought of it last."""
    condition, arguments = _condition(where)
    rows = tx.rows(
        "SELECT feedback.device AS device, feedback.generation AS generation, rating FROM feedback "
        "JOIN generations ON generations.device = feedback.device AND generations.generation = feedback.generation "
        f"JOIN devices ON devices.device = generations.device WHERE {condition} ORDER BY feedback.cursor",
        *arguments,
    )
    return {(row["device"], row["generation"]): row["rating"] for row in rows if row["rating"]}
