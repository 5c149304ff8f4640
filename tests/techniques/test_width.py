"""Feed-forward channels that go, uniformly and layer by layer."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgegen.catalog.load import load_target
from edgegen.modeling.load import config_object
from edgegen.modeling.statistics import fisher_kl
from edgegen.records.structure import Change
from edgegen.techniques import channels, layer_width, width
from edgegen.techniques.layout import FAMILIES, feed_forward, weight_of
from tests.techniques.cut_models import Cut, changed, check_sound, logits, parameters, prepare, some_quick

ONNX, GGUF = load_target("onnx"), load_target("gguf")


def to(number: int) -> Change:
    return Change(technique="width", values={"width": (number,)}, words="")


def kill(model: Any, layer: int, dead: torch.Tensor) -> None:
    """Make channels always 0."""
    part = feed_forward(model, layer)
    whole = weight_of(getattr(part.module, part.writer)).shape[1]
    for leaf in part.readers:
        module = getattr(part.module, leaf)
        weight_of(module).data[dead] = 0
        if weight_of(module).shape[0] > whole:  # gate and up in one matrix
            weight_of(module).data[dead + whole] = 0
        if module.bias is not None:
            module.bias.data[dead] = 0


@pytest.mark.parametrize("family", some_quick(FAMILIES))
def test_dead_channels_go_without_a_trace(family: str, tmp_path: Path) -> None:
    cut = prepare(tmp_path, family)
    for layer in range(2):
        kill(cut.model, layer, torch.randperm(128, generator=torch.Generator().manual_seed(layer))[:64])
    whole = logits(cut.model)
    model = changed(width, to(64), cut)
    torch.testing.assert_close(logits(model), whole, rtol=1e-4, atol=1e-4)
    assert channels.widths_of(model) == [64, 64]
    assert channels.widths_of(cut.model) == [128, 128]
    check_sound(model, cut, tmp_path / "derived", to(64))


@pytest.fixture(scope="module")
def correlated(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """Channels of the second half are mixtures of the first half's, and a little of their own."""
    cut = prepare(tmp_path_factory.mktemp("correlated"), layers=3, tokens=2500)
    dice = torch.Generator().manual_seed(0)
    for block in cut.model.model.layers:
        mlp = block.mlp
        mlp.gate_proj.weight.data[64:] = mlp.gate_proj.weight.data[:64]
        mix = torch.randn(64, 64, generator=dice) / 8
        mlp.up_proj.weight.data[64:] = mix @ mlp.up_proj.weight.data[:64] + 0.2 * mlp.up_proj.weight.data[64:]
    return cut


def test_parameters_and_repair(correlated: Cut, tmp_path: Path) -> None:
    proposals = width.propose(correlated.calibration, ONNX)
    assert [change.values["width"] for change in proposals] == [(96,), (64,)]
    judge = correlated.calibration.parts[1]
    for change in proposals:
        (wide,) = change.values["width"]
        bare, model = copy.deepcopy(correlated.model), changed(width, change, correlated)
        channels.narrow(bare, [wide] * 3, correlated.calibration)
        assert parameters(correlated.model) - parameters(model) == 3 * 3 * 64 * (128 - wide)
        assert model.config.intermediate_size == wide
        assert judge.distance(model) < judge.distance(bare)
    check_sound(model, correlated, tmp_path / "derived", change)


def test_absorbing_is_the_least_squares_optimum() -> None:
    dice = np.random.default_rng(0)
    x = torch.from_numpy(dice.standard_normal((4000, 12)) @ dice.standard_normal((12, 12)))
    weight = torch.from_numpy(dice.standard_normal((5, 12)))
    kept = torch.tensor([0, 3, 4, 7, 9, 11])
    moments = x.T @ x / len(x)
    wanted = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    found = channels.absorb(weight, moments, kept)
    best, reached = (((x[:, kept] @ w.T - x @ weight.T) ** 2).mean() for w in (wanted, found))
    bare = ((x[:, kept] @ weight[:, kept].T - x @ weight.T) ** 2).mean()
    assert best <= reached < best + 0.03 * (bare - best)


def test_scores_are_the_cost_of_one_channel(correlated: Cut) -> None:
    name = "model.layers.1.mlp.down_proj"
    statistics, weight = correlated.calibration.statistics, correlated.model.get_submodule(name).weight
    sample = statistics.samples[f"{name}.weight"]
    scores = channels.fisher_scores(sample, weight) * statistics.weight
    for channel in (0, 17, 100):
        change = torch.zeros_like(weight)
        change[:, channel] = -weight[:, channel]
        assert float(scores[channel]) == pytest.approx(fisher_kl(sample, change, statistics.weight), rel=1e-4)


def test_chosen_channels_beat_others(correlated: Cut) -> None:
    judge = correlated.calibration.parts[1]
    distances = []
    for pick in (None, torch.arange(0, 128, 2)):
        model = copy.deepcopy(correlated.model)
        channels.narrow(model, [64] * 3, correlated.calibration)
        if pick is not None:
            model = copy.deepcopy(correlated.model)
            for layer in range(3):
                channels.keep_channels(model, layer, pick)
        distances.append(judge.distance(model))
    assert distances[0] < distances[1]


@pytest.mark.parametrize(
    ("whole", "target", "wanted"),
    [
        (1536, GGUF, [1280, 1152, 1024, 768]),
        (4864, GGUF, [4352, 3584, 3072, 2560]),
        (768, GGUF, [672, 576, 512, 384]),
        (1536, ONNX, [1344, 1152, 960, 768]),
        (172, ONNX, [160, 128, 96]),
        (32, ONNX, []),
    ],
)
def test_widths_fit_blocks(whole: int, target: Any, wanted: list[int]) -> None:
    found = channels.fitting_widths(whole, target, channels.SHARES)
    assert found == wanted
    assert all(number % 32 == 0 for number in found)


def test_layers_that_matter_keep_more(tmp_path: Path) -> None:
    cut = prepare(tmp_path, layers=3)
    kill(cut.model, 1, torch.arange(96))
    whole = logits(cut.model)
    proposals = layer_width.propose(cut.calibration, ONNX)
    assert proposals[0].values == {"widths": (128, 32, 128)}
    for change in proposals:
        assert sum(change.values["widths"]) <= 3 * 96
    model = changed(layer_width, proposals[0], cut)
    torch.testing.assert_close(logits(model), whole, rtol=1e-4, atol=1e-4)
    assert model.config.intermediate_size == 128
    check_sound(model, cut, tmp_path / "derived", proposals[0])


@pytest.mark.parametrize("family", [f for f in some_quick(FAMILIES) if f != "gpt2"])
def test_every_family_takes_a_width_for_each_layer(family: str, tmp_path: Path) -> None:
    cut = prepare(tmp_path, family)
    change = Change(technique="layer_width", values={"widths": (96, 64)}, words="")
    model = changed(layer_width, change, cut)
    assert channels.widths_of(model) == [96, 64]
    check_sound(model, cut, tmp_path / "derived", change)
    assert width.propose(prepare_again(model, cut), ONNX) == []


def prepare_again(model: Any, cut: Cut) -> Any:
    """Calibration of a model that was changed already."""
    made = copy.copy(cut.calibration)
    made.model = model
    return made


def test_allocation_is_exact() -> None:
    dice = np.random.default_rng(1)
    costs = [{width: float(dice.random()) / width for width in (32, 64, 96, 172)} for _ in range(4)]
    for total in (128, 300, 412, 600):
        found = layer_width.allocate(costs, total)
        combinations = (c for c in itertools.product(*costs) if sum(c) <= total)
        assert found == min(combinations, key=lambda c: sum(cost[w] for cost, w in zip(costs, c, strict=True)))
    assert layer_width.allocate(costs, 100) == ()


def test_passes_stay_within_memory(correlated: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = channels.cuts(correlated.calibration, [64])
    monkeypatch.setattr(channels, "_MOMENT_BYTES", 200_000)
    correlated.calibration.remembered.clear()
    for one, other in zip(whole, channels.cuts(correlated.calibration, [64]), strict=True):
        assert torch.equal(one[64].kept, other[64].kept)
    assert channels._groups(correlated.model, [0, 1, 2]) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("technique", "family", "target", "words"),
    [
        (width, "gpt2", GGUF, ""),
        (layer_width, "llama", GGUF, ""),
        (layer_width, "gemma2", GGUF, "one feed-forward width"),
        (layer_width, "gemma2", ONNX, ""),
        (layer_width, "gpt2", ONNX, "one feed-forward width"),
        (width, "bert", ONNX, "how a bert arranges"),
    ],
)
def test_obstacles(technique: Any, family: str, target: Any, words: str) -> None:
    found = technique.obstacle(config_object({"model_type": family}), target)
    assert words in found
    assert bool(words) == bool(found)
