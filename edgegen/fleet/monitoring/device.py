"""Everything of one device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.monitoring.canaries import last_canaries, previous_release
from edgegen.fleet.monitoring.drift import read_fault
from edgegen.fleet.monitoring.events import read_events
from edgegen.fleet.monitoring.fleet import Moment, moment_of, read_rows
from edgegen.fleet.monitoring.releases import label_of
from edgegen.fleet.monitoring.sketches import quantile
from edgegen.fleet.monitoring.window import read_cells
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.monitor import Ask, AskEvents, DeviceDetail, Series

POINTS = 60
_RAW_S = 86400.0
"""Longer windows are told from roll-ups."""
_MOST_ROWS = 50_000


def read_device(tx: Transaction, now_s: float, ask: Ask, site: Path | None) -> DeviceDetail:
    """Answer about one device.

    Raises:
        ConfigError: no such device, or it was not there yet.
    """
    if not ask.device:
        raise ConfigError("no device is named", hint="See `edgegen fleet devices`.")
    moment = moment_of(tx, now_s, ask)
    rows = read_rows(tx, moment, Ask(window_s=ask.window_s, until_s=ask.until_s, device=ask.device))
    if not rows:
        raise ConfigError(f"there is no device {ask.device[:64]!r}", hint="See `edgegen fleet devices`.")
    row = rows[0]
    attributes = tx.rows("SELECT attributes FROM devices WHERE device = ?", ask.device)[0]["attributes"]
    previous = previous_release(tx, ask.device, row.release)
    return DeviceDetail(
        at_s=moment.at_s,
        row=row,
        attributes=msgspec.json.decode(attributes, type=dict[str, str]),
        previous=previous,
        previous_label=label_of(moment.labels, previous),
        series=_series(tx, moment, ask),
        events=read_events(tx, now_s, AskEvents(limit=50, until_s=moment.at_s, device=ask.device)),
        canaries=last_canaries(tx, ask.device, row.release, moment.at_s, site),
        fault=read_fault(tx, now_s, ask.device, Ask(window_s=ask.window_s, until_s=moment.at_s)),
    )


def _series(tx: Transaction, moment: Moment, ask: Ask) -> tuple[Series, ...]:
    since_s, until_s = moment.at_s - ask.window_s, moment.at_s
    health = tx.rows(
        "SELECT at_s, rss_bytes, temperature_c, free_bytes FROM health WHERE device = ? AND at_s > ? AND at_s <= ? "
        "ORDER BY at_s DESC LIMIT ?",
        *(ask.device, since_s, until_s, _MOST_ROWS),
    )
    of_health = [
        _medians("rss", "bytes", health, "rss_bytes", since_s, until_s),
        _medians("temperature", "°C", health, "temperature_c", since_s, until_s),
        _medians("free", "bytes", health, "free_bytes", since_s, until_s),
    ]
    if ask.window_s > _RAW_S:
        return (*_rolled_up(tx, moment, ask), *of_health)
    answers = tx.rows(
        "SELECT at_s, tokens_per_s, ttft_s, answer_tokens, mean_log_prob, stop FROM generations "
        "WHERE device = ? AND at_s > ? AND at_s <= ? ORDER BY at_s DESC LIMIT ?",
        *(ask.device, since_s, until_s, _MOST_ROWS),
    )
    good = [row for row in answers if row["stop"] != "error"]
    failed = [{"at_s": row["at_s"], "error": float(row["stop"] == "error")} for row in answers]
    return (
        _medians("tokens_per_s", "tokens/s", good, "tokens_per_s", since_s, until_s),
        _medians("ttft", "s", good, "ttft_s", since_s, until_s),
        _steps("answers", "", answers, since_s, until_s, lambda rows: float(len(rows))),
        _steps("errors", "fraction", failed, since_s, until_s, _share),
        _medians("log_prob", "nats", good, "mean_log_prob", since_s, until_s),
        *of_health,
    )


def _share(rows: list[Row]) -> float | None:
    return sum(row["error"] for row in rows) / len(rows) if rows else None


def _medians(metric: str, unit: str, rows: list[Row], column: str, since_s: float, until_s: float) -> Series:
    def median(found: list[Row]) -> float | None:
        values = [row[column] for row in found if row[column] is not None]
        return float(statistics.median(values)) if values else None

    return _steps(metric, unit, rows, since_s, until_s, median)


def _steps(
    metric: str,
    unit: str,
    rows: list[Row],
    since_s: float,
    until_s: float,
    value: Callable[[list[Row]], float | None],
) -> Series:
    """A value for each of `POINTS` steps of the window; a step's time is its middle."""
    step_s = (until_s - since_s) / POINTS
    steps: list[list[Row]] = [[] for _ in range(POINTS)]
    for row in rows:
        steps[min(POINTS - 1, max(0, int((row["at_s"] - since_s) / step_s)))].append(row)
    at_s = tuple(since_s + (place + 0.5) * step_s for place in range(POINTS))
    return Series(metric, unit, at_s, tuple(value(found) for found in steps))


def _rolled_up(tx: Transaction, moment: Moment, ask: Ask) -> tuple[Series, ...]:
    by_start: dict[int, list[Row]] = {}
    for cell in read_cells(tx, moment.span, subjects=(ask.device,)):
        by_start.setdefault(cell["start_s"], []).append(cell)
    step, since_s = moment.span.step, moment.span.since_s
    starts = range(since_s, int(moment.at_s) + 1, step)
    at_s = tuple(start_s + step / 2 for start_s in starts)

    def series(metric: str, unit: str, value: Callable[[list[Row]], float | None]) -> Series:
        return Series(metric, unit, at_s, tuple(value(by_start.get(start_s, [])) for start_s in starts))

    def total(cells: list[Row], name: str) -> int:
        return int(sum(cell[name] for cell in cells))

    return (
        series("tokens_per_s", "tokens/s", lambda cells: quantile((cell["speed"] for cell in cells), 0.5)),
        series("ttft", "s", lambda cells: quantile((cell["ttft"] for cell in cells), 0.5)),
        series("answers", "", lambda cells: float(total(cells, "answers"))),
        series("errors", "fraction", lambda c: total(c, "errors") / total(c, "answers") if c else None),
        series("log_prob", "nats", lambda cells: quantile((cell["log_prob"] for cell in cells), 0.5)),
    )
