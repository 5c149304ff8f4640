"""Layers in two factors: exact where they have that rank, priced as the Fisher quadratic, within their share."""

import types
from pathlib import Path

import pytest
import torch

from edgegen.catalog import load_target as target
from edgegen.modeling.statistics import fisher_kl
from edgegen.modeling.structure import is_factorised
from edgegen.records.structure import Change
from edgegen.techniques import low_rank
from edgegen.techniques.factors import Whitened, residual_factors, whiten
from edgegen.techniques.linear import linear_layers, moments_of, set_weight, weight_of
from edgegen.techniques.shares import cheapest
from tests.export.packed_models import check_strict
from tests.modeling.opened import open_all
from tests.techniques.derived import calibrated, changed, logits, pack_derived, reopened
from tests.tiny_models import make_tiny

UP = "model.layers.0.mlp.up_proj"


def test_a_matrix_of_that_rank_is_reproduced(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf"))
    torch.manual_seed(0)
    up = opened.model.get_submodule(UP)
    up.weight.copy_(torch.randn(128, 32) @ torch.randn(32, 64) / 32)
    calibration = calibrated(opened)
    change = Change(technique="low_rank", values={UP: (32,)}, words="")
    model = changed(low_rank, change, calibration)
    pair = model.get_submodule(UP)
    assert is_factorised(pair)
    assert [tuple(part.weight.shape) for part in pair] == [(32, 64), (128, 32)]
    torch.testing.assert_close(pair[1].weight @ pair[0].weight, up.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(model), logits(opened.model), rtol=0, atol=1e-3)
    assert not is_factorised(opened.model.get_submodule(UP))


def test_the_error_is_least_where_the_inputs_are() -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(48, 40), torch.randn(500, 40) @ torch.diag(torch.logspace(1, -2, 40))
    first, second = whiten(weight, x.T @ x / 500).factors(8)
    plain = torch.linalg.svd(weight, full_matrices=False)
    truncated = plain.U[:, :8] @ torch.diag(plain.S[:8]) @ plain.Vh[:8]
    with_text, without = ((x @ (weight - w).T).square().sum() for w in (second @ first, truncated))
    best = torch.linalg.svdvals(x @ weight.T)[8:].square().sum()
    assert best <= with_text < 1.01 * best
    assert with_text < 0.2 * without


def test_outputs_count_by_their_gradients() -> None:
    """What is left out is less where it matters more, and full rank is exact."""
    torch.manual_seed(2)
    weight, x = torch.randn(48, 40), torch.randn(500, 40)
    gradients = torch.randn(3000, 48) @ torch.diag(torch.logspace(1, -2, 48))

    def error(parts: Whitened) -> float:
        first, second = parts.factors(8)
        change = second @ first - weight
        return float((gradients @ change @ x.T).square().mean())

    moment = x.T @ x / 500
    by_gradients = whiten(weight, moment, gradients)
    assert error(by_gradients) < 0.8 * error(whiten(weight, moment))
    first, second = by_gradients.factors(40)
    torch.testing.assert_close(second @ first, weight, rtol=0, atol=1e-4)


def test_ranks_are_priced_as_the_quadratic(tiny_llama: Path) -> None:
    calibration = calibrated(open_all(tiny_llama))
    layers = linear_layers(calibration.model, calibration.summary)
    for tensor, moment in moments_of(calibration, layers[:7]):
        weight = weight_of(calibration.model, tensor)
        sample, scale = calibration.statistics.samples[tensor.name], calibration.statistics.weight
        parts = whiten(weight, moment, sample.gradients)
        prices = low_rank.rank_prices(sample, parts, scale)
        for rank in (0, 7, 32):
            first, second = parts.factors(rank)
            wanted = fisher_kl(sample, second @ first - weight, scale)
            assert float(prices[rank]) == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def test_moments_are_those_of_each_layers_inputs(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few fit into memory at once."""
    calibration = calibrated(open_all(tiny_llama))
    layers = linear_layers(calibration.model, calibration.summary)
    wanted = calibration.moments(t.name.removesuffix(".weight") for t in layers)
    monkeypatch.setattr("edgegen.techniques.linear._MOMENT_BYTES", 100_000)
    for tensor, moment in moments_of(calibration, layers):
        torch.testing.assert_close(moment, wanted[tensor.name.removesuffix(".weight")])


def test_the_cheapest_choice_is_the_best_of_all() -> None:
    options = [[(100, 0.0), (40, 1.0), (10, 9.0)], [(100, 0.0), (50, 0.5)], [(100, 0.0), (60, 8.0)]]
    assert cheapest(options, [300, 251, 250, 190, 150, 105]) == [
        [0, 0, 0],
        [0, 1, 0],
        [0, 1, 0],
        [1, 1, 0],
        [1, 1, 1],
        None,
    ]


def test_proposals_keep_their_share(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf", hidden=96, ffn=192, heads=3, kv_heads=3))
    calibration = calibrated(opened)
    proposals = low_rank.propose(calibration, target("onnx"))
    layers = linear_layers(opened.model, opened.summary)
    total = sum(t.weights for t in layers)
    assert len(proposals) >= 2
    for proposal, share in zip(proposals, (0.9, 0.8, 0.7, 0.6), strict=False):
        assert all(rank % 32 == 0 for (rank,) in proposal.values.values())
        saved = sum(
            t.weights - rank * (t.rows + t.columns)
            for t in layers
            for (rank,) in [proposal.values.get(t.name.removesuffix(".weight"), (0,))]
            if rank
        )
        assert 1 - saved / total <= share
        assert f"{share:.0%}" in proposal.words
    model = changed(low_rank, proposals[-1], calibration)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (opened.model, model))
    assert before - after >= 0.3 * total or len(proposals) < 3


def test_nothing_is_proposed_where_no_rank_pays(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf", hidden=32, heads=2, kv_heads=2, ffn=32))
    assert low_rank.propose(calibrated(opened), target("onnx")) == []


def test_who_cannot_have_it() -> None:
    llama, bert = (types.SimpleNamespace(model_type=kind) for kind in ("llama", "bert"))
    assert "adapter" in low_rank.obstacle(llama, target("gguf"))
    assert low_rank.obstacle(llama, target("onnx")) == low_rank.obstacle(llama, target("litert")) == ""
    assert "encoders" in low_rank.obstacle(bert, target("onnx"))


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt2", "phi", "phi3"]
)
def test_families(family: str, tmp_path: Path) -> None:
    """Every layer that can be cut is, biases kept, and the derived checkpoint opens again."""
    opened = open_all(make_tiny(family, tmp_path / "hf"))
    calibration = calibrated(opened)
    values = {
        t.name.removesuffix(".weight"): (ranks[0],)
        for t in linear_layers(opened.model, opened.summary)
        if (ranks := low_rank.paying_ranks(t))
    }
    assert values
    change = Change(technique="low_rank", values=values, words="cut")
    model = changed(low_rank, change, calibration)
    again = reopened(model, change, tmp_path / "hf", tmp_path / "derived")
    roles = {t.name: t.role for t in again.summary.tensors}
    originals = {t.name: t.role for t in opened.summary.tensors}
    for name in values:
        assert roles[f"{name}.0.weight"] == roles[f"{name}.1.weight"] == originals[f"{name}.weight"]


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_onnx_says_what_torch_says(family: str, tmp_path: Path) -> None:
    """LiteRT's test is that of sharing, which cuts a layer too."""
    hf = make_tiny(family, tmp_path / "hf", ffn=192)
    opened = open_all(hf)
    proposal = low_rank.propose(calibrated(opened), target("onnx"))[-1]
    model = changed(low_rank, proposal, calibrated(opened))
    again = reopened(model, proposal, hf, tmp_path / "derived")
    check_strict(pack_derived(again, tmp_path / "c", lambda _: "s4_32"), tmp_path)


def test_a_rounding_error_is_repaired(tiny_llama: Path) -> None:
    """More rank, less error at the outputs; full rank, none."""
    calibration = calibrated(open_all(tiny_llama))
    layer = linear_layers(calibration.model, calibration.summary)[-1]
    ((_, moment),) = moments_of(calibration, [layer])
    weight = weight_of(calibration.model, layer)
    error = weight - (weight * 2).round() / 2
    sizes = []
    for rank in (0, 16, 64):
        first, second = residual_factors(error, moment, rank)
        left = (error - second @ first).double()
        sizes.append(float((left @ moment * left).sum()))
    assert sizes[0] > 1.5 * sizes[1] > 1e6 * sizes[2]


def test_weights_of_either_orientation(tmp_path: Path) -> None:
    opened = open_all(make_tiny("gpt2", tmp_path / "hf"))
    layer = linear_layers(opened.model, opened.summary)[0]
    assert weight_of(opened.model, layer).shape == (layer.rows, layer.columns) == (192, 64)
    set_weight(opened.model, layer, torch.ones(192, 64).cumsum(0))
    assert float(opened.model.get_parameter(layer.name)[3, 5]) == 6
