"""Evenly spaced levels with a scale for each block of a row: the grids of ONNX Runtime and LiteRT.

    w ≈ s · (q - z),   q ∈ {0 … 2^b - 1}

- `uB_N`: b = B bits, blocks of N columns, float32 scales, an integer zero point z for each block
  (`MatMulNBits` and `GatherBlockQuantized` of ONNX Runtime);
- `sB_N`: the same with z = 2^(b-1) everywhere and not stored; the scales of `u4_N` and `s4_N` are bfloat16 numbers,
  because ONNX Runtime's kernels on ARM (KleidiAI) drop the lower half of a scale. Rounded before the codes are chosen
  they cost nothing that can be measured; dropped after, they would make every weight a little smaller there;
- `iB_row`, `iB_N`: signed levels -(2^(b-1) - 1) … 2^(b-1) - 1, one scale for a row (float32) or for each block
  (float16 with 8 significant bits: files hold float16 and XNNPACK makes bfloat16 of it), as LiteRT's kernels want them;
  stored here with z = 2^(b-1) like the others;
- `c8_row`: as `i8_row` with scales of float16: what GGUF's blocks can hold too (see `agreed`).

For each block the scale is searched: several clipped ranges are tried, after each the scale is fitted to the codes by
weighted least squares, and the one with the least Σ h (w - s (q - z))² is kept (h: the importance of a column; the
search of ggml's `make_qx_quants` and of HQQ's ancestors, in closed form).

A packed row is its codes (b bits each, low bits first, every block on whole bytes), then its scales, then its zero
points (packed like codes, rounded up to a byte). The last block of a row may be shorter in ONNX Runtime; its codes are
padded with z.

R rows, C columns, N columns a block, B blocks a row.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError, UnsupportedError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_CHUNK_VALUES = 2_000_000
"""Weights rounded at once: bounds the working memory to some 100 MB."""


_SMALLEST_SCALE, _LARGEST_SCALE = np.float32(2.0**-14), 255 * 2.0**8
"""Of float16 without subnormal numbers, with 8 significant bits."""
_SMALLEST_F16, _LARGEST_F16 = np.float32(2.0**-24), 65504.0


class Uniform(msgspec.Struct, frozen=True):
    """One of these grids."""

    bits: int
    block: int
    """Columns that share a scale; 0: the whole row."""
    zero_points: bool
    """Whether each block stores its own zero point."""
    scale_bytes: int
    symmetric_range: bool = False
    """Whether the lowest level is left out, so that levels are symmetric about zero."""
    partial: bool = False
    """Whether a row's last block may be shorter."""

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def levels(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return (1 if self.symmetric_range else 0), (1 << self.bits) - 1

    def blocks(self, columns: int) -> int:
        return -(-columns // self.block) if self.block else 1

    def block_bytes(self, columns: int) -> int:
        return -(-(self.block or columns) * self.bits // 8)


NAMES: dict[str, Uniform] = {
    **{
        f"u{bits}_{block}": Uniform(bits=bits, block=block, zero_points=True, scale_bytes=4, partial=True)
        for bits in (2, 4, 8)
        for block in (16, 32, 64, 128)
    },
    **{
        f"s{bits}_{block}": Uniform(bits=bits, block=block, zero_points=False, scale_bytes=4, partial=True)
        for bits in (2, 4, 8)
        for block in (16, 32, 64, 128)
    },
    **{
        f"i{bits}_row": Uniform(bits=bits, block=0, zero_points=False, scale_bytes=4, symmetric_range=True)
        for bits in (4, 8)
    },
    **{
        f"i4_{block}": Uniform(bits=4, block=block, zero_points=False, scale_bytes=2, symmetric_range=True)
        for block in (32, 64, 128)
    },
    "c8_row": Uniform(bits=8, block=0, zero_points=False, scale_bytes=2, symmetric_range=True),
}


class Codes(msgspec.Struct, frozen=True):
    """Packed rows taken apart, as exporters write them."""

    packed: Bytes
    """(R, B, bytes a block)."""
    scales: Floats
    """(R, B)."""
    zeros: Bytes | None
    """(R, bytes) packed zero points; None where all are the middle level."""


def block_columns(grid: str) -> int:
    """Columns that a row's length must be a multiple of; 1 where a shorter last block is allowed."""
    spec = NAMES[grid]
    return 1 if spec.partial or not spec.block else spec.block


def row_bytes(grid: str, columns: int) -> int:
    """Packed size of one row.

    Raises:
        ConfigError: the row is not a multiple of the grid's block.
    """
    spec = NAMES[grid]
    if columns <= 0 or columns % block_columns(grid):
        raise ConfigError(
            f"{grid} packs blocks of {spec.block} columns; a row of {columns} cannot be cut into them",
            hint="Use a grid with a smaller block, or one scale a row.",
        )
    blocks = spec.blocks(columns)
    zeros = -(-blocks * spec.bits // 8) if spec.zero_points else 0
    return blocks * (spec.block_bytes(columns) + spec.scale_bytes) + zeros


def pack(weights: Floats, grid: str, importance: Floats | None = None) -> Bytes:
    """Round rows onto a grid: (R, C) float32 → (R, row bytes) uint8.

    Args:
        weights: finite.
        importance: (C,) >= 0; None or all zeros: every column counts alike.

    Raises:
        ConfigError: rows that do not fit the grid's block.
        UnsupportedError: values that are not finite, or scales beyond 16 bits.
    """
    spec = NAMES[grid]
    rows, columns = weights.shape
    width = row_bytes(grid, columns)
    packed = np.empty((rows, width), dtype=np.uint8)
    if not np.isfinite(weights).all():
        raise UnsupportedError("weights that are NaN or infinite cannot be rounded", hint="Check the checkpoint.")
    step = max(1, _CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        codes, scales, zeros = _round(weights[start : start + step], spec, importance)
        packed[start : start + step] = _join(codes, scales, zeros, spec, columns)
    return packed


def unpack(packed: Bytes, grid: str, columns: int) -> Floats:
    """(R, row bytes) → (R, C) float32."""
    spec = NAMES[grid]
    parts = split(packed, grid, columns)
    rows, blocks = parts.scales.shape
    codes = _from_bits(parts.packed, spec.bits, spec.block or columns).astype(np.float32)
    if parts.zeros is None:
        codes -= spec.middle
    else:
        codes -= _from_bits(parts.zeros, spec.bits, blocks).astype(np.float32)[:, :, None]
    codes *= parts.scales[:, :, None]
    return np.ascontiguousarray(codes.reshape(rows, -1)[:, :columns])


def split(packed: Bytes, grid: str, columns: int) -> Codes:
    """Packed rows as codes, scales and zero points, the bytes as they are."""
    spec = NAMES[grid]
    rows, blocks, size = len(packed), spec.blocks(columns), spec.block_bytes(columns)
    codes, rest = packed[:, : blocks * size], packed[:, blocks * size :]
    kind = np.float32 if spec.scale_bytes == 4 else np.float16
    scales = np.ascontiguousarray(rest[:, : blocks * spec.scale_bytes]).view(kind).astype(np.float32)
    zeros = np.ascontiguousarray(rest[:, blocks * spec.scale_bytes :]) if spec.zero_points else None
    return Codes(packed=np.ascontiguousarray(codes).reshape(rows, blocks, size), scales=scales, zeros=zeros)


def signed_codes(packed: Bytes, grid: str, columns: int) -> NDArray[np.int8]:
    """(R, C) codes about zero, for grids without zero points."""
    spec = NAMES[grid]
    assert not spec.zero_points, "codes with zero points are not about zero"
    parts = split(packed, grid, columns)
    codes = _from_bits(parts.packed, spec.bits, spec.block or columns).reshape(len(packed), -1)[:, :columns]
    return (codes.astype(np.int16) - spec.middle).astype(np.int8)


def assemble(centred: NDArray[np.int8], scales: Floats, grid: str) -> Bytes:
    """Packed rows from (R, C) codes about zero and (R, B) scales as stored; C a multiple of the block."""
    spec = NAMES[grid]
    rows, columns = centred.shape
    assert not spec.zero_points and columns % (spec.block or columns) == 0, "whole blocks about zero"
    stored = (centred.astype(np.int16) + spec.middle).astype(np.uint8)
    return _join(stored.reshape(*scales.shape, -1), scales, np.empty((rows, 0), np.uint8), spec, columns)


def read_codes(packed: Bytes, grid: str, columns: int) -> NDArray[np.uint8]:
    """(R, row bytes) → (R, C) codes, as stored."""
    spec = NAMES[grid]
    parts = split(packed, grid, columns)
    codes = _from_bits(parts.packed, spec.bits, spec.block or columns).reshape(len(packed), -1)
    return np.ascontiguousarray(codes[:, :columns])


def write_codes(packed: Bytes, grid: str, codes: NDArray[np.uint8]) -> Bytes:
    """Packed rows with (R, C) codes in place of their own; scales, zero points and padding stay. A copy."""
    spec = NAMES[grid]
    rows, columns = codes.shape
    parts = split(packed, grid, columns)
    kept = _from_bits(parts.packed, spec.bits, spec.block or columns)
    flat = kept.reshape(rows, -1)
    flat[:, :columns] = codes
    found = packed.copy()
    found[:, : parts.packed[0].size if rows else 0] = _to_bits(flat.reshape(kept.shape), spec.bits).reshape(rows, -1)
    return found


def scales_and_zeros(packed: Bytes, grid: str, columns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R, B) scales, and zero points where they are stored: zeros in the other grids."""
    parts = split(packed, grid, columns)
    scales = parts.scales.astype(np.float64)
    if parts.zeros is None:
        return scales, np.zeros_like(scales)
    return scales, _from_bits(parts.zeros, NAMES[grid].bits, scales.shape[1]).astype(np.float64)


def rescale(packed: Bytes, grid: str, columns: int, factors: NDArray[np.float64]) -> Bytes:
    """Packed rows with their scales multiplied by (R, B) factors, as far as they can be stored; a copy."""
    spec = NAMES[grid]
    blocks = spec.blocks(columns)
    start = blocks * spec.block_bytes(columns)
    scales, _ = scales_and_zeros(packed, grid, columns)
    kind = np.float32 if spec.scale_bytes == 4 else np.float16
    stored = _storable((scales * factors).astype(np.float32), spec).astype(kind)
    found = packed.copy()
    found[:, start : start + blocks * spec.scale_bytes] = np.ascontiguousarray(stored).view(np.uint8)
    return found


def join_columns(parts: list[Bytes], grid: str, columns: int) -> Bytes:
    """Whole rows of C columns from packed pieces of them, of whole blocks each (the last may be shorter)."""
    spec = NAMES[grid]
    assert spec.block, "rows with one scale come in one piece"
    codes, scales, zeros = [], [], []
    left = columns
    for part in parts:
        # A piece's columns follow from its size: blocks of bytes, scales and zero points.
        blocks = next(n for n in range(1, 1 + spec.blocks(left)) if _width_of(spec, n) == part.shape[1])
        width = min(blocks * spec.block, left)
        piece = split(part, grid, width)
        codes.append(piece.packed)
        scales.append(piece.scales)
        if piece.zeros is not None:
            zeros.append(_from_bits(piece.zeros, spec.bits, blocks))
        left -= width
    rows = len(parts[0])
    kind = np.float32 if spec.scale_bytes == 4 else np.float16
    joined = [
        np.concatenate(codes, axis=1).reshape(rows, -1),
        np.ascontiguousarray(np.concatenate(scales, axis=1).astype(kind)).view(np.uint8).reshape(rows, -1),
    ]
    if zeros:
        joined.append(_to_bits(np.concatenate(zeros, axis=1), spec.bits))
    return np.concatenate(joined, axis=1)


def _width_of(spec: Uniform, blocks: int) -> int:
    zeros = -(-blocks * spec.bits // 8) if spec.zero_points else 0
    return blocks * (spec.block_bytes(spec.block) + spec.scale_bytes) + zeros


def _round(
    weights: Floats, spec: Uniform, importance: Floats | None
) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """(R, B, N) codes, (R, B) scales, (R, B) zero points with the least weighted error that the search finds."""
    rows, columns = weights.shape
    width = spec.block or columns
    blocks = spec.blocks(columns)
    padding = blocks * width - columns
    values = np.pad(weights, ((0, 0), (0, padding))).reshape(rows, blocks, width).astype(np.float32)
    cost = np.ones(columns, np.float32) if importance is None or not importance.any() else importance
    # A floor keeps columns that were never active from being rounded without any care.
    cost = np.maximum(cost, np.float32(cost.mean() * 1e-3 + 1e-20))
    heights = np.pad(cost, (0, padding)).reshape(1, blocks, width).astype(np.float32)
    best_error = np.full((rows, blocks), np.inf, dtype=np.float32)
    best_scale = np.zeros((rows, blocks), dtype=np.float32)
    best_zero = np.full((rows, blocks), spec.middle, dtype=np.float32)
    best_codes = np.full(values.shape, spec.middle, dtype=np.uint8)
    for scale, zero in _starts(values, spec):
        for _ in range(2):
            scale = _storable(scale, spec)
            codes = _codes(values, scale, zero, spec)
            centred = codes - zero[:, :, None]
            error = (heights * np.square(values - scale[:, :, None] * centred)).sum(-1)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scale = np.where(better, scale, best_scale)
            best_zero = np.where(better, zero, best_zero)
            best_codes = np.where(better[:, :, None], codes.astype(np.uint8), best_codes)
            weighted = heights * centred
            norm = (weighted * centred).sum(-1)
            scale = np.where(norm > 0, (weighted * values).sum(-1) / np.where(norm > 0, norm, 1), scale)
    if padding:
        best_codes[:, -1, width - padding :] = best_zero[:, -1:].astype(np.uint8)
    return best_codes, best_scale, best_zero.astype(np.uint8)


def _starts(values: Floats, spec: Uniform) -> list[tuple[Floats, Floats]]:
    """Ranges to try: (R, B) scales and zero points, from the whole range down to a clipped one."""
    low, high = spec.levels
    shares = {2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 8: (1.0, 0.98)}[spec.bits]
    starts = []
    if spec.zero_points:
        bottom, top = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
        for share in shares:
            scale = (top - bottom) * np.float32(share / (high - low))
            zero = np.rint(-bottom * np.float32(share) / np.where(scale > 0, scale, 1)).clip(low, high)
            starts.append((scale, np.where(scale > 0, zero, spec.middle).astype(np.float32)))
        return starts
    middle = np.full(values.shape[:2], spec.middle, dtype=np.float32)
    largest = np.abs(values).max(-1)
    for share in shares:
        starts.append((largest * np.float32(share / (high - spec.middle)), middle))
    if not spec.symmetric_range:
        # One level more below zero than above: a negative scale gives it to whichever side needs it.
        index = np.abs(values).argmax(-1)
        signed = np.take_along_axis(values, index[:, :, None], -1)[:, :, 0]
        starts += [(signed * np.float32(-share / spec.middle), middle) for share in shares]
    return starts


def _storable(scale: Floats, spec: Uniform) -> Floats:
    """The scale as it will be stored; never zero, so that it can be divided by."""
    if spec.scale_bytes == 4:
        stored = np.where(scale == 0, np.float32(1e-8), scale).astype(np.float32)
        return _upper_half(stored) if spec.partial and spec.bits == 4 else stored
    smallest, largest = (_SMALLEST_SCALE, _LARGEST_SCALE) if spec.block else (_SMALLEST_F16, _LARGEST_F16)
    rounded = _upper_half(scale) if spec.block else scale
    if float(np.abs(rounded).max(initial=0)) > largest:
        raise UnsupportedError("weights so large that their scale does not fit 16 bits", hint="Check the checkpoint.")
    kept = np.where(np.abs(rounded) < smallest, np.copysign(smallest, rounded), rounded)
    return kept if spec.block else kept.astype(np.float16).astype(np.float32)


def _upper_half(values: Floats) -> Floats:
    """Rounded to the nearest bfloat16 (8 significant bits), ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def _codes(values: Floats, scale: Floats, zero: Floats, spec: Uniform) -> Floats:
    low, high = spec.levels
    codes: Floats = np.rint(values / scale[:, :, None]) + zero[:, :, None]
    return codes.clip(low, high)


def _join(codes: NDArray[np.uint8], scales: Floats, zeros: NDArray[np.uint8], spec: Uniform, columns: int) -> Bytes:
    rows = len(codes)
    kind = np.float32 if spec.scale_bytes == 4 else np.float16
    parts = [
        _to_bits(codes, spec.bits).reshape(rows, -1),
        np.ascontiguousarray(scales.astype(kind)).view(np.uint8).reshape(rows, -1),
    ]
    if spec.zero_points:
        parts.append(_to_bits(zeros, spec.bits))
    return np.concatenate(parts, axis=1)


def _to_bits(codes: NDArray[np.uint8], bits: int) -> Bytes:
    """(…, N) codes → (…, bytes), low bits first."""
    each = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    packed = np.zeros((*padded.shape[:-1], padded.shape[-1] // each), dtype=np.uint8)
    for position in range(each):
        packed |= padded[..., position::each] << np.uint8(bits * position)
    return packed


def _from_bits(packed: Bytes, bits: int, count: int) -> NDArray[np.uint8]:
    """(…, bytes) → (…, count) codes."""
    each = 8 // bits
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * each), dtype=np.uint8)
    for position in range(each):
        codes[..., position::each] = (packed >> np.uint8(bits * position)) & np.uint8((1 << bits) - 1)
    return codes[..., :count]
