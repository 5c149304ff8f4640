"""Everything that edgegen raises on purpose.

    EdgegenError                 exit code
    ├── ConfigError                 2   you: a file, flag or data row is wrong
    ├── UnsupportedError            3   you: this model, layer or format cannot be done; says what can
    ├── InfeasibleError             4   you: no plan fits; names the binding budget and the shortfall
    ├── VerificationError           5   you: the artifact misses its profile
    ├── TrustError                  6   stop: signature, version or digest; never retried
    ├── DeviceError                 7   the machine: disk, memory, runtime
    └── NetworkError                8   try again later

An infeasible plan, a failing report and an alert are values (`records.plan.Infeasible`, `records.report.Report`,
`records.monitor.Alert`); only the command line turns them into exits. `edgegen monitor --once` has an exit code of its
own, 9, for a look at a fleet that succeeded and found an alert firing. A third party's exception is wrapped where it
was met.
"""

from __future__ import annotations

from enum import StrEnum

ALERT_EXIT_CODE = 9
"""Of `edgegen monitor --once` while an alert fires."""


class Fault(StrEnum):
    """What is wrong with something that was not trusted; the name that a refusal carries."""

    SIGNATURE = "signature"
    """Not signed, wrongly signed, or by fewer keys than its role's threshold."""
    EXPIRED = "expired"
    """Metadata past its expiry: a frozen repository, or a wrong clock."""
    CLOCK = "clock"
    """Expired, or not, by a clock that cannot be trusted to judge it."""
    ROLLBACK = "rollback"
    """Older metadata than was seen before."""
    MIXED = "mixed"
    """Parts of different states of a repository together."""
    DIGEST = "digest"
    """Other bytes than the signed ones."""
    SIZE = "size"
    """More bytes than the signed metadata or the limits allow."""
    UNLISTED = "unlisted"
    """Not among the files that the repository's keys vouch for."""
    MALFORMED = "malformed"
    """Not what the format asks for."""
    PATH = "path"
    """A file name that leaves its folder, or that two files have."""
    DOWNGRADE = "downgrade"
    """A release of a lower epoch than one that the device has confirmed."""


class EdgegenError(Exception):
    """Root of the tree.

    Attributes:
        exit_code: what the command line exits with.
        retryable: whether the same call may succeed later without a change.
        hint: one sentence that says what to do, or empty.
    """

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(EdgegenError):
    """A file, flag or data row is wrong; the message names it."""

    exit_code = 2


class UnsupportedError(EdgegenError):
    """The model, layer, grid or format cannot be done here; the hint says what can."""

    exit_code = 3


class InfeasibleError(EdgegenError):
    """No plan fits the budgets; the message names the binding one and the shortfall."""

    exit_code = 4


class VerificationError(EdgegenError):
    """A strict caller asked for an exception instead of a failing report."""

    exit_code = 5


class TrustError(EdgegenError):
    """A signature, version or digest is not what it should be.

    Attributes:
        fault: what was found, for reports and tests.
    """

    exit_code = 6

    def __init__(self, message: str, *, hint: str = "", fault: Fault = Fault.MALFORMED) -> None:
        super().__init__(message, hint=hint)
        self.fault = fault


class DeviceError(EdgegenError):
    """This machine cannot: disk full, too little memory, a runtime that does not start."""

    exit_code = 7


class NetworkError(EdgegenError):
    """A remote side did not answer as it should."""

    exit_code = 8
    retryable = True
