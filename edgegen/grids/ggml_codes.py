"""Where the codes of GGUF's grids lie, for those whose weights are `step · level + offset` (ggml-common.h).

Grids of the `iq2` and `iq3` kinds have no such codes: their code words stand for several weights at once.

n numbers a block; j counts them.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.grids import fields, ggml
from edgegen.grids.fields import Field

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]

_F16_MAX = 65504.0


class Layout(msgspec.Struct, frozen=True):
    """One grid's blocks."""

    fields: tuple[Field, ...]
    width: int
    """Columns that share a step; a block of the file holds one or several such groups."""
    minimum: bool
    """Whether weights have an offset; without, level 0 is weight 0."""
    lowest: int = 0
    """Level that code 0 stands for."""
    first: int = 0
    """Lowest code that is used."""
    codebook: tuple[int, ...] = ()
    """Levels, rising, where they are not evenly spaced."""
    signed: bool = False
    """Whether a code is stored as a signed byte."""
    scales: tuple[int, ...] = (0,)
    """Bytes of a block at which float16 numbers begin that all its steps, or all its offsets, are multiples of."""


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _halves(offset: int, columns: int, width: int) -> Field:
    """4-bit codes: of every `width` columns the first half in the low nibbles, the second in the high ones."""
    j, half = np.arange(columns), width // 2
    return Field(bytes=offset + j // width * half + j % half, shifts=4 * (j % width // half), width=4)


def _fifth_bits(offset: int) -> Field:
    j = np.arange(32)
    return Field(bytes=offset + j // 8, shifts=j % 8, width=1, position=4)


_J = np.arange(256)
_HALF, _QUARTER, _L = _J // 128, _J % 128 // 32, _J % 32
_TWO_BITS = {offset: Field(bytes=offset + 32 * _HALF + _L, shifts=2 * _QUARTER, width=2) for offset in (16, 32)}

LAYOUTS: dict[str, Layout] = {
    "q4_0": Layout(fields=(_halves(2, 32, 32),), width=32, minimum=False, lowest=-8),
    "q4_1": Layout(fields=(_halves(4, 32, 32),), width=32, minimum=True, scales=(0, 2)),
    "q5_0": Layout(fields=(_halves(6, 32, 32), _fifth_bits(2)), width=32, minimum=False, lowest=-16),
    "q5_1": Layout(fields=(_halves(8, 32, 32), _fifth_bits(4)), width=32, minimum=True, scales=(0, 2)),
    # -128 is left out: kernels negate codes.
    "q8_0": Layout(
        fields=(Field(bytes=2 + np.arange(32), shifts=np.zeros(32, np.int64), width=8),),
        width=32,
        minimum=False,
        lowest=-128,
        first=1,
        signed=True,
    ),
    "iq4_nl": Layout(fields=(_halves(2, 32, 32),), width=32, minimum=False, codebook=_IQ4),
    "iq4_xs": Layout(fields=(_halves(8, 256, 32),), width=32, minimum=False, codebook=_IQ4),
    "q2_k": Layout(fields=(_TWO_BITS[16],), width=16, minimum=True, scales=(80, 82)),
    "q3_k": Layout(
        fields=(_TWO_BITS[32], Field(bytes=_L, shifts=4 * _HALF + _QUARTER, width=1, position=2)),
        width=16,
        minimum=False,
        lowest=-4,
        scales=(108,),
    ),
    "q4_k": Layout(fields=(_halves(16, 256, 64),), width=32, minimum=True, scales=(0, 2)),
    "q5_k": Layout(
        fields=(_halves(48, 256, 64), Field(bytes=16 + _L, shifts=_J // 32, width=1, position=4)),
        width=32,
        minimum=True,
        scales=(0, 2),
    ),
    "q6_k": Layout(
        fields=(
            Field(bytes=64 * _HALF + _L + 32 * (_QUARTER % 2), shifts=4 * (_QUARTER // 2), width=4),
            Field(bytes=128 + 32 * _HALF + _L, shifts=2 * _QUARTER, width=2, position=4),
        ),
        width=16,
        minimum=False,
        lowest=-32,
        scales=(208,),
    ),
}


def read_codes(packed: Bytes, grid: str) -> Bytes:
    """(R, row bytes) → (R, C) codes."""
    layout = LAYOUTS[grid]
    codes = fields.read(_blocks(packed, grid), layout.fields).reshape(len(packed), -1)
    return codes ^ np.uint8(128) if layout.signed else codes


def write_codes(packed: Bytes, grid: str, codes: Bytes) -> Bytes:
    """Packed rows with (R, C) codes in place of their own; steps and offsets stay. A copy."""
    layout = LAYOUTS[grid]
    found = packed.copy()
    stored = codes ^ np.uint8(128) if layout.signed else codes
    blocks = _blocks(found, grid)
    fields.write(blocks, layout.fields, stored.reshape(*blocks.shape[:2], -1))
    return found


def assemble(centred: NDArray[np.int8], scales: NDArray[np.float32], grid: str) -> Bytes:
    """Packed rows from (R, C) codes about zero and (R, B) scales, of grids that have one scale a block and no offset.

    The scales have to be float16 numbers.
    """
    layout = LAYOUTS[grid]
    assert (
        not (layout.minimum or layout.codebook) and layout.scales == (0,) and layout.width == ggml.block_columns(grid)
    )
    packed = np.zeros((len(centred), ggml.row_bytes(grid, centred.shape[1])), dtype=np.uint8)
    blocks = _blocks(packed, grid)
    blocks[:, :, :2] = scales.astype(np.float16)[:, :, None].view(np.uint8)
    return write_codes(packed, grid, (centred.astype(np.int16) - layout.lowest).astype(np.uint8))


def rescale(packed: Bytes, grid: str, factors: Doubles) -> Bytes:
    """Packed rows whose steps and offsets are multiplied, as nearly as 16 bits can say; a copy.

    Args:
        packed: of one block a row.
        factors: (R, 1), or (R, 2) with the second for offsets where the grid has them.
    """
    found = packed.copy()
    for column, byte in enumerate(LAYOUTS[grid].scales):
        stored = np.ascontiguousarray(packed[:, byte : byte + 2]).view(np.float16)[:, 0].astype(np.float64)
        scaled = (stored * factors[:, column]).clip(-_F16_MAX, _F16_MAX).astype(np.float16)
        found[:, byte : byte + 2] = scaled[:, None].view(np.uint8)
    return found


def _blocks(packed: Bytes, grid: str) -> Bytes:
    """(R, row bytes) → (R, blocks, bytes), a view."""
    return packed.reshape(len(packed), -1, ggml.row_bytes(grid, ggml.block_columns(grid)))
