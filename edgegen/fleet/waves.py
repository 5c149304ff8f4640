"""Who goes first: the steps of a rollout, and which device is in which.

Devices are ordered by SHA-256 of `<rollout>|<device>`: the order is the same after a restart, and a different device
is first in each rollout. Devices that were not seen lately come last, because an early wave is there to teach
something.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable

from edgegen.errors import ConfigError


def parse_waves(text: str) -> tuple[float, ...]:
    """`5%,25%,100%` as cumulative fractions, ascending, the last 1.

    Raises:
        ConfigError: anything else.
    """
    hint = "Write it like 5%,25%,100%: shares of the group, each with those before it."
    fractions = []
    for word in text.split(","):
        word = word.strip()
        try:
            value = float(word.removesuffix("%")) / 100
        except ValueError:
            value = math.nan
        if not word.endswith("%") or not 0 < value <= 1:
            raise ConfigError(f"--waves: {word!r} is no share between 0% and 100%", hint=hint)
        fractions.append(value)
    return checked_waves(tuple(fractions))


def checked_waves(fractions: tuple[float, ...]) -> tuple[float, ...]:
    """The same fractions.

    Raises:
        ConfigError: they do not ascend to 1.
    """
    ascending = all(a < b for a, b in itertools.pairwise(fractions))
    if not fractions or not ascending or fractions[0] <= 0 or fractions[-1] != 1:
        raise ConfigError("--waves: the shares must ascend to 100%", hint="Write it like 5%,25%,100%.")
    return fractions


def assign(rollout: int, devices: Iterable[tuple[str, bool]], fractions: tuple[float, ...]) -> dict[str, int]:
    """Each device's wave, from 1.

    A wave ends after ⌈fraction·n⌉ devices, so the first is never empty; later ones are, where the group is small.

    Args:
        devices: each device's name, and whether it was seen lately.
    """

    def place(entry: tuple[str, bool]) -> tuple[bool, bytes]:
        return not entry[1], hashlib.sha256(f"{rollout}|{entry[0]}".encode()).digest()

    ordered = [device for device, _ in sorted(devices, key=place)]
    ends = [math.ceil(round(fraction * len(ordered), 9)) for fraction in fractions]
    wave = 1
    assigned = {}
    for position, device in enumerate(ordered):
        while position >= ends[wave - 1]:
            wave += 1
        assigned[device] = wave
    return assigned
