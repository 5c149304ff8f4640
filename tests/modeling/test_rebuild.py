"""A compressed folder becomes the torch model of its rounded weights, whatever compression did to the structure."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError
from edgegen.export.folder import map_weights
from edgegen.modeling.rebuild import Rebuilt, rebuild_model
from edgegen.modeling.structure import is_factorised
from edgegen.records.compressed import Compressed, PackedTensor
from tests.tiny_models import make_tiny, pack_uniform, reference_logits

IDS = [5, 9, 77, 3, 200, 41]


def rebuilt(folder: Path) -> Rebuilt:
    compressed = load_json(folder / "compressed.json", Compressed)
    return rebuild_model(folder, compressed, map_weights(folder, compressed))


def logits(found: Rebuilt) -> np.ndarray:
    with torch.no_grad():
        return found.model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_the_same_logits_as_the_checkpoint(family: str, tmp_path: Path) -> None:
    hf = make_tiny(family, tmp_path / "hf")
    found = rebuilt(pack_uniform(hf, tmp_path / "c", "f32"))
    np.testing.assert_allclose(logits(found), reference_logits(hf, IDS), atol=1e-5)


def test_a_tied_table_may_be_stored_as_head(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf", tied=True)
    found = rebuilt(pack_uniform(hf, tmp_path / "c", "f32", only_head=True))
    np.testing.assert_allclose(logits(found), reference_logits(hf, IDS), atol=1e-5)


def rewritten(folder: Path, matrices: dict[str, np.ndarray], shared: dict[str, str] | None = None) -> None:
    """Give a folder other tensors, in f32."""
    record = load_json(folder / "compressed.json", Compressed)
    tensors, offset = [], 0
    with (folder / "weights.bin").open("wb") as stream:
        for name, values in matrices.items():
            rows, columns = np.atleast_2d(values).shape
            stream.write(np.ascontiguousarray(values, dtype=np.float32).tobytes())
            tensors.append(PackedTensor(name, "f32", rows, columns, offset, 4 * values.size))
            offset += 4 * values.size
    from edgegen.common.files import digest_file

    save_json(
        folder / "compressed.json",
        msgspec.structs.replace(
            record, tensors=tuple(tensors), digest=digest_file(folder / "weights.bin"), shared=shared or {}
        ),
    )


def matrices_of(folder: Path) -> dict[str, np.ndarray]:
    record = load_json(folder / "compressed.json", Compressed)
    weights = map_weights(folder, record)
    return {
        t.name: np.array(weights[t.offset : t.offset + t.bytes]).view(np.float32).reshape(t.rows, t.columns)
        for t in record.tensors
    }


def test_factors_widths_and_shared_weights(tmp_path: Path) -> None:
    hf = make_tiny("llama", tmp_path / "hf", tied=True)
    folder = pack_uniform(hf, tmp_path / "c", "f32")
    before = matrices_of(folder)
    parts = dict(before)
    # A layer of rank 8, cut in two: the product is the layer.
    dice = np.random.default_rng(0)
    left, right = dice.standard_normal((64, 8)).astype(np.float32), dice.standard_normal((8, 64)).astype(np.float32)
    name = "model.layers.0.self_attn.o_proj"
    del parts[f"{name}.weight"]
    parts |= {f"{name}.0.weight": right, f"{name}.1.weight": left}
    # Half of the second block's feed-forward channels are gone.
    for part in ("gate_proj", "up_proj"):
        parts[f"model.layers.1.mlp.{part}.weight"] = parts[f"model.layers.1.mlp.{part}.weight"][:64]
    parts["model.layers.1.mlp.down_proj.weight"] = parts["model.layers.1.mlp.down_proj.weight"][:, :64]
    # The second block's queries are the first's.
    twin, own = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    del parts[twin]
    rewritten(folder, parts, {twin: own})
    found = rebuilt(folder)
    assert is_factorised(found.model.get_submodule(name))
    assert found.model.get_parameter(twin) is found.model.get_parameter(own)
    assert found.packed(own).shape == (64, 256)
    same = dict(before)
    same[f"{name}.weight"] = left @ right
    same[twin] = before[own]
    for part in ("gate_proj", "up_proj"):
        same[f"model.layers.1.mlp.{part}.weight"] = before[f"model.layers.1.mlp.{part}.weight"].copy()
        same[f"model.layers.1.mlp.{part}.weight"][64:] = 0
    rewritten(folder, same)
    np.testing.assert_allclose(logits(found), logits(rebuilt(folder)), rtol=1e-4, atol=1e-4)


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    folder = pack_uniform(make_tiny("llama", tmp_path / "hf", tied=True), tmp_path / "c", "f32")
    parts = matrices_of(folder)
    rewritten(folder, {k: v for k, v in parts.items() if k != "model.norm.weight"})
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' is missing"):
        rebuilt(folder)
    rewritten(folder, parts | {"model.extra.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(ConfigError, match=r"'model\.extra\.weight' has no place"):
        rebuilt(folder)
