"""One specification a model family: which GGUF architecture it is, and what of its configuration goes where.

Facts about each architecture (which keys and tensors llama.cpp reads, which it ignores) were read from
llama.cpp's loader for the version that the runtime pins, and every family is proven by the tests against the
original model's logits. What a configuration asks for and llama.cpp would silently ignore is refused here.

Families are named by transformers' `model_type`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from edgegen.common.codec import did_you_mean
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.gguf.encoder import ENCODERS
from edgegen.export.gguf.family import SCALED, Config, Family, Translation
from edgegen.export.gguf.rope import Rope, Value, read_rope

_ATTENTION = ("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")
_GATED = ("ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
_QKV_BIAS = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
_QK_NORM = ("attn_q_norm.weight", "attn_k_norm.weight")


def family_of(config: Config) -> Family:
    """The specification for a configuration whose layers are alike.

    Raises:
        UnsupportedError: not a family that can be written.
    """
    name = str(config.get("model_type", ""))
    known = {**FAMILIES, **ENCODERS}
    if name not in known:
        raise UnsupportedError(
            f"model type {name!r} cannot be written as GGUF",
            hint=f"{did_you_mean(name, sorted(known))} All: {', '.join(sorted(known))}.",
        )
    family = known[name]
    # llama.cpp's qwen2 takes the hidden size for the size of all heads together; deci reads it.
    return as_deci(family) if name == "qwen2" and not _heads_fill_hidden(config) else family


def as_deci(family: Family) -> Family:
    """A Llama-like family in the architecture `deci`, which computes what `llama` computes, rotates as it does, and
    reads heads and feed-forward widths per layer."""
    return replace(family, arch="deci", permuted=True)


def translate(config: Config, family: Family | None = None) -> Translation:
    """Turn a configuration into metadata.

    Args:
        family: how it is written; None is its own family's specification.

    Raises:
        UnsupportedError: an unknown family, or something in the configuration that llama.cpp would ignore.
        ConfigError: a needed key is missing.
    """
    family = family or family_of(config)
    given = {key: value for key, value in config.items() if value is not None}
    filled = {**family.defaults, **given}
    _refuse(family, filled)
    try:
        return family.translate(family, filled)
    except KeyError as error:
        raise ConfigError(
            f"config.json has no {error.args[0]!r}", hint="Save the model's full configuration."
        ) from error


def _refuse(family: Family, config: Config) -> None:
    """Refuse what no architecture here can express."""
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key):
            raise UnsupportedError(f"mixture of experts ({key}={config[key]}) cannot be written as GGUF here")
    for key in (
        "quantization_config",
        "add_cross_attention",
        "scale_attn_by_inverse_layer_idx",
        "qk_layernorm",
    ):
        if config.get(key):
            raise UnsupportedError(f"{key} cannot be written as GGUF here")
    if config.get("scale_attn_weights") is False or config.get("is_causal") is False:
        raise UnsupportedError("unscaled or non-causal attention cannot be written as GGUF here")
    if config.get("use_bidirectional_attention"):
        raise UnsupportedError("bidirectional attention cannot be written as GGUF here")
    activation = config.get(family.activation_key, family.activations[0])
    if activation not in family.activations:
        raise UnsupportedError(
            f"activation {activation!r} cannot be written for {family.arch}",
            hint="llama.cpp computes " + " or ".join(family.activations) + " there.",
        )


def _heads_fill_hidden(config: Config) -> bool:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return not (hidden and heads) or (config.get("head_dim") or hidden // heads) * heads == hidden


def _rotary(family: Family, config: Config) -> Translation:
    """Metadata of the families with rotary positions and RMS or layer norms: all but GPT-2."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or hidden // heads)
    if family.arch in ("phi2", "phi3") and head_size * heads != hidden:
        raise UnsupportedError(
            f"{family.arch} needs heads × head size = hidden size, not {heads} × {head_size}, {hidden}"
        )
    kv_heads = int(config.get("num_key_value_heads") or heads)
    given = config.get("rope_parameters") or {}
    partial = float(given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    rotated = int(head_size * partial)
    if family.arch not in ("phi2", "phi3") and rotated != head_size:
        raise UnsupportedError(
            f"{family.arch} rotates whole heads in llama.cpp; partial_rotary_factor={partial} cannot be written"
        )
    rope: Rope = read_rope(config, dimensions=rotated, kinds=family.rope_kinds)
    norm, epsilon = (
        ("layer_norm_epsilon", "layer_norm_eps")
        if family.arch == "phi2"
        else ("layer_norm_rms_epsilon", "rms_norm_eps")
    )
    context, notes = _context(family, config)
    layers = int(config["num_hidden_layers"])
    metadata: dict[str, Value] = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        f"attention.{norm}": float(config[epsilon]),
        "vocab_size": int(config["vocab_size"]),
        **rope.metadata,
    }
    return Translation(
        metadata={f"{family.arch}.{key}": value for key, value in metadata.items()},
        context_tokens=context,
        heads=(heads,) * layers,
        kv_heads=(kv_heads,) * layers,
        tensors=rope.tensors,
        notes=(*notes, *rope.notes),
    )


def _context(family: Family, config: Config) -> tuple[int, tuple[str, ...]]:
    """The context length. An attention window that the architecture ignores caps it: up to the window's
    length windowed and full attention are the same."""
    longest = int(config["max_position_embeddings"])
    if family.arch in ("gemma2", "gemma3"):
        return longest, ()
    window = config.get("sliding_window")
    layer_types = config.get("layer_types")
    if layer_types is not None:
        active = "sliding_attention" in layer_types
    elif config["model_type"] in ("qwen2", "qwen3"):
        active = bool(config.get("use_sliding_window"))
    else:
        active = config["model_type"] in ("mistral", "phi3")
    if not window or not active or int(window) >= longest:
        return longest, ()
    return int(window), (
        f"context capped at the attention window of {window} tokens: llama.cpp has none for {family.arch}",
    )


def _gemma(family: Family, config: Config) -> Translation:
    """Gemma 2 and 3: windows on some layers, soft caps, an own attention scale."""
    base = _rotary(family, config)
    extra: dict[str, Value] = {}
    layers = base.layers
    step = int(config.get("sliding_window_pattern") or (2 if family.arch == "gemma2" else 6))
    types = config.get("layer_types") or [
        "full_attention" if (layer + 1) % step == 0 else "sliding_attention" for layer in range(layers)
    ]
    if len(types) != layers or set(types) - {"full_attention", "sliding_attention"}:
        raise UnsupportedError(f"layer_types {sorted(set(types))} for {layers} layers cannot be written")
    extra["attention.sliding_window"] = int(config["sliding_window"])
    extra["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in types]
    attention, final = config.get("attn_logit_softcapping"), config.get("final_logit_softcapping")
    if family.arch == "gemma2" and not (attention and final):
        raise UnsupportedError("gemma2 without soft caps cannot be written: llama.cpp always applies them")
    if family.arch == "gemma3" and attention:
        raise UnsupportedError(f"gemma3 with attn_logit_softcapping={attention} cannot be written")
    if attention:
        extra["attn_logit_softcapping"] = float(attention)
    if final:
        extra["final_logit_softcapping"] = float(final)
    metadata = base.metadata | {f"{family.arch}.{key}": value for key, value in extra.items()}
    return Translation(
        metadata=metadata,
        context_tokens=base.context_tokens,
        heads=base.heads,
        kv_heads=base.kv_heads,
        tensors=base.tensors,
        query_scale=_gemma_query_scale(family, config, base),
        notes=base.notes,
    )


def _gemma_query_scale(family: Family, config: Config, base: Translation) -> float:
    """What llama.cpp's attention scale lacks to the checkpoint's `query_pre_attn_scalar` ** -0.5.

    llama.cpp divides by √head size, and in the 27 B models, which it knows by their number of layers, by
    √(hidden size / heads). Gemma 3 has a query norm that can carry a quotient; Gemma 2 has not.
    """
    largest = {"gemma2": 46, "gemma3": 62}[family.arch]
    own = int(config["hidden_size"]) // base.heads[0] if base.layers == largest else int(config["head_dim"])
    wanted = float(config.get("query_pre_attn_scalar", own))
    if math.isclose(wanted, own):
        return 1.0
    if family.arch == "gemma2":
        raise UnsupportedError(
            f"query_pre_attn_scalar={wanted:g} cannot be written: llama.cpp divides by √{own} in this gemma2"
        )
    return math.sqrt(own / wanted)


def _gpt2(family: Family, config: Config) -> Translation:
    """GPT-2: learned positions, no rotary keys."""
    hidden, heads, layers = int(config["n_embd"]), int(config["n_head"]), int(config["n_layer"])
    context = int(config.get("n_positions") or config["n_ctx"])
    metadata: dict[str, Value] = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": int(config.get("n_inner") or 4 * hidden),
        "attention.head_count": heads,
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
    }
    return Translation(
        metadata={f"{family.arch}.{key}": value for key, value in metadata.items()},
        context_tokens=context,
        heads=(heads,) * layers,
        kv_heads=(heads,) * layers,
        tensors={},
    )


_LLAMA = Family(
    arch="llama",
    translate=_rotary,
    block=(*_ATTENTION, *_GATED),
    optional=(*_QKV_BIAS, "attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    permuted=True,
    rope_kinds=SCALED | {"llama3"},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
)
_GEMMA_DEFAULTS = {"rms_norm_eps": 1e-6, "head_dim": 256}
_GEMMA_BLOCK = (*_ATTENTION, *_GATED, "post_attention_norm.weight", "post_ffw_norm.weight")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": Family(
        arch="llama",
        translate=_rotary,
        block=_LLAMA.block,
        permuted=True,
        rope_kinds=_LLAMA.rope_kinds,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 131072},
    ),
    "qwen2": Family(
        arch="qwen2",
        translate=_rotary,
        block=(*_ATTENTION, *_QKV_BIAS, *_GATED),
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
    ),
    "qwen3": Family(
        arch="qwen3",
        translate=_rotary,
        block=(*_ATTENTION, *_QK_NORM, *_GATED),
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128},
    ),
    "gemma": Family(
        arch="gemma",
        translate=_rotary,
        block=(*_ATTENTION, *_GATED),
        head="tied",
        norm_shift=1.0,
        # transformers reads Gemma 1's `gelu` as the tanh form.
        activations=("gelu_pytorch_tanh", "gelu"),
        defaults={**_GEMMA_DEFAULTS, "max_position_embeddings": 8192},
    ),
    "gemma2": Family(
        arch="gemma2",
        translate=_gemma,
        block=_GEMMA_BLOCK,
        head="tied",
        norm_shift=1.0,
        rope_kinds=frozenset({"default"}),
        activations=("gelu_pytorch_tanh",),
        activation_key="hidden_activation",
        defaults={
            **_GEMMA_DEFAULTS,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
        },
    ),
    "gemma3_text": Family(
        arch="gemma3",
        translate=_gemma,
        block=(*_GEMMA_BLOCK, *_QK_NORM),
        norm_shift=1.0,
        rope_kinds=frozenset({"default", "linear"}),
        activations=("gelu_pytorch_tanh",),
        activation_key="hidden_activation",
        defaults={
            **_GEMMA_DEFAULTS,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
    "gpt2": Family(
        arch="gpt2",
        translate=_gpt2,
        block=(
            *("attn_norm.weight", "attn_norm.bias", "attn_qkv.weight", "attn_qkv.bias"),
            *("attn_output.weight", "attn_output.bias", "ffn_norm.weight", "ffn_norm.bias"),
            *("ffn_up.weight", "ffn_up.bias", "ffn_down.weight", "ffn_down.bias"),
        ),
        top=("token_embd.weight", "position_embd.weight", "output_norm.weight", "output_norm.bias"),
        activations=("gelu_new", "gelu_pytorch_tanh"),
        activation_key="activation_function",
        defaults={"layer_norm_epsilon": 1e-5},
    ),
    "phi": Family(
        arch="phi2",
        translate=_rotary,
        block=(
            *("attn_norm.weight", "attn_norm.bias", "attn_output.weight", "attn_output.bias"),
            *("attn_q.weight", "attn_k.weight", "attn_v.weight", *_QKV_BIAS),
            *("ffn_up.weight", "ffn_up.bias", "ffn_down.weight", "ffn_down.bias"),
        ),
        top=("token_embd.weight", "output_norm.weight", "output_norm.bias", "output.bias"),
        head="required",
        activations=("gelu_new", "gelu_pytorch_tanh"),
        defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5},
    ),
    "phi3": Family(
        arch="phi3",
        translate=_rotary,
        block=(
            *("attn_norm.weight", "attn_qkv.weight", "attn_output.weight"),
            *("ffn_norm.weight", "ffn_up.weight", "ffn_down.weight"),
        ),
        rope_kinds=frozenset({"default", "longrope"}),
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
    ),
}
"""transformers' `model_type` → how it is written."""
