"""What can be expressed of a configuration, which way it is built, and where its tokens stand.

onnxruntime-genai's builder knows most families; what it does not know goes through torch's exporter. The builder's own
reading of rotary scaling rules and windows is not used, because it passes over what it does not know without a word
(Llama's `yarn` and `linear`, Mistral's window): angles come from transformers' own code here, so any rule is right
whose angles depend on the position alone. Two rules (`dynamic`, `longrope`) change them beyond the length that the
model was first made for; the context ends there.

T tokens, D dimensions of a head that are rotated.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.errors import UnsupportedError
from edgegen.modeling.load import config_object

Config = dict[str, Any]

BUILDERS = {
    "llama": ("llama", "LlamaModel"),
    "mistral": ("mistral", "MistralModel"),
    "qwen2": ("qwen", "QwenModel"),
    "qwen3": ("qwen", "Qwen3Model"),
    "gemma": ("gemma", "GemmaModel"),
    "gemma2": ("gemma", "Gemma2Model"),
    "gemma3_text": ("gemma", "Gemma3Model"),
    "phi": ("phi", "PhiModel"),
    "phi3": ("phi", "Phi3MiniModel"),
}
"""Family → module and class of the model builder."""

FAMILIES = (*BUILDERS, "gpt2")
"""Families that were tried against the torch model."""

_ACTIVATIONS = frozenset({"silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"})

_ALL_WINDOWED = frozenset({"mistral", "phi3"})
"""Families in which a window counts for every layer, without a list of kinds."""

_CHANGING = frozenset({"dynamic", "longrope", "su"})
"""Rotary rules whose angles depend on how long the text is."""


def read(config: Config) -> Any:
    """transformers' configuration object of a config.json.

    Raises:
        UnsupportedError: a family that was not tried, or a configuration that transformers does not read.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedError(
            f"family {family!r} cannot be written as ONNX", hint="Known: " + ", ".join(FAMILIES) + "."
        )
    return config_object(config)


def context_tokens(config: Any) -> int:
    """The longest context whose positions are right, of a configuration object."""
    longest = int(getattr(config, "max_position_embeddings", None) or config.n_positions)
    if any(rule.get("rope_type") in _CHANGING for rule in _rules(config)):
        first = getattr(config, "original_max_position_embeddings", None)
        given = [rule.get("original_max_position_embeddings") for rule in _rules(config)]
        longest = min([longest, *(int(value) for value in [first, *given] if value)])
    return longest


def why_traced(config: Any) -> str:
    """Why the model builder cannot build a configuration; empty if it can."""
    if config.model_type not in BUILDERS:
        return f"the model builder does not know {config.model_type}"
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in _ACTIVATIONS:
        return f"the model builder does not know the activation {activation}"
    if getattr(config, "qk_layernorm", False):
        return "the model builder does not know normalised queries and keys of this family"
    return ""


def windows(config: Any) -> list[int]:
    """Tokens that each layer looks back on, itself included; 0: all."""
    width = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [width if config.model_type in _ALL_WINDOWED else 0] * int(config.num_hidden_layers)
    return [width if kind == "sliding_attention" else 0 for kind in kinds]


def rotary_caches(
    module: Any, config: Any, tokens: int, layer_type: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of every position, (T, D / 2) each, as transformers computes them.

    Args:
        module: the model's rotary module; only its class counts.
        layer_type: for families whose kinds of layers rotate differently.
    """
    with torch.device("cpu"), torch.no_grad():
        rotary = type(module)(copy.deepcopy(config))
        more = {"layer_type": layer_type} if layer_type else {}
        cosines, sines = rotary(torch.zeros(1), torch.arange(tokens)[None], **more)
    half = cosines.shape[-1] // 2
    return cosines[0, :, :half].numpy().astype(np.float32), sines[0, :, :half].numpy().astype(np.float32)


def _rules(config: Any) -> list[dict[str, Any]]:
    """Rotary rules: one, or one for each kind of layer."""
    rules = getattr(config, "rope_parameters", None) or {}
    nested = [rule for rule in rules.values() if isinstance(rule, dict)]
    return nested or [rules]
