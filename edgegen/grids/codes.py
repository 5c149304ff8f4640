"""A packed row taken apart into steps, offsets and codes, for choosing the codes otherwise than by rounding to nearest.

For the grids known here a packed weight is

    w = step · level(code) + offset

with one step and offset for a group of columns, as `pack` chose and stored them. The runtime's own unpacking says what
they are, so nothing here repeats how a format packs its scales. Codes written back stand for exactly the same weights
in the runtime.

R rows, C columns, G groups a row, L levels.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen import grids
from edgegen.grids import ggml_codes, uniform

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]


class Levels(msgspec.Struct, frozen=True):
    """What a grid's codes stand for."""

    values: Doubles
    """(L,) rising."""
    first: int
    """Code of the lowest level; the others follow."""
    even: bool
    """Whether neighbours are 1 apart."""
    minimum: bool
    """Whether weights have an offset."""
    width: int
    """Columns of a group; 0: the whole row."""
    unit: int
    """Columns whose steps are chosen together; 0: the whole row."""
    scales: int
    """Numbers that a unit's steps and offsets can be multiplied with: 1, or 2 where offsets have their own."""


class Lattice(msgspec.Struct, frozen=True):
    """Where the levels of packed rows lie."""

    steps: Doubles
    """(R, G); may be negative or zero."""
    offsets: Doubles
    """(R, G)."""


def has_codes(grid: str) -> bool:
    """Whether each weight has a code of its own."""
    return grid in uniform.NAMES or grid in ggml_codes.LAYOUTS


def levels_of(grid: str) -> Levels:
    """A grid's levels; only of grids with codes."""
    if grid in uniform.NAMES:
        spec = uniform.NAMES[grid]
        low, high = spec.levels
        values = np.arange(low, high + 1, dtype=np.float64) - (0 if spec.zero_points else spec.middle)
        return Levels(
            values=values,
            first=low,
            even=True,
            minimum=spec.zero_points,
            width=spec.block,
            unit=spec.block,
            scales=1,
        )
    layout = ggml_codes.LAYOUTS[grid]
    count = 1 << max(field.position + field.width for field in layout.fields)
    even = np.arange(layout.first, count, dtype=np.float64) + layout.lowest
    return Levels(
        values=np.array(layout.codebook, dtype=np.float64) if layout.codebook else even,
        first=layout.first,
        even=not layout.codebook,
        minimum=layout.minimum,
        width=layout.width,
        unit=grids.block_columns(grid),
        scales=len(layout.scales),
    )


def read_codes(packed: Bytes, grid: str, columns: int) -> Bytes:
    """(R, row bytes) → (R, C) codes."""
    if grid in uniform.NAMES:
        return uniform.read_codes(packed, grid, columns)
    return ggml_codes.read_codes(packed, grid)


def write_codes(packed: Bytes, grid: str, codes: Bytes) -> Bytes:
    """Packed rows with (R, C) codes in place of their own; a copy."""
    if grid in uniform.NAMES:
        return uniform.write_codes(packed, grid, codes)
    return ggml_codes.write_codes(packed, grid, codes)


def rescale(packed: Bytes, grid: str, columns: int, factors: Doubles) -> Bytes:
    """One unit of each row with its steps and offsets multiplied, as nearly as the grid can say; a copy.

    Args:
        packed: (R, bytes of a unit of C columns).
        factors: (R, scales), the second for offsets where there are two.
    """
    return rescale_rows(packed, grid, columns, factors[:, None])


def rescale_rows(packed: Bytes, grid: str, columns: int, factors: Doubles) -> Bytes:
    """Whole rows with every unit's steps and offsets multiplied, as `rescale` does with one; a copy.

    Args:
        packed: (R, row bytes).
        factors: (R, units, scales).
    """
    if grid in uniform.NAMES:
        return uniform.rescale(packed, grid, columns, factors[:, :, 0])
    rows, units = factors.shape[:2]
    return ggml_codes.rescale(packed.reshape(rows * units, -1), grid, factors.reshape(rows * units, -1)).reshape(
        rows, -1
    )


def join(parts: list[Bytes], grid: str, columns: int) -> Bytes:
    """Rows of C columns from packed pieces of them, each but the last a multiple of the grid's unit."""
    if len(parts) == 1:
        return parts[0]
    if grid in uniform.NAMES:
        return uniform.join_columns(parts, grid, columns)
    return np.concatenate(parts, axis=1)


def lattice(packed: Bytes, grid: str, columns: int) -> Lattice:
    """Steps and offsets of packed rows."""
    levels = levels_of(grid)
    if grid in uniform.NAMES:
        steps, zeros = uniform.scales_and_zeros(packed, grid, columns)
        return Lattice(steps=steps, offsets=-steps * zeros)

    def at(index: int) -> Doubles:
        code = np.full((len(packed), columns), levels.first + index, dtype=np.uint8)
        values = grids.unpack(write_codes(packed, grid, code), grid, columns)
        return values[:, :: levels.width or columns].astype(np.float64)

    if not levels.minimum:
        steps = at(int(np.searchsorted(levels.values, 1.0)))  # a level 1 is in every such grid: exact
        return Lattice(steps=steps, offsets=np.zeros_like(steps))
    last = len(levels.values) - 1
    bottom = at(0)
    steps = (at(last) - bottom) / (levels.values[last] - levels.values[0])
    return Lattice(steps=steps, offsets=bottom - steps * levels.values[0])
