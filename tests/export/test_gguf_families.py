"""Every family's f32 file gives the original model's logits in llama.cpp."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.gguf.families import FAMILIES, translate
from edgegen.records.plan import Settings
from edgegen.runtime.llamacpp import LlamaCpp
from tests import tiny_models
from tests.tiny_models import export_tiny, make_tiny, reference_logits

_TOKENIZER = {
    **{"mistral": "sentencepiece", "phi3": "sentencepiece", "qwen2": "qwen2", "qwen3": "qwen2"},
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "gemma"),
}

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    **{
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256},
    "long_factor": [1.0 + 0.3 * i for i in range(8)],
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
}
GEMMA3_LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
MIXED = ["sliding_attention", "full_attention"]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {"tied": True}),
    "llama, as many key heads": ("llama", {"kv_heads": 4}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 32}),
    "qwen2, wide heads": ("qwen2", {"head_dim": 32}),
    "llama, rope theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, padded vocabulary": ("llama", {"padding": 13}),
    "qwen3, yarn without its attention factor": (
        "qwen3",
        {"rope_parameters": {**YARN, "attention_factor": 1.0}},
    ),
    "qwen3, wide heads": ("qwen3", {"head_dim": 32}),
    "gemma2, odd layers": ("gemma2", {"layers": 3}),
    "gemma3, both kinds of layers": (
        "gemma3_text",
        {"layers": 4, "layer_types": MIXED * 2, "sliding_window": 16},
    ),
    "gemma3, scaled rope": ("gemma3_text", {"layer_types": MIXED, "rope_parameters": GEMMA3_LINEAR}),
    "gemma3, own query scale": ("gemma3_text", {"query_pre_attn_scalar": 48}),
    "gemma3, untied": ("gemma3_text", {"tied": False}),
    "gpt2, untied": ("gpt2", {"tied": False}),
    "phi, tied": ("phi", {"tied": True}),
    "phi, quarter rotated": ("phi", {"partial_rotary_factor": 0.25}),
    "phi3, half rotated": ("phi3", {"partial_rotary_factor": 0.5}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 256, "context": 512, "rope_parameters": LONGROPE},
    ),
}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def assert_same_model(hf_folder: Path, model: Path, vocabulary: int, *, kl: float = 1e-5) -> None:
    """Logits of both on 64 random tokens: mean KL below `kl`, and the same winner but for ties within the
    noise."""
    ids = [int(i) for i in np.random.default_rng(1).integers(3, vocabulary - 20, 64)]
    wanted = reference_logits(hf_folder, ids)
    with LlamaCpp().open(model, Settings(context_tokens=128, ubatch_tokens=48, threads=1, kv_type="f16")) as session:
        got = session.score(ids)[:, : wanted.shape[1]]
    p, q = log_softmax(wanted), log_softmax(got)
    assert (np.exp(p) * (p - q)).sum(-1).mean() < kl
    winners = np.take_along_axis(wanted, got.argmax(-1)[:, None], -1)[:, 0]
    assert (winners > wanted.max(-1) - 0.05).all()
    assert (got.argmax(-1) == wanted.argmax(-1)).mean() > 0.95


def test_every_family_has_a_tiny_model() -> None:
    assert set(FAMILIES) == set(tiny_models.FAMILIES)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_family_parity(family: str, tmp_path: Path) -> None:
    hf = make_tiny(family, tmp_path / "hf", tokenizer=_TOKENIZER.get(family, "bytelevel"))
    artifact = export_tiny(hf, tmp_path)
    assert artifact.family == family
    assert artifact.notes == ()
    assert_same_model(hf, tmp_path / "artifact" / artifact.model, artifact.vocab_size)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_parity(name: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[name]
    hf = make_tiny(family, tmp_path / "hf", tokenizer=_TOKENIZER.get(family, "bytelevel"), **overrides)
    artifact = export_tiny(hf, tmp_path)
    assert_same_model(hf, tmp_path / "artifact" / artifact.model, artifact.vocab_size)


def test_tied_table_under_the_heads_name(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf", tied=True)
    tiny_models.pack_uniform(hf, tmp_path / "c", only_head=True)
    settings = Settings(context_tokens=128, ubatch_tokens=48, threads=1, kv_type="f16")
    artifact = tiny_models.exporter_for("gguf").export(
        tmp_path / "c", tmp_path / "a", settings, prove_texts=["one two"]
    )
    assert_same_model(hf, tmp_path / "a" / "model.gguf", artifact.vocab_size)


def test_window_caps_the_context(tmp_path: Path) -> None:
    hf = make_tiny("mistral", tmp_path / "hf", sliding_window=130, tokenizer="sentencepiece")
    artifact = export_tiny(hf, tmp_path)
    assert artifact.context_tokens == 130
    assert any("window of 130" in note for note in artifact.notes)
    with pytest.raises(ConfigError, match="more than the 130"):
        export_tiny(hf, tmp_path / "longer", context_tokens=200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "'lama' cannot be written"),
        ({"model_type": "qwen2_moe"}, "cannot be written"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_parameters": {**YARN, "beta_fast": 16}}, "beta_fast=16"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"partial_rotary_factor": 0.5}, "rotates whole heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 99}, "query_pre_attn_scalar=99"),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, "soft caps"),
        ({"model_type": "phi3", "head_dim": 32}, "heads × head size"),
        ({"model_type": "phi3", "rope_parameters": LLAMA3}, "rope type 'llama3'"),
    ],
)
def test_what_cannot_be_expressed_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        translate(_config() | change)


def test_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedError) as caught:
        translate(_config() | {"model_type": "lama"})
    assert "llama" in caught.value.hint
    assert "phi3" in caught.value.hint


def test_missing_key_is_named() -> None:
    config = _config()
    del config["num_hidden_layers"]
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        translate(config)


def test_old_and_new_rope_theta() -> None:
    old = translate(_config() | {"rope_theta": 5e5}).metadata
    new = translate(_config() | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}).metadata
    assert old == new
    assert new["llama.rope.freq_base"] == 5e5


def _config() -> dict[str, Any]:
    return {
        "model_type": "llama",
        **{"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 128, "max_position_embeddings": 256, "head_dim": 16, "sliding_window": 32},
        **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 16},
    }
