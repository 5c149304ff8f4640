"""What devices measured, as the planner learns from it, and what it learned.

An observation is one device with one release on one runtime: medians of its answers. The fleet's server makes them
from the store of telemetry; each release comes with what its plan's prediction was made of. Unknown is None, never 0.
"""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record
from edgegen.records.plan import Settings, Terms
from edgegen.records.profile import Number, Profile

MIN_ANSWER_TOKENS = 8
"""Of an answer whose decode speed counts: in a shorter one the clock's grain shows."""
MIN_PROMPT_TOKENS = 16
"""Of a prompt whose time to first token counts."""


class AskObservations(Record, frozen=True):
    """Of which time."""

    window_s: float = 90 * 86400.0
    until_s: float | None = None
    """None: now."""
    group: str = ""
    each: int = 200
    """At most so many answers, the latest, of a device with a release."""


class Observation(Record, frozen=True):
    """One device with one release."""

    device: str
    release: str
    """Digest of its manifest."""
    runtime: str
    profile: str
    """Name of the profile that the device says it is; empty: it says none."""
    threads: int | None
    answers: int
    """That were looked at, throttled ones left out."""
    throttled: int
    """Answers made while the processor was held back; nothing else here is of them."""
    since_s: float
    until_s: float
    speed_answers: int = 0
    tokens_per_s: float | None = None
    """Median, of answers of `MIN_ANSWER_TOKENS` and more."""
    first_answers: int = 0
    ttft_s: float | None = None
    """Median, of prompts of `MIN_PROMPT_TOKENS` and more."""
    prompt_tokens: float | None = None
    """Median of the same prompts."""
    peak_rss_bytes: float | None = None
    """Median of the process's highest so far, which only grows until it starts again."""
    loads: int = 0
    load_s: float | None = None
    """Median."""


class KnownRelease(Record, frozen=True):
    """A release that observations are of."""

    digest: str
    label: str
    """`name@version`."""
    target: str
    kind: str
    settings: Settings
    profile: str = ""
    """That it was planned for."""
    lineage: str = ""
    terms: Terms | None = None


class Observations(Record, frozen=True):
    """Everything that can be learned from."""

    at_s: float
    rows: tuple[Observation, ...]
    releases: tuple[KnownRelease, ...]


class AskMissing(Record, frozen=True):
    """Which releases' answers: the characters that took byte tokens."""

    window_s: float = 90 * 86400.0
    until_s: float | None = None
    group: str = ""
    release: str = ""
    """`name@version`, or the beginning of a digest; empty: the one that most answers are of."""


class Missing(Record, frozen=True):
    """What a release's vocabulary lacks."""

    release: str
    label: str
    model: str
    """Where its original was found, as the one who compressed it gave it."""
    model_digest: str
    answers: int
    """That told which share of their prompt were single bytes."""
    byte_fraction: float | None
    """Mean of that share; None where no answer told."""
    characters: dict[str, int]
    """Character → how often it took byte tokens; only of devices whose privacy lets it out."""


class AskTrace(Record, frozen=True):
    """Where something comes from."""

    what: str
    """A lineage id or its beginning, a release (`name@version` or the beginning of its digest), a device, or an
    answer's id."""


class Trace(Record, frozen=True):
    """One release from its model to what devices report of it."""

    lineage: str
    model: str
    model_digest: str
    data_digest: str
    plan_digest: str
    profile: str
    release: str
    """Digest of its manifest."""
    label: str
    parent: str
    """Digest of the release that it follows."""
    devices: tuple[str, ...]
    """That run it now, at most 100."""
    answers: int
    """That were reported and are still kept."""


class Coefficient(Record, frozen=True):
    """One number of the profile, and what became of it."""

    key: str
    """As `records.profile.Before` names it."""
    title: str
    unit: str
    was: Number | None
    """None: the profile had none; the target's table counted."""
    was_value: float | None
    """What counted before; None where nothing did."""
    now: Number | None
    """None: it stays."""
    basis: Literal["measured", "carried over", "stays"]
    """`carried over`: no release has this grid; all that have others agree on one factor."""
    reports: int = 0
    """Answers in which it is a tenth of the time or more."""
    devices: int = 0
    why: str = ""


class Point(Record, frozen=True):
    """A measurement with what was predicted."""

    device: str
    label: str
    answers: int
    measured: float
    """Tokens a second."""
    before: float
    after: float


class Errors(Record, frozen=True):
    """Median over observations of |predicted / measured - 1|."""

    n: int
    before: float
    after: float


class Learning(Record, frozen=True):
    """What was learned about a profile."""

    profile: Profile
    """With the corrected numbers."""
    coefficients: tuple[Coefficient, ...]
    reports: int
    devices: int
    releases: int
    throttled: int
    left_out: dict[str, int]
    """Why → answers."""
    speed: Errors
    first_token: Errors | None
    memory: Errors | None
    load: Errors | None
    points: tuple[Point, ...]
    notes: tuple[str, ...]


class Restore(Record, frozen=True):
    """Tokens that a trimmed vocabulary should get back. `restore.json`; `edgegen compress --keep-tokens` reads it."""

    schema: int
    model: str
    model_digest: str
    release: str
    byte_fraction: float | None
    tokens: tuple[str, ...]
    """Of the original tokenizer, as it writes them."""
    characters: dict[str, int] = {}
    """What they are for, and how often it was met."""
