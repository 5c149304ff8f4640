"""Codes written into packed rows stand for exactly step · level + offset in the runtime's own unpacking."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgegen import grids
from edgegen.grids import codes, ggml_codes, uniform

Floats = NDArray[np.float32]
COLUMNS = 512
GRIDS = [*ggml_codes.LAYOUTS, *uniform.NAMES]


def weights(rows: int = 6, columns: int = COLUMNS) -> Floats:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def any_codes(grid: str, columns: int = COLUMNS) -> NDArray[np.uint8]:
    """All of a grid's codes, at random places."""
    levels = codes.levels_of(grid)
    drawn = np.random.default_rng(1).integers(0, len(levels.values), (6, columns))
    drawn.flat[: len(levels.values)] = np.arange(len(levels.values))
    return (drawn + levels.first).astype(np.uint8)


def meant(packed: NDArray[np.uint8], grid: str, chosen: NDArray[np.uint8]) -> Floats:
    """Step · level + offset, computed here."""
    levels, columns = codes.levels_of(grid), chosen.shape[1]
    found = codes.lattice(packed, grid, columns)
    width = levels.width or columns
    steps = np.repeat(found.steps, width, axis=1)[:, :columns]
    offsets = np.repeat(found.offsets, width, axis=1)[:, :columns]
    return np.asarray(steps * levels.values[chosen.astype(int) - levels.first] + offsets, dtype=np.float32)


@pytest.mark.parametrize("grid", GRIDS)
def test_written_codes_are_what_the_runtime_unpacks(grid: str) -> None:
    packed, chosen = grids.pack(weights(), grid), any_codes(grid)
    written = codes.write_codes(packed, grid, chosen)
    assert np.array_equal(codes.read_codes(written, grid, COLUMNS), chosen)
    assert np.array_equal(grids.unpack(written, grid, COLUMNS), meant(packed, grid, chosen))


@pytest.mark.parametrize("grid", GRIDS)
def test_writing_the_codes_that_are_there_changes_no_byte(grid: str) -> None:
    packed = grids.pack(weights(), grid)
    before = packed.copy()
    assert np.array_equal(codes.write_codes(packed, grid, codes.read_codes(packed, grid, COLUMNS)), packed)
    codes.write_codes(packed, grid, any_codes(grid))
    assert np.array_equal(packed, before), "packed rows are left alone"


@pytest.mark.parametrize("grid", GRIDS)
def test_pieces_join_to_rows(grid: str) -> None:
    unit = codes.levels_of(grid).unit or COLUMNS
    pieces = [grids.pack(weights()[:, start : start + unit], grid) for start in range(0, COLUMNS, unit)]
    whole = codes.join(pieces, grid, COLUMNS)
    assert whole.shape == (6, grids.row_bytes(grid, COLUMNS))
    wanted = np.concatenate([grids.unpack(piece, grid, unit) for piece in pieces], axis=1)
    assert np.array_equal(grids.unpack(whole, grid, COLUMNS), wanted)


@pytest.mark.parametrize("grid", ["u4_32", "s8_64", "u2_16"])
@pytest.mark.parametrize("columns", [40, 100])
def test_a_shorter_last_block(grid: str, columns: int) -> None:
    packed, chosen = grids.pack(weights(columns=columns), grid), any_codes(grid, columns)
    written = codes.write_codes(packed, grid, chosen)
    assert np.array_equal(grids.unpack(written, grid, columns), meant(packed, grid, chosen))
    unit = codes.levels_of(grid).unit
    starts = range(0, columns, unit)
    pieces = [grids.pack(weights(columns=columns)[:, start : start + unit], grid) for start in starts]
    wanted = np.concatenate(
        [grids.unpack(p, grid, min(unit, columns - s)) for p, s in zip(pieces, starts, strict=True)], axis=1
    )
    assert np.array_equal(grids.unpack(codes.join(pieces, grid, columns), grid, columns), wanted)


@pytest.mark.parametrize("grid", GRIDS)
def test_scales_are_multiplied(grid: str) -> None:
    levels = codes.levels_of(grid)
    unit = levels.unit or COLUMNS
    packed = grids.pack(weights()[:, :unit] + 0.5, grid)
    factors = np.random.default_rng(2).uniform(0.9, 1.1, (6, levels.scales))
    before = codes.lattice(packed, grid, unit)
    after = codes.lattice(codes.rescale(packed, grid, unit, factors), grid, unit)
    # Scales have 8 to 24 significant bits.
    np.testing.assert_allclose(after.steps, before.steps * factors[:, :1], rtol=2**-8)
    np.testing.assert_allclose(after.offsets, before.offsets * factors[:, -1:], rtol=2**-8)
    assert np.array_equal(codes.rescale(packed, grid, unit, np.ones_like(factors)), packed)


@pytest.mark.parametrize("grid", GRIDS)
def test_scales_of_whole_rows_are_multiplied_unit_by_unit(grid: str) -> None:
    levels = codes.levels_of(grid)
    unit = levels.unit or COLUMNS
    packed = grids.pack(weights() + 0.5, grid)
    factors = np.random.default_rng(2).uniform(0.9, 1.1, (6, COLUMNS // unit, levels.scales))
    pieces = [
        codes.rescale(grids.pack(weights()[:, start : start + unit] + 0.5, grid), grid, unit, factors[:, number])
        for number, start in enumerate(range(0, COLUMNS, unit))
    ]
    found = codes.rescale_rows(packed, grid, COLUMNS, factors)
    assert np.array_equal(found, codes.join(pieces, grid, COLUMNS))
    assert np.array_equal(codes.rescale_rows(packed, grid, COLUMNS, np.ones_like(factors)), packed)


def test_grids_whose_code_words_stand_for_several_weights_have_none() -> None:
    without = [
        grid for grid in ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "f16", "f32") if codes.has_codes(grid)
    ]
    assert without == []
