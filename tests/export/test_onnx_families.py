"""Every family and every grid against torch with the same rounded weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.onnx import export, families
from edgegen.export.onnx.export import OnnxExporter
from edgegen.grids import uniform
from edgegen.runtime.genai import OnnxGenai
from tests.export.packed_models import (
    IDS,
    SETTINGS,
    check_strict,
    export_both,
    mean_kl,
    pack_surgery,
    repack,
    score,
    state_of,
    torch_logits,
)
from tests.tiny_models import FAMILIES, make_tiny, pack_uniform

BUILT = [family for family in FAMILIES if family in families.BUILDERS]
GRIDS = ["f32", "f16", *(name for name, spec in uniform.NAMES.items() if spec.partial)]


@pytest.mark.parametrize("family", BUILT)
def test_the_builders_families(family: str, tmp_path: Path) -> None:
    """Strict: the same numbers; as shipped: int8 activations apart."""
    compressed = pack_uniform(make_tiny(family, tmp_path / "hf"), tmp_path / "c", "u4_32")
    artifact = check_strict(compressed, tmp_path)
    assert any("model builder" in note for note in artifact.notes)
    assert mean_kl(torch_logits(compressed, IDS), score(tmp_path / "a")) < 5e-3


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_traced_families(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if family != "gpt2":
        monkeypatch.setattr(families, "why_traced", lambda config: "for the test")
    artifact = check_strict(pack_uniform(make_tiny(family, tmp_path / "hf"), tmp_path / "c", "u4_32"), tmp_path)
    assert any("traced by torch's exporter" in note for note in artifact.notes)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in BUILT if family != "llama"])
def test_every_family_can_be_traced(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "why_traced", lambda config: "for the test")
    check_strict(pack_uniform(make_tiny(family, tmp_path / "hf"), tmp_path / "c", "s4_32"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "grid", "changes"),
    [
        ("gpt2", "f16", {}),
        ("gpt2", "s2_128", {"hidden": 72, "heads": 9}),
        ("gpt2", "u8_16", {"tied": False, "padding": 1}),
        ("phi", "s4_32", {"qk_layernorm": True}),
        ("llama", "s4_32", {"hidden_act": "quick_gelu"}),
    ],
)
def test_what_the_builder_does_not_know_is_traced(
    family: str, grid: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    artifact = check_strict(pack_uniform(make_tiny(family, tmp_path / "hf", **changes), tmp_path / "c", grid), tmp_path)
    assert any("traced" in note for note in artifact.notes)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("grid", GRIDS)
def test_grids(grid: str, tied: bool, tmp_path: Path) -> None:
    """Odd numbers of blocks, blocks that are not full, an odd vocabulary; a table that is embedding and head or not.

    The feed-forward width of 100 is no multiple of 32, the vocabulary of 403 neither.
    """
    hf = make_tiny("llama", tmp_path / "hf", hidden=48, heads=3, kv_heads=1, ffn=100, padding=3, tied=tied)
    check_strict(pack_uniform(hf, tmp_path / "c", grid), tmp_path)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"heads": 8, "kv_heads": 4}),
        ("qwen3", {"heads": 8, "kv_heads": 1}),
        ("phi", {"heads": 8}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": 20}),
        ("phi3", {"sliding_window": 20}),
        ("qwen2", {"sliding_window": 20, "use_sliding_window": True, "max_window_layers": 1}),
        ("gemma", {"kv_heads": 1, "tied": False}),
    ],
    ids=lambda value: str(value)[:50],
)
def test_heads_of_8_one_kv_head_biases_and_windows(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Attention's fused rotation wants heads of a multiple of 16; a window is shorter than the text here."""
    check_strict(pack_uniform(make_tiny(family, tmp_path / "hf", **changes), tmp_path / "c", "s4_32"), tmp_path)


_BASE = {"rope_theta": 10000.0}
_FACTORS = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [2.0] * 8}
_LONG = {"original_max_position_embeddings": 128, "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        (
            "llama",
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("llama", {"rope_type": "dynamic", "factor": 4.0}),
        ("phi3", {"rope_type": "longrope", **_FACTORS, **_LONG}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["rope_type"],
)
def test_rotary_rules(family: str, rule: dict[str, Any], tmp_path: Path) -> None:
    """The builder itself passes over some of these without a word."""
    more = {"original_max_position_embeddings": 128} if family == "phi3" else {}
    hf = make_tiny(family, tmp_path / "hf", rope_parameters=_BASE | rule, **more)
    check_strict(pack_uniform(hf, tmp_path / "c", "s8_32"), tmp_path)


def test_rules_that_change_with_length_end_the_context(tmp_path: Path) -> None:
    config = {
        "model_type": "phi3",
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 2048,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "rope_parameters": _BASE | {"rope_type": "longrope", **_FACTORS},
    }
    assert OnnxExporter().context_tokens(config) == 2048
    assert OnnxExporter().context_tokens({"model_type": "gpt2", "n_positions": 77}) == 77
    with pytest.raises(UnsupportedError, match="'mamba'"):
        OnnxExporter().context_tokens({"model_type": "mamba"})


def test_factors_widths_and_shared_weights(tmp_path: Path) -> None:
    """A factorised layer, a narrower block, shared queries and a shared block part, different grids side by side."""
    grid = {"gate_proj": "u8_32", "up_proj": "s4_32", "down_proj": "u2_32", "k_proj": "s8_16"}
    compressed = pack_surgery(
        tmp_path, lambda name: next((value for part, value in grid.items() if part in name), "u4_32")
    )
    check_strict(compressed, tmp_path)


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf", hidden=256, ffn=512, tied=True)
    compressed = pack_uniform(hf, tmp_path / "c", "f32")
    parts = state_of(hf)
    shared = {n: n.replace("layers.1.", "layers.0.") for n in parts if "layers.1." in n and parts[n].ndim == 2}
    kept = {name: values for name, values in parts.items() if name not in shared}
    whole = export_both(repack(compressed, lambda _: "u4_32", parts=parts), tmp_path / "whole")
    once = export_both(repack(compressed, lambda _: "u4_32", parts=kept, shared=shared), tmp_path / "once")
    size = OnnxExporter().tensor_bytes
    saved = sum(size("u4_32", *parts[name].shape) for name in shared)
    assert whole.model_bytes - once.model_bytes == pytest.approx(saved, rel=0.01)
    check_strict(compressed, tmp_path)


@pytest.mark.parametrize("family", ["phi3"])
def test_factors_of_joint_layers(family: str, tmp_path: Path) -> None:
    """Queries, keys and values in one matrix, gate and up in one: both cut in two factors."""
    hf = make_tiny(family, tmp_path / "hf", tied=True)
    compressed, parts = pack_uniform(hf, tmp_path / "c", "f32"), state_of(hf)
    dice = np.random.default_rng(0)
    for name, rows in (("0.self_attn.qkv_proj", 128), ("1.mlp.gate_up_proj", 256)):
        del parts[f"model.layers.{name}.weight"]
        parts[f"model.layers.{name}.0.weight"] = dice.standard_normal((16, 64)).astype(np.float32) / 8
        parts[f"model.layers.{name}.1.weight"] = dice.standard_normal((rows, 16)).astype(np.float32) / 4
    check_strict(repack(compressed, lambda _: "s4_32", parts=parts), tmp_path)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma"])
def test_greedy_text_is_torchs_in_strict_mode(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    hf = make_tiny(family, tmp_path / "hf", context=128)
    export_both(pack_uniform(hf, tmp_path / "c", "f32"), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = model.generate(
            torch.tensor([IDS[:8]]), max_new_tokens=100, min_new_tokens=100, do_sample=False, pad_token_id=0
        )
    with OnnxGenai().open(tmp_path / "s" / "model.onnx", SETTINGS) as session:
        assert list(session.generate(IDS[:8], max_tokens=100)) == wanted[0, 8:].tolist()


def test_a_context_beyond_the_model_is_refused(tmp_path: Path) -> None:
    compressed = pack_uniform(make_tiny("llama", tmp_path / "hf", context=64), tmp_path / "c", "f16")
    with pytest.raises(ConfigError, match="context of 128 tokens is more than the 64"):
        export.export_onnx(compressed, tmp_path / "a", SETTINGS, prove_texts=[])
