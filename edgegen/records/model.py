"""The model to be made smaller: where it is, and its shape."""

from __future__ import annotations

from typing import Literal

from edgegen.records.base import Record

Role = Literal[
    "embedding", "head", "projection", "attention_in", "attention_out", "ffn_in", "ffn_out", "position", "vector"
]
"""What a tensor does. `attention_in` reads the block's input (q, k, v or all fused), `attention_out` writes the
block's output; `ffn_in` is gate, up or both fused, `ffn_out` is down. `projection` stands between the
model's width and a table with shorter rows; `position` is a learned table of positions or segments; `vector` is any
bias or norm."""

Task = Literal["causal", "encoder"]
"""What a model is for: `causal` continues text, `encoder` turns a text into one vector."""

HEAD_BIAS = "lm_head.bias"
"""The one vector that has an entry for each token."""


class ModelRef(Record, frozen=True):
    """Where a checkpoint was found and what exactly it is."""

    source: str
    """A folder or a hub id, as the user gave it."""
    path: str
    """The local folder that holds it."""
    revision: str = ""
    """The hub's commit, empty for a folder."""
    digest: str = ""
    """`sha256:` over configuration, tokenizer and weights."""


class TensorInfo(Record, frozen=True):
    """One stored tensor, in the checkpoint's own name and orientation."""

    name: str
    role: Role
    layer: int
    """0-based block, -1 outside the blocks."""
    rows: int
    """Outputs; for an embedding the vocabulary; 1 for a vector."""
    columns: int
    """Inputs: the length of a row, which grids cut into blocks."""
    quantizable: bool = True
    """False for vectors and for tables that runtimes keep in full precision."""

    @property
    def weights(self) -> int:
        return self.rows * self.columns


class Pooling(Record, frozen=True):
    """How an encoder's token vectors become one vector for the text."""

    mode: Literal["mean", "cls"]
    """Mean over all tokens, or the first token's vector."""
    normalize: bool
    """Whether the vector is brought to length 1."""


class ModelSummary(Record, frozen=True):
    """A model's sizes, enough to plan with.

    All counts are per model unless said otherwise.
    """

    family: str
    """transformers' `model_type`."""
    tensors: tuple[TensorInfo, ...]
    vocab_size: int
    """Rows of the embedding, padding rows included."""
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    context_tokens: int
    tied: bool
    """Whether embedding and head are one table."""
    dtype: str
    """As stored: float32, float16 or bfloat16."""
    bytes: int
    """Size of the stored weights."""
    task: Task = "causal"
    pooling: Pooling | None = None
    """Of an encoder."""
    license: str = ""
    """SPDX id or free text from the model card, empty if it says none."""

    @property
    def parameters(self) -> int:
        """Stored weights; a tied table counts once."""
        return sum(tensor.weights for tensor in self.tensors)
