"""Numbers cut into bits and spread over a block's bytes: a description that reads and writes them.

A field says for each of a block's n numbers in which byte it (or a part of it) lies, from which bit, how many bits
wide, and which bits of the number these are.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Field(msgspec.Struct, frozen=True):
    """A part of each of n numbers."""

    bytes: NDArray[np.int64]
    """(n,) byte of the block."""
    shifts: NDArray[np.int64]
    """(n,) lowest bit in that byte. Numbers with the same shift lie in different bytes."""
    width: int
    """Bits."""
    position: int = 0
    """Lowest bit of the number that they are."""

    @property
    def mask(self) -> np.uint8:
        return np.uint8((1 << self.width) - 1)


def read(blocks: Bytes, fields: tuple[Field, ...]) -> Bytes:
    """(…, block bytes) → (…, n) numbers."""
    numbers = np.zeros((*blocks.shape[:-1], len(fields[0].bytes)), dtype=np.uint8)
    for field in fields:
        part = (blocks[..., field.bytes] >> field.shifts.astype(np.uint8)) & field.mask
        numbers |= part << np.uint8(field.position)
    return numbers


def write(blocks: Bytes, fields: tuple[Field, ...], numbers: Bytes) -> None:
    """Put (…, n) numbers into (…, block bytes), in place; all other bits stay."""
    for field in fields:
        for shift in np.unique(field.shifts):
            here = field.shifts == shift
            where = field.bytes[here]
            part = ((numbers[..., here] >> np.uint8(field.position)) & field.mask) << np.uint8(shift)
            blocks[..., where] = (blocks[..., where] & ~(field.mask << np.uint8(shift))) | part
