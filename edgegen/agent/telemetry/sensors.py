"""Temperature and throttling, as far as this machine tells. What it does not tell is None.

Linux names thermal zones by type. A Jetson's joint zone is `tj-thermal`, and other tools that ask for a graphics card
there get 0 °C: exactly 0 counts as not told. Whether a processor is held back is told in several ways: the Raspberry
Pi's firmware has bits, ARM boards cap frequencies through a cooling device, Intel counts throttlings since boot.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil

_ZONES = ("tj-thermal", "cpu-thermal", "cpu_thermal", "soc-thermal", "soc_thermal", "x86_pkg_temp", "acpitz")
"""Types of zones that speak for the processor, best first; others that name a CPU or SoC come after."""
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
_PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
_HELD_NOW = 0b1110
"""Of the Pi's bits: frequency capped, throttled, soft temperature limit. Bit 0 is low voltage; higher ones are past."""
_ASKED_AGAIN_S = 10.0


class Heat(NamedTuple):
    """A reading."""

    temperature_c: float | None
    throttled: bool | None


class Sensors:
    """Reads one machine. Cheap to ask often: readings are kept for a second."""

    def __init__(self, root: Path = Path("/"), *, keep_s: float = 1.0) -> None:
        """Prepare.

        Args:
            root: of the file system that `sys` lies in.
            keep_s: how long a reading is good.
        """
        self._root, self._keep_s = root, keep_s
        self._real = root == Path("/")
        self._last: tuple[float, Heat] | None = None
        self._counted: int | None = None
        self._asked: tuple[float, bool | None] | None = None

    def read(self) -> Heat:
        """How hot it is."""
        now = time.monotonic()
        if self._last is None or now - self._last[0] >= self._keep_s:
            self._last = (now, Heat(self._temperature(), self._throttled()))
        return self._last[1]

    def _temperature(self) -> float | None:
        found: dict[str, float] = {}
        for zone in sorted(self._root.glob("sys/class/thermal/thermal_zone*")):
            kind, value = _text(zone / "type").lower(), _number(zone / "temp")
            if kind and value is not None and _possible(value / 1000):
                found[kind] = max(value / 1000, found.get(kind, -1000.0))
        for kind in _ZONES:
            if kind in found:
                return found[kind]
        named = [value for kind, value in found.items() if "cpu" in kind or "soc" in kind or "core" in kind]
        return max(named) if named else self._chip()

    def _chip(self) -> float | None:
        """What a processor's own sensor tells, where there are no zones."""
        if not self._real or not hasattr(psutil, "sensors_temperatures"):
            return None
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            chips = psutil.sensors_temperatures()
            for name in _CHIPS:
                values = [entry.current for entry in chips.get(name, ()) if _possible(entry.current)]
                if values:
                    return float(max(values))
        return None

    def _throttled(self) -> bool | None:
        """True if any source says so, False if one says no and none yes."""
        told = [self._pi(), self._capped(), self._intel()]
        return True if True in told else False if False in told else None

    def _pi(self) -> bool | None:
        bits = _text(self._root / _PI)
        if not bits:
            return self._vcgencmd()
        with contextlib.suppress(ValueError):
            return bool(int(bits, 16) & _HELD_NOW)
        return None

    def _vcgencmd(self) -> bool | None:
        if not self._real or shutil.which("vcgencmd") is None:
            return None
        now = time.monotonic()
        if self._asked is None or now - self._asked[0] >= _ASKED_AGAIN_S:
            held: bool | None = None
            with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
                said = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=2)
                held = bool(int(said.stdout.strip().partition("=")[2], 16) & _HELD_NOW)
            self._asked = (now, held)
        return self._asked[1]

    def _capped(self) -> bool | None:
        """Whether a cooling device holds the processor's frequency down."""
        states = [
            _number(device / "cur_state")
            for device in self._root.glob("sys/class/thermal/cooling_device*")
            if "cpufreq" in _text(device / "type").lower()
        ]
        known = [state for state in states if state is not None]
        return any(state > 0 for state in known) if known else None

    def _intel(self) -> bool | None:
        """Whether throttlings were counted since the reading before; None at the first."""
        counts = [
            _number(path) for path in self._root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
        ]
        known = [count for count in counts if count is not None]
        if not known:
            return None
        before, self._counted = self._counted, sum(known)
        return None if before is None else self._counted > before


def _possible(celsius: float) -> bool:
    return celsius != 0 and -40 <= celsius <= 150


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
