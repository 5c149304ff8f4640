"""The receipt: what was asked, what was predicted, what was measured."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record
from edgegen.records.compressed import Rounding
from edgegen.records.model import Task

GATE_CHECK = "gate:"
"""How the name of a check begins that is a gate (see `records.evaluation`)."""


class Interval(Record, frozen=True):
    """A mean with a 95 % confidence interval."""

    value: float
    low: float
    high: float


class Check(Record, frozen=True):
    """One limit and whether it is kept."""

    name: str
    """intact, loads, tokenizer, sane_text, strict_kl, parity_kl, parity_top1, litertlm, `runs_on_` with a processor
    core that was emulated, `gate:` with the gate's name, or a budget: max_bytes, max_rss, min_tok_s, max_ttft, max_kl.
    Of encoders: strict_distance, parity_distance, rank_correlation, min_cosine."""
    limit: float | None
    measured: float | None
    predicted: float | None
    unit: str
    passed: bool
    basis: Literal["measured", "predicted"] = "measured"
    """`predicted` where this machine is not the device: the number is the plan's, and says so."""
    detail: str = ""


class Parity(Record, frozen=True):
    """The artifact against the torch model with the same rounded weights, or one run of it against another."""

    tokens: int
    top1_fraction: float
    max_abs_logit_difference: float
    kl: float
    """Nats per token."""
    greedy_prefix: int = 0
    """Tokens that agree from the start of a greedy continuation; the least over the runs."""
    greedy_tokens: int = 0
    """How many there were to agree on."""


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


class VectorParity(Record, frozen=True):
    """As `Parity`, of an encoder."""

    texts: int
    distance: float
    """1 - cosine similarity, mean over texts."""
    max_distance: float
    max_abs_difference: float
    """Of any number in any vector."""


class Emulated(Record, frozen=True):
    """One run of the artifact on an emulated processor core: the device's own kernels, not its speed."""

    cpu_model: str
    """The profile's core, such as `cortex-a72`."""
    emulated_as: str
    """The core that the emulator took: the same, or the nearest that it knows."""
    runtime: str
    version: str
    """Of the aarch64 package; empty where it did not get so far as to say."""
    change: str
    """What was taken out of the runtime's package beforehand; empty: the package as it is published."""
    passed: bool
    planned: Parity | None
    """Against the torch model with the same rounded weights; None where the run failed, and of an encoder."""
    host: Parity | None
    """Against the same runtime on the machine that verified; likewise."""
    planned_vectors: VectorParity | None
    """As `planned`, of an encoder."""
    host_vectors: VectorParity | None
    seconds: float
    """Wall time under emulation; says nothing about the device's."""
    fault: str = ""
    """Why the run failed, in one line."""
    remedy: str = ""
    """What to do on the device about a known fault."""


class VectorQuality(Record, frozen=True):
    """An encoder's artifact against the original on held-out texts."""

    texts: int
    cosine: Interval
    """Mean cosine similarity of a text's vector to the original's."""
    cosine_p01: float
    """One text in 100 is further off."""
    cosine_min: float
    rank_correlation: Interval
    """Spearman's, between the similarities of all pairs of texts as the artifact and as the original has them."""
    pairs: int


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
    """0 of an encoder: then `ttft_ms` is for one text of `prompt_tokens`, and both speeds are tokens read a second."""


class Bounds(Record, frozen=True):
    """What the machine that verified allows at best; of models that continue text."""

    read_bytes: float
    """Of weights, that decoding one token reads."""
    bandwidth_bytes_per_s: float
    """That as many threads read together from memory, measured right after the speed."""
    bandwidth_fraction: float
    """Of it, that decoding takes: bytes a token × tokens/s ÷ bandwidth. Small models stay in the cache, which is
    faster."""
    kernels_tokens_per_s: float | None
    """Decode speed if only multiplying took time, on as many cores, by the runtime's own kernels as timed right then;
    None where the runtime does not let them be timed."""
    kernels_fraction: float | None
    """Of it, that decoding reaches."""


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
    runtime: str
    profile: str
    command: str
    created: str
    """UTC, ISO 8601."""
    seconds: float
    checks: tuple[Check, ...]
    parity: Parity | None
    """As it ships, activations rounded to int8: what differs is the runtime's arithmetic."""
    strict: Parity | None
    """In strict-accuracy mode: what differs is a fault of the file. None where its file is not at hand."""
    quality: Quality | None
    speed: Speed | None
    memory: Memory | None
    task: TaskScore | None
    samples: tuple[Sample, ...]
    machine: Machine
    versions: dict[str, str]
    digests: dict[str, str]
    artifact_bytes: int
    model_task: Task = "causal"
    """What the model is for."""
    vectors: VectorQuality | None = None
    """Of an encoder, in the place of `quality`; the two below in the places of `parity` and `strict`."""
    vector_parity: VectorParity | None = None
    vector_strict: VectorParity | None = None
    bounds: Bounds | None = None
    """How near decoding is to what this machine could do at best."""
    rounding: Rounding | None = None
    """How near rounding is to what so many bits could do at best."""
    emulated: tuple[Emulated, ...] = ()
    """Runs on the profile's own processor core under emulation, in the order in which they were tried."""
    notes: tuple[str, ...] = ()
