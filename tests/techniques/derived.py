"""Tiny models with calibration text, changed by a technique, stored as derived checkpoints and packed for a runtime."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgegen import grids
from edgegen.common.codec import save_json
from edgegen.common.files import digest_file
from edgegen.modeling.statistics import collect_statistics
from edgegen.modeling.structure import read_structure, save_derived
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.structure import Change, Structure
from edgegen.techniques.calibration import Calibration
from tests.modeling.opened import Opened, open_all, windows

IDS = torch.tensor([[1, 5, 9, 2, 30, 77, 120, 8]])


def calibrated(opened: Opened, **more: Any) -> Calibration:
    """A model's calibration on 400 tokens."""
    some = windows(opened.tokenizer)
    return Calibration(
        opened.model, opened.summary, some, lambda: collect_statistics(opened.model, opened.summary, some), **more
    )


def changed(technique: Any, change: Change, calibration: Calibration) -> Any:
    """A changed copy of a calibration's model."""
    model = copy.deepcopy(calibration.model)
    technique.apply(model, change, calibration)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, use_cache=False).logits
    return found


def reopened(model: Any, change: Change, original: Path, out: Path) -> Opened:
    """Stored as a derived checkpoint and opened again; it must say the same, with and without a cache."""
    save_derived(model, original, Structure(schema=1, base="", changes=(change,)), out)
    opened = open_all(out)
    torch.testing.assert_close(logits(opened.model), logits(model), rtol=0, atol=1e-5)
    stored = sum(parameter.numel() for parameter in model.parameters())
    assert opened.summary.parameters == stored
    with torch.no_grad():
        first = opened.model(IDS[:, :-1], use_cache=True)
        last = opened.model(IDS[:, -1:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(last[0, -1], logits(model)[0, -1], rtol=0, atol=1e-4)
    return opened


def pack_derived(opened: Opened, out: Path, grid_of: Callable[[str], str]) -> Path:
    """A compressed folder of a derived checkpoint; vectors stay f32."""
    out.mkdir()
    folder = Path(opened.ref.path)
    tensors, offset = [], 0
    with (out / "weights.bin").open("wb") as stream:
        for tensor in opened.summary.tensors:
            grid = grid_of(tensor.name) if tensor.quantizable else "f32"
            values = opened.source.matrix(tensor.name)[: tensor.rows, : tensor.columns]
            packed = grids.pack(values, grid)
            stream.write(packed.tobytes())
            tensors.append(PackedTensor(tensor.name, grid, tensor.rows, tensor.columns, offset, packed.size))
            offset += packed.size
    for path in folder.iterdir():
        if path.suffix == ".json" and path.name != "structure.json":
            (out / path.name).write_bytes(path.read_bytes())
    structure = read_structure(folder)
    record = Compressed(
        schema=1,
        summary=msgspec.structs.replace(opened.summary, dtype="float32"),
        tensors=tuple(tensors),
        digest=digest_file(out / "weights.bin"),
        steps=("packed",),
        files=tuple(sorted(p.name for p in out.iterdir() if p.name not in ("weights.bin", "config.json"))),
        shared={} if structure is None else structure.shared,
    )
    save_json(out / "compressed.json", record)
    return out
