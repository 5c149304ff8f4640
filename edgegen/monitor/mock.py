"""A fleet that is simulated in memory: for tests, the demo, pictures, and to try the screens without a server.

It has what a fleet has to show: releases in waves, one that was stopped, devices that fail, throttle, drift or are
away, clocks that are wrong, and answers that try to break the terminal. Acts change it for as long as it lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from edgegen.errors import ConfigError
from edgegen.fleet.operations import WhichDevice
from edgegen.monitor import mock_outputs
from edgegen.monitor.mock_rollouts import MockRollouts
from edgegen.monitor.simulated import GROUPS, KINDS, LABELS, RELEASES, Simulated, chance, pick
from edgegen.records.base import Record
from edgegen.records.deployment import ActionView, Rollout
from edgegen.records.monitor import (
    SPARK_CELLS,
    Alert,
    Ask,
    AskComparison,
    AskEvents,
    AskOutputs,
    BundleRow,
    CanaryRow,
    DeviceDetail,
    DeviceRow,
    DriftCell,
    EventRow,
    FleetView,
    OutputRow,
    Series,
    State,
    Verdict,
)

_MOST = 100_000
_POINTS = 60
_PRIVACY = ("p2", "p0", "p2", "p1")
"""Of each group."""


class MockSource:
    """A simulated fleet.

    Attributes:
        failure: raised by every question while it is set: a server that is away.
    """

    def __init__(self, n: int, seed: int = 0, *, clock: Callable[[], float] = time.time) -> None:
        """
        Raises:
            ConfigError: fewer than one device or more than 100,000.
        """
        if not 1 <= n <= _MOST:
            raise ConfigError(f"a simulated fleet has 1 to {_MOST:,} devices, not {n}")
        self.failure: Exception | None = None
        self._clock = clock
        self._devices = [Simulated(number, seed) for number in range(n)]
        self._numbers = {device.name: device.number for device in self._devices}
        self._seed = seed
        self._rows: dict[int, tuple[tuple[int, float, int, bool], DeviceRow]] = {}
        self._rollouts = MockRollouts(self._devices, seed, clock())
        self._outputs = mock_outputs.MockOutputs(self._devices, seed, self._release)

    @property
    def name(self) -> str:
        return f"simulated fleet of {len(self._devices)}"

    def fleet(self, ask: Ask) -> FleetView:
        at_s = self._at(ask.until_s)
        rows = tuple(
            self._row(device, at_s, ask.window_s)
            for device in self._devices
            if not ask.group or GROUPS[device.group] == ask.group
        )
        alive = [row for row in rows if row.state in (State.ONLINE, State.DEGRADED)]
        rates = [row.tokens_per_s * 0.08 for row in alive if row.tokens_per_s is not None]
        errors = [row.error_fraction for row in alive if row.error_fraction is not None]
        hot = sum(1 for row in alive if row.throttled)
        running = self._rollouts.running(at_s)
        return FleetView(
            at_s=at_s,
            window_s=ask.window_s,
            devices=rows,
            tokens_per_s=sum(rates) if rates else None,
            error_fraction=sum(errors) / len(errors) if errors else None,
            privacy=max((row.privacy for row in rows), default=""),
            skewed=sum(1 for row in rows if abs(row.clock_skew_s or 0) > 60),
            rollout=running,
            alerts=(
                Alert("hot devices", "all", "throttled", float(hot), 3.0, "firing", at_s - 720, len(alive)),
                Alert("slow first token", GROUPS[2], "ttft_p95_s", 1.92, 1.5, "pending", at_s - 60, 240),
            )
            if hot > 3
            else (),
        )

    def device(self, ask: Ask) -> DeviceDetail:
        device = self._known(ask.device)
        at_s = self._at(ask.until_s)
        row = self._row(device, at_s, ask.window_s)
        steps = [at_s - ask.window_s * (1 - (place + 1) / _POINTS) for place in range(_POINTS)]
        release = self._release(device, at_s)
        gaps = [device.is_away(step) or device.was_never_seen for step in steps]

        def series(metric: str, unit: str, value: Callable[[float], float | None]) -> Series:
            values = tuple(None if gap else value(step) for step, gap in zip(steps, gaps, strict=True))
            return Series(metric, unit, tuple(steps), values)

        return DeviceDetail(
            at_s=at_s,
            row=row,
            attributes={
                "arch": "x86_64" if device.kind == 3 else "aarch64",
                "agent": "0.1.0",
                "runtimes": "llama.cpp b4520",
                "model": KINDS[device.kind],
                "epoch": "3",
                "ram_bytes": str(device.ram_bytes),
                "location": "\x1b[31mback\x1b[0m room" if device.is_bad else "front room",
            },
            previous=RELEASES[release - 1] if release else "",
            previous_label=LABELS[release - 1] if release else "",
            series=(
                series("tokens_per_s", "tok/s", lambda s: device.tokens_per_s(s, release)),
                series("ttft", "s", lambda s: 6.0 / device.tokens_per_s(s, release)),
                series("errors", "%", lambda s: 100 * _errors(device, s)),
                series("rss", "MB", lambda s: 420 + 30 * chance(self._seed, device.number, 9, int(s // 60))),
                series("temperature", "°C", device.temperature_c),
                series("spool", "reports", lambda s: float(pick(40, self._seed, device.number, 10, int(s // 60)))),
            ),
            events=self.events(AskEvents(limit=8, until_s=ask.until_s, device=device.name)),
            canaries=mock_outputs.canaries(device, self._seed, at_s, release)[:6],
            fault="device: files intact, answers changed" if device.is_bad and device.number % 2 else "",
        )

    def outputs(self, ask: AskOutputs) -> tuple[OutputRow, ...]:
        self._fail()
        return self._outputs.rows(ask, self._at(ask.until_s))

    def events(self, ask: AskEvents) -> tuple[EventRow, ...]:
        self._fail()
        return self._rollouts.events(ask, self._at(ask.until_s))

    def compare(self, ask: AskComparison) -> tuple[CanaryRow, ...]:
        device = self._known(ask.device)
        at_s = self._at(None)
        now = self._release(device, at_s)
        new = RELEASES.index(ask.new) if ask.new in RELEASES else now
        old = RELEASES.index(ask.old) if ask.old in RELEASES else max(0, new - 1)
        return (
            *mock_outputs.canaries(device, self._seed, at_s - 86400, old),
            *mock_outputs.canaries(device, self._seed, at_s, new),
        )

    def bundles(self, ask: Ask) -> tuple[BundleRow, ...]:
        at_s = self._at(ask.until_s)
        running = [self._release(device, at_s) for device in self._devices]
        return tuple(
            BundleRow(
                digest=RELEASES[place],
                label=LABELS[place],
                kind="model",
                target="gguf",
                published_s=self._rollouts.began_s - 86400.0 * (20, 6, 0.02)[place],
                install_bytes=(78_400_000, 61_200_000, 58_900_000)[place],
                devices=running.count(place),
                epoch=(2, 3, 3)[place],
                signed_by=("3f9a12c4, 77b0e1d9", "3f9a12c4, 77b0e1d9", "3f9a12c4")[place],
                expires_s=self._rollouts.began_s + 86400.0 * (2.5, 41, 89)[place],
                lineage=("a41c", "b97f", "c03e")[place] * 4,
                transfer_bytes=(0, 18_300_000, 21_700_000)[place],
            )
            for place in reversed(range(len(RELEASES)))
        )

    def drift(self, ask: Ask) -> tuple[DriftCell, ...]:
        at_s = self._at(ask.until_s)
        cells = mock_outputs.drift(self._seed, at_s, ask.window_s, len(self._devices))
        return tuple(cell for cell in cells if not ask.group or cell.group == ask.group)

    def rollouts(self) -> tuple[Rollout, ...]:
        return self._rollouts.all(self._at(None))

    def actions(self, rollout: int) -> tuple[ActionView, ...]:
        return self._rollouts.actions(rollout, self._at(None))

    def act(self, name: str, asked: Record) -> Any:
        if isinstance(asked, WhichDevice):
            self._known(asked.device)
            return None  # simulated devices answer as before
        return self._rollouts.act(name, asked, self._at(None))

    def _at(self, until_s: float | None) -> float:
        self._fail()
        return self._clock() if until_s is None else until_s

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _known(self, name: str) -> Simulated:
        self._fail()
        if name not in self._numbers:
            raise ConfigError(f"there is no device {name[:40]!r}")
        return self._devices[self._numbers[name]]

    def _release(self, device: Simulated, at_s: float) -> int:
        return self._rollouts.release_of(device, at_s)

    def _row(self, device: Simulated, at_s: float, window_s: float) -> DeviceRow:
        """A device's line; the same object until its next report."""
        release = self._release(device, at_s)
        signature = (device.report(at_s), window_s, release, device.is_away(at_s))
        kept = self._rows.get(device.number)
        if kept is not None and kept[0] == signature:
            return kept[1]
        row = self._made(device, at_s, window_s, release)
        self._rows[device.number] = (signature, row)
        return row

    def _made(self, device: Simulated, at_s: float, window_s: float, release: int) -> DeviceRow:
        base = DeviceRow(device=device.name, group=GROUPS[device.group], kind=KINDS[device.kind], state=State.NEVER)
        if device.was_never_seen:
            return base
        seen_s = device.seen_s(at_s)
        away = device.is_away(at_s)
        hot = device.is_bad and chance(self._seed, device.number, 6, int(at_s // 600)) < 0.7
        errors = _errors(device, at_s)
        drifted = device.group == 2 and device.number % 5 == 0
        why = "throttled" if hot else "errors" if errors > 0.05 else "drift" if drifted else ""
        state = (
            State.REVOKED if device.is_revoked else State.OFFLINE if away else State.DEGRADED if why else State.ONLINE
        )
        few = device.number % 19 == 0
        step = window_s / SPARK_CELLS
        return msgspec.structs.replace(
            base,
            state=state,
            why=why,
            release=RELEASES[release],
            label=LABELS[release],
            phase=self._rollouts.phase_of(device, at_s),
            generations=int(window_s / 90 * (0.5 + chance(self._seed, device.number, 7))),
            tokens_per_s=None if few else device.tokens_per_s(seen_s, release),
            spark=tuple(
                None if few or device.is_away(at_s - step * k) else device.tokens_per_s(at_s - step * k, release)
                for k in range(SPARK_CELLS - 1, -1, -1)
            ),
            ttft_p95_s=None if few else 9.0 / device.tokens_per_s(seen_s, release),
            error_fraction=None if few else errors,
            rss_bytes=int(420e6 + 30e6 * chance(self._seed, device.number, 9, int(seen_s // 60))),
            ram_bytes=device.ram_bytes,
            temperature_c=device.temperature_c(seen_s),
            throttled=None if device.temperature_c(seen_s) is None else hot,
            thumbs_up=pick(9, self._seed, device.number, 11, int(at_s // 3600)),
            thumbs_down=pick(4, self._seed, device.number, 12, int(at_s // 3600)) if device.is_bad else 0,
            drift=Verdict.TOO_FEW if few else Verdict.DRIFT if drifted else Verdict.WATCH if hot else Verdict.OK,
            free_bytes=int(1e9 + 9e9 * chance(self._seed, device.number, 13)),
            seen_s=seen_s,
            clock_skew_s=-7200.0 if device.number % 307 == 11 else chance(self._seed, device.number, 14) * 4 - 2,
            spool_reports=pick(40, self._seed, device.number, 10, int(seen_s // 60)),
            dropped=12 if device.number % 101 == 3 else 0,
            privacy=_PRIVACY[device.group],
        )


def _errors(device: Simulated, at_s: float) -> float:
    noise = chance(device.seed, device.number, 8, int(at_s // 600))
    return 0.04 + 0.08 * noise if device.is_bad else 0.004 * noise
