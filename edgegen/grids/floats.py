"""Floating-point numbers as every runtime stores them: 32 and 16 bits, and the upper half of 32.

R rows, C columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError, UnsupportedError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

NAMES: dict[str, int] = {"f32": 4, "f16": 2, "bf16": 2}
"""Grid → bytes a weight."""

_F16_MAX = 65504.0


def block_columns(grid: str) -> int:
    """Always 1: any row length fits."""
    return 1


def row_bytes(grid: str, columns: int) -> int:
    """Packed size of one row.

    Raises:
        ConfigError: an empty row.
    """
    if columns <= 0:
        raise ConfigError(f"{grid}: a row of {columns} columns cannot be packed")
    return columns * NAMES[grid]


def pack(weights: Floats, grid: str, importance: Floats | None = None) -> Bytes:
    """Round to nearest, ties to even: (R, C) float32 → (R, row bytes) uint8. Importance changes nothing.

    Raises:
        UnsupportedError: a value is not finite, or beyond f16's range.
    """
    source = np.ascontiguousarray(weights, dtype=np.float32)
    limit = _F16_MAX if grid == "f16" else float(np.finfo(np.float32).max)
    if source.size and not float(np.abs(source).max()) <= limit:  # NaN compares false
        raise UnsupportedError(
            f"weights up to {float(np.abs(source).max()):.3g} cannot be stored as {grid}",
            hint="They must be finite and within its range; check the checkpoint for NaN or overflow.",
        )
    if grid == "f32":
        stored: NDArray[np.generic] = source
    elif grid == "f16":
        stored = source.astype(np.float16)
    else:
        bits = source.view(np.uint32).astype(np.uint64)
        stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return stored.view(np.uint8).reshape(len(source), row_bytes(grid, source.shape[1]))


def unpack(packed: Bytes, grid: str, columns: int) -> Floats:
    """(R, row bytes) → (R, C) float32, a copy."""
    source = np.ascontiguousarray(packed)
    if grid == "f32":
        return source.view(np.float32).reshape(-1, columns).copy()
    if grid == "f16":
        return source.view(np.float16).reshape(-1, columns).astype(np.float32)
    return (source.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(-1, columns)
