"""What a model is made of, for every family."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from edgegen.errors import UnsupportedError
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import empty_model, find_model
from edgegen.modeling.summary import is_transposed, resized_config, summarize
from edgegen.records.model import ModelSummary
from tests.tiny_models import FAMILIES, make_tiny

LAYERS = 2
FUSED_ATTENTION = {"gpt2", "phi3"}
FUSED_FFN = {"phi3"}
NO_GATE = {"gpt2", "phi"}


def summary_of(folder: Path) -> ModelSummary:
    return summarize(empty_model(find_model(str(folder))), Checkpoint(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_sizes_and_parameters(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "model", ffn=96, padding=5)
    summary = summary_of(folder)
    roles = Counter(t.role for t in summary.tensors)
    assert roles["embedding"] == 1
    assert roles["head"] == (0 if summary.tied else 1)
    assert roles["position"] == (1 if family == "gpt2" else 0)
    assert roles["attention_in"] == LAYERS * (1 if family in FUSED_ATTENTION else 3)
    assert roles["attention_out"] == roles["ffn_out"] == LAYERS
    assert roles["ffn_in"] == LAYERS * (1 if family in FUSED_FFN | NO_GATE else 2)
    model = empty_model(find_model(str(folder)))
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert (summary.family, summary.layers, summary.hidden_size) == (family, LAYERS, 64)
    assert (summary.heads, summary.kv_heads) == (4, 4 if family in ("gpt2", "phi") else 2)
    assert (summary.ffn_size, summary.head_size, summary.vocab_size) == (96, 16, 405)
    assert summary.context_tokens == 256
    assert {t.layer for t in summary.tensors if t.role.startswith(("ffn", "attention"))} == {0, 1}
    assert all(not t.quantizable for t in summary.tensors if t.role in ("vector", "position"))
    assert all(t.quantizable for t in summary.tensors if t.role not in ("vector", "position"))


def test_gpt2_matrices_are_given_outputs_first(tmp_path: Path) -> None:
    folder = make_tiny("gpt2", tmp_path / "model", ffn=96)
    model = empty_model(find_model(str(folder)))
    shapes = {t.name: (t.rows, t.columns) for t in summary_of(folder).tensors}
    assert shapes["transformer.h.0.attn.c_attn.weight"] == (192, 64)
    assert shapes["transformer.h.0.mlp.c_fc.weight"] == (96, 64)
    assert shapes["transformer.h.0.mlp.c_proj.weight"] == (64, 96)
    assert is_transposed(model, "transformer.h.0.mlp.c_fc.weight")
    assert not is_transposed(model, "transformer.h.0.mlp.c_fc.bias")
    assert not is_transposed(model, "transformer.wte.weight")


def test_a_matrix_of_unknown_role_is_refused_with_what_is_known(tiny_llama: Path) -> None:
    empty = empty_model(find_model(str(tiny_llama)))
    empty.model.layers[0].register_parameter("expert", torch.nn.Parameter(torch.zeros(2, 3)))
    with pytest.raises(UnsupportedError, match=r"role of tensor 'model.layers.0.expert' \[2, 3\]") as caught:
        summarize(empty, Checkpoint(tiny_llama))
    assert "Llama" in caught.value.hint


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlanguage: en\nlicense:   apache-2.0\n---\n", "apache-2.0"),
        ("# license: no front matter", ""),
        ("---\ntags: []\n---\nlicense: later", ""),
    ],
)
def test_license_is_the_cards(tmp_path: Path, card: str, found: str) -> None:
    folder = make_tiny("llama", tmp_path / "model")
    (folder / "README.md").write_text(card)
    assert summary_of(folder).license == found


@pytest.mark.parametrize(("family", "key"), [("llama", "intermediate_size"), ("gpt2", "n_inner")])
def test_a_resized_configuration_uses_the_familys_key(family: str, key: str, tmp_path: Path) -> None:
    ref = find_model(str(make_tiny(family, tmp_path / "model", ffn=96)))
    config = empty_model(ref).config.to_dict()
    resized = resized_config(config, summary_of(tmp_path / "model"))
    assert resized[key] == 96 and resized["vocab_size"] == 400
    assert set(resized) == set(config) | {key}
