"""Least-squares repair: exact where it can be, kept only where it helps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from edgegen.catalog.load import load_target
from edgegen.errors import UnsupportedError
from edgegen.modeling.structure import replace_module
from edgegen.techniques import depth, heads, kv_heads, layer_width, width
from edgegen.techniques.layout import FAMILIES, attention, blocks, copy_structure, feed_forward, put, weight_of
from edgegen.techniques.refit import refit
from tests.techniques.cut_models import logits, prepare, some_quick


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_every_familys_writers_are_found_and_mended(family: str, tmp_path: Path) -> None:
    """A damaged output projection is brought back to what it was: its inputs still say everything."""
    cut = prepare(tmp_path, family, tokens=900, ffn=32)
    model = copy.deepcopy(cut.model)
    part = feed_forward(model, 0)
    weight = weight_of(getattr(part.module, part.writer)).clone()
    weight[:32] = 0
    put(part.module, part.writer, weight, getattr(part.module, part.writer).bias)
    hurt = cut.calibration.distance(model)
    assert hurt > 1e-3
    assert refit(model, cut.calibration, range(2))
    assert cut.calibration.distance(model) < 0.05 * hurt


def test_an_unchanged_model_stays_as_it_is(tmp_path: Path) -> None:
    cut = prepare(tmp_path)
    model = copy.deepcopy(cut.model)
    assert not refit(model, cut.calibration, range(2))
    assert torch.equal(logits(model), logits(cut.model))


def test_a_constant_channel_goes_into_the_bias(tmp_path: Path) -> None:
    """A channel that always says the same is made up for by the writer's bias."""
    cut = prepare(tmp_path, "phi", tokens=900)
    mlp = cut.model.model.layers[0].mlp
    mlp.fc1.weight.data[3], mlp.fc1.bias.data[3] = 0, 2.0
    model = copy.deepcopy(cut.model)
    model.model.layers[0].mlp.fc1.bias.data[3] = 0
    assert cut.calibration.distance(model) > 1e-4
    assert refit(model, cut.calibration, range(2))
    assert cut.calibration.distance(model) < 1e-6


def test_what_does_not_help_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = prepare(tmp_path)
    model = copy.deepcopy(cut.model)
    damaged = weight_of(model.model.layers[0].mlp.down_proj) * 0.9
    put(model.model.layers[0].mlp, "down_proj", damaged, None)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    _, judge = cut.calibration.parts
    monkeypatch.setattr(judge, "distance", lambda model: 1.0)
    assert not refit(model, cut.calibration, range(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_text_to_judge_on_is_not_text_to_fit_on(tmp_path: Path) -> None:
    calibration = prepare(tmp_path).calibration
    fitted, judged = calibration.parts
    assert len(fitted.windows) + len(judged.windows) == len(calibration.windows)
    assert not {id(w) for w in fitted.windows} & {id(w) for w in judged.windows}
    assert len(judged.windows) == len(calibration.windows) // 4


def test_a_structural_copy_shares_weights_and_nothing_else(tmp_path: Path) -> None:
    model = prepare(tmp_path).model
    made = copy_structure(model)
    assert made.lm_head.weight is model.lm_head.weight
    put(attention(made, 0).module, "o_proj", torch.zeros(64, 64), None)
    made.config.num_hidden_layers = 1
    assert weight_of(attention(model, 0).module.o_proj).any()
    assert model.config.num_hidden_layers == len(blocks(model))


@pytest.mark.parametrize("kind", ["shared", "factorised"])
def test_what_a_repair_would_undo_is_left_alone(kind: str, tmp_path: Path) -> None:
    cut = prepare(tmp_path)
    if kind == "shared":
        first, second = blocks(cut.model)
        second.mlp.down_proj.weight = first.mlp.down_proj.weight
    else:
        pair = torch.nn.Sequential(torch.nn.Linear(128, 32, bias=False), torch.nn.Linear(32, 64, bias=False))
        replace_module(cut.model, "model.layers.0.mlp.down_proj", pair)
    target = load_target("onnx")
    assert not any(technique.propose(cut.calibration, target) for technique in (depth, width, layer_width))
    assert not any(technique.propose(cut.calibration, target) for technique in (heads, kv_heads))
    with pytest.raises(UnsupportedError, match="shared or factorised"):
        refit(cut.model, cut.calibration, range(2))


def test_a_repaired_model_can_be_trained(tmp_path: Path) -> None:
    cut = prepare(tmp_path)
    model = copy.deepcopy(cut.model)
    depth.apply(model, depth.Change(technique="depth", values={"removed": (0,)}, words=""), cut.calibration)
    model.requires_grad_(True)
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad is not None
