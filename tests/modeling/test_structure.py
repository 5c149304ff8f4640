"""Derived checkpoints: other widths, factorised layers and shared weights open like any other folder."""

from __future__ import annotations

from pathlib import Path

import torch

from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import check_model, empty_model, find_model, open_model, open_tokenizer
from edgegen.modeling.structure import read_structure, replace_module, save_derived
from edgegen.modeling.summary import summarize
from edgegen.records.structure import Change, Structure
from tests.tiny_models import make_tiny


def test_a_derived_checkpoint_opens_with_its_own_shapes(tmp_path: Path) -> None:
    original = make_tiny("llama", tmp_path / "original")
    ref = find_model(str(original))
    model = open_model(ref, parameters=10_000)
    layer = model.model.layers[0].mlp
    narrow = layer.down_proj.in_features - 32
    for name in ("gate_proj", "up_proj"):
        whole = getattr(layer, name).weight
        cut = torch.nn.Linear(whole.shape[1], narrow, bias=False)
        cut.weight.data.copy_(whole[:narrow])
        replace_module(model, f"model.layers.0.mlp.{name}", cut)
    down = torch.nn.Linear(narrow, layer.down_proj.out_features, bias=False)
    down.weight.data.copy_(layer.down_proj.weight[:, :narrow])
    replace_module(model, "model.layers.0.mlp.down_proj", down)
    query = model.model.layers[1].self_attn.q_proj
    pair = torch.nn.Sequential(
        torch.nn.Linear(query.in_features, 32, bias=False), torch.nn.Linear(32, query.out_features, bias=False)
    )
    replace_module(model, "model.layers.1.self_attn.q_proj", pair)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[1].mlp.gate_proj.weight
    change = Change(technique="width", values={"channels": (narrow,)}, words="narrower")
    save_derived(model, original, Structure(schema=1, base=ref.digest, changes=(change,)), tmp_path / "derived")

    derived = find_model(str(tmp_path / "derived"))
    structure = read_structure(Path(derived.path))
    assert structure is not None
    assert structure.changes == (change,)
    assert structure.shared == {"model.layers.1.mlp.up_proj.weight": "model.layers.1.mlp.gate_proj.weight"}
    empty, checkpoint = empty_model(derived), Checkpoint(Path(derived.path))
    assert check_model(derived, empty, checkpoint, open_tokenizer(Path(derived.path))) == []
    summary = summarize(empty, checkpoint)
    shapes = {tensor.name: (tensor.role, tensor.rows, tensor.columns) for tensor in summary.tensors}
    assert shapes["model.layers.0.mlp.down_proj.weight"] == ("ffn_out", down.out_features, narrow)
    assert shapes["model.layers.1.self_attn.q_proj.0.weight"] == ("attention_in", 32, query.in_features)
    assert "model.layers.1.mlp.up_proj.weight" not in shapes
    ids = torch.tensor([[1, 5, 9, 2]])
    opened = open_model(derived, parameters=summary.parameters)
    assert torch.equal(opened(ids).logits, model(ids).logits)
    assert derived.digest != ref.digest
