"""Layers' Hessians against direct computation, shared where layers share inputs, left out where they are too large."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgegen.errors import ConfigError
from edgegen.grids import pack, unpack
from edgegen.modeling import hessians
from edgegen.modeling.compensation import factored, pack_compensated
from edgegen.modeling.hessians import Hessians, save_hessians
from edgegen.modeling.text import Window
from tests.modeling.opened import Opened, open_all, windows
from tests.tiny_models import make_tiny


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Opened:
    return open_all(tiny_llama)


def directly(model: Any, name: str, some: list[Window]) -> Any:
    """(C, C) mean of x xᵀ, one window at a time."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(name.rpartition(".")[0])
    hook = module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        for window in some:
            model(torch.from_numpy(window.ids)[None], use_cache=False)
    hook.remove()
    x = torch.cat(seen).double()
    return (x.T @ x / len(x)).numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_each_layer_has_the_mean_of_its_inputs_products(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "model"))
    some = windows(opened.tokenizer, 5)
    assert save_hessians(opened.model, opened.summary, some, tmp_path / "h") == ()
    found = Hessians(tmp_path / "h")
    for tensor in opened.summary.tensors:
        inside = tensor.quantizable and tensor.layer >= 0
        assert (tensor.name in found) == (inside or tensor.role == "head")
        if tensor.name in found:
            wanted = directly(opened.model, tensor.name, some)
            read = found.read(found.file_of(tensor.name))
            np.testing.assert_allclose(read, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
            assert np.array_equal(read, read.T)


def test_layers_with_the_same_input_share_one(llama: Opened, tmp_path: Path) -> None:
    save_hessians(llama.model, llama.summary, windows(llama.tokenizer, 2), tmp_path / "h")
    found, layer = Hessians(tmp_path / "h"), "model.layers.0."
    files = {
        name: found.file_of(f"{layer}{name}_proj.weight")
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    }
    assert files["self_attn.q"] == files["self_attn.k"] == files["self_attn.v"]
    assert files["mlp.gate"] == files["mlp.up"]
    assert len(set(files.values())) == 4


def test_several_passes_find_the_same(llama: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = windows(llama.tokenizer, 3)
    steps: list[tuple[int, int]] = []
    save_hessians(llama.model, llama.summary, some, tmp_path / "one")
    monkeypatch.setattr(hessians, "PASS_BYTES", 1)
    save_hessians(llama.model, llama.summary, some, tmp_path / "many", progress=lambda *step: steps.append(step))
    one, many = sorted((tmp_path / "one").iterdir()), sorted((tmp_path / "many").iterdir())
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in many]
    assert len(steps) > 4 and steps[-1][0] == steps[-1][1]


def test_the_widest_go_without_where_it_is_too_much(
    llama: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = max(t.columns for t in llama.summary.tensors if t.quantizable and t.layer >= 0)
    monkeypatch.setattr(hessians, "STORED_BYTES", 2 * widest * (widest + 1) - 1)
    (note,) = save_hessians(llama.model, llama.summary, windows(llama.tokenizer, 2), tmp_path / "h")
    assert "without error compensation" in note
    found = Hessians(tmp_path / "h")
    assert "model.layers.0.self_attn.q_proj.weight" in found
    assert "model.layers.0.mlp.down_proj.weight" not in found


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Hessians(tmp_path / "none")


def test_a_source_rounds_with_them(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "model", ffn=100))
    source, some = opened.source, windows(opened.tokenizer, 5)
    save_hessians(opened.model, opened.summary, some, tmp_path / "h")
    name, table = "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"
    plain, looked_up = source.packed(name, "q4_0"), source.packed(table, "q4_0")
    source.use_hessians(Hessians(tmp_path / "h"))
    assert source.compensates(name, "q4_0") and not source.compensates(name, "f16")
    assert not source.compensates(table, "q4_0")
    h = np.pad(directly(opened.model, name, some).astype(np.float32), (0, 28))
    ours = source.packed(name, "q4_0")
    assert not np.array_equal(ours, plain)
    assert np.array_equal(source.packed(name, "q4_0", plain=True), plain)
    assert np.array_equal(source.packed(table, "q4_0"), looked_up)
    assert not source.rounded(name, "q4_0")[:, 100:].any(), "padding stays zero"
    assert 0 < source.compensation_gain(name) < 1 and source.compensation_gain(table) == 1
    change = {
        which: unpack(rows, "q4_0", 128).astype(np.float64) - source.matrix(name)
        for which, rows in (
            ("ours", ours),
            ("alone", pack_compensated(source.matrix(name), "q4_0", factored(h))),
            ("plain", pack(source.matrix(name), "q4_0", np.ascontiguousarray(h.diagonal()))),
        )
    }
    errors = {which: float(((d @ h) * d).sum()) for which, d in change.items()}
    assert errors["ours"] == pytest.approx(errors["alone"], rel=0.05)
    assert errors["ours"] < errors["plain"]
    source.use_hessians(None)
    assert np.array_equal(source.packed(name, "q4_0"), plain)
