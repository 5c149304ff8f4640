"""Grids in which several runtimes hold the same weights: one rounding, packed for each of them.

An agreed grid says what all of its runtimes can: levels -(2^(b-1) - 1) … 2^(b-1) - 1 about zero, and scales that each
of them stores exactly.

- `i4_32` is LiteRT's, the narrowest with 4 bits: blocks of 32, scales of float16 with 8 significant bits. GGUF's `q4_0`
  has one level more and scales of float16, ONNX's `s4_32` one level more and scales of bfloat16 held in float32.
- `c8_row` is no runtime's own: a scale a row, as LiteRT wants, in float16, as GGUF's blocks hold it, so that all blocks
  of a row repeat the same one in GGUF and ONNX.
- `f16` and `f32` are the same numbers everywhere.

R rows, C columns, B blocks a row.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.grids import codes, ggml, ggml_codes, uniform

Bytes = NDArray[np.uint8]

EQUAL: dict[str, tuple[str, ...]] = {
    "i4_32": ("q4_0", "s4_32", "i4_32"),
    "c8_row": ("q8_0", "s8_32", "i8_row"),
    "f16": ("f16",),
    "f32": ("f32",),
}
"""Agreed grid → grids of runtimes that can hold all of its weights. No runtime has two of them."""

BLOCK_COLUMNS = 32
"""Columns that a row's length must be a multiple of where weights are rounded."""

_AGREED = {grid: agreed for agreed, equal in EQUAL.items() for grid in equal}


def agreed_of(grid: str) -> str:
    """The agreed grid whose weights a runtime's grid can hold.

    Raises:
        ConfigError: there is none.
    """
    if grid not in _AGREED:
        raise ConfigError(
            f"grid {grid!r} has no equal in other runtimes", hint="Those that have: " + ", ".join(_AGREED) + "."
        )
    return _AGREED[grid]


def own_grid(agreed: str, known: Collection[str]) -> str:
    """A runtime's grid for an agreed one.

    Args:
        known: all grids of the runtime.

    Raises:
        UnsupportedError: it has none.
    """
    for grid in EQUAL[agreed]:
        if grid in known:
            return grid
    raise UnsupportedError(f"no grid here holds the weights of {', '.join(EQUAL[agreed])}")


def rounded_grids(known: Collection[str]) -> tuple[str, ...]:
    """A runtime's grids for everything that a matrix may take, fewest bits first; f32 is for vectors."""
    return tuple(own_grid(agreed, known) for agreed in EQUAL if agreed != "f32")


def translate(packed: Bytes, source: str, grid: str, columns: int) -> Bytes:
    """Packed rows for another runtime, or from an agreed grid: the same codes and scales, nothing is rounded.

    Args:
        packed: (R, row bytes) in `source`, with the levels and scales of the agreed grid.
        source: an agreed grid, or a runtime's grid of one.
        grid: a runtime's grid of the same agreed one.

    Returns:
        (R, row bytes) in `grid`.

    Raises:
        ConfigError: the two have no agreed grid in common, or a row does not fit blocks of 32.
        UnsupportedError: codes or scales that `grid` cannot hold.
    """
    if source == grid:
        return packed
    if agreed_of(grid) != (source if source in EQUAL else agreed_of(source)):
        raise ConfigError(f"{source} and {grid} hold different weights")
    grids.row_bytes(grid, columns)
    if columns % BLOCK_COLUMNS:
        raise ConfigError(f"rows of {columns} columns cannot be cut into blocks of {BLOCK_COLUMNS}")
    levels = codes.levels_of(source)
    centred = levels.values.astype(np.int8)[codes.read_codes(packed, source, columns) - np.uint8(levels.first)]
    steps = codes.lattice(packed, source, columns).steps.astype(np.float32)
    blocks = 1 if grid in uniform.NAMES and not uniform.NAMES[grid].block else columns // BLOCK_COLUMNS
    scales = _spread(steps, blocks)
    _require_held(centred, scales, grid)
    return (
        uniform.assemble(centred, scales, grid) if grid in uniform.NAMES else ggml_codes.assemble(centred, scales, grid)
    )


def _spread(steps: NDArray[np.float32], blocks: int) -> NDArray[np.float32]:
    """(R, B) scales from as many, from one a row, or from many that are all alike."""
    if steps.shape[1] == blocks:
        return steps
    if not (steps == steps[:, :1]).all():
        raise UnsupportedError("a row's blocks have different scales, and one for the row is wanted")
    return np.repeat(steps[:, :1], blocks, axis=1)


def _require_held(centred: NDArray[np.int8], scales: NDArray[np.float32], grid: str) -> None:
    levels = codes.levels_of(grid).values
    low, high = (int(centred.min()), int(centred.max())) if centred.size else (0, 0)
    if low < levels[0] or high > levels[-1]:
        raise UnsupportedError(f"codes from {low} to {high} are beyond {grid}'s")
    if grid in ggml.NAMES and not np.array_equal(scales.astype(np.float16).astype(np.float32), scales):
        raise UnsupportedError(f"scales that are no 16-bit numbers cannot be stored as {grid}")
