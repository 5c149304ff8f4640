"""Compressed folders of other shapes than one grid everywhere, and the torch model that an artifact must equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgegen import grids
from edgegen.common.codec import load_json, save_json
from edgegen.common.files import digest_file
from edgegen.export import exporter_for
from edgegen.export.folder import map_weights
from edgegen.modeling.rebuild import rebuild_model
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.plan import Settings
from edgegen.runtime.registry import runtime_for
from tests.tiny_models import load_state, make_tiny, pack_uniform, sample_texts

Floats = NDArray[np.float32]

SETTINGS = Settings(context_tokens=128, ubatch_tokens=16, threads=1, kv_type="f32")
IDS = [int(i) for i in np.random.default_rng(4).integers(3, 390, 60)]
TEXTS = sample_texts(4, seed=3)
_RUNTIMES = {".onnx": ("onnx", "onnxruntime"), ".tflite": ("litert", "litert")}


def repack(
    folder: Path, grid_of: Callable[[str], str], *, parts: dict[str, Floats], shared: dict[str, str] | None = None
) -> Path:
    """Replace a compressed folder's tensors: name → (R, C) values, vectors stay f32."""
    record = load_json(folder / "compressed.json", Compressed)
    tensors, offset = [], 0
    with (folder / "weights.bin").open("wb") as stream:
        for name, values in parts.items():
            values = np.ascontiguousarray(np.atleast_2d(values), dtype=np.float32)
            grid = "f32" if len(values) == 1 else grid_of(name)
            packed = grids.pack(values, grid)
            stream.write(packed.tobytes())
            tensors.append(PackedTensor(name, grid, *values.shape, offset, packed.size))
            offset += packed.size
    digest = digest_file(folder / "weights.bin")
    changed = msgspec.structs.replace(record, tensors=tuple(tensors), digest=digest, shared=shared or {})
    save_json(folder / "compressed.json", changed)
    return folder


def state_of(hf: Path) -> dict[str, Floats]:
    """All tensors of a checkpoint."""
    return {name: tensor.float().numpy() for name, tensor in load_state(hf).items()}


def torch_logits(folder: Path, ids: list[int]) -> Floats:
    """What torch says with a compressed folder's weights: (T, V)."""
    record = load_json(folder / "compressed.json", Compressed)
    model = rebuild_model(folder, record, map_weights(folder, record)).model
    with torch.no_grad():
        logits: Floats = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def mean_kl(expected: Floats, found: Floats) -> float:
    """Nats per token."""
    p, q = (torch.log_softmax(torch.tensor(x).double(), -1) for x in (expected, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


def export_both(compressed: Path, folder: Path, settings: Settings = SETTINGS, *, target: str = "onnx") -> Artifact:
    """Write `folder / "a"` and its strict twin `folder / "s"`."""
    return exporter_for(target).export(compressed, folder / "a", settings, prove_texts=TEXTS, strict=folder / "s")


def score(folder: Path, ids: list[int] = IDS, settings: Settings = SETTINGS) -> Floats:
    """An exported folder's logits: (T, V); ONNX on plain ONNX Runtime."""
    (model,) = (folder / name for name in ("model.onnx", "model.tflite") if (folder / name).exists())
    with runtime_for(*_RUNTIMES[model.suffix]).open(model, settings) as session:
        return session.score(ids)


def check_strict(compressed: Path, folder: Path, *, target: str = "onnx") -> Artifact:
    """Export, and hold the strict twin against torch."""
    artifact = export_both(compressed, folder, target=target)
    assert mean_kl(torch_logits(compressed, IDS), score(folder / "s")) < 1e-9
    return artifact


def pack_surgery(folder: Path, grid_of: Callable[[str], str]) -> Path:
    """A compressed folder with factorised layers, a narrower block, and a block that shares weights of another."""
    hf = make_tiny("llama", folder / "hf", layers=3, tied=True)
    compressed = pack_uniform(hf, folder / "c", "f32")
    dice, parts = np.random.default_rng(0), state_of(hf)
    for name, rows, columns in (
        ("0.self_attn.o_proj", 64, 64),
        ("1.self_attn.k_proj", 32, 64),
        ("1.mlp.up_proj", 64, 64),
    ):
        del parts[f"model.layers.{name}.weight"]
        parts[f"model.layers.{name}.0.weight"] = dice.standard_normal((32, columns)).astype(np.float32) / 16
        parts[f"model.layers.{name}.1.weight"] = dice.standard_normal((rows, 32)).astype(np.float32) / 2
    parts["model.layers.1.mlp.gate_proj.weight"] = parts["model.layers.1.mlp.gate_proj.weight"][:64]
    parts["model.layers.1.mlp.down_proj.weight"] = parts["model.layers.1.mlp.down_proj.weight"][:, :64]
    shared = {
        f"model.layers.2.{part}.weight": f"model.layers.0.{part}.weight"
        for part in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    }
    for name in shared:
        del parts[name]
    return repack(compressed, grid_of, parts=parts, shared=shared)
