"""Runs of blocks that go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from edgegen.catalog.load import load_target
from edgegen.modeling.load import config_object
from edgegen.techniques import depth
from edgegen.techniques.layout import FAMILIES, attention, blocks, feed_forward, norm_follows
from tests.techniques.cut_models import Cut, changed, check_sound, logits, parameters, prepare, some_quick

ONNX = load_target("onnx")


def silence(model: Any, layer: int) -> None:
    """Make a block an identity."""
    if norm_follows(model):
        block = blocks(model)[layer]
        for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
            norm.weight.data.fill_(-1)  # these norms multiply with 1 + weight
        return
    for part in (attention(model, layer), feed_forward(model, layer)):
        writer = getattr(part.module, part.writer)
        writer.weight.data.zero_()
        if writer.bias is not None:
            writer.bias.data.zero_()


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_a_block_that_does_nothing_goes_without_a_trace(family: str, tmp_path: Path) -> None:
    cut = prepare(tmp_path, family, layers=4)
    silence(cut.model, 2)
    whole = logits(cut.model)
    first, second = depth.propose(cut.calibration, ONNX)
    assert first.values == {"removed": (2,)}
    assert first.words == "layer 3 of 4 removed"
    assert len(second.values["removed"]) == 2
    model = changed(depth, first, cut)
    torch.testing.assert_close(logits(model), whole, rtol=1e-4, atol=1e-4)
    assert model.config.num_hidden_layers == 3
    check_sound(model, cut, tmp_path / "derived", first)


def test_angles(tmp_path: Path) -> None:
    cut = prepare(tmp_path, layers=3)
    silence(cut.model, 1)
    angles = depth.angular_distances(cut.calibration)
    assert angles[1, 2] == pytest.approx(0, abs=1e-3)
    assert angles[0, 1] == pytest.approx(float(angles[0, 2]), abs=1e-3)
    assert 0.05 < angles[2, 3] < 0.95
    states = cut.model(torch.from_numpy(cut.calibration.windows[0].ids)[None], output_hidden_states=True).hidden_states
    one = copy.copy(cut.calibration)
    one.windows = one.windows[:1]
    wanted = torch.nn.functional.cosine_similarity(states[0][0], states[1][0], dim=-1).acos().mean() / torch.pi
    assert float(depth.angular_distances(one)[0, 1]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return prepare(tmp_path_factory.mktemp("deep"), layers=6, tokens=1200)


def test_half_at_most_and_every_block_counts(deep: Cut) -> None:
    proposals = depth.propose(deep.calibration, ONNX)
    assert [len(change.values["removed"]) for change in proposals] == [1, 2, 3]
    block = parameters(blocks(deep.model)[0])
    for change in proposals:
        model = copy.deepcopy(deep.model)
        depth.remove_blocks(model, change.values["removed"])
        assert parameters(deep.model) - parameters(model) == block * len(change.values["removed"])


@pytest.mark.parametrize("layers", [(0,), (2, 3), (5,)])
def test_repair_never_hurts(layers: tuple[int, ...], deep: Cut) -> None:
    change = depth.Change(technique="depth", values={"removed": layers}, words="")
    bare = copy.deepcopy(deep.model)
    depth.remove_blocks(bare, layers)
    judge = deep.calibration.parts[1]
    assert judge.distance(changed(depth, change, deep)) <= judge.distance(bare)


def test_kinds_of_layers_move_along(tmp_path: Path) -> None:
    cut = prepare(tmp_path, "gemma3_text", layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    change = depth.Change(technique="depth", values={"removed": (1, 2)}, words="")
    model = changed(depth, change, cut)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert [block.self_attn.layer_idx for block in blocks(model)] == [0, 1]
    check_sound(model, cut, tmp_path / "derived", change)


def test_one_block_stays(tmp_path: Path) -> None:
    assert depth.propose(prepare(tmp_path, layers=1).calibration, ONNX) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama"}, ""),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "number of the block"),
        ({"model_type": "bert"}, "how a bert arranges"),
    ],
)
def test_obstacles(config: dict[str, Any], words: str) -> None:
    found = depth.obstacle(config_object(config), ONNX)
    assert words in found
    assert bool(words) == bool(found)


def test_long_models_get_five_lengths() -> None:
    assert depth._lengths(15) == [1, 4, 8, 12, 15]
    assert depth._lengths(1) == [1]
