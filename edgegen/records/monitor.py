"""What a person looks at: the questions to a fleet's store and their answers.

The terminal's screens, `--json`, the alerts and scripts all read these; each question is an operation of the fleet's
server. Times are seconds since 1970 by the server's clock. Unknown is None, never 0.
"""

from __future__ import annotations

from enum import StrEnum

from edgegen.records.base import Record

SPARK_CELLS = 8


class Ask(Record, frozen=True):
    """A stretch of time, and of what."""

    window_s: float = 3600.0
    until_s: float | None = None
    """None: now. Another time shows the fleet as it was then."""
    group: str = ""
    device: str = ""


class AskOutputs(Record, frozen=True):
    """Which answers."""

    after: int = 0
    """Cursor: only rows that came later; 0: the latest."""
    limit: int = 200
    until_s: float | None = None
    group: str = ""
    device: str = ""
    release: str = ""
    flag: str = ""


class AskEvents(Record, frozen=True):
    """Which events."""

    after: int = 0
    limit: int = 200
    until_s: float | None = None
    group: str = ""
    device: str = ""
    level: str = ""


class AskComparison(Record, frozen=True):
    """Two releases' answers to the same golden prompts."""

    device: str
    old: str = ""
    """Digest; empty: the one that the device had before."""
    new: str = ""
    """Digest; empty: the one that it runs."""


class AskHard(Record, frozen=True):
    """Which telling answers."""

    window_s: float = 7 * 86400.0
    until_s: float | None = None
    group: str = ""
    device: str = ""
    release: str = ""
    """Digest."""
    why: str = ""
    """One of `Text.why`; empty: any."""
    limit: int = 1000


class State(StrEnum):
    """Of a device."""

    ONLINE = "online"
    DEGRADED = "degraded"
    """Reports, but something is wrong: errors, throttling, drift, a failed release."""
    OFFLINE = "offline"
    NEVER = "never"
    """Was never seen."""
    REVOKED = "revoked"


class Verdict(StrEnum):
    """Of a comparison of distributions."""

    OK = "ok"
    WATCH = "watch"
    """Beyond the threshold in one window; a second one makes it a drift."""
    DRIFT = "drift"
    TOO_FEW = "n too small"


class DeviceRow(Record, frozen=True):
    """One line of the fleet. Figures are of the window asked for."""

    device: str
    group: str
    kind: str
    """Type of the hardware, as the device says."""
    state: State
    why: str = ""
    """Why it is degraded."""
    release: str = ""
    """Digest of what it serves."""
    label: str = ""
    """`name@version` of it."""
    phase: str = ""
    """Of the update that runs."""
    generations: int = 0
    tokens_per_s: float | None = None
    """Median."""
    spark: tuple[float | None, ...] = ()
    """Median tokens a second in each eighth of the window."""
    ttft_p95_s: float | None = None
    error_fraction: float | None = None
    rss_bytes: int | None = None
    ram_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    thumbs_up: int = 0
    thumbs_down: int = 0
    drift: Verdict | None = None
    free_bytes: int | None = None
    seen_s: float | None = None
    clock_skew_s: float | None = None
    """Device's clock minus the server's."""
    spool_reports: int | None = None
    dropped: int = 0
    privacy: str = ""


class Alert(Record, frozen=True):
    """A rule that is broken, or about to be."""

    rule: str
    group: str
    metric: str
    value: float | None
    threshold: float
    state: str
    """`firing`, `pending` or `no data`."""
    since_s: float | None = None
    n: int = 0


class FleetView(Record, frozen=True):
    """Everything of the first screen."""

    at_s: float
    window_s: float
    devices: tuple[DeviceRow, ...]
    tokens_per_s: float | None = None
    """Answer tokens of the whole fleet a second, averaged over the window."""
    error_fraction: float | None = None
    privacy: str = ""
    """Highest level that any device reports at."""
    skewed: int = 0
    """Devices whose clock is wrong by more than a minute."""
    rollout: str = ""
    """The running one in words."""
    alerts: tuple[Alert, ...] = ()


class Series(Record, frozen=True):
    """One metric over the window."""

    metric: str
    unit: str
    at_s: tuple[float, ...]
    values: tuple[float | None, ...]
    """Median of each step."""


class CanaryRow(Record, frozen=True):
    """A golden prompt's last run."""

    at_s: float
    release: str
    prompt: int
    agreed: int
    expected: int
    log_prob_drop: float
    intact: bool | None
    text: str = ""


class DeviceDetail(Record, frozen=True):
    """Everything of one device."""

    at_s: float
    row: DeviceRow
    attributes: dict[str, str]
    previous: str = ""
    previous_label: str = ""
    series: tuple[Series, ...] = ()
    events: tuple[EventRow, ...] = ()
    canaries: tuple[CanaryRow, ...] = ()
    fault: str = ""
    """`device`, `data` or empty: whose fault a change is, with words after a colon."""


class OutputRow(Record, frozen=True):
    """One answer."""

    cursor: int
    at_s: float
    device: str
    label: str
    generation: str
    prompt_tokens: int
    answer_tokens: int
    stop: str
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    flags: tuple[str, ...] = ()
    """REFUSE REPEAT LENGTH LEAK EMPTY ERROR LOW BADJSON."""
    rating: int = 0
    comment: str = ""
    error: str = ""
    prompt: str = ""
    answer: str = ""
    """Empty unless the device's privacy lets text out."""
    level: str = ""
    late: bool = False
    """Came long after it happened."""


class EventRow(Record, frozen=True):
    """Something that happened: an operator's act, a device's word, an alert."""

    cursor: int
    at_s: float
    level: str
    what: str
    device: str = ""
    group: str = ""
    detail: str = ""


class DriftCell(Record, frozen=True):
    """One metric of one release in one group against what it was when it was packed."""

    metric: str
    group: str
    release: str
    label: str
    n: int
    psi: float | None
    js: float | None
    wasserstein: float | None
    threshold: float | None
    """Of the population stability index, for this n; of embeddings, of the Mahalanobis distance."""
    verdict: Verdict
    edges: tuple[float, ...]
    reference: tuple[int, ...]
    current: tuple[int, ...]
    against: str = "reference"
    """`reference`; `control` where a rollout's new release is compared with the others; `before` for embeddings, of
    which a release has no reference."""
    p: float | None = None
    """Of this metric by itself; the verdict counts that several were looked at."""


class BundleRow(Record, frozen=True):
    """One release."""

    digest: str
    label: str
    kind: str
    target: str
    published_s: float
    install_bytes: int
    devices: int
    """That run it."""
    epoch: int
    signed_by: str = ""
    expires_s: float | None = None
    """When the role that vouches for it must be signed anew."""
    lineage: str = ""
    transfer_bytes: int | None = None
    """A device of the fleet that runs the commonest release would fetch."""


class Text(Record, frozen=True):
    """One telling answer pulled for the next training set."""

    prompt: str
    answer: str
    why: str
    """`low confidence`, `thumbs down`, `error` or `drifted`."""
    device: str
    release: str
    generation: str
    level: str
    lineage: str = ""
