"""Key/value heads that are merged, and groups of heads that go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from edgegen.catalog.load import load_target
from edgegen.modeling.load import config_object
from edgegen.records.structure import Change
from edgegen.techniques import heads, kv_heads
from edgegen.techniques.layout import attention, bias_of, blocks, weight_of
from tests.techniques.cut_models import Cut, changed, check_sound, logits, parameters, prepare, some_quick, store

ONNX, GGUF = load_target("onnx"), load_target("gguf")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi")


def merged_to(number: int) -> Change:
    return Change(technique="kv_heads", values={"kv_heads": (number,)}, words="")


def kept(number: int) -> Change:
    return Change(technique="heads", values={"kv_heads": (number,)}, words="")


def spread_biases(model: Any) -> None:
    """Biases are 0 in a new model: let them matter."""
    torch.manual_seed(5)
    for block in blocks(model):
        for leaf in ("q_proj", "k_proj", "v_proj"):
            bias = bias_of(getattr(block.self_attn, leaf))
            if bias is not None:
                bias.data.copy_(torch.randn_like(bias))


def repeat_heads(model: Any, copies: dict[int, int], size: int) -> None:
    """Let key/value heads be copies of others."""
    for block in blocks(model):
        for leaf in ("k_proj", "v_proj"):
            module = getattr(block.self_attn, leaf)
            for tensor in (module.weight, bias_of(module)):
                if tensor is not None:
                    rows = tensor.data.unflatten(0, (-1, size))
                    for copied, source in copies.items():
                        rows[copied] = rows[source]


@pytest.mark.parametrize("family", some_quick(FAMILIES))
@pytest.mark.parametrize("copies", [{1: 0, 3: 2}, {2: 1, 3: 0}], ids=["neighbours", "others"])
def test_equal_heads_merge_exactly(copies: dict[int, int], family: str, tmp_path: Path) -> None:
    """With biases, norms of queries and keys, and heads that are rotated in part."""
    cut = prepare(tmp_path, family, heads=4 if family == "phi" else 8, kv_heads=4)
    spread_biases(cut.model)
    repeat_heads(cut.model, copies, heads.head_sizes(cut.model.config).size)
    whole = logits(cut.model)
    model = changed(kv_heads, merged_to(2), cut)
    torch.testing.assert_close(logits(model), whole, rtol=1e-3, atol=1e-3)
    assert model.config.num_key_value_heads == 2
    part = attention(model, 0).module
    assert weight_of(part.k_proj).shape[0] == weight_of(part.v_proj).shape[0] == 2 * part.head_dim
    check_sound(model, cut, tmp_path / "derived", merged_to(2))


def test_heads_that_say_the_same_in_other_bases_merge_exactly(tmp_path: Path) -> None:
    """A key head turned and stretched in each rotary pair, a value head in any basis."""
    cut = prepare(tmp_path, heads=4, kv_heads=2)
    dice = torch.Generator().manual_seed(0)
    for block in blocks(cut.model):
        key, value = (getattr(block.self_attn, leaf).weight.data for leaf in ("k_proj", "v_proj"))
        first = torch.complex(key[:8], key[8:16])
        factor = torch.polar(0.5 + torch.rand(8, generator=dice), 6 * torch.rand(8, generator=dice))
        turned = factor[:, None] * first
        key[16:24], key[24:] = turned.real, turned.imag
        value[16:] = torch.randn(16, 16, generator=dice) @ value[:16]
    whole = logits(cut.model)
    model = changed(kv_heads, merged_to(1), cut)
    torch.testing.assert_close(logits(model), whole, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """Heads 0 and 2, 1 and 3 are alike but not the same."""
    cut = prepare(tmp_path_factory.mktemp("alike"), heads=8, kv_heads=4, tokens=2500)
    own = [copy.deepcopy(block.self_attn.state_dict()) for block in blocks(cut.model)]
    repeat_heads(cut.model, {2: 0, 3: 1}, 8)
    for block, state in zip(blocks(cut.model), own, strict=True):
        for leaf in ("k_proj", "v_proj"):
            getattr(block.self_attn, leaf).weight.data.add_(0.3 * state[f"{leaf}.weight"])
    return cut


def test_alike_heads_are_found(alike: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    choose = kv_heads._grouping
    monkeypatch.setattr(kv_heads, "_grouping", lambda *args: found.append(choose(*args)) or found[-1])
    changed(kv_heads, merged_to(2), alike)
    assert [sorted(map(sorted, groups)) for groups in found] == [[[0, 2], [1, 3]]] * 2


@pytest.mark.parametrize(
    ("technique", "change", "gone"),
    [(kv_heads, merged_to(2), 2 * 2 * 64 * 2 * 8), (heads, kept(2), 2 * 64 * (2 * 4 * 8 + 2 * 2 * 8))],
    ids=["merged", "dropped"],
)
def test_parameters_and_repair(
    technique: Any, change: Change, gone: int, alike: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = alike.calibration.parts[1]
    model = changed(technique, change, alike)
    assert parameters(alike.model) - parameters(model) == gone
    monkeypatch.setattr(technique, "refit", lambda *args: False)
    assert judge.distance(model) < judge.distance(changed(technique, change, alike))


def test_proposals(alike: Cut, tmp_path: Path) -> None:
    assert [change.values["kv_heads"] for change in kv_heads.propose(alike.calibration, ONNX)] == [(2,), (1,)]
    dropped = heads.propose(alike.calibration, ONNX)
    assert [change.values["kv_heads"] for change in dropped] == [(2,)], "six heads do not divide a Llama's width"
    assert dropped[0].words == "4 of 8 attention heads kept, with 2 of 4 key/value heads"
    other = prepare(tmp_path / "other", "qwen3", heads=8, kv_heads=4)
    assert [change.values["kv_heads"] for change in heads.propose(other.calibration, ONNX)] == [(3,), (2,)]
    store(changed(heads, kept(3), other), other, tmp_path / "stored", kept(3))
    single = prepare(tmp_path, kv_heads=1)
    assert kv_heads.propose(single.calibration, ONNX) == heads.propose(single.calibration, ONNX) == []


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_groups_that_write_nothing_go_without_a_trace(family: str, tmp_path: Path) -> None:
    cut = prepare(tmp_path, family, heads=4 if family == "phi" else 8, kv_heads=4)
    spread_biases(cut.model)
    for layer, silent in enumerate(([0, 2], [1, 3])):
        part = attention(cut.model, layer)
        for group in silent:
            weight_of(getattr(part.module, part.writer)).data.unflatten(1, (4, -1))[:, group] = 0
    whole = logits(cut.model)
    model = changed(heads, kept(2), cut)
    torch.testing.assert_close(logits(model), whole, rtol=1e-3, atol=1e-3)
    assert model.config.num_attention_heads == cut.model.config.num_attention_heads // 2
    assert model.config.head_dim == heads.head_sizes(cut.model.config).size
    check_sound(model, cut, tmp_path / "derived", kept(2))


@pytest.mark.parametrize(
    ("technique", "config", "target", "words"),
    [
        (kv_heads, {"model_type": "gpt2"}, ONNX, "are one matrix"),
        (heads, {"model_type": "phi3", "pad_token_id": 0}, ONNX, "are one matrix"),
        (heads, {"model_type": "qwen2"}, GGUF, "heads times head size"),
        (heads, {"model_type": "qwen2"}, ONNX, ""),
        (heads, {"model_type": "phi", "qk_layernorm": True}, ONNX, "norms of its queries"),
        (kv_heads, {"model_type": "phi", "qk_layernorm": True}, GGUF, ""),
        (kv_heads, {"model_type": "bert"}, ONNX, "how a bert arranges"),
    ],
)
def test_obstacles(technique: Any, config: dict[str, Any], target: Any, words: str) -> None:
    found = technique.obstacle(config_object(config), target)
    assert words in found
    assert bool(words) == bool(found)
