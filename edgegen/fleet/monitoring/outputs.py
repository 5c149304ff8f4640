"""Answers, the latest or those after a cursor, with their texts where the device's level lets them out."""

from __future__ import annotations

from edgegen.common.codec import did_you_mean
from edgegen.errors import ConfigError
from edgegen.fleet.monitoring.releases import label_of, read_labels
from edgegen.fleet.telemetry.schema import Flag
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.records.monitor import AskOutputs, OutputRow

MOST_ROWS = 10_000


def read_outputs(tx: Transaction, now_s: float, ask: AskOutputs) -> tuple[OutputRow, ...]:
    """Answer which answers; oldest first.

    Raises:
        ConfigError: a flag that is none.
    """
    words, arguments = _condition(ask)
    # After a cursor nothing is left out: the next ones. Without, the latest.
    order = "" if ask.after > 0 else "DESC"
    rows = tx.rows(
        "SELECT generations.*, served.release AS release FROM generations "
        f"JOIN served ON served.id = generations.served WHERE {words} ORDER BY generations.cursor {order} LIMIT ?",
        *(*arguments, max(0, min(ask.limit, MOST_ROWS))),
    )
    if ask.after <= 0:
        rows.reverse()
    labels = read_labels(tx)
    levels = {row["device"]: row["privacy"] for row in tx.rows("SELECT device, privacy FROM device_state")}
    ratings = _of_answers(tx, rows, "feedback")
    samples = _of_answers(tx, rows, "samples")
    return tuple(
        _output(row, labels, levels.get(row["device"]) or "", ratings.get(_key(row)), samples.get(_key(row)))
        for row in rows
    )


def flags_of(bits: int) -> tuple[str, ...]:
    """Names of an answer's flags."""
    return tuple(str(flag.name) for flag in Flag if bits & flag)


def _condition(ask: AskOutputs) -> tuple[str, list[Value]]:
    words, arguments = "1 = 1", list[Value]()
    for condition, value in (
        ("generations.cursor > ?", ask.after if ask.after > 0 else None),
        ("generations.at_s <= ?", ask.until_s),
        ("generations.device = ?", ask.device or None),
        ("generations.device IN (SELECT device FROM devices WHERE grp = ?)", ask.group or None),
        ("generations.served IN (SELECT id FROM served WHERE release = ?)", ask.release or None),
    ):
        if value is not None:
            words += f" AND {condition}"
            arguments.append(value)
    if ask.flag:
        name = ask.flag.upper()
        if name not in Flag.__members__:
            raise ConfigError(f"there is no flag {ask.flag[:20]!r}", hint=did_you_mean(name, list(Flag.__members__)))
        words += " AND flags <> 0 AND (flags & ?) <> 0"
        arguments.append(int(Flag[name]))
    return words, arguments


def _of_answers(tx: Transaction, rows: list[Row], table: str) -> dict[tuple[str, str], Row]:
    """The last row of a table for each of some answers."""
    found: dict[tuple[str, str], Row] = {}
    keys = [_key(row) for row in rows]
    for begin in range(0, len(keys), 200):
        part = keys[begin : begin + 200]
        either = " OR ".join("(device = ? AND generation = ?)" for _ in part)
        for row in tx.rows(
            f"SELECT * FROM {table} WHERE {either} ORDER BY cursor", *(word for key in part for word in key)
        ):
            found[_key(row)] = row
    return found


def _key(row: Row) -> tuple[str, str]:
    return row["device"], row["generation"]


def _output(row: Row, labels: dict[str, str], privacy: str, rating: Row | None, sample: Row | None) -> OutputRow:
    shown = sample if sample and sample["level"] else None
    return OutputRow(
        cursor=row["cursor"],
        at_s=row["at_s"],
        device=row["device"],
        label=label_of(labels, row["release"]),
        generation=row["generation"],
        prompt_tokens=row["prompt_tokens"],
        answer_tokens=row["answer_tokens"],
        stop=row["stop"],
        ttft_s=row["ttft_s"],
        tokens_per_s=row["tokens_per_s"],
        flags=flags_of(row["flags"]),
        rating=rating["rating"] if rating else 0,
        comment=rating["comment"] if rating else "",
        error=row["error"],
        prompt=shown["prompt"] if shown else "",
        answer=shown["answer"] if shown else "",
        level=shown["level"] if shown else privacy,
        late=bool(row["late"]),
    )
