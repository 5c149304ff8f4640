"""Describe a model: every tensor with its role and row length, and the sizes that planning needs.

Names are transformers' own (`model.layers.0.self_attn.q_proj.weight`). Matrices are given as (outputs, inputs),
whichever way a family stores them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from optimum.utils import NormalizedConfigManager

from edgegen.errors import UnsupportedError
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.pooling import ENCODER_FAMILIES, read_pooling, sentence_tokens
from edgegen.records.model import ModelSummary, Role, TensorInfo

_PART = r"((\.residual)?\.[01])?"
"""A factor of a layer that was cut in two, or of what a layer adds to shared weights."""
_ROLES: tuple[tuple[str, Role], ...] = (
    (r"(embed_tokens|wte|word_embeddings)\.weight$", "embedding"),
    (r"(wpe|position_embeddings|token_type_embeddings)\.weight$", "position"),
    (r"(embed_tokens|wte)\.up\.weight$|lm_head\.0\.weight$", "projection"),
    (r"lm_head(\.1)?\.weight$", "head"),
    (rf"(q_proj|k_proj|v_proj|qkv_proj|c_attn|self\.(query|key|value)|[qkv]_lin){_PART}\.weight$", "attention_in"),
    (rf"(o_proj|self_attn\.dense|attn\.c_proj|attention\.output\.dense|out_lin){_PART}\.weight$", "attention_out"),
    (rf"(gate_proj|up_proj|gate_up_proj|c_fc|fc1|intermediate\.dense|ffn\.lin1){_PART}\.weight$", "ffn_in"),
    (rf"(down_proj|mlp\.c_proj|fc2|output\.dense|ffn\.lin2){_PART}\.weight$", "ffn_out"),
)
_FFN_KEYS = ("intermediate_size", "n_inner", "hidden_dim")
"""What families call the feed-forward width."""


def is_transposed(model: Any, parameter: str) -> bool:
    """Whether a weight is stored as (inputs, outputs): GPT-2's Conv1D does."""
    module = model.get_submodule(parameter.rpartition(".")[0])
    return type(module).__name__ == "Conv1D" and parameter.endswith(".weight")


def summarize(empty: Any, checkpoint: Checkpoint) -> ModelSummary:
    """Sizes of a model from its architecture (weights not needed).

    Raises:
        UnsupportedError: a matrix whose role is not known, such as an expert's.
    """
    config = empty.config
    sizes = _sizes(config)
    is_encoder = config.model_type in ENCODER_FAMILIES
    context = position_count(config)
    if is_encoder:
        context = min(context, sentence_tokens(checkpoint.folder) or context)
    tensors = tuple(_tensor(empty, name, tuple(p.shape)) for name, p in empty.named_parameters())
    return ModelSummary(
        family=config.model_type,
        tensors=tensors,
        vocab_size=empty.get_input_embeddings().weight.shape[0],
        hidden_size=sizes["hidden_size"],
        layers=sizes["num_layers"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_size=getattr(config, "head_dim", None) or sizes["hidden_size"] // sizes["num_attention_heads"],
        ffn_size=_ffn_size(config, sizes["hidden_size"]),
        context_tokens=context,
        tied=bool(config.tie_word_embeddings) and not is_encoder,
        dtype=checkpoint.dtype,
        bytes=checkpoint.bytes,
        task="encoder" if is_encoder else "causal",
        pooling=read_pooling(checkpoint.folder)[0] if is_encoder else None,
        license=_license(checkpoint.folder),
    )


def _sizes(config: Any) -> dict[str, int]:
    """The sizes that families call by different names, through optimum's normalised configurations."""
    family = config.model_type if config.model_type in NormalizedConfigManager._conf else "llama"
    normal = NormalizedConfigManager.get_normalized_config_class(family)(config)
    heads = int(normal.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None)
    return {
        "hidden_size": int(normal.hidden_size),
        "num_layers": int(normal.num_layers),
        "num_attention_heads": heads,
        "num_key_value_heads": int(kv_heads) if kv_heads else heads,
    }


def first_position(config: Any) -> int:
    """Row of the position table that a text's first token takes: RoBERTa counts from its padding token's id on."""
    return int(config.pad_token_id) + 1 if config.model_type in ("roberta", "xlm-roberta") else 0


def position_count(config: Any) -> int:
    """Positions that a model knows, by its configuration.

    Raises:
        UnsupportedError: it does not say.
    """
    before = first_position(config)
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(config, name, None):
            return int(getattr(config, name)) - before
    raise UnsupportedError(f"{config.model_type}: config.json does not say how long a context it was made for")


def _ffn_size(config: Any, hidden_size: int) -> int:
    for name in _FFN_KEYS:
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 4 * hidden_size


def resized_config(config: dict[str, Any], summary: ModelSummary) -> dict[str, Any]:
    """config.json with a summary's vocabulary and feed-forward width, under the family's own key."""
    named = next((key for key in _FFN_KEYS if key in config), "intermediate_size")
    ffn_key = "n_inner" if "n_embd" in config else named
    return {**config, "vocab_size": summary.vocab_size, ffn_key: summary.ffn_size}


def _tensor(model: Any, name: str, shape: tuple[int, ...]) -> TensorInfo:
    found = re.search(r"\.(?:layers|h|layer)\.(\d+)\.", name)
    layer = int(found[1]) if found else -1
    if len(shape) == 1:
        return TensorInfo(name=name, role="vector", layer=layer, rows=1, columns=shape[0], quantizable=False)
    rows, columns = (shape[1], shape[0]) if is_transposed(model, name) else shape
    for pattern, role in _ROLES:
        if len(shape) == 2 and re.search(pattern, name):
            return TensorInfo(
                name=name, role=role, layer=layer, rows=rows, columns=columns, quantizable=role != "position"
            )
    raise UnsupportedError(
        f"{model.config.model_type}: the role of tensor {name!r} {list(shape)} is not known",
        hint="Known are dense Llama, Mistral, Qwen2, Qwen3, Gemma, GPT-2 and Phi architectures and BERT-like encoders.",
    )


def _license(folder: Path) -> str:
    """The `license:` line of a model card's front matter."""
    card = folder / "README.md"
    if not card.exists():
        return ""
    found = re.match(r"---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
    line = re.search(r"^license:\s*(\S+)", found[1], re.MULTILINE) if found else None
    return line[1] if line else ""
