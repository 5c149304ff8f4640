"""What one runtime can take: its file format, its number grids and what they cost."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record
from edgegen.records.model import Task

Source = Literal["measured", "datasheet", "assumed", "learned"]
"""Where a number comes from; `learned`: from what devices reported (`edgegen learn`)."""


class GridFacts(Record, frozen=True):
    """One number grid that the runtime has kernels for.

    A grid stores a row of weights in blocks of `block` columns, `bits_per_weight` on average including scales.
    """

    name: str
    block: int
    """Columns that share a scale; a row's length must be a multiple of it unless the last block may be shorter."""
    bits_per_weight: float
    activation: Literal["float", "int8_16", "int8_32", "int8_64", "int8_128", "int8_256", "int8_row"] = "float"
    """How the runtime rounds the other operand before multiplying: not, to int8 in blocks of so many inputs, or over a
    token's whole input with a zero point."""
    partial: bool = False
    """Whether a row's last block may be shorter, so that rows of any length fit."""
    resident_ratio: float = 1.0
    """Resident bytes over bytes in the file: runtimes unpack f16 into f32, keep sums beside the blocks, or leave the
    file mapped beside what they made of it."""
    read_ratio: float = 1.0
    """Bytes that decoding one token reads over bytes in the file."""
    needs_importance: bool = False
    """The runtime's rounding refuses to work without importance weights."""
    planned: bool = True
    """Offered to the planner by default; others only when named on the command line."""
    cycles_per_weight: dict[str, float] = {}
    """Instruction set → core cycles to multiply-accumulate one weight in single-token decoding."""
    cycles_source: Source = "assumed"
    prefill_cycles_per_weight: dict[str, float] = {}
    """As `cycles_per_weight`, for each token of a micro-batch of 64 prompt tokens: runtimes tile those better."""
    repacked_isas: tuple[str, ...] = ()
    """Instruction sets on which the runtime rearranges such weights when it loads them. A table that is both embedding
    and head is then resident twice, once in each arrangement."""


class Overheads(Record, frozen=True):
    """What the runtime needs beside weights and cache. Measured on the reference machine unless said otherwise."""

    process_bytes: int
    """Resident memory of a process that has loaded the runtime and no model."""
    fixed_buffer_bytes: int
    """Compute buffers that do not grow with the model."""
    buffer_bytes_per_ubatch_hidden: float
    """Compute-buffer bytes for each (token of a micro-batch x hidden unit)."""
    buffer_bytes_per_ubatch_vocab: float
    """Compute-buffer bytes for each (token of a micro-batch x vocabulary entry)."""
    weights_resident_fraction: float
    """Share of the file's weights that is resident after a full pass (1 = all)."""
    seconds_per_layer_token: float
    """Dispatch time per block and decoded token, on one core at 1 GHz."""
    source: Source
    buffer_bytes_per_ubatch_ffn: float = 0.0
    """Compute-buffer bytes for each (token of a micro-batch x unit of the feed-forward width)."""
    buffer_bytes_per_ubatch_head_context: float = 0.0
    """Compute-buffer bytes for each (token of a micro-batch x attention head x token of context): the scores, where
    the runtime holds them all."""
    context_step_tokens: int = 1
    """The cache is allocated in multiples of so many tokens."""
    kv_copies: float = 1.0
    """How often the cache is resident: 2 where each step writes a new one beside the old."""
    cycles_per_cached_number: float = 0.0
    """Core cycles of attention for each number of keys and values in the whole context's cache, for each decoded token:
    of runtimes that read the cache to its end, however much of it is filled."""
    bytes_per_vocab_entry: float = 0.0
    """Tokenizer tables and one row of logits, for each vocabulary entry; independent of the micro-batch."""


class Fault(Record, frozen=True):
    """A known fault of a runtime's published package on some processors, and what helps."""

    runtime: str
    """The adapter that meets it."""
    lacks: Literal["lse"]
    """What such a processor has not; see `Device.meets`."""
    sign: str
    """A piece of what the runtime writes to stderr when it fails."""
    what: str
    """The fault in one sentence without its processor."""
    remedy: str
    """What to do on the device, in one sentence."""
    remove: tuple[str, ...] = ()
    """Files to take out of the installed package, relative to the folder that holds it."""


class Target(Record, frozen=True):
    """A runtime as the planner sees it. File: `targets/NAME.toml`."""

    schema: int
    name: str
    runtime: str
    file_suffix: str
    families: tuple[str, ...]
    """Model families (`model_type`) that the exporter knows."""
    grids: tuple[GridFacts, ...]
    overheads: Overheads
    kv_bits: dict[str, float]
    """Cache type → bits per element; the first is the default."""
    parity_max_kl: float
    """Largest KL (nats per token) between the shipped artifact and the torch model with the same rounded weights that
    counts as the runtime's own rounding of activations."""
    strict_max_kl: float
    """The same in strict-accuracy mode, where nothing is rounded: more is a fault of the file."""
    parity_min_top1_fraction: float
    encoder_families: tuple[str, ...] = ()
    """Sentence encoders (`model_type`) that the exporter knows."""
    layered_families: tuple[str, ...] = ()
    """Of `families`, those whose layers may differ in feed-forward width and in heads."""
    encoder_overheads: Overheads | None = None
    """Of encoders, where they are not those of models that continue text."""
    parity_max_distance: float = 2e-3
    """As `parity_max_kl` for encoders: 1 - cosine similarity, mean over texts."""
    strict_max_distance: float = 1e-6
    """As `strict_max_kl` for encoders."""
    faults: tuple[Fault, ...] = ()
    notes: str = ""
    source: str = ""
    """Where the numbers come from."""

    def overheads_of(self, task: Task) -> Overheads:
        """What the runtime needs for a model of this kind."""
        return self.encoder_overheads if task == "encoder" and self.encoder_overheads else self.overheads

    def grid(self, name: str) -> GridFacts:
        """The grid called `name` (KeyError if there is none)."""
        for grid in self.grids:
            if grid.name == name:
                return grid
        raise KeyError(name)

    @property
    def grid_names(self) -> tuple[str, ...]:
        return tuple(g.name for g in self.grids)
