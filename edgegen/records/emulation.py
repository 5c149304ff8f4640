"""What is set up to run artifacts on an emulated processor."""

from __future__ import annotations

from edgegen.records.base import Record


class Emulation(Record, frozen=True):
    """The emulator, the device's system under it, and the packages in it. `setup.json`."""

    schema: int
    emulator: str
    """Version of the emulator's package."""
    system: str
    """The device's system, such as `Debian trixie`."""
    python: str
    """Its Python, such as `3.13`."""
    processors: tuple[str, ...]
    """The cores that the emulator knows, by name."""
    packages: dict[str, str]
    """Distribution → version, each for aarch64."""
    bytes: int
    """On the disk, everything together."""
    notes: tuple[str, ...] = ()
    """What could not be set up and why."""
