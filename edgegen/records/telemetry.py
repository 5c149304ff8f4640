"""What devices report: the wire from the agent's spool to a fleet's store.

A device numbers what it reports. `(device, stream, seq)` names a report for ever, so that one that comes twice is
kept once: `stream` is made with the spool's file, and a device that was wiped starts another. Reports travel as lines
of JSON, gzipped, `POST /telemetry/v1/{device}` with the device's token. The server answers with an `Ack` once they
are committed; the device then forgets exactly those that it sent.

Unknown is None, never 0. Messages ignore keys that they do not know.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

INGEST_PATH = "/telemetry/v1/{device}"
MOST_BATCH_BYTES = 512 * 1024
"""Of a batch before it is packed."""
MOST_REPORT_BYTES = 64 * 1024
"""Of one report's line."""
MQTT_REPORTS = "edgegen/{device}/reports"
"""Topic of a device's batches, the same lines of JSON."""
MQTT_ACKS = "edgegen/{device}/acks"
"""Topic on which the server says what it has committed."""


class Lane(IntEnum):
    """What goes first, and what a full spool drops last."""

    DEPLOY = 0
    ERRORS = 1
    NUMBERS = 2
    TEXT = 3
    DEBUG = 4


class Privacy(StrEnum):
    """What may leave a device."""

    NUMBERS = "p0"
    """Numbers only, the default."""
    FEATURES = "p1"
    """And vectors of hashed features, from which no text can be read."""
    REDACTED = "p2"
    """And a sample of prompts and answers, redacted."""
    FULL = "p3"
    """And their full text, for as long as the device's configuration says."""


class Said(msgspec.Struct, frozen=True, tag_field="kind"):
    """Base of what a report can say."""


class Features(msgspec.Struct, frozen=True):
    """An answer's text in numbers that need no model."""

    characters: int
    empty: bool
    """Nothing but white space."""
    repetition: float
    """0 … 1: share of 4-grams of words that were there before, or of the text that its last cycle repeats."""
    distinct2: float | None
    """Distinct pairs of words over pairs; None below two words."""
    non_letter_fraction: float | None
    script: str
    """Unicode script of most letters, such as `latin`; empty without letters."""
    refusal: bool
    """Begins as refusals do."""
    leaked: bool
    """Holds a marker of the chat template: an artifact that was packed wrongly."""
    json_valid: bool | None = None
    """Only where JSON was asked for."""


class Generation(Said, frozen=True, tag="generation"):
    """One answer of the model."""

    id: str
    """As the API gave it; feedback names it."""
    release: str
    """Digest of its manifest."""
    template: str
    """The prompt template's digest, twelve digits."""
    runtime: str
    """Name and version."""
    prompt_tokens: int
    answer_tokens: int
    stop: str
    """`stop`, `length`, `canceled` or `error`."""
    queue_s: float | None = None
    ttft_s: float | None = None
    """From the model's begin, without the queue."""
    tokens_per_s: float | None = None
    """Decoding, without the first token."""
    threads: int | None = None
    mean_log_prob: float | None = None
    """Of the answer's tokens under the model's own distribution, nats."""
    mean_entropy: float | None = None
    """Of those distributions, nats."""
    distinct_fraction: float | None = None
    """Distinct tokens over tokens."""
    byte_fraction: float | None = None
    """Share of the prompt's tokens that are single bytes for want of a word; None where the vocabulary has none."""
    missing: dict[str, int] = {}
    """Characters of the prompt that took byte tokens → how often; at most 16, only at P2 and above."""
    rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    error: str = ""
    features: Features | None = None


class Sample(Said, frozen=True, tag="sample"):
    """Text of an answer, as far as the device's level of privacy goes."""

    generation: str
    release: str
    prompt: str
    answer: str
    level: Privacy
    why: str
    """`sampled`, `error` or `feedback`."""
    redactions: int = 0
    """Places that were blotted out."""
    cut: bool = False
    """Longer than what is kept."""


class Feedback(Said, frozen=True, tag="feedback"):
    """What a user thought of an answer."""

    generation: str
    rating: int
    """1 good, -1 bad."""
    comment: str = ""
    """Redacted; only at P2 and above."""


class Embedding(Said, frozen=True, tag="embedding"):
    """Hashed features of a window's answers, P1 and above."""

    release: str
    what: str
    """`prompts` or `answers`."""
    n: int
    mean: tuple[float, ...]
    variance: tuple[float, ...]


class Canary(Said, frozen=True, tag="canary"):
    """A golden prompt asked again on the device."""

    release: str
    prompt: int
    """Which of the manifest's golden prompts."""
    agreed: int
    """Tokens of the expected answer that came, from the start."""
    expected: int
    log_prob_drop: float
    """How much less likely the expected answer is than when it was packed, nats a token."""
    tokens_per_s: float | None = None
    intact: bool | None = None
    """Whether the release's files have their digests; None: not looked at this time."""
    ids: tuple[int, ...] = ()
    """What came instead: tokens of the answer, at most as many as were expected."""


class Health(Said, frozen=True, tag="health"):
    """How the device is."""

    release: str
    uptime_s: float
    load_s: float | None = None
    rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    free_bytes: int | None = None
    free_ram_bytes: int | None = None
    spool_reports: int = 0
    spool_bytes: int = 0
    privacy: Privacy = Privacy.NUMBERS


class Happening(Said, frozen=True, tag="event"):
    """Something that a person may want to read."""

    level: str
    """`info`, `warning` or `error`."""
    what: str
    """A word for machines, such as `rolled-back`."""
    detail: str = ""
    release: str = ""


class Dropped(Said, frozen=True, tag="dropped"):
    """Reports that the device had to give up."""

    lane: int
    count: int
    first_seq: int
    last_seq: int
    why: str
    """`quota`, `expired` or `refused`; `full`: too many came at once; `disk`: it took nothing; `failed`: no report
    could be made."""


Item = Generation | Sample | Feedback | Embedding | Canary | Health | Happening | Dropped


class Report(msgspec.Struct, frozen=True):
    """One line."""

    stream: str
    seq: int
    lane: int
    at_s: float
    """Seconds since 1970 by the device's clock, which may be wrong."""
    mono_s: float
    """Seconds since `boot` began, by a clock that nobody sets."""
    boot: str
    item: Item


class Batch(msgspec.Struct, frozen=True):
    """The first line of a batch: what the device's clocks showed when it was sent."""

    stream: str
    sent_s: float
    mono_s: float
    boot: str
    reports: int


class Refused(msgspec.Struct, frozen=True):
    """A report that the server will never take."""

    line: int
    """Of the batch, the first report is 1."""
    reason: str


class Ack(msgspec.Struct, frozen=True):
    """The server's answer: everything of the batch is committed, was already, or is refused."""

    stream: str
    stored: int
    known: int
    """Came before."""
    refused: tuple[Refused, ...] = ()
    first_seq: int = 0
    last_seq: int = 0
    wait_s: float = 0.0
    """Before the next batch, please."""
