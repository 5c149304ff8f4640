"""The receipt: what was asked, what was predicted, what was measured."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record


class Interval(Record, frozen=True):
    """A mean with a 95 % confidence interval."""

    value: float
    low: float
    high: float


class Check(Record, frozen=True):
    """One limit and whether it is kept."""

    name: str
    """loads, tokenizer, parity_kl, parity_top1, sane_text, max_bytes, max_rss, min_tok_s, max_ttft, max_kl, intact."""
    limit: float | None
    measured: float | None
    predicted: float | None
    unit: str
    passed: bool
    basis: Literal["measured", "predicted"] = "measured"
    """`predicted` where this machine is not the device: the number is the plan's, and says so."""
    detail: str = ""


class Parity(Record, frozen=True):
    """The artifact against the torch model with the same rounded weights."""

    tokens: int
    top1_fraction: float
    max_abs_logit_difference: float
    kl: float
    """Nats per token."""


class Quality(Record, frozen=True):
    """The artifact against the original model on held-out text."""

    tokens: int
    windows: int
    kl: Interval
    kl_median: float
    kl_p99: float
    kl_p999: float
    top1_fraction: Interval
    ln_ppl_ratio: Interval
    """ln(perplexity of the artifact / of the original), nats per token."""
    bits_per_byte: Interval
    original_bits_per_byte: float
    renormalised: bool
    """True when the vocabulary was trimmed: KL is against the original renormalised over the kept tokens."""
    lost_mass_nats: float = 0.0
    """Mean of -ln(probability that the original gives to the kept tokens): KL of dropping the others."""


class Speed(Record, frozen=True):
    """Medians over repeats on the machine that verified."""

    threads: int
    repeats: int
    load_ms: float
    ttft_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_spread_fraction: float
    """(maximum - minimum) / median over the repeats."""
    prompt_tokens: int
    decode_tokens: int


class Memory(Record, frozen=True):
    peak_rss_bytes: int
    """Peak resident memory of the whole process."""
    baseline_rss_bytes: int
    """Before the model was opened: interpreter and runtime."""


class Sample(Record, frozen=True):
    """One prompt answered by both models, greedily."""

    prompt: str
    original: str
    artifact: str
    expected: str = ""


class TaskScore(Record, frozen=True):
    """Answers on held-out requests compared with the data's own."""

    requests: int
    exact_fraction: Interval
    """Whole answer equal."""
    call_fraction: Interval | None
    """The JSON object in the answer equal, for data whose answers hold one."""
    original_exact_fraction: float
    original_call_fraction: float | None


class Machine(Record, frozen=True):
    """Where the measurement was made."""

    cpu: str
    arch: str
    cores: int
    ram_bytes: int
    system: str
    is_device: bool
    """Whether this is the profile's device: then speed and memory are its own."""


class Report(Record, frozen=True):
    """What `edgegen verify` found. `report.json`."""

    schema: int
    passed: bool
    model: str
    target: str
    profile: str
    command: str
    created: str
    """UTC, ISO 8601."""
    seconds: float
    checks: tuple[Check, ...]
    parity: Parity | None
    quality: Quality | None
    speed: Speed | None
    memory: Memory | None
    task: TaskScore | None
    samples: tuple[Sample, ...]
    machine: Machine
    versions: dict[str, str]
    digests: dict[str, str]
    artifact_bytes: int
    notes: tuple[str, ...] = ()
