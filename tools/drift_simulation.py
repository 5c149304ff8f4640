"""How often drift alarms without a shift, and how soon with one.

    python tools/drift_simulation.py [--seed N] [--json]

(a) Windows without any shift: 13 metrics, references of a real size; first one window to a reference, then hourly and
daily windows of a year. Stated: at most 1 % of windows show anything beyond (WATCH), on average over references: the
windows of one reference share its luck. A second one in a row alarms (DRIFT).
(b) A planted shift from the first window on: how often it is found within ten windows, and after how many.
(c) Single answers: false alarms within a tenth of the stated 20,000 answers, and the delay of a shift.

Prints Markdown tables or JSON. Takes about two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from edgegen.fleet.drift.simulate import SHAPES, Planted, Quiet, Stream, simulate_planted, simulate_quiet
from edgegen.fleet.drift.simulate import simulate_stream as stream
from edgegen.fleet.drift.streams import ARL0
from edgegen.fleet.drift.thresholds import ALPHA

HOURLY, DAILY = 8760, 365
QUIET = (
    # n, reference, windows each, references, windows a year
    (200, 60, 1, 1000, DAILY),
    (500, 300, 1, 1000, DAILY),
    (500, 300, HOURLY, 2, HOURLY),
    (200, 60, DAILY, 6, DAILY),
    (1000, 60, DAILY, 4, DAILY),
    (1000, 300, DAILY, 24, DAILY),
    (5000, 300, DAILY, 24, DAILY),
)
SIZES = ((200, 60), (500, 300), (2000, 300))
NATS = SHAPES["mean_log_prob"][1]
SHIFTS = (
    ("mean_entropy", 0.2, "0.2 σ"),
    ("mean_entropy", 0.4, "0.4 σ"),
    ("mean_entropy", 0.8, "0.8 σ"),
    ("refusal", 0.04, "refusals 1 → 5 %"),
    ("mean_log_prob", -0.1 / NATS, "log-prob -0.1 nats"),
    ("mean_log_prob", -0.3 / NATS, "log-prob -0.3 nats"),
)


def main() -> int:
    """Run the simulation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="instead of tables")
    given = parser.parse_args()
    quiet = [
        simulate_quiet(n=n, reference=m, windows=windows, references=count, windows_a_year=year, seed=given.seed)
        for n, m, windows, count, year in QUIET
    ]
    planted = [
        simulate_planted(metric, shift=shift, words=words, n=n, reference=m, trials=25, seed=given.seed)
        for metric, shift, words in SHIFTS
        for n, m in SIZES
    ]
    streams = [
        stream(detector, shift=shift, trials=1000 if not shift else 200, seed=given.seed)
        for detector in ("cusum", "page-hinkley")
        for shift in (0.0, 0.25, 0.5, 1.0)
    ]
    if given.json:
        found = {"quiet": quiet, "planted": planted, "streams": streams}
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        print("\n".join((*_quiet_table(quiet), "", *_planted_table(planted), "", *_stream_table(streams))))
    return 0


def _quiet_table(rows: Sequence[Quiet]) -> list[str]:
    return _table(
        f"No shift; stated: at most {ALPHA:.0%} of windows WATCH, on average over references",
        (
            "n",
            "reference",
            "windows",
            "references",
            "a year",
            "WATCH",
            "DRIFT",
            "alarms a year",
            "references that alarmed",
        ),
        [
            (
                *(f"{row.n:,}", row.reference, f"{row.windows:,}", f"{row.references:,}", f"{row.windows_a_year:,}"),
                f"{row.watched / row.windows:.2%}",
                *_alarms(row),
            )
            for row in rows
        ],
    )


def _alarms(row: Quiet) -> tuple[str, str, str]:
    if row.windows == row.references:  # no second window
        return "-", "-", "-"
    share = f"{row.alarmed / row.windows:.3%}"
    return share, f"{row.alarms_a_year:.2f}", str(row.references_alarmed)


def _planted_table(rows: Sequence[Planted]) -> list[str]:
    return _table(
        "A planted shift, within ten windows",
        ("shift", "n", "reference", "found", "windows until then (median)"),
        [
            (
                *(row.shift, f"{row.n:,}", row.reference, f"{row.found / row.trials:.0%}"),
                "-" if row.delay is None else f"{row.delay:g}",
            )
            for row in rows
        ],
    )


def _stream_table(rows: Sequence[Stream]) -> list[str]:
    stated = 1 - math.exp(-rows[0].answers / ARL0)
    return _table(
        f"Single answers, within {rows[0].answers:,}; stated without a shift: {stated:.1%} (one in {ARL0:,} answers)",
        ("detector", "shift", "alarmed", "answers until then (median)"),
        [
            (
                *(row.detector, f"{row.shift:g} σ" if row.shift else "none", f"{row.found / row.trials:.1%}"),
                "-" if row.delay is None else f"{row.delay:g}",
            )
            for row in rows
        ],
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        f"**{title}**",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
