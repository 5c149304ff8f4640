"""Roll-ups: each answer once whatever is killed, quantiles as the values' own, windows rounded out to whole cells."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgegen.errors import UnsupportedError
from edgegen.fleet.database import Database
from edgegen.fleet.monitoring import sketches, window
from edgegen.fleet.monitoring.rollups import DAY, EIGHTH_DAY, EIGHTH_HOUR, GROUP, KEPT_S, MINUTE, prune, roll_up
from edgegen.fleet.monitoring.sketches import add_values, quantile
from edgegen.fleet.monitoring.window import device_figures, merge_cells, read_cells, span_of
from edgegen.fleet.telemetry.schema import Flag
from tests.fleet.reports import Reports
from tests.fleet.site import ROOT, Desk

NOW = 1_000_000.0


@pytest.fixture
def reports(desk: Desk) -> Reports:
    found = Reports(desk)
    for name, group in (("a", "kitchen"), ("b", "kitchen"), ("c", "hall")):
        found.device(name, group)
    return found


def _fill(reports: Reports, count: int, *, seed: int = 1, over_s: float = 3000.0) -> list[dict[str, float | str]]:
    dice = random.Random(seed)
    made: list[dict[str, float | str]] = []
    with reports.together():
        for _ in range(count):
            row: dict[str, float | str] = {
                "device": dice.choice("abc"),
                "at_s": NOW - dice.random() * over_s,
                "ttft_s": dice.lognormvariate(0, 1),
                "tokens_per_s": dice.gauss(10, 2),
                "answer_tokens": dice.randrange(1, 200),
                "mean_log_prob": -dice.random() * 3,
            }
            reports.add("generations", **row)
            made.append(row)
    return made


def _all(desk: Desk, step: int, subject: str) -> list[Any]:
    return desk.run(lambda tx: tx.rows("SELECT * FROM rollups WHERE step = ? AND subject = ?", step, subject))


def test_cells_of_every_step_hold_each_answer_once(desk: Desk, reports: Reports) -> None:
    made = _fill(reports, 200)
    while desk.run(lambda tx: roll_up(tx, NOW, most_rows=33, all_lanes=True)):
        pass
    for _ in range(3):  # nothing is new
        desk.run(lambda tx: roll_up(tx, NOW, all_lanes=True))
    for step in (MINUTE, EIGHTH_HOUR, EIGHTH_DAY, DAY):
        for subject, members in (("a", "a"), (f"{GROUP}kitchen", "ab"), (f"{GROUP}hall", "c")):
            mine = [row for row in made if row["device"] in members]
            cells = _all(desk, step, subject)
            assert sum(cell["answers"] for cell in cells) == len(mine)
            assert sum(cell["answer_tokens"] for cell in cells) == sum(row["answer_tokens"] for row in mine)
            for fraction in (0.5, 0.95):
                found = quantile((cell["ttft"] for cell in cells), fraction)
                assert found is not None
                rank = sum(float(row["ttft_s"]) <= found * (1 + 1e-6) for row in mine) / len(mine)
                assert abs(rank - fraction) < 0.03


def test_flags_and_errors_are_counted_and_failures_say_nothing_of_speed(desk: Desk, reports: Reports) -> None:
    reports.add("generations", "a", NOW - 1, flags=int(Flag.REFUSE | Flag.LOW), tokens_per_s=5.0, throttled=1)
    reports.add("generations", "a", NOW - 1, flags=int(Flag.ERROR), stop="error", error="x", tokens_per_s=999.0)
    reports.add("generations", "a", NOW - 1, throttled=None)
    desk.run(lambda tx: roll_up(tx, NOW))
    (cell,) = _all(desk, EIGHTH_HOUR, "a")
    assert (cell["answers"], cell["errors"], cell["refused"], cell["low"], cell["throttled"]) == (3, 1, 1, 1, 1)
    assert quantile([cell["speed"]], 1.0) == 5.0
    assert cell["ttft"] is None


def test_what_comes_late_fills_the_past_as_far_as_that_is_kept(desk: Desk, reports: Reports) -> None:
    reports.add("generations", "a", NOW - 2 * 86400)
    desk.run(lambda tx: roll_up(tx, NOW, all_lanes=True))
    assert not _all(desk, MINUTE, "a")
    for step in (EIGHTH_HOUR, EIGHTH_DAY, DAY):
        (cell,) = _all(desk, step, "a")
        assert cell["start_s"] == (NOW - 2 * 86400) // step * step
    later = NOW + KEPT_S[EIGHTH_HOUR] + 1
    assert desk.run(lambda tx: prune(tx, later)) == 2  # the device's and the group's
    assert not _all(desk, EIGHTH_HOUR, "a") and _all(desk, EIGHTH_DAY, "a")


def test_sketches_are_as_exact_as_they_promise() -> None:
    dice = np.random.default_rng(3)
    values = dice.lognormal(0, 1.5, 40_000)
    parts = [add_values(None, [float(value) for value in part]) for part in np.array_split(values, 400)]
    for fraction in (0.05, 0.5, 0.95):
        found = quantile(parts, fraction)
        assert found is not None
        rank = float((values <= found).mean())
        assert abs(rank - fraction) < 0.02
    assert add_values(None, [float("nan")]) is None
    assert quantile([None], 0.5) is None


def test_a_window_is_merged_from_its_cells(desk: Desk, reports: Reports) -> None:
    made = _fill(reports, 300)
    desk.run(lambda tx: roll_up(tx, NOW))
    span = span_of(NOW, NOW, 1800.0)
    figures = desk.run(lambda tx: device_figures(tx, span, live=True))
    for device in "abc":
        mine = [row for row in made if row["device"] == device and float(row["at_s"]) >= span.since_s]
        assert figures[device].answers == len(mine)
        speeds = sorted(float(row["tokens_per_s"]) for row in mine)
        below = sum(speed < float(figures[device].speed) - 1e-4 for speed in speeds)
        assert abs(below - len(speeds) / 2) <= 2
        assert len(figures[device].spark) == 8 and figures[device].spark[3] is not None


def test_what_stays_in_memory_is_what_a_fresh_look_finds(desk: Desk, reports: Reports) -> None:
    dice = random.Random(5)
    for minute in range(40):
        now_s = NOW + 60.0 * minute
        for _ in range(6):
            reports.add(
                *("generations", dice.choice("abc"), now_s - dice.random() * 900),
                tokens_per_s=dice.random(),
                release=dice.choice(("sha256:r", "sha256:s")),
            )
        span = span_of(now_s, now_s, 1800.0)

        def look(tx: object, now_s: float = now_s, span: window.Span = span) -> tuple[object, object]:
            roll_up(tx, now_s)
            return device_figures(tx, span, live=True), device_figures(tx, span, live=False)

        held, fresh = desk.run(look)
        assert held == fresh


def test_steps_fit_windows() -> None:
    assert [span_of(NOW, NOW, window_s).step for window_s in (300, 3600, 86400, 7 * 86400, 300 * 86400)] == [
        *(MINUTE, EIGHTH_HOUR, EIGHTH_DAY, DAY, DAY),
    ]
    # The past is told by what is still kept of it.
    assert span_of(NOW, NOW - 86400, 300).step == EIGHTH_HOUR
    assert span_of(NOW, NOW - 20 * 86400, 300).step == EIGHTH_DAY


def test_a_short_window_fills_its_spark_from_the_cells_around(desk: Desk, reports: Reports) -> None:
    for minute in range(6):
        reports.add("generations", "a", NOW - 60 * minute, tokens_per_s=5.0)
    desk.run(lambda tx: roll_up(tx, NOW))
    span = span_of(NOW, NOW, 300.0)
    cells = desk.run(lambda tx: read_cells(tx, span, subjects=("a",)))
    assert merge_cells(cells, span).spark == (5.0,) * 8


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    sketches._library.cache_clear()
    monkeypatch.setitem(sys.modules, "datasketches", None)
    with pytest.raises(UnsupportedError, match="datasketches") as raised:
        sketches.require_sketches()
    assert "edgegen[server]" in raised.value.hint
    sketches._library.cache_clear()


_ROLL = """
import sys
from edgegen.fleet.database import Database
from edgegen.fleet.monitoring.rollups import roll_up
database = Database(sys.argv[1])
print("ready", flush=True)
more = True
while more:
    with database.transaction() as tx:
        more = roll_up(tx, float(sys.argv[2]), most_rows=40, all_lanes=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_counted_twice_or_lost(tmp_path: Path) -> None:
    store = str(tmp_path / "fleet.db")
    desk = Desk(store)
    reports = Reports(desk)
    reports.device("a")
    rows = 6000
    with reports.together():
        for number in range(rows):
            reports.add("generations", "a", NOW - number / 2, ttft_s=1.0, answer_tokens=1)
    desk.database.close()
    dice = random.Random(11)
    kills = 0
    for attempt in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", _ROLL, store, str(NOW)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        if attempt < 11:
            time.sleep(dice.random() * 0.3)
            process.send_signal(signal.SIGKILL)
        kills += process.wait(timeout=120) != 0
    assert process.returncode == 0 and kills >= 2
    database = Database(store)
    with database.transaction() as tx:
        for step in (MINUTE, EIGHTH_HOUR, EIGHTH_DAY, DAY):
            for subject in ("a", f"{GROUP}kitchen"):
                cells = tx.rows("SELECT * FROM rollups WHERE step = ? AND subject = ?", step, subject)
                assert sum(cell["answers"] for cell in cells) == rows
                merged = sketches.merge(cell["ttft"] for cell in cells)
                assert merged is not None and merged.n == rows
    database.close()
