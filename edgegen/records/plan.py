"""What will be done to each tensor, what that should cost, and why."""

from __future__ import annotations

import msgspec

from edgegen.records.base import Record
from edgegen.records.data import DataRef
from edgegen.records.model import ModelRef, ModelSummary, Task
from edgegen.records.profile import Budgets, Profile
from edgegen.records.refinement import Refinement
from edgegen.records.structure import Change, Considered


class Option(Record, frozen=True):
    """One grid for one tensor and its price."""

    grid: str
    bytes: int
    kl: float
    """Expected rise of KL to the original, nats per token; of an encoder, expected fall of the cosine similarity."""


class TensorChoice(Record, frozen=True):
    """The grid chosen for a tensor and the neighbours that lost."""

    name: str
    role: str
    layer: int
    rows: int
    columns: int
    grid: str
    bytes: int
    kl: float
    smaller: Option | None = None
    """The next cheaper grid on this tensor's own trade-off curve."""
    larger: Option | None = None
    """The next dearer one."""
    why: str = ""
    compensated: bool = False
    """Whether rounding errors are compensated, instead of rounding each weight by itself."""


class VocabularyChoice(Record, frozen=True):
    """How many tokens stay."""

    original_size: int
    size: int
    kl: float
    """Cost in nats per token: probability mass lost on dropped tokens plus the change in nats per byte from splitting
    text differently, brought to nats per original token."""
    lost_mass_fraction: float
    """Mean probability that the original gives to dropped tokens."""
    tokens_per_byte_ratio: float
    """Tokens per byte after trimming over before (1 = text is cut as before)."""
    why: str = ""


class Settings(Record, frozen=True):
    """How the runtime is to be started."""

    context_tokens: int
    ubatch_tokens: int
    threads: int
    kv_type: str


class Prediction(Record, frozen=True):
    """What the plan expects of the artifact on the profile's device."""

    bytes: int
    kl: float
    """Mean KL on held-out text, nats per token; of an encoder, 1 - mean cosine similarity."""
    rss_bytes: int
    decode_tokens_per_s: float
    """Of an encoder, which decodes nothing: as `prefill_tokens_per_s`."""
    prefill_tokens_per_s: float
    ttft_ms: float
    """Time to first token; of an encoder, time for a text of the workload's `prompt_tokens`."""
    bits_per_weight: float
    """Over all weights of the exported model, file headers excluded."""
    decode_bound: str
    """What limits decoding: `bandwidth`, `kernels` or `dispatch`."""
    load_s: float | None = None
    """Time to open the model, where devices have told how fast they load."""


class Terms(msgspec.Struct, frozen=True):
    """How much work the planned model is, apart from the device: what a device's coefficients turn into time and
    memory (see `planner.cost`), so that a measurement can be held against any coefficients.

    It travels in signed manifests, where unknown keys are passed over.
    """

    layers: int
    read_bytes: float
    """That decoding one token reads."""
    weights: dict[str, int]
    """Grid → weights that a decoded token is multiplied with."""
    prompt_weights: dict[str, int]
    """Grid → weights that each token of a prompt is multiplied with."""
    cached_numbers: float
    """Keys and values of the whole context."""
    model_bytes: int
    """Of the model's files."""
    rss_bytes: float
    """As predicted without anything learned."""
    task: Task = "causal"


class FrontPoint(Record, frozen=True):
    """A plan that no other beats in both bytes and KL."""

    bytes: int
    kl: float
    vocab_size: int
    bits_per_weight: float


class Infeasible(Record, frozen=True):
    """No plan fits. A value, so that callers can look at the nearest one."""

    binding: str
    """The budget that cannot be met: max_bytes, max_rss, min_tok_s, max_ttft, max_kl, min_cosine, or a pair of them."""
    limit: float
    best: float
    """The best value that any plan reaches for it (with the other budgets kept)."""
    message: str
    nearest: Prediction
    """The plan that comes nearest; its KL includes the vocabulary's cost."""
    task: Task = "causal"


class Plan(Record, frozen=True):
    """Everything that compression needs to know."""

    schema: int
    model: ModelRef
    summary: ModelSummary
    """After the structural changes: padded or trimmed sizes."""
    original: ModelSummary
    data: DataRef
    target: str
    profile: Profile
    budgets: Budgets
    """The profile's with the command line's over them."""
    prefer: str
    """What was optimised within the budgets: `quality`, `size` or `speed`."""
    vocabulary: VocabularyChoice
    tensors: tuple[TensorChoice, ...]
    settings: Settings
    prediction: Prediction
    baseline: Prediction
    """The same model at 16 bits, for comparison."""
    front: tuple[FrontPoint, ...]
    calibration: dict[str, float]
    """How the additive estimate was corrected: grid → measured over summed KL, and `joint` for the chosen plan."""
    binding: str
    """The budget that keeps the plan from being better, or `none`."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Wall time that planning took."""
    terms: Terms | None = None
    """What the prediction is made of; None in plans of before it was written down."""
    structure: tuple[Change, ...] = ()
    """What is changed before weights are rounded."""
    structure_name: str = ""
    """Of the derived checkpoint in the workspace; empty: the original's own structure."""
    considered: tuple[Considered, ...] = ()
    """What became of each technique."""
    more_time: str = ""
    """What a larger time budget would buy."""
    refinement: Refinement | None = None
    """What tuning the rounded weights gave, which `prediction` counts in; None: there was no time for it."""
    lineage: str = ""
    """One id from the model to what devices report: the digest of everything that decides the artifact. The artifact,
    the receipt and the release's provenance repeat it."""
