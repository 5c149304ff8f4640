"""When something happened, by the server's clock.

A device's clock may be wrong by years, and may be set at any time. Its monotonic clock is not: within a boot, a report
is as old as the difference of two of its readings, and the batch brings the second. Where the device has been started
anew since, its clock's reading is taken, moved by what that clock is wrong now; and if even that cannot be, nobody
knows: the report counts as of now, and late.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgegen.records.telemetry import Batch, Report

LATE_S = 600.0
"""Later than this after it happened, a report is late: views of the last minutes were without it."""
_OLDEST_S = 400 * 86400.0
"""Nothing stays on a device for so long."""
_TOLERANCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """The server's clock and a device's at one moment."""

    received_s: float
    sent_s: float
    mono_s: float
    boot: str

    @classmethod
    def of(cls, batch: Batch, received_s: float) -> Clocks:
        return cls(received_s, batch.sent_s, batch.mono_s, batch.boot)

    @property
    def skew_s(self) -> float:
        """The device's clock minus the server's; the way of the batch is counted in."""
        return self.sent_s - self.received_s

    def place(self, report: Report) -> tuple[float, int]:
        """When a report's matter happened, seconds since 1970 by the server's clock, and 1 if it is late, else 0."""
        if report.boot == self.boot and report.mono_s <= self.mono_s:
            age_s = self.mono_s - report.mono_s
        else:
            age_s = self.sent_s - report.at_s
        if not -_TOLERANCE_S <= age_s <= _OLDEST_S:
            return self.received_s, 1
        age_s = max(0.0, age_s)
        return self.received_s - age_s, int(age_s > LATE_S)
