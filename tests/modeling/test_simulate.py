"""Rounded weights and activations in a torch model, and out again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgegen.errors import ConfigError
from edgegen.modeling.simulate import round_activations, rounded_model
from tests.modeling.opened import Opened, open_all
from tests.tiny_models import make_tiny

IDS = torch.tensor([[5, 60, 17, 300]])
INT8 = {"q8_0": "int8_32", "q4_0": "int8_32"}


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Opened:
    return open_all(tiny_llama)


def grids_of(opened: Opened, grid: str) -> dict[str, str]:
    return {t.name: grid for t in opened.summary.tensors if t.quantizable}


def test_rounding_in_closed_form() -> None:
    x = torch.zeros(2, 32)
    x[0, 0], x[0, 1], x[0, 2] = 127.0, 0.4, -1.6
    found = round_activations(x, 32)
    assert found[0, :3].tolist() == [127.0, 0.0, -2.0]
    assert not found[1].any(), "an empty block stays empty, without NaN"


def test_each_block_has_its_own_scale() -> None:
    x = torch.cat([torch.full((32,), 1e-3), torch.full((32,), 100.0)])
    x[0] = 1.27e-1
    found = round_activations(x, 32)
    assert found[0] == pytest.approx(0.127) and found[1] == pytest.approx(1e-3)
    assert round_activations(x, 64)[1] == 0


@pytest.mark.parametrize("width", [1, 31, 33, 300])
def test_a_short_last_block_keeps_the_shape(width: int) -> None:
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    found = round_activations(x, 256)
    assert found.shape == x.shape
    assert (found - x).abs().max() <= x.abs().max() / 127 / 2 + 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_inside_it_computes_with_the_rounded_weights(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "model"))
    grids = grids_of(opened, "q4_0")
    with rounded_model(opened.model, opened.source, grids, {}):
        for name, parameter in opened.model.named_parameters():
            if name in grids:
                rounded = opened.source.as_parameter(name, opened.source.rounded(name, "q4_0"))
                assert torch.equal(parameter.data, rounded)
            else:
                assert torch.equal(parameter.data, opened.source.original_parameter(name))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_is_restored_bit_by_bit(family: str, fails: bool, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "model"))
    before = {name: p.clone() for name, p in opened.model.named_parameters()}
    logits = opened.model(IDS).logits
    with pytest.raises(ZeroDivisionError) if fails else torch.no_grad():  # noqa: SIM117
        with rounded_model(opened.model, opened.source, grids_of(opened, "q4_0"), INT8):
            assert not torch.equal(opened.model(IDS).logits, logits)
            if fails:
                raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in opened.model.named_parameters())
    assert torch.equal(opened.model(IDS).logits, logits), "no hook is left"


def test_a_grid_that_cannot_be_packed_leaves_the_model_whole(llama: Opened) -> None:
    before = {name: p.clone() for name, p in llama.model.named_parameters()}
    grids = grids_of(llama, "q4_0") | {"model.layers.1.mlp.up_proj.weight": "q4_k"}
    with pytest.raises(ConfigError, match="blocks of 256"), rounded_model(llama.model, llama.source, grids, {}):
        pass
    assert all(torch.equal(p, before[name]) for name, p in llama.model.named_parameters())


def test_activations_are_rounded_where_the_runtime_does(llama: Opened) -> None:
    """Only the inputs of quantized layers; a tied table's as head, never as embedding."""
    seen: dict[str, torch.Tensor] = {}
    name = "model.layers.0.mlp.down_proj.weight"
    module, head = llama.model.get_submodule(name.rpartition(".")[0]), llama.model.get_output_embeddings()
    with rounded_model(
        llama.model, llama.source, {name: "f32", "model.embed_tokens.weight": "f32"}, {"f32": "int8_32"}
    ):
        hooks = [
            m.register_forward_pre_hook(lambda m, x, key=key: seen.update({key: x[0].clone()}))
            for key, m in (("down", module), ("head", head), ("up", llama.model.model.layers[0].mlp.up_proj))
        ]
        with torch.no_grad():
            llama.model(IDS)
        for hook in hooks:
            hook.remove()
    for key, is_rounded in (("down", True), ("head", True), ("up", False)):
        blocks = seen[key].unflatten(-1, (-1, 32))
        levels = blocks / (blocks.abs().amax(-1, keepdim=True) / 127)
        off = (levels - levels.round()).abs().max()
        assert (off < 1e-3) == is_rounded, key


def test_bfloat16_models_are_restored_too(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgegen.modeling.load._FP32_PARAMETERS", 10)
    opened = open_all(tiny_llama)
    before = {name: p.clone() for name, p in opened.model.named_parameters()}
    with rounded_model(opened.model, opened.source, grids_of(opened, "q8_0"), INT8), torch.no_grad():
        assert np.isfinite(opened.model(IDS).logits.float().numpy()).all()
    assert all(torch.equal(p, before[name]) for name, p in opened.model.named_parameters())
