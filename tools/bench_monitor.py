"""What the monitor costs: CPU a tick, memory over an hour, bytes to the terminal.

python tools/bench_monitor.py                      10,000 devices, 500 changed rows a tick, a simulated hour
python tools/bench_monitor.py --ticks 200          shorter
python tools/bench_monitor.py --json               for machines

The app runs as it does in a terminal of 160×50, on a clock that jumps half a second a tick; its driver counts bytes
instead of showing them. A tick takes a whole new view of the fleet, compares all rows, sorts, draws and sends what
differs. Making the view is the source's work and is not counted; the limit is 25 ms of CPU a tick.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TEXTUAL_FPS", "10")
os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ["COLORTERM"] = "truecolor"  # the dearest escape sequences

import msgspec
import psutil
from textual.drivers.headless_driver import HeadlessDriver

from edgegen.monitor.asking import TICK_S
from edgegen.monitor.mock import MockSource
from edgegen.monitor.monitor_app import MonitorApp
from edgegen.records.monitor import Ask, DeviceRow, FleetView

MOST_CPU_MS = 25.0
MOST_SLOPE_MB = 1.0
"""An hour."""
MOST_BYTES = 20_000
"""A second."""
_BEGUN_S = 1_780_000_000.0


class CountingDriver(HeadlessDriver):
    """Takes what a terminal would get, and counts it."""

    sent = 0

    @property
    def is_headless(self) -> bool:
        return False

    def write(self, data: str) -> None:
        CountingDriver.sent += len(data.encode())


class Changing(MockSource):
    """A fleet of which some rows change each time that it is asked for."""

    def __init__(self, n: int, changed: int, now: list[float]) -> None:
        super().__init__(n, 1, clock=lambda: now[0])
        self._now, self._changed = now, changed
        self._dice = random.Random(1)
        self._view = super().fleet(Ask())
        self._next = self._view

    def prepare(self) -> None:
        """Make the next view: rows that reported are new records, as they come from a store."""
        rows: list[DeviceRow] = list(self._view.devices)
        for place in self._dice.sample(range(len(rows)), self._changed):
            rows[place] = msgspec.structs.replace(
                rows[place],
                tokens_per_s=(rows[place].tokens_per_s or 9.0) * self._dice.uniform(0.97, 1.03),
                ttft_p95_s=self._dice.uniform(0.1, 2),
                error_fraction=self._dice.uniform(0, 0.02),
                temperature_c=self._dice.uniform(40, 80),
                spark=tuple(self._dice.uniform(3, 40) for _ in range(8)),
                seen_s=self._now[0],
            )
        self._view = self._next = msgspec.structs.replace(self._view, devices=tuple(rows), at_s=self._now[0])

    def fleet(self, ask: Ask) -> FleetView:
        return self._next


async def measure(devices: int, changed: int, ticks: int, sort: str) -> dict[str, Any]:
    """Tick for a while."""
    now = [_BEGUN_S]
    source = Changing(devices, changed, now)
    app = MonitorApp(source, clock=lambda: now[0], inline=True, ticks=False, keymap={})
    app.driver_class = CountingDriver
    process = psutil.Process()
    cpu: list[float] = []
    memory: list[tuple[float, float]] = []
    # Not headless for the app: then it would send nothing to its driver.
    async with app.run_test(headless=False, size=(160, 50)) as pilot:
        app.sight.interval_s = TICK_S
        app.tick()
        await pilot.pause()
        app.sort(sort)
        for number in range(ticks + 20):
            now[0] += TICK_S
            source.prepare()
            if number == 20:
                CountingDriver.sent = 0
            begun = time.process_time()
            app.tick()
            await pilot.pause()
            spent = time.process_time() - begun
            if number >= 20:
                cpu.append(spent * 1000)
            if number % 50 == 0:
                gc.collect()
                memory.append((number * TICK_S / 3600, process.memory_info().rss / 1e6))
        shown = len(app.fleet.devices) if app.fleet else 0
    assert shown == devices, "the app took every view"
    cpu.sort()
    return {
        "devices": devices,
        "changed_rows": changed,
        "ticks": ticks,
        "sorted_by": sort,
        "cpu_ms_mean": sum(cpu) / len(cpu),
        "cpu_ms_median": cpu[len(cpu) // 2],
        "cpu_ms_p95": cpu[int(len(cpu) * 0.95)],
        "cpu_share_at_2hz": sum(cpu) / len(cpu) / 1000 / TICK_S,
        "rss_mb": memory[-1][1],
        "rss_slope_mb_per_hour": slope(memory[len(memory) // 4 :]),
        "bytes_per_s": CountingDriver.sent / (ticks * TICK_S),
    }


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line of least squares; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    x = sum(point[0] for point in points) / len(points)
    y = sum(point[1] for point in points) / len(points)
    spread = sum((point[0] - x) ** 2 for point in points)
    return sum((point[0] - x) * (point[1] - y) for point in points) / spread


def main() -> int:
    """Exit code 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--changed", type=int, default=500, help="rows a tick")
    parser.add_argument("--ticks", type=int, default=7200, help="of half a second; 7200 are an hour")
    parser.add_argument("--sort", default="state", help="column; by `speed` hundreds of rows move each tick")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.devices, options.changed, options.ticks, options.sort))
    missed = [
        name
        for name, limit in (
            ("cpu_ms_mean", MOST_CPU_MS),
            ("rss_slope_mb_per_hour", MOST_SLOPE_MB),
            ("bytes_per_s", MOST_BYTES),
        )
        # Memory of a few minutes says nothing of an hour.
        if found[name] > limit and not (name.startswith("rss") and options.ticks < 3600)
    ]
    if options.json:
        print(json.dumps({**found, "missed": missed}, indent=2))
    else:
        print(f"{options.devices:,} devices, {options.changed} changed rows a tick, {options.ticks} ticks")
        print(f"  CPU a tick   {found['cpu_ms_mean']:.1f} ms (median {found['cpu_ms_median']:.1f}, ", end="")
        print(f"95% below {found['cpu_ms_p95']:.1f}); {found['cpu_share_at_2hz']:.1%} of a core")
        print(f"  memory       {found['rss_mb']:.0f} MB, {found['rss_slope_mb_per_hour']:+.2f} MB an hour")
        print(f"  to terminal  {found['bytes_per_s'] / 1000:.1f} kB/s")
        for name in missed:
            print(f"  ✗ {name} is over its limit")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
