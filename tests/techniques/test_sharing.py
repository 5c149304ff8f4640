"""Blocks with one copy of their weights: exact where they were alike, close with residuals, once in the file."""

import types
from pathlib import Path

import pytest
import torch

from edgegen.catalog import load_target
from edgegen.common.codec import load_json
from edgegen.export.folder import read_config
from edgegen.export.onnx.export import OnnxExporter
from edgegen.modeling.statistics import collect_statistics
from edgegen.modeling.structure import Relaxed, is_factorised
from edgegen.records.compressed import Compressed
from edgegen.records.structure import Change
from edgegen.techniques import low_rank, sharing
from edgegen.techniques.linear import linear_layers
from tests.export.packed_models import SETTINGS, check_strict
from tests.modeling.opened import Opened, open_all, windows
from tests.techniques.derived import calibrated, changed, logits, pack_derived, reopened
from tests.tiny_models import make_tiny

FIRST_TWO = {"run.0": (0, 1)}


def sharing_of(rank: int, runs: dict[str, tuple[int, ...]] = FIRST_TWO) -> Change:
    return Change(technique="sharing", values=runs | {"rank": (rank,)}, words="shared")


def make_alike(opened: Opened, *, shuffled: bool) -> None:
    """Give block 1 the linear weights of block 0, its feed-forward channels in another order if asked."""
    one, two = opened.model.model.layers[0], opened.model.model.layers[1]
    for name, parameter in two.named_parameters():
        if parameter.ndim == 2:
            parameter.copy_(one.get_parameter(name))
    if shuffled:
        order = torch.randperm(two.mlp.up_proj.out_features, generator=torch.Generator().manual_seed(0))
        for layer in (two.mlp.up_proj, two.mlp.gate_proj):
            layer.weight.copy_(layer.weight[order].clone())
        two.mlp.down_proj.weight.copy_(two.mlp.down_proj.weight[:, order].clone())


@pytest.mark.parametrize("shuffled", [False, True])
def test_blocks_that_are_alike_share_exactly(shuffled: bool, tmp_path: Path) -> None:
    """Even with channels in another order."""
    opened = open_all(make_tiny("llama", tmp_path / "hf"))
    make_alike(opened, shuffled=shuffled)
    calibration = calibrated(opened)
    before = logits(opened.model)
    model = changed(sharing, sharing_of(0), calibration)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-4)
    blocks = model.model.layers
    assert blocks[0].mlp.up_proj.weight is blocks[1].mlp.up_proj.weight
    assert blocks[0].input_layernorm.weight is not blocks[1].input_layernorm.weight
    saved = sum(t.weights for t in opened.summary.tensors if t.layer == 1 and t.role != "vector")
    assert sum(p.numel() for p in opened.model.parameters()) - sum(p.numel() for p in model.parameters()) == saved
    assert torch.equal(logits(opened.model), before)


def test_the_shared_weights_have_the_least_error() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(6, 5).double() for _ in range(3)]
    inputs = [torch.randn(40, 5).double() * scale for scale in (0.1, 1.0, 3.0)]
    moments = [x.T @ x / 40 for x in inputs]

    def error(shared: torch.Tensor) -> float:
        return sum(float(((shared - w) @ m * (shared - w)).sum()) for w, m in zip(weights, moments, strict=True))

    best = sharing.mean_weights(weights, moments)
    assert error(best) < error(sum(weights) / 3)
    for _ in range(5):
        assert error(best) < error(best + torch.randn(6, 5).double() * 0.1)


def test_residuals_bring_back_what_they_can(tmp_path: Path) -> None:
    """More rank, less distance; layers in which residuals would not pay stay two."""
    opened = open_all(make_tiny("llama", tmp_path / "hf", hidden=128, ffn=256, kv_heads=4))
    calibration = calibrated(opened)
    models = [changed(sharing, sharing_of(rank), calibration) for rank in (0, 8, 24)]
    distances = [calibration.distance(model) for model in models]
    assert distances[0] > distances[1] > distances[2]
    assert isinstance(models[2].model.layers[1].mlp.up_proj, Relaxed)
    tight = changed(sharing, sharing_of(32), calibration).model.layers
    assert tight[0].self_attn.q_proj.weight is not tight[1].self_attn.q_proj.weight
    assert not isinstance(tight[0].self_attn.q_proj, Relaxed)
    assert tight[0].mlp.up_proj.weight is tight[1].mlp.up_proj.weight


def test_proposals_go_from_little_to_much(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf", layers=4, hidden=128, ffn=256))
    calibration = calibrated(opened)
    proposals = sharing.propose(calibration, load_target("onnx"))
    counts = [sum(p.numel() for p in changed(sharing, change, calibration).parameters()) for change in proposals]
    assert 3 <= len(counts) <= 6
    assert counts == sorted(counts, reverse=True)
    assert counts[0] < sum(p.numel() for p in opened.model.parameters())
    used = [layer for name, run in proposals[-1].values.items() if name != "rank" for layer in run]
    assert sorted(used) == [0, 1, 2, 3]


def test_the_pairs_that_are_most_alike_are_taken(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "hf", layers=4))
    for name, parameter in opened.model.model.layers[2].named_parameters():
        if parameter.ndim == 2:
            parameter.copy_(opened.model.model.layers[1].get_parameter(name))
    costs = sharing.pair_costs(calibrated(opened))
    assert set(costs) == {(0, 1), (1, 2), (2, 3)}
    assert costs[1, 2] < 1e-6 < min(costs[0, 1], costs[2, 3])
    first = sharing.propose(calibrated(opened), load_target("onnx"))[0]
    assert first.values["run.0"] == (1, 2)


def test_who_cannot_have_it() -> None:
    llama, bert = (types.SimpleNamespace(model_type=kind) for kind in ("llama", "bert"))
    assert "nothing is saved" in sharing.obstacle(llama, load_target("gguf"))
    assert sharing.obstacle(llama, load_target("onnx")) == sharing.obstacle(llama, load_target("litert")) == ""
    assert "encoders" in sharing.obstacle(bert, load_target("onnx"))


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gpt2", "phi", "phi3"])
def test_families(family: str, rank: int, tmp_path: Path) -> None:
    """The derived checkpoint opens again with one copy, and its statistics see both uses."""
    opened = open_all(make_tiny(family, tmp_path / "hf"))
    change = sharing_of(rank)
    model = changed(sharing, change, calibrated(opened))
    again = reopened(model, change, tmp_path / "hf", tmp_path / "derived")
    roles = {t.name: t.role for t in opened.summary.tensors}
    shared = [t for t in again.summary.tensors if t.layer == 0 and t.name.count(".residual.") == 0 and t.quantizable]
    assert {t.role for t in shared} == {"attention_in", "attention_out", "ffn_in", "ffn_out"}
    for tensor in again.summary.tensors:
        assert tensor.role == roles[tensor.name.replace(".residual.0", "").replace(".residual.1", "")]
    assert linear_layers(again.model, again.summary) == []


def test_statistics_of_shared_weights_add_up_their_uses(tmp_path: Path) -> None:
    """Two blocks of one weight: a change to it costs what it costs in both at once."""
    opened = open_all(make_tiny("llama", tmp_path / "hf"))
    name = "model.layers.0.mlp.up_proj.weight"
    some = windows(opened.tokenizer)
    apart = collect_statistics(opened.model, opened.summary, some).samples
    make_alike(opened, shuffled=False)
    model = changed(sharing, sharing_of(0), calibrated(opened))
    again = reopened(model, sharing_of(0), tmp_path / "hf", tmp_path / "derived")
    found = collect_statistics(again.model, again.summary, some)
    sample = found.samples[name]
    tokens = len(apart[name].inputs)
    assert sample.inputs.shape == (2 * tokens, 64)
    assert sample.groups is not None
    assert torch.equal(sample.groups, torch.arange(tokens).repeat(2))
    uses = [again.model.model.layers[i].mlp.up_proj for i in (0, 1)]
    squares: list[torch.Tensor] = []
    hooks = [u.register_forward_pre_hook(lambda m, x: squares.append(x[0].square().flatten(0, -2))) for u in uses]
    with torch.no_grad():
        for window in some:
            again.model(torch.from_numpy(window.ids)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    wanted = 2 * torch.cat(squares).mean(0)
    torch.testing.assert_close(torch.from_numpy(found.importance[name]), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), [("onnx", "gpt2"), ("onnx", "phi3"), ("litert", "llama")])
def test_runtimes_say_what_torch_says(name: str, family: str, tmp_path: Path) -> None:
    """Shared weights with residuals in two blocks and two factors in a third."""
    grid = "s4_32" if name == "onnx" else "i8_row"
    check_strict(shared_and_cut(family, tmp_path, grid), tmp_path, target=name)


def test_an_onnx_file_has_one_copy_and_the_size_that_was_expected(tmp_path: Path) -> None:
    packed = shared_and_cut("llama", tmp_path, "s4_32")
    artifact = check_strict(packed, tmp_path)
    exporter, record = OnnxExporter(), load_json(packed / "compressed.json", Compressed)
    assert len(record.shared) == 7
    weights = sum(exporter.tensor_bytes(t.grid, t.rows, t.columns) for t in record.tensors)
    expected = weights + exporter.overhead_bytes(read_config(packed), packed, record.tensors, SETTINGS)
    assert 0 <= expected - artifact.model_bytes < 5_000


def shared_and_cut(family: str, tmp_path: Path, grid: str) -> Path:
    """A compressed folder of three blocks, two of which share, while one layer of the third has two factors."""
    hf = make_tiny(family, tmp_path / "hf", layers=3)
    opened = open_all(hf)
    model = changed(sharing, sharing_of(8), calibrated(opened))
    shared = reopened(model, sharing_of(8), hf, tmp_path / "shared")
    layer = next(t for t in linear_layers(shared.model, shared.summary) if low_rank.paying_ranks(t))
    cut = Change(technique="low_rank", values={layer.name.removesuffix(".weight"): (32,)}, words="cut")
    model = changed(low_rank, cut, calibrated(shared))
    again = reopened(model, cut, tmp_path / "shared", tmp_path / "derived")
    assert any(isinstance(module, Relaxed) for module in again.model.modules())
    assert is_factorised(again.model.get_submodule(layer.name.removesuffix(".weight")))
    return pack_derived(again, tmp_path / "c", lambda _: grid)
