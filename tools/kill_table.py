"""Print what survives when the agent is stopped at every file operation of an update.

python tools/kill_table.py

Four ways of stopping (`tests/simulators/crashing_disk.py`), six updates (`tests/simulators/kills.py`). Exit code
1 if one case is lost; it is then named.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.simulators.crashing_disk import MODES  # noqa: E402
from tests.simulators.kills import scenarios, stops  # noqa: E402


def table(tell: Callable[[str], None]) -> bool:
    """Try everything; whether all survived."""
    tell(f"| update | {' | '.join(MODES)} |")
    tell("|---|" + "---|" * len(MODES))
    lost: list[str] = []
    total = survived = 0
    with tempfile.TemporaryDirectory(dir=memory_disk()) as scratch:
        for scenario in scenarios():
            cells = []
            for mode in MODES:
                outcomes = list(stops(scenario, mode, Path(scratch)))
                good = sum(outcome.survived for outcome in outcomes)
                total, survived = total + len(outcomes), survived + good
                cells.append(f"{good} of {len(outcomes)}")
                lost += [
                    f"{scenario.name}, {mode}: {outcome.operation}: {outcome.why}"
                    for outcome in outcomes
                    if not outcome.survived
                ]
            tell(f"| {scenario.name} | {' | '.join(cells)} |")
    tell("")
    tell(f"{survived} of {total} stops survived.")
    for line in lost:
        tell(line)
    return not lost


def memory_disk() -> str | None:
    """A folder in memory where there is one: thousands of tiny files are written."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    started = time.perf_counter()
    passed = table(print)
    print(f"{time.perf_counter() - started:.1f} s", file=sys.stderr)
    sys.exit(0 if passed else 1)
