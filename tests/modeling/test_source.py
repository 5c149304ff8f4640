"""Tensors as they are exported: padding and packing change nothing that they should not."""

import concurrent.futures
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgegen.grids import ggml
from edgegen.modeling.load import find_model, open_model
from edgegen.modeling.source import TensorSource, ffn_widths, padded_summary
from edgegen.modeling.structure import save_derived
from edgegen.modeling.summary import resized_config
from edgegen.records.structure import Structure
from tests.modeling.opened import Opened, open_all
from tests.tiny_models import make_tiny, reference_logits

IDS = [5, 60, 17, 300, 4, 4, 99]


def padded_model(opened: Opened) -> torch.nn.Module:
    """The original's architecture with the padded width and the exported matrices in it."""
    config = AutoConfig.from_pretrained(opened.ref.path)
    resized = resized_config(config.to_dict(), opened.source.summary)
    kind = resized.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **resized), attn_implementation="eager")
    parameters = dict(model.named_parameters())
    for tensor in opened.source.summary.tensors:
        values = torch.from_numpy(opened.source.matrix(tensor.name))
        target = parameters[tensor.name]
        stored = values.T if tensor.name in opened.source._transposed else values
        with torch.no_grad():
            target.copy_(stored.reshape(target.shape))
    return model.eval()


@pytest.mark.parametrize(("family", "ffn"), [("llama", 100), ("gpt2", 90), ("phi", 33), ("gemma", 127)])
def test_padding_changes_no_logit(family: str, ffn: int, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "model", ffn=ffn))
    assert opened.source.summary.ffn_size % 32 == 0
    with torch.no_grad():
        found = padded_model(opened)(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(found - reference_logits(tmp_path / "model", IDS)).max() < 1e-5


def test_gpt2_pads_the_inner_bias_only(tmp_path: Path) -> None:
    opened = open_all(make_tiny("gpt2", tmp_path / "model", hidden=60, ffn=60))
    shapes = {t.name.rpartition("h.0.")[2]: t.columns for t in opened.source.summary.tensors}
    assert shapes["mlp.c_fc.bias"] == shapes["mlp.c_proj.weight"] == 64
    assert shapes["mlp.c_proj.bias"] == shapes["ln_1.weight"] == shapes["attn.c_proj.bias"] == 60


def test_fitting_and_fused_widths_are_left_alone(tmp_path: Path) -> None:
    fitting = open_all(make_tiny("llama", tmp_path / "a", ffn=96)).summary
    assert padded_summary(fitting) is fitting
    fused = open_all(make_tiny("phi3", tmp_path / "b", ffn=100)).summary
    assert padded_summary(fused) is fused


def opened_with_widths(folder: Path, widths: tuple[int, ...], **overrides: object) -> Opened:
    """A Llama whose layers have these feed-forward widths, as a derived checkpoint."""
    hf = make_tiny("llama", folder / "original", layers=len(widths), ffn=max(widths), **overrides)  # type: ignore[arg-type]
    ref = find_model(str(hf))
    model = open_model(ref, parameters=10_000)
    for layer, width in zip(model.model.layers, widths, strict=True):
        for linear, axis in ((layer.mlp.gate_proj, 0), (layer.mlp.up_proj, 0), (layer.mlp.down_proj, 1)):
            linear.weight.data = linear.weight.data.narrow(axis, 0, width).contiguous()
            if linear.bias is not None and axis == 0:
                linear.bias.data = linear.bias.data[:width].clone()
            linear.out_features, linear.in_features = linear.weight.shape
    save_derived(model, hf, Structure(schema=1, base=ref.digest, changes=()), folder / "derived")
    return open_all(folder / "derived")


def test_fitting_widths_of_each_layer_are_left_alone(tmp_path: Path) -> None:
    opened = opened_with_widths(tmp_path, (128, 96, 64))
    assert ffn_widths(opened.summary) == {0: 128, 1: 96, 2: 64}
    assert opened.source.summary is opened.summary
    assert opened.summary.ffn_size == 128


def test_each_layer_is_padded_to_its_own_width(tmp_path: Path) -> None:
    opened = opened_with_widths(tmp_path, (100, 96, 50), mlp_bias=True)
    padded = opened.source.summary
    assert ffn_widths(padded) == {0: 128, 1: 96, 2: 64}
    assert padded.ffn_size == 128
    for tensor in padded.tensors:
        values = opened.source.matrix(tensor.name)
        assert values.shape == (tensor.rows, tensor.columns)
        original = opened.source.original_parameter(tensor.name)
        assert torch.equal(opened.source.as_parameter(tensor.name, values), original)
        assert np.count_nonzero(values) == np.count_nonzero(original.numpy())
    grids_of = {t.name: "q4_0" for t in padded.tensors if t.quantizable}
    assert all(opened.source.packed(name, grid).size for name, grid in grids_of.items())


def test_only_the_channels_of_factorised_matrices_are_padded(tmp_path: Path) -> None:
    summary = open_all(make_tiny("llama", tmp_path / "m", ffn=100)).summary
    parts = {"up_proj": ((48, 64), (100, 48)), "down_proj": ((48, 100), (64, 48))}
    tensors = []
    for tensor in summary.tensors:
        found = next((pair for name, pair in parts.items() if name in tensor.name), None)
        if found is None:
            tensors.append(tensor)
            continue
        for number, (rows, columns) in enumerate(found):
            name = tensor.name.replace(".weight", f".{number}.weight")
            tensors.append(msgspec.structs.replace(tensor, name=name, rows=rows, columns=columns))
    padded = padded_summary(msgspec.structs.replace(summary, tensors=tuple(tensors)))
    shapes = {t.name.rpartition("0.mlp.")[2]: (t.rows, t.columns) for t in padded.tensors if ".0.mlp." in t.name}
    assert shapes == {
        "gate_proj.weight": (128, 64),
        **{"up_proj.0.weight": (48, 64), "up_proj.1.weight": (128, 48)},
        **{"down_proj.0.weight": (48, 128), "down_proj.1.weight": (64, 48)},
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_as_parameter_inverts_matrix(family: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny(family, tmp_path / "model", ffn=100))
    parameters = dict(opened.model.named_parameters())
    for tensor in opened.source.summary.tensors:
        values = opened.source.matrix(tensor.name)
        assert values.shape == (tensor.rows, tensor.columns)
        assert torch.equal(opened.source.as_parameter(tensor.name, values), parameters[tensor.name])
        assert torch.equal(opened.source.original_parameter(tensor.name), parameters[tensor.name])


@pytest.mark.parametrize("grid", ["q8_0", "q4_0", "q4_k", "q6_k", "iq4_nl"])
def test_packed_rows_of_a_subset_are_the_subsets_packed_rows(grid: str, tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "model", hidden=256))
    name = "model.embed_tokens.weight"
    importance = np.random.default_rng(0).random(256).astype(np.float32)
    opened.source.use_importance({name: importance})
    kept = np.array([0, 3, 50, 51, 399])
    wanted = ggml.pack(opened.source.matrix(name)[kept], grid, importance)
    assert np.array_equal(opened.source.packed(name, grid)[kept], wanted)


def test_new_importance_takes_effect(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "model"))
    name = "model.layers.0.mlp.up_proj.weight"
    plain = opened.source.packed(name, "q4_0")
    opened.source.use_importance({name: np.geomspace(1, 1e6, 64).astype(np.float32)})
    assert not np.array_equal(plain, opened.source.packed(name, "q4_0"))


def test_importance_is_padded_with_the_width(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "model", ffn=100))
    name = "model.layers.0.mlp.down_proj.weight"
    importance = np.linspace(1, 2, 100, dtype=np.float32)
    opened.source.use_importance({name: importance})
    wanted = ggml.pack(opened.source.matrix(name), "q4_0", np.pad(importance, (0, 28)))
    assert np.array_equal(opened.source.packed(name, "q4_0"), wanted)
    assert not opened.source.rounded(name, "q4_0")[:, 100:].any(), "padding stays zero"


def test_many_threads_get_the_same_rows(tmp_path: Path) -> None:
    source = open_all(make_tiny("llama", tmp_path / "model")).source
    name = "model.layers.0.mlp.up_proj.weight"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: source.packed(name, "q5_0"), range(32)))
    assert all(np.array_equal(rows, found[0]) for rows in found)
    assert source._cached_bytes == found[0].nbytes


def test_the_cache_forgets_beyond_its_limit(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "model"))
    source = TensorSource(opened.empty, opened.checkpoint, opened.summary, cache_bytes=20_000)
    matrices = [t.name for t in source.summary.tensors if t.quantizable]
    before = {name: source.packed(name, "q8_0").copy() for name in matrices}
    assert source._cached_bytes <= 28_000 and len(source._cache) < len(matrices)
    assert all(np.array_equal(source.packed(name, "q8_0"), before[name]) for name in matrices)


def test_one_rounding_for_several_runtimes(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "model", ffn=100))
    source = TensorSource(opened.empty, opened.checkpoint, opened.summary, is_agreed=True)
    name = "model.layers.0.mlp.down_proj.weight"
    for equal in (("q4_0", "s4_32", "i4_32"), ("q8_0", "s8_32", "i8_row")):
        first, *others = [source.rounded(name, grid) for grid in equal]
        assert first.shape == (64, 128) and not first[:, 100:].any()
        for values in others:
            np.testing.assert_array_equal(values, first)
    rows = source.matrix("model.embed_tokens.weight")[:5]
    np.testing.assert_array_equal(
        source.round_rows("model.embed_tokens.weight", "q8_0", rows),
        source.rounded("model.embed_tokens.weight", "i8_row")[:5],
    )
