"""Numbers of a simulated fleet that depend on a seed, a place and a time alone: any moment can be asked for again.

A device at a time is a function, not a state that evolves; so a screen that travels in time, two screens beside each
other and a test all see the same fleet.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

GROUPS = ("kitchen-hub", "retail-kiosk", "field-tablet", "factory-gateway")
_SHORT = ("hub", "kiosk", "tablet", "gw")
KINDS = ("Raspberry Pi 4 4GB", "Raspberry Pi 5 8GB", "Jetson Orin Nano", "Intel N100")
_SPEED = (6.0, 14.0, 31.0, 19.0)
_RAM = (4_000_000_000, 8_000_000_000, 8_000_000_000, 16_000_000_000)
MODEL = "smart-home"
VERSIONS = ("1.4.0", "1.5.0", "1.6.0-rc1")
RELEASES = tuple("sha256:" + hashlib.sha256(f"{MODEL} {version}".encode()).hexdigest() for version in VERSIONS)
LABELS = tuple(f"{MODEL}@{version}" for version in VERSIONS)
REPORT_S = 10.0
"""Between a device's reports."""
_MASK = (1 << 64) - 1


def chance(*parts: int) -> float:
    """A number in [0, 1) that looks random; the same for the same parts (SplitMix64 over them)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state + (part & _MASK) * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state / 2**64


def pick(count: int, *parts: int) -> int:
    """A whole number below `count`."""
    return int(chance(*parts) * count)


@dataclass(frozen=True, slots=True)
class Simulated:
    """One device, for all times."""

    number: int
    seed: int

    @property
    def group(self) -> int:
        return self.number % len(GROUPS)

    @property
    def name(self) -> str:
        return f"{_SHORT[self.group]}-{self.number:05d}"

    @property
    def kind(self) -> int:
        return pick(len(KINDS), self.seed, self.number, 1)

    @property
    def ram_bytes(self) -> int:
        return _RAM[self.kind]

    @property
    def is_bad(self) -> bool:
        """Fails now and then, throttles, is slow."""
        return self.number % 41 == 7

    @property
    def is_revoked(self) -> bool:
        return self.number % 997 == 500

    @property
    def was_never_seen(self) -> bool:
        return self.number % 211 == 100

    def is_away(self, at_s: float) -> bool:
        """Some devices are off for an hour, and a few for long."""
        if self.number % 173 == 60:
            return True
        return chance(self.seed, self.number, 2, int(at_s // 3600)) < 0.02

    def report(self, at_s: float) -> int:
        """Number of the report that is its last one at a time."""
        return int((at_s + self.number % 20 * REPORT_S / 20) // REPORT_S)

    def seen_s(self, at_s: float) -> float:
        """When the last report came."""
        last = self.report(at_s) * REPORT_S - self.number % 20 * REPORT_S / 20
        if self.number % 173 == 60:
            return at_s - 86400.0 * (1 + self.number % 5)
        if self.is_away(at_s):
            return (at_s // 3600) * 3600
        return last

    def tokens_per_s(self, at_s: float, release: int) -> float:
        """Median of decoding around a time: the device's own, the day's course, noise."""
        own = _SPEED[self.kind] * (0.9 + 0.2 * chance(self.seed, self.number, 3))
        if self.is_bad:
            own *= 0.55
        if release == 2:
            own *= 1.12
        day = 1 + 0.05 * math.sin(at_s / 86400 * 2 * math.pi + self.group)
        load = 0.75 + 0.25 * math.sin(at_s / 700 + self.number * 1.7) ** 2
        return own * day * load * (0.95 + 0.1 * chance(self.seed, self.number, 4, int(at_s // REPORT_S)))

    def temperature_c(self, at_s: float) -> float | None:
        """Some boards do not tell."""
        if self.kind == 3 and self.number % 3 == 0:
            return None
        swing = 6 * math.sin(at_s / 5400 + self.number)
        return 52 + 8 * chance(self.seed, self.number, 5) + swing + (17 if self.is_bad else 0)
