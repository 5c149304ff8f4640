"""Golden answers: how each device gives them now, in words where the repository has the tokenizer, and whether they
are what they were at first.

Devices report the tokens that came; an answer that agreed whole is the manifest's own. The tokenizer is a file of the
release, so the site's own repository has it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgegen.bundle.layout import blob_file
from edgegen.errors import ConfigError
from edgegen.fleet.monitoring.drift import canary_fault
from edgegen.fleet.monitoring.releases import read_manifest
from edgegen.fleet.schema import next_id
from edgegen.fleet.telemetry.store import add_event
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.bundle import Manifest
from edgegen.records.monitor import AskComparison, CanaryRow
from edgegen.records.telemetry import Canary

_LANE = "canaries"
_TOKENIZER = "tokenizer.json"


def compare(tx: Transaction, now_s: float, ask: AskComparison, site: Path | None) -> tuple[CanaryRow, ...]:
    """A device's last answers to the golden prompts of two releases: by prompt, the old one's before the new one's.

    Raises:
        ConfigError: no such device, or nothing to compare with.
    """
    rows = tx.rows("SELECT running, attributes FROM devices WHERE device = ?", ask.device)
    if not rows:
        raise ConfigError(f"there is no device {ask.device!r}", hint="See `edgegen fleet devices`.")
    new = ask.new or rows[0]["running"]
    old = ask.old or previous_release(tx, ask.device, new)
    if not new or not old:
        raise ConfigError(f"{ask.device}: no two releases of it are known", hint="Name them by their digests.")
    found = [row for place, digest in enumerate((old, new)) for row in _last_runs(tx, ask.device, digest, place, site)]
    return tuple(row for _, _, row in sorted(found, key=lambda item: item[:2]))


def previous_release(tx: Transaction, device: str, running: str) -> str:
    """Digest of what a device ran before; empty: unknown."""
    rows = tx.rows("SELECT attributes FROM devices WHERE device = ?", device)
    told = json.loads(rows[0]["attributes"]).get("previous", "") if rows else ""
    if told.startswith("sha256:") and told != running:
        return str(told)
    for sql in (
        "SELECT from_digest AS digest FROM actions WHERE device = ? AND from_digest <> '' AND from_digest <> ? "
        "ORDER BY id DESC LIMIT 1",
        "SELECT release AS digest FROM canaries WHERE device = ? AND release <> ? ORDER BY at_s DESC LIMIT 1",
    ):
        rows = tx.rows(sql, device, running)
        if rows:
            return str(rows[0]["digest"])
    return ""


def last_canaries(
    tx: Transaction, device: str, release: str, until_s: float, site: Path | None
) -> tuple[CanaryRow, ...]:
    """The last run of each golden prompt of a release on a device."""
    return tuple(row for _, _, row in _last_runs(tx, device, release, 0, site, until_s))


def _last_runs(
    tx: Transaction, device: str, release: str, place: int, site: Path | None, until_s: float | None = None
) -> list[tuple[int, int, CanaryRow]]:
    rows = tx.rows(
        "SELECT * FROM canaries WHERE device = ? AND release = ? AND at_s <= ? ORDER BY at_s, cursor",
        *(device, release, 1e18 if until_s is None else until_s),
    )
    last = {row["prompt"]: row for row in rows}
    manifest = read_manifest(tx, release)
    return [
        (
            prompt,
            place,
            CanaryRow(
                at_s=row["at_s"],
                release=release,
                prompt=prompt,
                agreed=row["agreed"],
                expected=row["expected"],
                log_prob_drop=row["log_prob_drop"],
                intact=None if row["intact"] is None else bool(row["intact"]),
                text=_text(tx, row, manifest, site),
            ),
        )
        for prompt, row in sorted(last.items())
    ]


def _text(tx: Transaction, row: Row, manifest: Manifest | None, site: Path | None) -> str:
    """What came, as text; as numbers of tokens where the tokenizer is not here; empty: the device did not say."""
    ids = json.loads(row["ids"] or "[]")
    if not ids and manifest and row["agreed"] == row["expected"] and 0 <= row["prompt"] < len(manifest.golden):
        ids = manifest.golden[row["prompt"]].tokens[: row["expected"]]
    if not ids:
        return ""
    tokenizer = _tokenizer_of(tx, manifest, site)
    if tokenizer is None:
        return " ".join(str(number) for number in ids)
    return str(tokenizer.decode([int(number) for number in ids], skip_special_tokens=False))


def _tokenizer_of(tx: Transaction, manifest: Manifest | None, site: Path | None) -> Any | None:
    for _ in range(8):  # light releases stand on others
        if manifest is None or site is None:
            return None
        for file in manifest.files:
            if file.path.rpartition("/")[2] == _TOKENIZER:
                path = site / "repository" / blob_file(file.digest)
                return _tokenizer(path) if path.is_file() else None
        manifest = read_manifest(tx, manifest.base) if manifest.base else None
    return None


@lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Any | None:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises bare exceptions; a foreign release's file is shown as numbers
        return None


def judge_new_canaries(tx: Transaction, now_s: float, *, most_rows: int = 5000) -> bool:
    """Open and close device faults by the golden answers that came since the last call; whether more wait."""
    progress = tx.rows("SELECT cursor FROM progress WHERE lane = ?", _LANE)
    cursor = progress[0]["cursor"] if progress else 0
    rows = tx.rows(
        "SELECT cursor, device, release FROM canaries WHERE cursor > ? ORDER BY cursor LIMIT ?", cursor, most_rows
    )
    if not rows:
        return False
    for device, release in sorted({row["device"]: row["release"] for row in rows}.items()):
        words = canary_fault(_first_and_last(tx, device, release))
        there = tx.rows("SELECT id, words, release FROM faults WHERE device = ? AND until_s IS NULL", device)
        if there and (there[0]["words"], there[0]["release"]) == (words, release):
            continue
        if there:
            tx.run("UPDATE faults SET until_s = ? WHERE id = ?", now_s, there[0]["id"])
        if words:
            tx.run(
                "INSERT INTO faults (id, device, release, words, since_s) VALUES (?, ?, ?, ?, ?)",
                *(next_id(tx, "faults"), device, release, words, now_s),
            )
            add_event(tx, now_s, level="error", what="device-fault", detail=words, device=device)
        elif there:
            add_event(tx, now_s, level="info", what="device-fault-over", detail=there[0]["words"], device=device)
    tx.run(
        "INSERT INTO progress (lane, cursor, at_s) VALUES (?, ?, ?) "
        "ON CONFLICT (lane) DO UPDATE SET cursor = excluded.cursor, at_s = excluded.at_s",
        *(_LANE, rows[-1]["cursor"], now_s),
    )
    return len(rows) == most_rows


def _first_and_last(tx: Transaction, device: str, release: str) -> dict[int, Sequence[Canary]]:
    rows = tx.rows("SELECT * FROM canaries WHERE device = ? AND release = ? ORDER BY at_s, cursor", device, release)
    found: dict[int, list[Canary]] = {}
    for row in rows:
        runs = found.setdefault(row["prompt"], [])
        del runs[1:]
        runs.append(
            Canary(
                release=release,
                prompt=row["prompt"],
                agreed=row["agreed"],
                expected=row["expected"],
                log_prob_drop=row["log_prob_drop"],
                intact=None if row["intact"] is None else bool(row["intact"]),
                ids=tuple(json.loads(row["ids"] or "[]")),
            )
        )
    return dict(found)
