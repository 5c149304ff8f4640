"""What a device and a fleet server say to each other, and what the server knows of devices and rollouts.

The wire is a subset of hawkBit's Direct Device Integration API, version 1, so that a user may bring another server or
another device client:

    GET  /default/controller/v1/{device}                            → Poll: what to do next, and when to ask again
    PUT  /default/controller/v1/{device}/configData                 ← Attributes
    GET  /default/controller/v1/{device}/deploymentBase/{action}    → DeploymentBase
    POST /default/controller/v1/{device}/deploymentBase/{action}/feedback  ← Feedback
    GET  /default/controller/v1/{device}/cancelAction/{action}      → CancelBase
    POST /default/controller/v1/{device}/cancelAction/{action}/feedback    ← Feedback
    GET  /default/controller/v1/{device}/installedBase/{action}     → DeploymentBase, of what the device runs now

each with `Authorization: TargetToken <token>`. 404: no such device or action of it; 401: wrong token; 410: the action
is over, drop it; 5xx and 429: try again later. Two things are ours, and a foreign client may leave them out: enrolment
(`POST /enrol`, see `Enrolment`) and the header `RUNNING_HEADER` on each poll.

The server only *names* a release. What may be installed is decided by the signed repository, which is static files:
`MANIFEST_PART` describes where the manifest is found there. Wire messages ignore keys that they do not know.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from edgegen.records.base import Record

TENANT = "default"
RUNNING_HEADER = "x-edgegen-running"
"""Digest of the manifest that the device serves now (`sha256:<hex>`), or `none`: a success that the server was told
of is checked against what the device says it runs."""

MANIFEST_PART = "edgegen-bundle"
"""`Chunk.part` of the chunk that names a release. Its `metadata` has the keys below; its first artifact is the
manifest, the others are the release's files, for clients that do not know manifests."""
TARGET_KEY = "edgegen.target"
"""Path of the manifest among the repository's targets, as TUF names it."""
REPOSITORY_KEY = "edgegen.repository"
"""URL of the repository, which holds `metadata/`, `targets/`, `blobs/`. A device that has one configured keeps it."""
CANARY_LINK = "edgegenCanary"
"""Of a poll's links: the device is to answer its golden prompts again now. Foreign clients leave it out."""
REASON_KEY = "edgegen.reason"
"""`update`, or `rollback` where an operator ordered an older release of the same epoch."""
DEADLINE_KEY = "edgegen.deadline_s"
"""Seconds from the first offer until the server counts the device as failed."""


class Phase(StrEnum):
    """Where an update is on the device, in order. The journal's states."""

    IDLE = "idle"
    RESERVE = "reserve"
    FETCH = "fetch"
    VERIFY = "verify"
    STAGE = "stage"
    SELF_TEST = "self-test"
    SWITCH = "switch"
    PROBATION = "probation"
    CONFIRM = "confirm"
    ROLL_BACK = "roll-back"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"
    """Nothing was switched; the old release served all the time."""


class Reason(StrEnum):
    """Why an update did not come about, in `Status.details` as `reason=<value>`."""

    NONE = "none"
    TRUST = "trust"
    """A signature, threshold, expiry or digest is not what it should be."""
    DOWNGRADE = "downgrade"
    """The release's epoch is below the highest that the device has confirmed."""
    BANNED = "banned"
    """This release was rolled back here before."""
    INCOMPATIBLE = "incompatible"
    BASE_MISSING = "base-missing"
    NO_SPACE = "no-space"
    METERED = "metered"
    """More bytes than the link's budget allows."""
    NETWORK = "network"
    NOT_FOUND = "not-found"
    CLOCK = "clock"
    """The device's clock cannot be trusted to judge an expiry."""
    LOAD_FAILED = "load-failed"
    GOLDEN = "golden"
    """Golden prompts were answered wrongly."""
    TOO_SLOW = "too-slow"
    TOO_MUCH_MEMORY = "too-much-memory"
    CRASHED = "crashed"
    ERRORS = "errors"
    """Too many requests failed during probation."""
    TIMEOUT = "timeout"
    CANCELED = "canceled"
    DISK = "disk"
    INTERNAL = "internal"


class Execution(StrEnum):
    """DDI's words for how far an action is."""

    DOWNLOAD = "download"
    DOWNLOADED = "downloaded"
    PROCEEDING = "proceeding"
    SCHEDULED = "scheduled"
    RESUMED = "resumed"
    CLOSED = "closed"
    CANCELED = "canceled"
    REJECTED = "rejected"


EXECUTION_OF: dict[Phase, Execution] = {
    Phase.IDLE: Execution.SCHEDULED,
    Phase.RESERVE: Execution.DOWNLOAD,
    Phase.FETCH: Execution.DOWNLOAD,
    Phase.VERIFY: Execution.DOWNLOADED,
    Phase.STAGE: Execution.DOWNLOADED,
    Phase.SELF_TEST: Execution.PROCEEDING,
    Phase.SWITCH: Execution.PROCEEDING,
    Phase.PROBATION: Execution.PROCEEDING,
    Phase.CONFIRM: Execution.PROCEEDING,
    Phase.ROLL_BACK: Execution.PROCEEDING,
    Phase.CONFIRMED: Execution.CLOSED,
    Phase.ROLLED_BACK: Execution.CLOSED,
    Phase.FAILED: Execution.CLOSED,
}


class Finished(StrEnum):
    """DDI's outcome of an action."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"


class Wire(msgspec.Struct, frozen=True, rename="camel", omit_defaults=False):
    """Base of the messages: DDI's camelCase; unknown keys are ignored."""


class Link(Wire, frozen=True):
    href: str


class Polling(Wire, frozen=True):
    sleep: str
    """`HH:MM:SS` until the next poll."""


class PollConfig(Wire, frozen=True):
    polling: Polling


class Poll(Wire, frozen=True):
    """Answer to a poll."""

    config: PollConfig
    links: dict[str, Link] = msgspec.field(name="_links", default_factory=dict)
    """`deploymentBase`, `cancelAction`, `configData`, `installedBase`: each is there if there is something to do."""


class Hashes(Wire, frozen=True):
    sha256: str
    """Hex, without prefix."""


class ArtifactLink(Wire, frozen=True):
    filename: str
    hashes: Hashes
    size: int
    links: dict[str, Link] = msgspec.field(name="_links", default_factory=dict)
    """`download` or, without TLS, `download-http`. Both answer Range requests."""


class Metadata(Wire, frozen=True):
    key: str
    value: str


class Chunk(Wire, frozen=True):
    """One release."""

    part: str
    version: str
    name: str
    artifacts: tuple[ArtifactLink, ...] = ()
    metadata: tuple[Metadata, ...] = ()


class Deployment(Wire, frozen=True):
    download: str
    """`forced`, `attempt` or `skip`."""
    update: str
    chunks: tuple[Chunk, ...]
    maintenance_window: str | None = None
    """`available` or `unavailable`; None: the device need not wait."""


class DeploymentBase(Wire, frozen=True):
    """An action: take this release."""

    id: str
    deployment: Deployment


class StopId(Wire, frozen=True):
    stop_id: str


class CancelBase(Wire, frozen=True):
    """Drop an action if it is not past the switch. The answer is `closed/success`, or `rejected` if it is too late."""

    id: str
    cancel_action: StopId


class Progress(Wire, frozen=True):
    cnt: int
    of: int


class Outcome(Wire, frozen=True):
    finished: Finished = Finished.NONE
    progress: Progress | None = None


class Status(Wire, frozen=True):
    execution: Execution
    result: Outcome = Outcome()
    code: int | None = None
    details: tuple[str, ...] = ()
    """`phase=<Phase>`, `reason=<Reason>`, `attempt=N`, `bytes_fetched=N`, `bytes_reused=N`, then words for people."""


class Feedback(Wire, frozen=True):
    """How an action goes. `closed` with success is sent only after probation; sending it again changes nothing."""

    status: Status
    id: str = ""
    timestamp: int | None = None
    """Milliseconds since 1970 by the device's clock."""


class Attributes(Wire, frozen=True):
    """What a device says of itself."""

    data: dict[str, str]
    """`arch`, `runtimes` (comma-separated), `agent` (version), `running` and `previous` (manifest digests),
    `epoch`, `ram_bytes`, `free_bytes`, `model`; what is unknown is left out."""
    mode: str = "merge"
    """`merge`, `replace` or `remove`."""


class Enrolment(Wire, frozen=True):
    """`POST /enrol` with `Authorization: EnrolToken <token>`: a device introduces itself.

    The device makes its credential (`secrets.token_urlsafe(32)`), saves it, and then sends it here over TLS; so a lost
    answer costs nothing: the same request again is answered the same. A device that is known with another credential is
    409: an enrolment token does not take over a device. Other answers: 401 unknown, used up or expired token, 400.
    """

    device: str
    """`[A-Za-z0-9][A-Za-z0-9._-]{0,63}`."""
    token: str
    """The device's new credential, at least 32 characters; the server keeps its digest."""
    attributes: dict[str, str] = {}


class Enrolled(Wire, frozen=True):
    """Answer to `Enrolment`."""

    device: str
    group: str
    controller: str
    """Path or URL to poll."""
    repository: str
    """URL of the repository."""
    poll_s: float


class Installed(Wire, frozen=True):
    """How one installation ended, the last line that this prints:

        edgegen-agent --config FILE install --repository URL --target TARGET --json

    which takes a release from a repository (a URL, or a folder of the same shape) through all phases. Exit code 0:
    confirmed, or it was the active release already; otherwise that of the error (6 trust, 7 device, 8 network).
    """

    digest: str
    phase: Phase
    """`confirmed`, `rolled-back` or `failed`."""
    reason: Reason = Reason.NONE
    detail: str = ""
    """In words."""
    bytes_fetched: int = 0
    bytes_reused: int = 0
    """Taken from files that were on the device."""
    seconds: float = 0.0


class ActionState(StrEnum):
    """Where one device is in one rollout, for the server."""

    WAITING = "waiting"
    """Its wave has not begun."""
    OFFERED = "offered"
    """Its wave has begun; the device has not answered."""
    RUNNING = "running"
    CANCELING = "canceling"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    CANCELED = "canceled"
    DEFERRED = "deferred"
    """Not seen for long: not counted, offered the release when it returns."""


class RolloutState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    ABORTED = "aborted"
    FINISHED = "finished"
    SUPERSEDED = "superseded"
    """A later rollout to the same group took over."""


class GateMetric(StrEnum):
    """What devices report about a release, that a rollout may be gated on. Higher is worse, but for the speed."""

    ERRORS = "error_fraction"
    """Generations that ended in an error ÷ generations."""
    TTFT = "ttft"
    """Time to first token, seconds."""
    SPEED = "tokens_per_s"
    """Answer tokens a second."""
    THUMBS_DOWN = "thumbs_down_fraction"
    """Generations that a user rated down ÷ generations."""
    DRIFT = "drift"
    """Population stability index of the answers' features."""


class Thresholds(Record, frozen=True):
    """When a rollout goes on, and when it stops by itself.

    The fields from `max_error_fraction_rise` on gate it on telemetry: what devices with the release report is compared
    with what the devices of the group report that wait for it (the control). None: that is not looked at.
    """

    success_fraction: float = 0.9
    """Share of a wave's counted devices that must be confirmed before the next wave begins."""
    abort_fraction: float = 0.2
    """Failed and timed-out devices ÷ devices with an outcome, over all waves so far."""
    min_executed: int = 5
    """Devices with an outcome before the abort fraction is judged; a smaller wave is judged when it is complete."""
    deadline_s: float = 3600.0
    """From the first offer a device saw to its outcome; later counts as a failure."""
    soak_s: float = 0.0
    """From a wave's success to the next wave."""
    defer_after_s: float = 7 * 86400.0
    """A device that was not seen for so long is deferred."""
    roll_back: bool = False
    """When the rollout stops by itself or is aborted, send devices that confirmed it back to what they ran before."""
    max_error_fraction_rise: float | None = None
    """It stops when the error fraction is above the control's by more than this, 0 to 1."""
    max_ttft_ratio: float | None = None
    """It stops when the time to first token is above this times the control's."""
    min_tokens_per_s_ratio: float | None = None
    """It stops when the speed is below this times the control's."""
    max_thumbs_down_rise: float | None = None
    """It stops when the thumbs-down fraction is above the control's by more than this, 0 to 1."""
    drift: float | None = None
    """It stops when the population stability index against the control is above this."""
    min_generations: int = 200
    """With the release and without, each; fewer are no verdict."""
    abort_on: tuple[GateMetric, ...] = ()
    """It is aborted when one of these is worse; for the others it is paused, and a person decides."""
    require_telemetry: bool = False
    """A next wave waits until there are enough reports for a verdict on each metric that has a threshold; after
    `deadline_s` of that it is paused."""


class Wave(Record, frozen=True):
    """One step of a rollout."""

    number: int
    """From 1."""
    fraction: float
    """Of the group, cumulative, in (0, 1]."""
    devices: int
    states: dict[str, int] = {}
    """`ActionState` → devices of this wave."""
    begun_s: float | None = None
    """Seconds since 1970, by the server's clock; so are all times below."""
    succeeded_s: float | None = None


class Rollout(Record, frozen=True):
    """One release on its way to one group."""

    id: int
    name: str
    version: str
    digest: str
    """Of the manifest."""
    group: str
    state: RolloutState
    reason: str
    """Why it is paused, aborted or waits, empty otherwise."""
    kind: str
    """`update` or `rollback`."""
    thresholds: Thresholds
    waves: tuple[Wave, ...]
    created_s: float
    created_by: str
    finished_s: float | None = None


class ActionView(Record, frozen=True):
    """One device in one rollout."""

    id: int
    rollout: int
    device: str
    wave: int
    state: ActionState
    phase: str
    reason: str
    digest: str
    from_digest: str
    """What the device ran when it was offered the release, empty if that is unknown."""
    offered_s: float | None = None
    finished_s: float | None = None


class DeviceView(Record, frozen=True):
    """What the server knows of a device."""

    device: str
    group: str
    attributes: dict[str, str]
    running: str
    """Digest of the manifest that it said it runs, empty before it said so."""
    enrolled_s: float
    seen_s: float | None = None
    revoked: bool = False
    action: ActionView | None = None
    """Its latest."""


class AuditEntry(Record, frozen=True):
    """Who did what. Only added to, never changed."""

    id: int
    at_s: float
    who: str
    """`operator:<name>`, `device:<id>` or `engine`."""
    what: str
    subject: str
    detail: str = ""
