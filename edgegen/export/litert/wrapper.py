"""A causal language model as functions of fixed shapes, with its key/value cache as inputs and outputs.

LiteRT runs static graphs, so a model becomes several signatures that share their weights:

- `decode`: one token, with logits;
- `prefill_T`: T tokens of a prompt, without logits (the last block's feed-forward then falls away too); the prompt's
  last token goes through `decode`;
- `score_T`: T tokens with all logits. It costs some 2 KB a block in the file and makes judging an artifact ten times
  faster than decoding every token of the text.

Each takes `tokens` (1, T), `input_pos` (T,) and for every layer `k_i`, `v_i` (1, K, S, D), and gives the caches back
with positions `input_pos` written by one DYNAMIC_UPDATE_SLICE, which the runtime does in place where input and output
are the same buffer. Positions beyond the text are masked, so what padding leaves behind is never seen.

The model's own code is traced with two things replaced: the cache, and the attention, which

- multiplies a group of queries with their one key/value head instead of repeating the head (the repetition becomes a
  slow BROADCAST_TO);
- uses four-dimensional products in the cache's own layout, so that the whole cache is neither transposed nor reshaped
  at every token (decoding is 30 % faster than with three-dimensional ones at a context of 1,024), and one key/value
  head, which trips the converter's rewriting of `matmul`, needs nothing special;
- takes its mask from the layer's window instead of an argument, so all families are treated alike.

T tokens, S cache positions, H heads, K key/value heads, D head size, G = H / K.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from edgegen.errors import UnsupportedError
from edgegen.modeling.thin_tables import ThinTable

ATTENTION = "edgegen_litert"

_HIDDEN_SCORE = -1e9
"""Added to scores of positions that must not be seen. Not infinity: the runtime would compute inf - inf."""

_LOWEST = -1e30
"""No number reaches it; see `keep_apart`."""

_masks: dict[int, torch.Tensor] = {}
"""Window (0: none) → (T, S) mask of the graph that is being traced. One conversion a process."""
_positions: list[torch.Tensor] = []
"""The graph's positions (T,) and the cache's (S,)."""


class Shape(msgspec.Struct, frozen=True):
    """What the caches of a model look like."""

    layers: int
    kv_heads: int
    head_size: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the caches, in the order of the layers."""
        return tuple(f"{kind}_{layer}" for layer in range(self.layers) for kind in "kv")


def shape_of(config: Any) -> Shape:
    """Cache sizes of a transformers configuration.

    Raises:
        UnsupportedError: layers whose caches differ.
    """
    heads = int(config.num_attention_heads)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UnsupportedError(f"layers of the kind {sorted(kinds)[0]!r} cannot be written for LiteRT")
    return Shape(
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


class Graph(torch.nn.Module):
    """One signature."""

    def __init__(self, model: Any, shape: Shape, context_tokens: int, *, logits: bool) -> None:
        super().__init__()
        self.model = model
        self.shape = shape
        self.context_tokens = context_tokens
        self.logits = logits

    def forward(self, tokens: Any, input_pos: Any, **caches: Any) -> dict[str, Any]:
        """Run T tokens; the caches with theirs added, and logits (1, T, V) if asked."""
        held = [caches[name] for name in self.shape.names]
        cache = _ExplicitCache(held, input_pos)
        _masks.clear()
        _positions[:] = [input_pos, torch.arange(self.context_tokens, dtype=input_pos.dtype)]
        out = self.model(
            input_ids=tokens,
            position_ids=input_pos[None],
            attention_mask=None,
            past_key_values=cache,
            use_cache=True,
        )
        result = dict(zip(self.shape.names, cache.written, strict=True))
        return {**result, "logits": out.logits} if self.logits else result


def sample_inputs(shape: Shape, context_tokens: int, tokens: int) -> dict[str, Any]:
    """Zeros of the right shapes, for tracing."""
    size = (1, shape.kv_heads, context_tokens, shape.head_size)
    return {
        "tokens": torch.zeros(1, tokens, dtype=torch.int32),
        "input_pos": torch.arange(tokens, dtype=torch.int32),
        **{name: torch.zeros(size) for name in shape.names},
    }


def prepare(model: Any) -> Any:
    """Let a model use the attention of this module and plain linear layers. It is changed and returned."""
    AttentionInterface.register(ATTENTION, _attention)
    for module in model.modules():  # a module that was copied has its own configuration
        for config in (getattr(module, "config", None),):
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation = ATTENTION
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _linear_of(module))
    if getattr(model.config, "final_logit_softcapping", None):
        keep_apart(model.get_output_embeddings())
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            keep_apart(module)
        elif isinstance(module, ThinTable) and module.scale != 1:
            keep_apart(module.up)
    return model


def keep_apart(module: Any) -> None:
    """Cut a layer's output off where no number reaches: a factor right before or behind a product (a norm's, a
    logit cap's, an embedding's) would be multiplied into the product's weights by the converter.

    The module is changed.
    """
    module.register_forward_hook(lambda module, inputs, output: output.clamp(min=_LOWEST))


def _linear_of(module: Conv1D) -> torch.nn.Linear:
    """The same layer with its weights as (outputs, inputs), as the runtime wants them."""
    inputs, outputs = module.weight.shape
    linear = torch.nn.Linear(inputs, outputs, bias=True)
    linear.weight = torch.nn.Parameter(module.weight.data.T.contiguous(), requires_grad=False)
    linear.bias = torch.nn.Parameter(module.bias.data, requires_grad=False)
    return linear


class _Layer:
    """What transformers asks a cache's layer."""

    is_compileable, is_sliding, is_initialized = True, False, True

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._tokens, 0

    def get_max_cache_shape(self) -> int:
        return self._tokens


class _ExplicitCache(Cache):
    """Caches that come in and go out instead of being kept."""

    def __init__(self, held: list[Any], positions: Any) -> None:
        super().__init__(layers=[_Layer(held[0].shape[2]) for _ in held[::2]])
        self._held = held
        self._positions = positions
        self.written: list[Any] = [None] * len(held)

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **options: Any) -> Any:
        """Write (1, K, T, D) keys and values at the positions; the whole caches (1, K, S, D)."""
        from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice

        zero = torch.zeros((), dtype=self._positions.dtype)
        start = [zero, zero, self._positions[0].clone(), zero]
        for index, new in ((2 * layer_idx, key_states), (2 * layer_idx + 1, value_states)):
            self.written[index] = dynamic_update_slice(self._held[index], new, start)
        return self.written[2 * layer_idx], self.written[2 * layer_idx + 1]


def _mask(window: int) -> torch.Tensor:
    """(T, S): 0 where a token sees a position, a large negative number elsewhere."""
    if window not in _masks:
        rows, columns = _positions[0][:, None], _positions[1][None]
        seen = columns <= rows
        if window:
            seen = seen & (columns > rows - window)
        _masks[window] = torch.where(seen, 0.0, _HIDDEN_SCORE)
    return _masks[window]


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Any, None]:
    """Attention of T queries (1, H, T, D) over whole caches (1, K, S, D): (1, T, H, D)."""
    from litert_torch.generative.custom_ops.bmm_4d import bmm_4d

    _, heads, tokens, size = query.shape
    kv_heads = key.shape[1]
    scaled = query * (size**-0.5 if scaling is None else scaling)
    scores = bmm_4d(scaled.reshape(1, kv_heads, heads // kv_heads * tokens, size), key)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    # One query a head needs no splitting for the mask, which is the same for all heads.
    split = scores if tokens == 1 else scores.reshape(1, heads, tokens, -1)
    weights = torch.softmax(split + _mask(sliding_window or 0), -1).reshape(scores.shape)
    mixed = torch.einsum("abts,absh->abth", weights, value)
    return mixed.reshape(1, heads, tokens, -1).transpose(1, 2), None
