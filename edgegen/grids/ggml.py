"""The grids of GGUF files, rounded by ggml's own code and unpacked by it.

ggml exports `ggml_quantize_chunk`, which covers every type (the `gguf` package can only write the simple ones), and
a `to_float` function for each type. Both are called through ctypes out of the library that `llama-cpp-python`
ships, so what is packed here is bit for bit what llama.cpp executes.

Shapes: R rows (outputs), C columns (inputs, the length a block is cut from).

ggml does not check row lengths: a row that is not a multiple of the block corrupts the heap. Hence the guard in
`pack`, which no caller can get around.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegen.errors import ConfigError, UnsupportedError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

TYPES: dict[str, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 12,
    "q5_k": 13,
    "q6_k": 14,
    "iq2_xxs": 16,
    "iq2_xs": 17,
    "iq3_xxs": 18,
    "iq4_nl": 20,
    "iq3_s": 21,
    "iq2_s": 22,
    "iq4_xs": 23,
    "bf16": 30,
}
"""Grid name → ggml type number, as in ggml.h."""

NAMES = TYPES

_NEEDS_IMPORTANCE = frozenset({"iq2_xxs", "iq2_xs"})
"""ggml aborts the process when these are rounded without importance weights."""


_F16_MAX = 65504.0


class _Traits(ctypes.Structure):
    """The head of `struct ggml_type_traits`, as far as it is read here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


@functools.cache
def library() -> Any:
    """ggml's base library with its signatures declared.

    Raises:
        UnsupportedError: llama-cpp-python is not installed.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise UnsupportedError(
            "the GGUF grids need llama-cpp-python", hint="Install it with: pip install 'edgegen[gguf]'"
        ) from error
    folder = Path(llama_cpp.__file__).parent / "lib"
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        if (folder / name).exists():
            lib = ctypes.CDLL(str(folder / name))
            break
    else:
        raise UnsupportedError(
            f"{folder}: no ggml library in llama-cpp-python",
            hint="Reinstall it: pip install --force-reinstall llama-cpp-python",
        )
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return lib


@functools.cache
def block_columns(grid: str) -> int:
    """Columns that a row's length must be a multiple of."""
    return int(_traits(grid).block)


def row_bytes(grid: str, columns: int) -> int:
    """Packed size of one row.

    Raises:
        ConfigError: the row is not a multiple of the grid's block.
    """
    traits = _traits(grid)
    if columns <= 0 or columns % traits.block:
        raise ConfigError(
            f"{grid} packs blocks of {traits.block} columns; a row of {columns} cannot be cut into them",
            hint="Use a grid with a smaller block, or f16.",
        )
    return int(columns // traits.block * traits.block_bytes)


def pack(weights: Floats, grid: str, importance: Floats | None = None) -> Bytes:
    """Round rows onto a grid.

    Args:
        weights: (R, C) float32, finite.
        grid: a key of `TYPES`.
        importance: (C,) float32, >= 0, the mean square of each input; larger means that an error there costs more.
            All zeros counts as none. None: ggml's own default weighting.

    Returns:
        (R, row_bytes) uint8.

    Raises:
        ConfigError: the row length does not fit the grid's block.
        UnsupportedError: the grid needs importance weights and there are none, or numbers are not finite or beyond
            what 16-bit scales can carry: ggml aborts the process on those.
    """
    rows, columns = weights.shape
    width = row_bytes(grid, columns)
    source = np.ascontiguousarray(weights, dtype=np.float32)
    if rows:
        _check_range("weights", source, np.inf if grid in ("f32", "bf16") else _F16_MAX)
    weighting = None
    if importance is not None and importance.any():
        _check_range("importance weights", importance, np.inf)
        # ggml divides by sums of these: a floor keeps a dead input from making a block's weights all zero.
        floor = np.float32(importance.mean() * 1e-6 + 1e-20)
        weighting = np.ascontiguousarray(np.maximum(importance, floor), dtype=np.float32)
        assert weighting.shape == (columns,), "one importance weight a column"
    if weighting is None and grid in _NEEDS_IMPORTANCE:
        raise UnsupportedError(
            f"{grid} cannot be rounded without importance weights", hint="Give --data, or another grid."
        )
    packed = np.empty((rows, width), dtype=np.uint8)
    if rows == 0:
        return packed
    written = library().ggml_quantize_chunk(
        TYPES[grid],
        source.ctypes.data,
        packed.ctypes.data,
        0,
        rows,
        columns,
        None if weighting is None else weighting.ctypes.data,
    )
    assert written == packed.size, "ggml wrote as many bytes as the format says"
    return packed


def _check_range(what: str, values: Floats, most: float) -> None:
    low, high = float(values.min()), float(values.max())  # NaN if any is
    if not (-most <= low and high <= most and np.isfinite(low) and np.isfinite(high)):
        raise UnsupportedError(
            f"{what} from {low:.3g} to {high:.3g} cannot be rounded",
            hint="They must be finite and within 16-bit range; check the checkpoint for NaN or overflow.",
        )


def unpack(packed: Bytes, grid: str, columns: int) -> Floats:
    """The real weights that packed rows stand for.

    Args:
        packed: (R, row_bytes) uint8.
        columns: C.

    Returns:
        (R, C) float32.
    """
    rows = packed.shape[0]
    source = np.ascontiguousarray(packed)
    if grid == "f32":
        return source.view(np.float32).reshape(rows, columns).copy()
    weights = np.empty((rows, columns), dtype=np.float32)
    assert packed.shape[1] == row_bytes(grid, columns)
    to_float = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(_traits(grid).to_float)
    to_float(source.ctypes.data, weights.ctypes.data, rows * columns)
    return weights


def rounded(weights: Floats, grid: str, importance: Floats | None = None) -> Floats:
    """What the weights become on a grid: pack, then unpack. (R, C) → (R, C)."""
    return unpack(pack(weights, grid, importance), grid, weights.shape[1])


@functools.cache
def _traits(grid: str) -> Any:
    if grid not in TYPES:
        raise ConfigError(f"unknown grid {grid!r}", hint="Known: " + ", ".join(TYPES) + ".")
    return library().ggml_get_type_traits(TYPES[grid]).contents
