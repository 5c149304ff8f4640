"""Coarse weights with a repair: on the grid already, nearer than without, proposed where it may pay, alike in ONNX."""

import types
from pathlib import Path

import msgspec
import pytest
import torch

from edgegen import grids
from edgegen.catalog import load_target
from edgegen.modeling.structure import Relaxed
from edgegen.records.structure import Change, rounded_key, rounded_layers
from edgegen.techniques import residual
from edgegen.techniques.linear import linear_layers, module_name, moments_of, weight_of
from edgegen.techniques.residual import repaired
from tests.export.packed_models import check_strict
from tests.modeling.opened import Opened, open_all
from tests.techniques.derived import calibrated, changed, logits, pack_derived, reopened
from tests.tiny_models import make_tiny

UP = "model.layers.0.mlp.up_proj"
CHANGE = Change(technique="residual", values={rounded_key("u2_32", UP): (32,)}, words="repaired")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Wide enough that repairs are proposed."""
    folder = tmp_path_factory.mktemp("wide") / "hf"
    return open_all(make_tiny("llama", folder, hidden=256, ffn=1024, heads=4, kv_heads=4))


def test_weights_are_on_the_grid_and_the_repair_is_beside_them(tiny_llama: Path, tmp_path: Path) -> None:
    opened = open_all(tiny_llama)
    model = changed(residual, CHANGE, calibrated(opened))
    layer = model.get_submodule(UP)
    assert isinstance(layer, Relaxed) and layer.residual[0].weight.shape[0] == 32
    values = layer.weight.numpy()
    again = grids.unpack(grids.pack(values, "u2_32"), "u2_32", values.shape[1])
    assert float(((again - values) ** 2).mean()) < 1e-3 * float((values**2).mean())
    assert rounded_layers((CHANGE,)) == {UP: "u2_32"}
    derived = reopened(model, CHANGE, tiny_llama, tmp_path / "derived")
    roles = {t.name: t.role for t in derived.summary.tensors}
    assert UP not in {module_name(t) for t in linear_layers(derived.model, derived.summary)}, "no technique may drop it"
    assert roles[f"{UP}.weight"] == roles[f"{UP}.residual.0.weight"] == roles[f"{UP}.residual.1.weight"] == "ffn_in"


def test_a_repair_comes_nearer_the_larger_its_rank(tiny_llama: Path) -> None:
    calibration = calibrated(open_all(tiny_llama))
    (layer,) = (t for t in linear_layers(calibration.model, calibration.summary) if module_name(t) == UP)
    ((_, moment),) = moments_of(calibration, [layer])
    weight = weight_of(calibration.model, layer)
    lost = []
    for rank in (0, 8, 32, 64):
        rounded, (first, second) = repaired(weight, moment, "u2_32", rank)
        left = (weight - rounded - second @ first).double()
        lost.append(float((left @ moment * left).sum()))
    assert lost[0] > lost[1] > lost[2] > 1e6 * lost[3]


def test_proposals(wide: Opened, tiny_llama: Path) -> None:
    calibration = calibrated(wide)
    some, everything = residual.propose(calibration, load_target("onnx"))
    assert {name.rpartition(".")[2] for name in rounded_layers((everything,))} == {"gate_proj", "up_proj", "down_proj"}
    assert rounded_layers((some,)).items() < rounded_layers((everything,)).items()
    assert len(rounded_layers((some,))) == 3
    near, far = (calibration.distance(changed(residual, change, calibration)) for change in (some, everything))
    assert near < far
    assert residual.propose(calibrated(open_all(tiny_llama)), load_target("onnx")) == [], "narrow layers"


def test_who_cannot_have_it() -> None:
    llama, bert = (types.SimpleNamespace(model_type=kind) for kind in ("llama", "bert"))
    assert "adapter" in residual.obstacle(llama, load_target("gguf"))
    assert "no grid of three bits" in residual.obstacle(llama, load_target("litert"))
    assert residual.obstacle(llama, load_target("onnx")) == ""
    assert "encoders" in residual.obstacle(bert, load_target("onnx"))
    target = load_target("onnx")
    unplanned = tuple(msgspec.structs.replace(grid, planned=False) for grid in target.grids)
    assert "three bits" in residual.obstacle(llama, msgspec.structs.replace(target, grids=unplanned))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_onnx_says_what_torch_says(family: str, tmp_path: Path) -> None:
    hf = make_tiny(family, tmp_path / "hf")
    name = UP if family == "llama" else "transformer.h.0.mlp.c_fc"
    change = Change(technique="residual", values={rounded_key("u2_32", name): (32,)}, words="repaired")
    calibration = calibrated(open_all(hf))
    model = changed(residual, change, calibration)
    assert torch.isfinite(logits(model)).all()
    again = reopened(model, change, hf, tmp_path / "derived")
    coarse = pack_derived(again, tmp_path / "c", lambda name_: "u2_32" if name_ == f"{name}.weight" else "u8_32")
    check_strict(coarse, tmp_path)
