"""Number grids and their exact packing.

A grid turns rows of real weights into packed bytes that a runtime executes as they are, and back. One module a
family: `floats` (no rounding but of the mantissa), `ggml` (GGUF files), `uniform` (ONNX and LiteRT). Which grids a
runtime has kernels for stands in `targets/`. The functions here find the family by the grid's name.

Shapes: R rows (outputs), C columns (inputs, the length that blocks are cut from).
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError
from edgegen.grids import floats, ggml, uniform

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_FAMILIES: tuple[ModuleType, ...] = (floats, uniform, ggml)
"""In the order in which they are asked for a name."""


def family_of(grid: str) -> ModuleType:
    """The module that packs a grid.

    Raises:
        ConfigError: no family has it.
    """
    for family in _FAMILIES:
        if grid in family.NAMES:
            return family
    known = ", ".join(name for family in _FAMILIES for name in family.NAMES)
    raise ConfigError(f"unknown grid {grid!r}", hint=f"Known: {known}.")


def block_columns(grid: str) -> int:
    """Columns that a row's length must be a multiple of."""
    return int(family_of(grid).block_columns(grid))


def row_bytes(grid: str, columns: int) -> int:
    """Packed size of one row.

    Raises:
        ConfigError: the row is not a multiple of the grid's block.
    """
    return int(family_of(grid).row_bytes(grid, columns))


def pack(weights: Floats, grid: str, importance: Floats | None = None) -> Bytes:
    """Round (R, C) float32 rows onto a grid: (R, row bytes) uint8.

    Args:
        importance: (C,) mean square of each input, >= 0: how much an error in that column costs. None: all alike.

    Raises:
        ConfigError: unknown grid, or rows that do not fit its block.
        UnsupportedError: values that the grid cannot hold.
    """
    packed: Bytes = family_of(grid).pack(weights, grid, importance)
    return packed


def unpack(packed: Bytes, grid: str, columns: int) -> Floats:
    """The (R, C) float32 weights that packed rows stand for."""
    weights: Floats = family_of(grid).unpack(packed, grid, columns)
    return weights
