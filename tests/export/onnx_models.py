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
from edgegen.export.folder import map_weights
from edgegen.export.onnx.export import export_onnx
from edgegen.modeling.rebuild import rebuild_model
from edgegen.records.artifact import Artifact
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.plan import Settings
from edgegen.runtime.onnx import OnnxRuntime
from tests.tiny_models import load_state, sample_texts

Floats = NDArray[np.float32]

SETTINGS = Settings(context_tokens=128, ubatch_tokens=16, threads=1, kv_type="f32")
IDS = [int(i) for i in np.random.default_rng(4).integers(3, 390, 60)]
TEXTS = sample_texts(4, seed=3)


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


def export_both(compressed: Path, folder: Path, settings: Settings = SETTINGS) -> Artifact:
    """Write `folder / "a"` and its strict twin `folder / "s"`."""
    return export_onnx(compressed, folder / "a", settings, prove_texts=TEXTS, strict=folder / "s")


def score(folder: Path, ids: list[int] = IDS, settings: Settings = SETTINGS) -> Floats:
    """An exported folder's logits on plain ONNX Runtime: (T, V)."""
    with OnnxRuntime().open(folder / "model.onnx", settings) as session:
        return session.score(ids)


def check_strict(compressed: Path, folder: Path) -> Artifact:
    """Export, and hold the strict twin against torch."""
    artifact = export_both(compressed, folder)
    assert mean_kl(torch_logits(compressed, IDS), score(folder / "s")) < 1e-9
    return artifact
