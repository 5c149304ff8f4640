"""Zeros: as many as asked for, the right ones, kept by grids and training; and what they do not bring."""

import types
from pathlib import Path

import numpy as np
import pytest
import torch

from edgegen import grids
from edgegen.catalog import load_target
from edgegen.errors import ConfigError
from edgegen.grids import floats, ggml, uniform
from edgegen.records.structure import Change
from edgegen.techniques import sparsity
from edgegen.techniques.linear import linear_layers, weight_of
from tests.export.packed_models import check_strict
from tests.modeling.opened import open_all
from tests.techniques.derived import calibrated, changed, logits, pack_derived, reopened
from tests.tiny_models import make_tiny

OFFSETS = {"q4_1", "q5_1", "q2_k", "q4_k", "q5_k"}
CODEBOOKS = {"iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs"}
GRIDS = [*floats.NAMES, *uniform.NAMES, *(name for name in ggml.NAMES if name not in floats.NAMES)]
SLOW = ("iq2",)
"""ggml fills tables of these for seconds."""


def zeros_of(percent: int, method: str = "sparsegpt", **more: tuple[int, ...]) -> Change:
    return Change(technique="sparsity", values={method: (percent,)} | more, words="zeros")


def problem(rows: int = 24, columns: int = 160) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, correlated inputs of very different sizes and their moments."""
    torch.manual_seed(0)
    mix = torch.randn(columns, columns) / columns**0.5 + torch.diag(torch.logspace(1, -1, columns))
    x = torch.randn(2000, columns) @ mix
    return torch.randn(rows, columns), x, (x.T @ x / len(x)).double()


@pytest.mark.parametrize("method", sparsity.METHODS)
def test_the_share_is_kept_and_none_changes_nothing(method: str) -> None:
    weight, _, moment = problem()
    assert torch.equal(sparsity.pruned(weight, moment, 0.0, method), weight)
    half = sparsity.pruned(weight, moment, 0.5, method)
    assert int((half == 0).sum()) == weight.numel() // 2
    if method != "sparsegpt":
        assert torch.equal(half[half != 0], weight[half != 0])
    if method == "wanda":
        assert (half == 0).sum(1).tolist() == [80] * 24


def test_the_ways_to_choose_are_as_good_as_they_say() -> None:
    weight, x, moment = problem()

    def error(method: str) -> float:
        return float((x @ (sparsity.pruned(weight, moment, 0.5, method) - weight).T).square().mean())

    assert error("sparsegpt") < 0.95 * error("wanda") < 0.4 * error("magnitude")


def test_what_is_handed_on_is_the_least_squares_answer() -> None:
    """One zero: the other weights are where a regression puts them."""
    torch.manual_seed(0)
    weight, x = torch.randn(1, 6), torch.randn(2000, 6) @ (torch.eye(6) + torch.randn(6, 6) / 4)
    moment = (x.T @ x / len(x)).double()
    found = sparsity.pruned(weight, moment, 1 / 6, "sparsegpt")[0].double()
    zero = int((found == 0).nonzero())
    others = list(range(zero + 1, 6))  # columns before it are done
    y = x.double() @ weight[0].double() - x[:, :zero].double() @ weight[0, :zero].double()
    wanted = torch.linalg.lstsq(x[:, others].double(), y[:, None]).solution[:, 0]
    torch.testing.assert_close(found[others], wanted, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2", "phi"])
def test_families(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "hf"))
    calibration = calibrated(opened)
    assert torch.equal(logits(changed(sparsity, zeros_of(0), calibration)), logits(opened.model))
    model = changed(sparsity, zeros_of(50), calibration)
    again = reopened(model, zeros_of(50), tmp_path / "hf", tmp_path / "derived")
    for tensor in linear_layers(again.model, again.summary):
        assert float((weight_of(again.model, tensor) == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "grid", [pytest.param(grid, marks=pytest.mark.slow) if grid.startswith(SLOW) else grid for grid in GRIDS]
)
def test_which_grids_keep_zeros(grid: str) -> None:
    assert sparsity.keeps_zeros(grid) == (grid not in OFFSETS | CODEBOOKS)


def test_zeros_pack_for_sending_only() -> None:
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    sparse = values * (np.abs(values) > 0.67)
    whole, half = (sparsity.wire_bytes(x, "s4_32") for x in (values, sparse))
    assert whole[0] == half[0] == 64 * grids.row_bytes("s4_32", 512)
    assert half[1] < 0.85 * whole[1] < whole[0]


def test_who_cannot_have_it() -> None:
    llama, bert = (types.SimpleNamespace(model_type=kind) for kind in ("llama", "bert"))
    for name in ("gguf", "onnx", "litert"):
        assert "no runtime here skips zeros" in sparsity.obstacle(llama, load_target(name))
        assert sparsity.obstacle(llama, load_target(name), wire=True) == ""
    assert "encoders" in sparsity.obstacle(bert, load_target("onnx"), wire=True)


def test_what_survives_goes_back_to_its_early_value(tmp_path: Path) -> None:
    early = open_all(make_tiny("llama", tmp_path / "early", seed=1))
    opened = open_all(make_tiny("llama", tmp_path / "hf"))
    calibration = calibrated(opened, early=tmp_path / "early")
    proposals = sparsity.propose(calibration, load_target("onnx"))
    assert ["rewind" in change.values for change in proposals] == [False, True] * 3
    plain, back = (changed(sparsity, change, calibration) for change in proposals[2:4])
    for tensor in linear_layers(opened.model, opened.summary):
        zero = weight_of(plain, tensor) == 0
        assert torch.equal(weight_of(back, tensor), weight_of(early.model, tensor).masked_fill(zero, 0))
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(back.get_parameter(name), early.model.get_parameter(name))
    other = make_tiny("llama", tmp_path / "other", ffn=96)
    with pytest.raises(ConfigError, match="mlp"):
        changed(sparsity, proposals[1], calibrated(opened, early=other))
    with pytest.raises(ConfigError, match="early checkpoint"):
        changed(sparsity, proposals[1], calibrated(opened))
    assert len(sparsity.propose(calibrated(opened), load_target("onnx"))) == 3


def test_an_unknown_way_is_named(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="'luck'"):
        changed(sparsity, zeros_of(50, "luck"), calibrated(open_all(tiny_llama)))


def test_training_leaves_zeros_alone(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf"))
    model = changed(sparsity, zeros_of(50), calibrated(opened)).requires_grad_(True)
    names = [tensor.name for tensor in linear_layers(opened.model, opened.summary)]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    hooks = sparsity.hold_zeros(model, names)
    steps = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        steps.zero_grad()
        model(torch.tensor([[1, 5, 9, 2]])).logits.square().mean().backward()
        steps.step()
    for name in names:
        after = model.get_parameter(name)
        assert not after[before[name] == 0].any()
        assert float((after - before[name]).detach().abs().sum()) > 0
    for hook in hooks:
        hook.remove()


@pytest.mark.slow
def test_a_runtime_says_what_torch_says(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf")
    opened = open_all(hf)
    model = changed(sparsity, zeros_of(50), calibrated(opened))
    again = reopened(model, zeros_of(50), hf, tmp_path / "derived")
    dense, sparse = (
        check_strict(pack_derived(one, tmp_path / name, lambda _: "s4_32"), tmp_path / f"{name}-out")
        for one, name in ((opened, "dense"), (again, "sparse"))
    )
    assert dense.model_bytes == sparse.model_bytes
