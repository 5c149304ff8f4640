"""What the specification of a model family is made of. The families themselves stand in `families` and `encoder`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgegen.export.gguf.rope import Floats, Value

Config = Mapping[str, Any]

SCALED = frozenset({"default", "linear", "yarn"})
"""Rules of rotary positions that most architectures know."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A configuration in GGUF's words."""

    metadata: dict[str, Value]
    """Full keys, the architecture's prefix included."""
    context_tokens: int
    """The longest sequence that the file stands for."""
    heads: tuple[int, ...]
    """Per layer."""
    kv_heads: tuple[int, ...]
    tensors: dict[str, Floats]
    """Vectors that are not in the checkpoint but computed from its configuration."""
    first_position: int = 0
    """Rows of the position table before that of a text's first token; llama.cpp counts from 0."""
    query_scale: float = 1.0
    """Factor that must go into the query norm because the architecture has no key for it."""
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return len(self.heads)


@dataclass(frozen=True, slots=True)
class Family:
    """How one model family is written."""

    arch: str
    """GGUF's `general.architecture`."""
    translate: Callable[[Family, Config], Translation]
    block: tuple[str, ...]
    """Tensors that every block has, after `blk.N.`."""
    optional: tuple[str, ...] = ()
    """Tensors that a block may have."""
    top: tuple[str, ...] = ("token_embd.weight", "output_norm.weight")
    head: str = "optional"
    """`optional`: absent means tied. `tied`: llama.cpp knows no separate head. `required`: a tied table is
    written twice."""
    is_encoder: bool = False
    """Whether it turns a text into a vector: there is no head, and the file says how tokens are pooled."""
    permuted: bool = False
    """Whether query and key rows are reordered per head from halves to pairs, as this rope kernel reads
    them."""
    norm_shift: float = 0.0
    """Added to norm weights that the checkpoint stores as offsets from 1."""
    rope_kinds: frozenset[str] = SCALED
    activations: tuple[str, ...] = ("silu", "swish")
    activation_key: str = "hidden_act"
    defaults: Config = field(default_factory=dict)
    """transformers' own defaults, for configurations that leave keys out."""
