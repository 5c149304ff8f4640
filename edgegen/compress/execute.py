"""Write a compressed model, tensor by tensor.

The folder holds `weights.bin` (each tensor's packed rows, one after the other), the configuration and tokenizer with
the plan's vocabulary, whatever travels with a model (chat template, licence, model card), and `compressed.json`.
Never more than a few tensors are in memory. The folder appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.common.codec import save_json
from edgegen.common.files import filling, require_free_bytes, write_text
from edgegen.modeling.distortion import Distortion, rounding_of
from edgegen.modeling.load import travelling_files
from edgegen.modeling.source import TensorSource, ffn_widths
from edgegen.modeling.structure import read_structure
from edgegen.modeling.summary import resized_config
from edgegen.modeling.vocabulary import Vocabulary, renumbered_ids
from edgegen.records.compressed import Compressed, PackedTensor
from edgegen.records.model import HEAD_BIAS
from edgegen.records.plan import Plan

_TABLE_ROLES = ("embedding", "head")
_ROUNDED_BITS = 16
"""Grids of fewer bits a weight lose something that counts."""


def compress_model(
    plan: Plan,
    source: TensorSource,
    config: dict[str, Any],
    kept: NDArray[np.int64] | None,
    out: Path,
    *,
    original: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compressed:
    """Carry out a plan.

    Args:
        plan: made for this model.
        source: the model's tensors, with the importance weights that the plan was made with.
        config: the model's config.json.
        kept: (K,) ids of the plan's vocabulary; None keeps all.
        out: folder to write; replaced if it exists.
        original: folder of the checkpoint that `source` reads; None: the plan's model.
        progress: called with (tensors done, tensors in all).

    Raises:
        DeviceError: the disk is full.
        ConfigError: a tensor holds NaN or infinity.
    """
    total = sum(choice.bytes for choice in plan.tensors)
    require_free_bytes(out.parent, int(total * 1.05) + 10_000_000)
    with filling(out) as building:
        folder = original or Path(plan.model.path)
        structure = read_structure(folder)
        files = _write_companions(plan, folder, config, kept, building)
        packed, digest, lost = _write_weights(plan, source, kept, building / "weights.bin", progress)
        record = Compressed(
            schema=1,
            summary=plan.summary,
            tensors=packed,
            digest=digest,
            steps=steps_of(plan),
            files=files,
            lineage=plan.lineage,
            rounding=rounding_of(lost),
            shared={} if structure is None else structure.shared,
        )
        save_json(building / "compressed.json", record)
    return record


def is_rounded(tensor: PackedTensor) -> bool:
    """Whether a tensor is a matrix in a grid that loses something that counts."""
    return tensor.rows > 1 and 8 * tensor.bytes < _ROUNDED_BITS * tensor.rows * tensor.columns


def steps_of(plan: Plan) -> tuple[str, ...]:
    """What a plan does, in words."""
    steps = [change.words for change in plan.structure]
    if plan.vocabulary.size != plan.vocabulary.original_size:
        steps.append(f"vocabulary trimmed from {plan.vocabulary.original_size:,} to {plan.vocabulary.size:,} tokens")
    steps += _padding_steps(plan)
    grids: dict[str, int] = {}
    for choice in plan.tensors:
        if choice.role != "vector":
            grids[choice.grid] = grids.get(choice.grid, 0) + 1
    words = ", ".join(f"{number} × {grid}" for grid, number in sorted(grids.items(), key=lambda item: -item[1]))
    matrices = [choice for choice in plan.tensors if choice.role != "vector"]
    compensated = sum(choice.compensated for choice in matrices)
    which = "" if compensated == len(matrices) else f" in {compensated} of {len(matrices)} matrices"
    steps.append(f"weights rounded onto {words}" + (f", with error compensation{which}" if compensated else ""))
    if plan.refinement is not None and plan.refinement.kept:
        steps.append(
            f"rounded weights tuned as a whole to say what the original says, in {plan.refinement.steps:,} steps on "
            f"{plan.refinement.tokens:,} predictions"
        )
    return tuple(steps)


def _padding_steps(plan: Plan) -> list[str]:
    before, after = ffn_widths(plan.original), ffn_widths(plan.summary)
    padded = sorted({(before[layer], after[layer]) for layer in before if before[layer] < after.get(layer, 0)})
    if not padded:
        return []
    words = ", ".join(f"{one} to {other}" for one, other in padded)
    return [f"feed-forward width padded with zeros from {words}, so that its rows fit blocks of 32"]


def _write_weights(
    plan: Plan,
    source: TensorSource,
    kept: NDArray[np.int64] | None,
    path: Path,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[PackedTensor, ...], str, list[Distortion]]:
    packed: list[PackedTensor] = []
    lost: list[Distortion] = []
    digest = hashlib.sha256()
    offset = 0
    with path.open("wb") as stream:
        for number, choice in enumerate(plan.tensors, 1):
            rows = source.packed(choice.name, choice.grid)
            if kept is not None and choice.role in _TABLE_ROLES:
                rows = rows[kept]
            elif kept is not None and choice.name == HEAD_BIAS:
                rows = rows.view(np.float32)[:, kept].copy().view(np.uint8)
            data = rows.tobytes()
            stream.write(data)
            digest.update(data)
            packed.append(
                PackedTensor(
                    name=choice.name,
                    grid=choice.grid,
                    rows=choice.rows,
                    columns=choice.columns,
                    offset=offset,
                    bytes=len(data),
                )
            )
            if is_rounded(packed[-1]):
                lost.append(source.distortion(choice.name, choice.grid))
            offset += len(data)
            if progress:
                progress(number, len(plan.tensors))
        stream.flush()
        os.fsync(stream.fileno())
    return tuple(packed), "sha256:" + digest.hexdigest(), lost


def _write_companions(
    plan: Plan, folder: Path, config: dict[str, Any], kept: NDArray[np.int64] | None, out: Path
) -> tuple[str, ...]:
    for path in travelling_files(folder):
        shutil.copyfile(path, out / path.name)
    if kept is not None:
        Vocabulary(folder / "tokenizer.json").write_trimmed(folder, out, kept)
        config = renumbered_ids(config, {int(old): new for new, old in enumerate(kept)})
    config = resized_config(config, plan.summary)
    write_text(out / "config.json", json.dumps(config, indent=2, ensure_ascii=False))
    names = {path.name for path in travelling_files(out)}
    return tuple(sorted(names | {"config.json"}))
