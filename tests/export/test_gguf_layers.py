"""Models whose layers differ: written as `deci`, with the logits that torch has, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.export.folder import map_weights
from edgegen.export.gguf.export import export_gguf, gguf_overhead_bytes, predict_gguf_bytes
from edgegen.export.gguf.tensors import tensor_bytes
from edgegen.modeling.rebuild import rebuild_model
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed
from edgegen.records.plan import Settings
from edgegen.runtime.llamacpp import LlamaCpp
from tests.export.packed_models import Floats, mean_kl, repack, state_of
from tests.tiny_models import make_tiny, pack_uniform, sample_texts

SETTINGS = Settings(context_tokens=128, ubatch_tokens=48, threads=1, kv_type="f32")
TEXTS = sample_texts(8, seed=3)
IDS = [int(i) for i in np.random.default_rng(4).integers(3, 380, 64)]
HEAD = 16
FFN = (128, 96, 64)
HEADS = ((4, 2), (2, 1), (2, 2))
"""Query and key heads per layer."""
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
TOKENIZER = {"mistral": "sentencepiece", "qwen2": "qwen2", "qwen3": "qwen2", "gemma3_text": "gemma"}

Shape = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]
WHOLE: Shape = ((128,) * 3, ((4, 2),) * 3)
VARIANTS: dict[str, tuple[str, Shape, dict[str, Any]]] = {
    "llama, widths": ("llama", (FFN, WHOLE[1]), {}),
    "llama, heads": ("llama", (WHOLE[0], HEADS), {"tied": True, "head_dim": HEAD}),
    "llama, widths and heads, scaled rope": ("llama", (FFN, HEADS), {"head_dim": HEAD, "rope_parameters": LLAMA3}),
    "llama, biases": ("llama", (FFN, HEADS), {"head_dim": HEAD, "attention_bias": True, "mlp_bias": True}),
    "mistral, window": ("mistral", (FFN, WHOLE[1]), {"sliding_window": 130}),
    "qwen2, widths": ("qwen2", (FFN, WHOLE[1]), {}),
    "qwen2, heads, yarn": ("qwen2", (FFN, HEADS), {"head_dim": HEAD, "rope_parameters": YARN}),
}


def cut(state: dict[str, Floats], shape: Shape) -> dict[str, Floats]:
    """The first channels and heads of each layer of a state with all of them."""
    kept = {}
    for name, values in state.items():
        parts = name.split(".")
        if parts[1] == "layers":
            layer, module, leaf = int(parts[2]), parts[4], parts[-1]
            queries, keys = (heads * HEAD for heads in shape[1][layer])
            rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
            rows |= dict.fromkeys(("gate_proj", "up_proj"), shape[0][layer])
            columns = {"o_proj": queries, "down_proj": shape[0][layer]}
            values = values[: rows.get(module, len(values))]
            values = values[:, : columns[module]] if leaf == "weight" and module in columns else values
        kept[name] = values
    return kept


def cut_folder(folder: Path, family: str, shape: Shape, grid: str, overrides: dict[str, Any]) -> Path:
    hf = make_tiny(family, folder / "hf", layers=3, tokenizer=TOKENIZER.get(family, "bytelevel"), **overrides)
    return repack(pack_uniform(hf, folder / "c"), lambda name: grid, parts=cut(state_of(hf), shape))


def torch_logits(folder: Path, shape: Shape) -> Floats:
    """What torch says with a compressed folder's weights: (T, V)."""
    record = load_json(folder / "compressed.json", Compressed)
    model = rebuild_model(folder, record, map_weights(folder, record)).model
    for layer, (queries, keys) in zip(model.model.layers, shape[1], strict=True):
        layer.self_attn.num_key_value_groups = queries // keys
    with torch.no_grad():
        logits: Floats = model(torch.tensor([IDS])).logits[0].numpy()
    return logits


def llama_logits(folder: Path) -> Floats:
    with LlamaCpp().open(folder / "model.gguf", SETTINGS) as session:
        return session.score(IDS)


def export(compressed: Path, folder: Path) -> Artifact:
    return export_gguf(compressed, folder / "a", SETTINGS, prove_texts=TEXTS, strict=folder / "s")


@pytest.mark.parametrize("name", VARIANTS)
def test_parity(name: str, tmp_path: Path) -> None:
    family, shape, overrides = VARIANTS[name]
    compressed = cut_folder(tmp_path, family, shape, "f32", overrides)
    artifact = export(compressed, tmp_path)
    assert mean_kl(torch_logits(compressed, shape), llama_logits(tmp_path / "a")) < 1e-6
    assert artifact.family == family
    assert any("deci" in note for note in artifact.notes)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(tmp_path / "a" / "model.gguf").fields.items()}
    assert fields["general.architecture"] == "deci"
    assert fields["deci.feed_forward_length"] == list(shape[0])
    assert fields["deci.attention.head_count"] == [queries for queries, _ in shape[1]]
    assert fields["deci.attention.head_count_kv"] == [keys for _, keys in shape[1]]
    assert not [key for key in fields if key.startswith((f"{family}.", "llama."))]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("grid", ["q8_0", "q4_0"])
def test_rounded_weights(family: str, grid: str, tmp_path: Path) -> None:
    """The same weights in f32 give torch's logits; the packed ones differ by their rounded activations only."""
    shape: Shape = (FFN, WHOLE[1])
    compressed = cut_folder(tmp_path, family, shape, grid, {})
    artifact = export(compressed, tmp_path)
    expected = torch_logits(compressed, shape)
    assert mean_kl(expected, llama_logits(tmp_path / "s")) < 1e-6
    assert mean_kl(expected, llama_logits(tmp_path / "a")) < 0.02
    assert artifact.tokenizer_proof.startswith("8 of 8 held-out texts")


@pytest.mark.parametrize("grid", ["f32", "f16", "q4_0"])
def test_predicted_size_is_the_size(grid: str, tmp_path: Path) -> None:
    compressed = cut_folder(tmp_path, "llama", (FFN, HEADS), grid, {"head_dim": HEAD, "rope_parameters": LLAMA3})
    export(compressed, tmp_path)
    record = load_json(compressed / "compressed.json", Compressed)
    config = json.loads((compressed / "config.json").read_text())
    actual = (tmp_path / "a" / "model.gguf").stat().st_size
    assert predict_gguf_bytes(config, compressed, record.tensors, prove_texts=TEXTS) == actual
    overhead = gguf_overhead_bytes(config, compressed, record.tensors)
    assert overhead + sum(tensor_bytes(t.grid, t.rows, t.columns) for t in record.tensors) == actual


def test_layers_that_are_alike_stay_in_their_own_architecture(tmp_path: Path) -> None:
    compressed = cut_folder(tmp_path, "qwen2", ((96,) * 3, WHOLE[1]), "f32", {})
    with pytest.raises(ConfigError, match=r"every layer has 96 feed-forward channels and config\.json says 128"):
        export(compressed, tmp_path)
    config = json.loads((compressed / "config.json").read_text())
    (compressed / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    assert export(compressed, tmp_path).notes == ()
    fields = gguf.GGUFReader(tmp_path / "a" / "model.gguf").fields
    assert fields["general.architecture"].contents() == "qwen2"
    assert fields["qwen2.feed_forward_length"].contents() == 96


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_other_families_refuse_layers_of_different_widths(family: str, tmp_path: Path) -> None:
    compressed = cut_folder(tmp_path, family, (FFN, WHOLE[1]), "f32", {})
    with pytest.raises(UnsupportedError, match=f"{family}: GGUF cannot say layers of different widths") as caught:
        export(compressed, tmp_path)
    assert "llama, mistral, qwen2" in caught.value.hint
    assert not (tmp_path / "a").exists()


def test_tensors_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf", layers=3)
    parts = state_of(hf)
    parts["model.layers.1.mlp.up_proj.weight"] = parts["model.layers.1.mlp.up_proj.weight"][:96]
    compressed = repack(pack_uniform(hf, tmp_path / "c"), lambda name: "f32", parts=parts)
    with pytest.raises(ConfigError, match="layer 1: tensors of 128 and of 96 outputs"):
        export(compressed, tmp_path)


def test_shared_weights_are_refused(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf", layers=3)
    parts = state_of(hf)
    name = "model.layers.2.mlp.up_proj.weight"
    del parts[name]
    shared = {name: "model.layers.1.mlp.up_proj.weight"}
    compressed = repack(pack_uniform(hf, tmp_path / "c"), lambda name: "f32", parts=parts, shared=shared)
    with pytest.raises(UnsupportedError, match="GGUF has no shared weights"):
        export(compressed, tmp_path)
