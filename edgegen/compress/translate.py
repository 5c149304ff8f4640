"""A compressed model for another runtime, with the very same codes and scales."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.common.codec import load_json, save_json
from edgegen.common.files import filling, require_free_bytes
from edgegen.compress.execute import is_rounded, steps_of
from edgegen.grids import agreed
from edgegen.modeling.distortion import in_other_bytes
from edgegen.records.compressed import Compressed, PackedTensor, Rounding
from edgegen.records.plan import Plan

_CHUNK_VALUES = 4_000_000
"""Weights unpacked at once."""


def translate_model(
    source: Path, plan: Plan, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> Compressed:
    """Write what `compress_model` wrote for one runtime in the grids of another's plan. Nothing is rounded.

    Args:
        source: a compressed folder whose grids hold the weights of agreed grids.
        plan: of the other runtime, for the same model; its grids are those agreed grids' own ones.
        out: folder to write; replaced if it exists.
        progress: called with (tensors done, tensors in all).

    Raises:
        DeviceError: the disk is full.
        ConfigError, UnsupportedError: grids that hold other weights.
    """
    before = load_json(source / "compressed.json", Compressed)
    chosen = {choice.name: choice.grid for choice in plan.tensors}
    require_free_bytes(out.parent, int(sum(choice.bytes for choice in plan.tensors) * 1.05) + 10_000_000)
    packed: list[PackedTensor] = []
    digest, offset = hashlib.sha256(), 0
    with filling(out) as building:
        for name in before.files:
            shutil.copyfile(source / name, building / name)
        with (building / "weights.bin").open("wb") as stream:
            for number, (tensor, rows) in enumerate(_tensors(source, before), 1):
                grid = chosen[tensor.name]
                data = agreed.translate(rows, tensor.grid, grid, tensor.columns).tobytes()
                stream.write(data)
                digest.update(data)
                packed.append(PackedTensor(tensor.name, grid, tensor.rows, tensor.columns, offset, len(data)))
                offset += len(data)
                if progress:
                    progress(number, len(before.tensors))
            stream.flush()
            os.fsync(stream.fileno())
        record = Compressed(
            schema=1,
            summary=plan.summary,
            tensors=tuple(packed),
            digest="sha256:" + digest.hexdigest(),
            steps=steps_of(plan),
            files=before.files,
            lineage=plan.lineage,
            rounding=_in_other_bytes(before, packed),
            shared=before.shared,
        )
        save_json(building / "compressed.json", record)
    return record


def _in_other_bytes(before: Compressed, packed: list[PackedTensor]) -> Rounding | None:
    """What rounding cost, with what the same weights take now."""
    if before.rounding is None:
        return None
    pairs = [pair for pair in zip(before.tensors, packed, strict=True) if is_rounded(pair[0])]
    ratio = sum(after.bytes for _, after in pairs) / sum(one.bytes for one, _ in pairs)
    return in_other_bytes(before.rounding, ratio)


def digest_of_weights(folder: Path) -> tuple[int, str]:
    """How many tensors a compressed folder holds, and `sha256:` of the float32 numbers that they stand for."""
    record, digest = load_json(folder / "compressed.json", Compressed), hashlib.sha256()
    for tensor, rows in sorted(_tensors(folder, record), key=lambda found: found[0].name):
        digest.update(f"{tensor.name} {tensor.rows} {tensor.columns}\n".encode())
        step = max(1, _CHUNK_VALUES // tensor.columns)
        for start in range(0, len(rows), step):
            digest.update(grids.unpack(rows[start : start + step], tensor.grid, tensor.columns).tobytes())
    return len(record.tensors), "sha256:" + digest.hexdigest()


def _tensors(folder: Path, record: Compressed) -> Iterator[tuple[PackedTensor, NDArray[np.uint8]]]:
    """Each tensor with its packed rows (R, row bytes), out of the file."""
    weights = np.memmap(folder / "weights.bin", dtype=np.uint8, mode="r")
    for tensor in record.tensors:
        yield tensor, np.asarray(weights[tensor.offset : tensor.offset + tensor.bytes]).reshape(tensor.rows, -1)
