"""genai_config.json: what onnxruntime-genai has to know of a model.

Written by hand for both ways. Sampling stays at its neutral values, because edgegen chooses tokens itself; a program
that lets onnxruntime-genai choose gets greedy answers unless it says otherwise.
"""

from __future__ import annotations

from typing import Any

from edgegen.export.folder import SpecialTokens

FILE = "genai_config.json"


def genai_config(
    config: Any, special: SpecialTokens, *, vocab_size: int, tokens: int, positions: bool
) -> dict[str, Any]:
    """The file's contents.

    Args:
        config: transformers' configuration object.
        vocab_size: rows of the head.
        tokens: length of the context.
        positions: whether the graph takes `position_ids`.
    """
    heads = config.num_attention_heads
    ends = list(special.eos_ids) or [0]
    padding = getattr(config, "pad_token_id", None)
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        **({"position_ids": "position_ids"} if positions else {}),
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    return {
        "model": {
            # The runtime knows some families by name; all others of this shape it runs as llama.
            "type": "llama",
            "vocab_size": vocab_size,
            "context_length": tokens,
            "bos_token_id": special.bos_id if special.bos_id is not None else ends[0],
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            "pad_token_id": padding if isinstance(padding, int) and padding >= 0 else ends[0],
            "decoder": {
                "session_options": {"log_id": "edgegen", "provider_options": []},
                "filename": "model.onnx",
                "head_size": head_size(config),
                "hidden_size": config.hidden_size,
                "num_attention_heads": heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": kv_heads(config),
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": tokens, "past_present_share_buffer": True},
    }


def head_size(config: Any) -> int:
    """Length of one head's keys."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: Any) -> int:
    """Heads of the cache."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
