"""Sentence encoders: BERT, RoBERTa and DistilBERT as llama.cpp's `bert`.

llama.cpp's `bert` gives every token segment 0 and counts positions from 0. RoBERTa counts from its padding token's id
on, so the rows of its position table before the first token's are left out; DistilBERT has no segments, whose table
llama.cpp does without. Pooling stands in the file, and so does whether the vector is normalised: GGUF has no key for
that, so it has one of edgegen's own, and edgegen's runtime does it.

llama.cpp computes GELU by its tanh form out of a table in 16 bits, whichever form the model was trained with. What
that changes is measured by each artifact's strict check.
"""

from __future__ import annotations

from edgegen.errors import UnsupportedError
from edgegen.export.gguf.family import Config, Family, Translation
from edgegen.export.gguf.rope import Value
from edgegen.records.model import Pooling
from edgegen.runtime.llamacpp_encoder import NORMALIZE_KEY

_POOLING = {"mean": 1, "cls": 2}
"""llama.cpp's numbers."""
_GELU_NOTE = "llama.cpp computes GELU by its tanh form out of a table in 16 bits, in strict mode too"


def pooling_metadata(family: Family, pooling: Pooling) -> dict[str, Value]:
    """What the file says about making one vector of the tokens'."""
    return {f"{family.arch}.pooling_type": _POOLING[pooling.mode], NORMALIZE_KEY: pooling.normalize}


def _bert(family: Family, config: Config) -> Translation:
    """Metadata of all three."""
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UnsupportedError(f"positions of kind {kind!r} cannot be written", hint="Known: absolute.")
    if config.get("is_decoder"):
        raise UnsupportedError(f"a {config['model_type']} that is a decoder cannot be written as GGUF")
    distilled = config["model_type"] == "distilbert"
    hidden, layers, heads, ffn = (
        int(config[name])
        for name in (
            ("dim", "n_layers", "n_heads", "hidden_dim")
            if distilled
            else ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        )
    )
    first = int(config["pad_token_id"]) + 1 if config["model_type"] == "roberta" else 0
    context = int(config["max_position_embeddings"]) - first
    metadata: dict[str, Value] = {
        "context_length": context,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "attention.causal": False,
    }
    return Translation(
        metadata={
            **{f"{family.arch}.{key}": value for key, value in metadata.items()},
            # It is among the tokenizer's keys, yet it is the height of the table of segments.
            "tokenizer.ggml.token_type_count": int(config["type_vocab_size"]),
        },
        context_tokens=context,
        heads=(heads,) * layers,
        kv_heads=(heads,) * layers,
        tensors={},
        first_position=first,
        notes=(_GELU_NOTE,),
    )


_BLOCK = tuple(
    f"{name}.{part}"
    for name in (
        *("attn_q", "attn_k", "attn_v", "attn_output", "attn_output_norm"),
        *("ffn_up", "ffn_down", "layer_output_norm"),
    )
    for part in ("weight", "bias")
)
_TOP = ("token_embd.weight", "position_embd.weight", "token_embd_norm.weight", "token_embd_norm.bias")
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")


def _family(*more: str, activation_key: str = "hidden_act", **defaults: int) -> Family:
    return Family(
        arch="bert",
        translate=_bert,
        block=_BLOCK,
        top=(*_TOP, *more),
        head="tied",
        is_encoder=True,
        activations=_ACTIVATIONS,
        activation_key=activation_key,
        defaults={"max_position_embeddings": 512, "layer_norm_eps": 1e-12, **defaults},
    )


ENCODERS: dict[str, Family] = {
    "bert": _family("token_types.weight", type_vocab_size=2),
    "roberta": _family("token_types.weight", type_vocab_size=2, pad_token_id=1),
    # DistilBERT's configuration names no epsilon; transformers has it in the code.
    "distilbert": _family(activation_key="activation", type_vocab_size=1),
}
"""transformers' `model_type` → how it is written."""
