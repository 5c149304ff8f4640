"""Claims about every grid of GGUF files: sizes, inverse, errors, weighting, and no way to crash ggml."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.grids.ggml import TYPES, block_columns, pack, rounded, row_bytes, unpack

Floats = NDArray[np.float32]
COLUMNS = 512
GRIDS = list(TYPES)
EXACT = ("f32", "f16", "bf16")
BLOCKED = [grid for grid in GRIDS if grid not in EXACT]


def weights(rows: int = 8, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, COLUMNS)).astype(np.float32)


def importance(seed: int = 1) -> Floats:
    return np.random.default_rng(seed).uniform(0.05, 3, COLUMNS).astype(np.float32)


def needed(grid: str) -> Floats | None:
    """Weights for grids that refuse to work without."""
    return np.ones(COLUMNS, np.float32) if grid in ("iq2_xxs", "iq2_xs") else None


def error(original: Floats, other: Floats, weighting: Floats | None = None) -> float:
    return float(np.mean((original - other) ** 2 * (1.0 if weighting is None else weighting)))


def bits(grid: str) -> float:
    return 8 * row_bytes(grid, COLUMNS) / COLUMNS


@pytest.mark.parametrize("grid", GRIDS)
def test_sizes_are_those_of_the_format(grid: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(TYPES[grid])]
    assert block_columns(grid) == block
    assert row_bytes(grid, 2 * block) == 2 * size
    assert gguf.GGMLQuantizationType(TYPES[grid]).name.lower() == grid


# The reference reader builds its tables for these in Python, which takes seconds.
_SLOW = ("iq2_xxs", "iq2_xs", "iq2_s")


@pytest.mark.parametrize(
    "grid", [pytest.param(grid, marks=[pytest.mark.slow] if grid in _SLOW else []) for grid in GRIDS]
)
def test_unpacking_equals_the_reference_reader(grid: str) -> None:
    packed = pack(weights(2), grid, needed(grid))
    stored = {"f32": np.float32, "f16": np.float16}.get(grid, np.uint8)
    expected = gguf.quants.dequantize(packed.view(stored), gguf.GGMLQuantizationType(TYPES[grid]))
    assert np.array_equal(unpack(packed, grid, COLUMNS), expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_packing_what_was_unpacked(grid: str) -> None:
    original = weights()
    once = rounded(original, grid, needed(grid))
    twice = rounded(once, grid, needed(grid))
    if grid in (*EXACT, "q4_0", "q5_0", "q8_0"):
        assert np.array_equal(once, twice)
    # Elsewhere scales are searched for anew, which finds the same error or a little more.
    assert error(once, twice) <= 0.2 * error(original, once)
    assert error(original, twice) <= 1.3 * error(original, once)


@pytest.mark.parametrize("grid", GRIDS)
def test_permuting_rows_permutes_what_is_packed(grid: str) -> None:
    original, order = weights(), np.random.default_rng(3).permutation(8)
    assert np.array_equal(pack(original[order], grid, needed(grid)), pack(original, grid, needed(grid))[order])


def test_the_error_falls_with_the_bits() -> None:
    for family in (
        ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "f16", "f32"),
        ("q4_0", "q5_0", "q8_0"),
        ("q4_1", "q5_1", "q8_0"),
        ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs", "q5_k"),
    ):
        errors = [error(weights(), rounded(weights(), grid, np.ones(COLUMNS, np.float32))) for grid in family]
        assert errors == sorted(errors, reverse=True), dict(zip(family, errors, strict=True))
        sizes = [bits(grid) for grid in family]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("grid", BLOCKED)
def test_the_error_is_near_what_so_many_bits_allow(grid: str) -> None:
    # Rate-distortion bound of a Gaussian: 4^-bits.  Real grids stay within a factor of seven.
    found, bound = error(weights(), rounded(weights(), grid, needed(grid))), 4.0 ** -bits(grid)
    assert bound < found < 7 * bound


@pytest.mark.parametrize("grid", [grid for grid in BLOCKED if grid not in ("q8_0", "iq2_xxs", "iq2_xs")])
def test_importance_lowers_the_weighted_error(grid: str) -> None:
    with_it = without = 0.0
    for seed in range(4):
        # Real inputs differ by orders of magnitude; so do their mean squares.
        weighting = np.exp(np.random.default_rng(seed).normal(0, 1.5, COLUMNS)).astype(np.float32)
        original = weights(8, seed)
        with_it += error(original, rounded(original, grid, weighting), weighting)
        without += error(original, rounded(original, grid), weighting)
    assert with_it < without


@pytest.mark.parametrize("grid", ["q4_0", "q4_k", "q6_k", "iq4_xs", "iq2_s"])
def test_the_unit_of_importance_does_not_matter(grid: str) -> None:
    usual = error(weights(), rounded(weights(), grid, importance()))
    for scale in (1e-12, 1e12):
        scaled = error(weights(), rounded(weights(), grid, importance() * np.float32(scale)))
        assert scaled == pytest.approx(usual, rel=0.05)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid not in ("iq2_xxs", "iq2_xs")])
def test_importance_of_zeros_counts_as_none(grid: str) -> None:
    assert np.array_equal(pack(weights(), grid, np.zeros(COLUMNS, np.float32)), pack(weights(), grid))


@pytest.mark.parametrize("grid", BLOCKED)
def test_dead_inputs_do_not_lose_their_block(grid: str) -> None:
    weighting = importance()
    weighting[: COLUMNS // 2] = 0
    found = rounded(weights(), grid, weighting)
    assert error(weights(), found) < 12 * 4.0 ** -bits(grid)


@pytest.mark.parametrize("grid", ["iq2_xxs", "iq2_xs"])
@pytest.mark.parametrize("weighting", [None, np.zeros(COLUMNS, np.float32)])
def test_grids_that_need_importance_are_refused_without(grid: str, weighting: Floats | None) -> None:
    with pytest.raises(UnsupportedError, match=grid) as caught:
        pack(weights(), grid, weighting)
    assert "--data" in caught.value.hint


@pytest.mark.parametrize("grid", BLOCKED)
@pytest.mark.parametrize("columns", [0, 1, 172])
def test_rows_that_no_block_divides_are_refused(grid: str, columns: int) -> None:
    with pytest.raises(ConfigError, match=f"{grid}.*{columns}"):
        pack(np.ones((2, columns), np.float32), grid, np.ones(columns, np.float32))
    with pytest.raises(ConfigError):
        unpack(np.zeros((2, 5), np.uint8), grid, columns)


@pytest.mark.parametrize("grid", EXACT)
def test_odd_rows_fit_where_there_are_no_blocks(grid: str) -> None:
    assert rounded(np.ones((2, 172), np.float32), grid).shape == (2, 172)


def test_an_unknown_grid() -> None:
    with pytest.raises(ConfigError, match="q9_9") as caught:
        pack(weights(), "q9_9")
    assert "q8_0" in caught.value.hint


@pytest.mark.parametrize("grid", GRIDS)
def test_zero_rows_in_zero_rows_out_and_zeros_stay_zeros(grid: str) -> None:
    assert pack(weights(0), grid, needed(grid)).shape == (0, row_bytes(grid, COLUMNS))
    assert rounded(weights(0), grid, needed(grid)).shape == (0, COLUMNS)
    assert not rounded(np.zeros((2, COLUMNS), np.float32), grid, needed(grid)).any()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("value", [0.37, -0.37, 1e-3, 100.0])
def test_constant_rows_stay_near_their_value(grid: str, value: float) -> None:
    found = rounded(np.full((2, COLUMNS), value, np.float32), grid, needed(grid))
    assert np.abs(found / value - 1).max() < (0.75 if grid.startswith("iq2") else 0.35)


@pytest.mark.parametrize("grid", GRIDS)
def test_huge_and_tiny_weights_stay_finite(grid: str) -> None:
    for scale in (1.5e4, 1e-7, 1e-30):
        found = rounded(weights() * np.float32(scale), grid, needed(grid))
        assert np.isfinite(found).all()
    original = weights() * np.float32(1.5e4)
    assert error(original, rounded(original, grid, needed(grid))) < 0.3 * error(original, np.zeros_like(original))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_weights_that_would_abort_ggml_are_refused(grid: str, value: float) -> None:
    original = weights()
    original[3, 100] = value
    if value == 1e30 and grid in ("f32", "bf16"):
        assert rounded(original, grid)[3, 100] == pytest.approx(1e30, rel=1e-2)
        return
    with pytest.raises(UnsupportedError, match="weights from"):
        pack(original, grid, needed(grid))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_importance_that_is_no_number_is_refused(value: float) -> None:
    weighting = importance()
    weighting[5] = value
    with pytest.raises(UnsupportedError, match="importance"):
        pack(weights(), "iq3_s", weighting)


def test_other_layouts_in_memory_pack_alike() -> None:
    wide = np.asfortranarray(weights())
    assert np.array_equal(pack(wide, "q4_k"), pack(weights(), "q4_k"))
    packed = np.asfortranarray(pack(weights(), "q4_k"))
    assert np.array_equal(unpack(packed, "q4_k", COLUMNS), rounded(weights(), "q4_k"))
