"""A device, and what is wanted of a model on it."""

from __future__ import annotations

from edgegen.records.base import Record
from edgegen.records.target import Fault, Source


class Number(Record, frozen=True):
    """A figure with where it comes from."""

    value: float
    source: Source
    note: str = ""


_WITHOUT_LSE = frozenset({"cortex-a34", "cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73"})
"""Cores of ARMv8.0, which know no atomic instructions (LSE came with ARMv8.1). Every later Cortex and every Apple core
has them. Source: the cores' reference manuals."""

_ISAS_WITHOUT_LSE = ("neon-inorder", "neon")
"""What stands in for an unnamed core: the kernels' name of one that lacks ARMv8.2's dot product."""


class Device(Record, frozen=True):
    """The hardware. Values are of the whole device unless said otherwise."""

    cpu: str
    """Marketing name of the processor."""
    arch: str
    """`aarch64` or `x86_64`."""
    isa: str
    """The key into a target's kernel costs: neon-inorder, neon, neon-dotprod, neon-i8mm, avx2, avx512-vnni."""
    cores: int
    """Cores that a runtime should use: the big ones on a mixed design."""
    clock_ghz: Number
    """Sustained with all those cores busy."""
    ram_bytes: Number
    storage_bytes: Number
    bandwidth_bytes_per_s: Number
    """Memory bandwidth that those cores reach when reading."""
    cpu_model: str = ""
    """The core as emulators and compilers name it, such as `cortex-a76`."""

    @property
    def lacks_lse(self) -> bool:
        """Whether this is an ARM core without atomic instructions."""
        if self.arch != "aarch64":
            return False
        return self.cpu_model in _WITHOUT_LSE if self.cpu_model else self.isa in _ISAS_WITHOUT_LSE

    def meets(self, fault: Fault) -> bool:
        """Whether a runtime's known fault shows on this processor."""
        return fault.lacks == "lse" and self.lacks_lse


class Budgets(Record, frozen=True):
    """Limits that an artifact has to keep. None: no limit."""

    max_bytes: int | None = None
    """Size of the artifact file."""
    max_rss_bytes: int | None = None
    """Peak resident memory of the process that runs it."""
    min_tokens_per_s: float | None = None
    """Decode speed at batch 1; of an encoder, tokens read a second."""
    max_ttft_ms: float | None = None
    """Time to the first token of a prompt of `prompt_tokens`; of an encoder, time for a text of that length."""
    max_kl: float | None = None
    """Mean KL divergence to the original on held-out text, nats per token; of models that continue text."""
    min_cosine: float | None = None
    """Mean cosine similarity of held-out texts' vectors to the original's; of encoders."""


class Workload(Record, frozen=True):
    """How the model is used; sizes the cache and the measurement."""

    context_tokens: int = 2048
    """Cut to the model's own context where that is shorter."""
    prompt_tokens: int = 64
    decode_tokens: int = 64
    ubatch_tokens: int = 128
    """Prompt tokens processed at once: fewer need less memory."""
    threads: int = 0
    """0: as many as the device has cores."""
    kv_type: str = ""
    """What the runtime keeps keys and values in; empty: the first that the target's file names."""


class Before(Record, frozen=True):
    """A number that was changed."""

    key: str
    """Where it stands: `device.bandwidth_bytes_per_s`, or a table and its entry like `kernel_ns_per_weight.q8_0`."""
    number: Number | None = None
    """What stood there; None: nothing did."""


class Learned(Record, frozen=True):
    """What devices reported and what it changed. `[learned]`; written by `edgegen learn`, taken back by `--reset`."""

    reports: int
    """Answers that were looked at."""
    devices: int
    releases: int
    since: str
    """Day of the first of them, ISO 8601."""
    until: str
    speed_error_before: float
    """Median over devices and releases of |predicted / measured - 1| of decode speed, with the numbers of before."""
    speed_error: float
    """With those of now, over the same measurements."""
    before: tuple[Before, ...]


class Profile(Record, frozen=True):
    """A device and the budgets that fit it. File: `profiles/NAME.toml`."""

    schema: int
    name: str
    title: str
    device: Device
    targets: tuple[str, ...]
    """Runtimes that run on it, best first."""
    budgets: Budgets
    workload: Workload = Workload()
    kernel_ns_per_weight: dict[str, Number] = {}
    """Grid → nanoseconds per weight on one core, where measured; overrides the target's cycles."""
    prefill_ns_per_weight: dict[str, Number] = {}
    """As `kernel_ns_per_weight`, for each token of a micro-batch of 64 prompt tokens."""
    overhead_s_per_layer_token: dict[str, Number] = {}
    """Target → dispatch time per block and token where measured; overrides the target's."""
    attention_s_per_cached_number: dict[str, Number] = {}
    """Target → core seconds for each number of the whole context's cache and decoded token, of runtimes that read all
    of it; overrides the target's."""
    rss_offset_bytes: dict[str, Number] = {}
    """Target → resident bytes beyond what the target's overheads add up to; may be below 0."""
    load_bytes_per_s: dict[str, Number] = {}
    """Target → bytes of a model's files that are opened in a second."""
    learned: Learned | None = None
    notes: str = ""
