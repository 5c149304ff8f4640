"""Read a Hugging Face checkpoint's tensors one at a time, and say what is wrong with it before work begins.

Weights are read through safetensors' memory map, so a model larger than the free memory can be streamed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from edgegen.common.codec import read_bytes
from edgegen.errors import ConfigError, UnsupportedError

_CHECKED_TOGETHER = 1 << 24

_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Checkpoint:
    """The safetensors files of one folder.

    Attributes:
        folder: where they are.
        shapes: stored name → shape.
        dtype: the stored type of most weights: float32, float16 or bfloat16.
        bytes: size of all tensors.
    """

    def __init__(self, folder: Path) -> None:
        """Read and check the headers; no weights are read.

        Raises:
            ConfigError: no weights, a missing shard, a truncated or foreign file.
            UnsupportedError: weights in pickle files only, or quantized already.
        """
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        sizes: dict[str, int] = {}
        self.bytes = 0
        for path in _weight_files(folder):
            for name, entry in _read_header(path).items():
                start, end = entry["data_offsets"]
                self._file_of[name] = path
                self.shapes[name] = tuple(entry["shape"])
                sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + end - start
                self.bytes += end - start
        dtype = max(sizes, key=lambda kind: sizes[kind])
        if dtype not in _DTYPE_NAMES:
            raise UnsupportedError(
                f"{folder}: weights are stored as {dtype}",
                hint="Give a checkpoint in float32, float16 or bfloat16.",
            )
        self.dtype = _DTYPE_NAMES[dtype]

    @property
    def files(self) -> list[Path]:
        """The safetensors files, sorted."""
        return sorted(set(self._file_of.values()))

    def read(self, name: str) -> torch.Tensor:
        """One tensor as float32.

        Raises:
            ConfigError: it holds NaN or infinity.
        """
        path = self._file_of[name]
        with safe_open(path, framework="pt") as stream:
            tensor = stream.get_tensor(name).to(torch.float32)
        # In pieces: looking for infinities takes twice a tensor's memory.
        bad = sum(len(piece) - int(torch.isfinite(piece).sum()) for piece in tensor.flatten().split(_CHECKED_TOGETHER))
        if bad:
            raise ConfigError(
                f"{path}: tensor {name!r} holds {bad:,} values that are NaN or infinite",
                hint="The checkpoint is damaged or its training diverged; use an earlier one.",
            )
        return tensor

    def check_finite(self) -> Iterator[str]:
        """Read every tensor once, yielding each name after it was found finite."""
        for name in self.shapes:
            self.read(name)
            yield name


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            named = sorted(set(json.loads(read_bytes(index))["weight_map"].values()))
            paths = [folder / name for name in named]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{index}: not a safetensors index", hint="Download it again.") from error
        if not paths:
            raise ConfigError(f"{index}: names no weights", hint="Download it again.")
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise ConfigError(
                f"{folder}: {len(missing)} of {len(paths)} weight files are missing: {', '.join(missing[:3])}",
                hint="Download the checkpoint again; model.safetensors.index.json names them.",
            )
        return paths
    paths = sorted(folder.glob("*.safetensors"))
    if paths:
        return paths
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise UnsupportedError(
            f"{folder}: weights are in pickle files (.bin), which can run code when opened",
            hint="Save it again with model.save_pretrained(...), which writes safetensors.",
        )
    raise ConfigError(
        f"{folder}: no model.safetensors in it", hint="Give a folder that save_pretrained wrote, or a hub id."
    )


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        raw = stream.read(length) if 0 < length <= size else b""
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: not a safetensors file", hint="Download it again.") from error
    expected = 8 + length + end
    if size != expected or not header:
        raise ConfigError(
            f"{path}: {size:,} bytes, but its header says {expected:,}: the file is truncated or damaged",
            hint="Download it again.",
        )
    return dict(header)
