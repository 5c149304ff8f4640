"""Answers worth learning from, and characters that the vocabulary lacks.

An answer is telling for one reason, the first of: its user rated it bad, it failed, it was less likely under the model
itself than nearly all when the release was packed, or it lies where a metric that drifted grew most. Its text is told
where the device let it out (`samples`); how many were not is told as well.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict

from edgegen.common.codec import did_you_mean
from edgegen.errors import ConfigError
from edgegen.fleet.members import require_device, require_group
from edgegen.fleet.monitoring.drift import read_drift
from edgegen.fleet.monitoring.releases import lineage_of, read_manifest
from edgegen.fleet.telemetry.schema import Flag
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.records.monitor import Ask, AskHard, DriftCell, Text, Verdict

THUMBS_DOWN, ERROR, LOW, DRIFTED = "thumbs down", "error", "low confidence", "drifted"
WHY = (THUMBS_DOWN, ERROR, LOW, DRIFTED)
MOST_ROWS = 10_000
_LOOKS_S = (3600.0, 86400.0)
_MOST_SCANNED = 200_000
_MOST_CHARACTERS = 1000
_COLUMNS = (
    *("prompt_tokens", "answer_tokens", "mean_log_prob", "mean_entropy", "distinct_fraction", "byte_fraction"),
    *("repetition", "distinct2", "non_letter_fraction", "ttft_s", "tokens_per_s", "characters"),
)
"""Metrics of drift that a single answer has."""


def read_hard(tx: Transaction, now_s: float, ask: AskHard) -> tuple[Text, ...]:
    """Answer which telling answers have a text, the latest first, each prompt with its answer once.

    Raises:
        ConfigError: a reason, group, device or release that is none, or a limit below 1.
    """
    found: dict[tuple[str, str], Text] = {}
    for why, row in _telling(tx, now_s, ask):
        key = (row["prompt"], row["answer"])
        if not row["level"] or not row["prompt"].strip() or key in found:
            continue
        found[key] = Text(
            prompt=row["prompt"],
            answer=row["answer"],
            why=why,
            device=row["device"],
            release=row["release"],
            generation=row["generation"],
            level=row["level"],
            lineage=lineage_of(read_manifest(tx, row["release"])),
        )
        if len(found) >= min(ask.limit, MOST_ROWS):
            break
    return tuple(found.values())


def count_withheld(tx: Transaction, now_s: float, ask: AskHard) -> dict[str, int]:
    """Reason → telling answers whose text did not leave the device, or was erased."""
    return dict(Counter(why for why, row in _telling(tx, now_s, ask) if not row["level"]))


def _telling(tx: Transaction, now_s: float, ask: AskHard) -> list[tuple[str, Row]]:
    """Telling answers with their reasons, the latest first; `level` is empty where there is no text."""
    if ask.why and ask.why not in WHY:
        raise ConfigError(f"there is no reason {ask.why[:30]!r}", hint=did_you_mean(ask.why, list(WHY)))
    if ask.limit < 1:
        raise ConfigError(f"limit must be at least 1, not {ask.limit}")
    if ask.group:
        require_group(tx, ask.group)
    if ask.device:
        require_device(tx, ask.device)
    if ask.release and not tx.rows("SELECT id FROM served WHERE release = ? LIMIT 1", ask.release):
        raise ConfigError(
            f"no device has answered with a release {ask.release[:80]!r}",
            hint="It is named by its digest, sha256:…, which `edgegen fleet trace` shows.",
        )
    until_s = now_s if ask.until_s is None else ask.until_s
    words, arguments = "g.at_s > ? AND g.at_s <= ?", list[Value]((until_s - ask.window_s, until_s))
    for condition, value in (
        ("g.device = ?", ask.device),
        ("devices.grp = ?", ask.group),
        ("served.release = ?", ask.release),
    ):
        if value:
            words += f" AND {condition}"
            arguments.append(value)
    rated_bad = (
        "EXISTS (SELECT 1 FROM feedback AS f WHERE f.device = g.device AND f.generation = g.generation "
        "AND f.rating < 0 AND NOT EXISTS (SELECT 1 FROM feedback AS later WHERE later.device = f.device "
        "AND later.generation = f.generation AND later.cursor > f.cursor))"
    )
    cells = _drifted_cells(tx, now_s, ask)
    if not cells:
        words += f" AND ((flags & {int(Flag.LOW | Flag.ERROR)}) <> 0 OR stop = 'error' OR {rated_bad})"
    rows = tx.rows(
        f"SELECT g.device AS device, g.generation AS generation, flags, stop, devices.grp AS grp, served.release AS "
        f"release, {', '.join(f'g.{name} AS {name}' for name in _COLUMNS)}, CASE WHEN {rated_bad} THEN 1 ELSE 0 END "
        "AS bad, COALESCE(s.prompt, '') AS prompt, COALESCE(s.answer, '') AS answer, COALESCE(s.level, '') AS level "
        "FROM generations AS g JOIN devices ON devices.device = g.device JOIN served ON served.id = g.served "
        "LEFT JOIN samples AS s ON s.device = g.device AND s.generation = g.generation AND s.cursor = "
        "(SELECT MAX(cursor) FROM samples AS t WHERE t.device = g.device AND t.generation = g.generation) "
        f"WHERE {words} ORDER BY g.at_s DESC LIMIT ?",
        *(*arguments, _MOST_SCANNED),
    )
    found = ((_reason(row, cells), row) for row in rows)
    return [(why, row) for why, row in found if why and ask.why in ("", why)]


def _reason(row: Row, cells: dict[tuple[str, str], list[DriftCell]]) -> str:
    if row["bad"]:
        return THUMBS_DOWN
    if row["stop"] == "error" or row["flags"] & Flag.ERROR:
        return ERROR
    if row["flags"] & Flag.LOW:
        return LOW
    if any(_lies_where_grown(row, cell) for cell in cells.get((row["grp"], row["release"]), ())):
        return DRIFTED
    return ""


def _drifted_cells(tx: Transaction, now_s: float, ask: AskHard) -> dict[tuple[str, str], list[DriftCell]]:
    if ask.why not in ("", DRIFTED):
        return {}
    found: defaultdict[tuple[str, str], list[DriftCell]] = defaultdict(list)
    # A drift takes two windows in a row: one that began yesterday is none of a week yet.
    for window_s in sorted({ask.window_s, *(length_s for length_s in _LOOKS_S if length_s < ask.window_s)}):
        asked = Ask(window_s=window_s, until_s=ask.until_s, group=ask.group, device=ask.device)
        for cell in read_drift(tx, now_s, asked):
            if cell.verdict is Verdict.DRIFT and cell.metric in _COLUMNS and cell.edges:
                found[cell.group, cell.release].append(cell)
    return dict(found)


def _lies_where_grown(row: Row, cell: DriftCell) -> bool:
    """Whether a value is in the bin whose share grew most since the release was packed."""
    value = row[cell.metric]
    before, now = sum(cell.reference), sum(cell.current)
    if value is None or not before or not now:
        return False
    grown = [late / now - early / before for early, late in zip(cell.reference, cell.current, strict=True)]
    return bisect_right(cell.edges, value) == grown.index(max(grown))
