"""Evenly spaced levels: the packing is exact, the rounding is at least as good as the plain one."""

import numpy as np
import pytest

from edgegen import grids
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.grids import uniform

NAMES = sorted(uniform.NAMES)


def weights(rows: int, columns: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("grid", [name for name in NAMES if not uniform.NAMES[name].zero_points])
def test_packing_what_was_unpacked_changes_nothing(grid: str) -> None:
    packed = uniform.pack(weights(5, 256), grid)
    values = uniform.unpack(packed, grid, 256)
    again = uniform.unpack(uniform.pack(values, grid), grid, 256)
    np.testing.assert_allclose(again, values, atol=2e-3 if uniform.NAMES[grid].scale_bytes == 2 else 1e-5)


@pytest.mark.parametrize("grid", NAMES)
def test_values_are_whole_steps_of_their_blocks_scale(grid: str) -> None:
    spec = uniform.NAMES[grid]
    packed = uniform.pack(weights(3, 256), grid)
    assert packed.shape == (3, uniform.row_bytes(grid, 256))
    steps = uniform.unpack(packed, grid, 256).reshape(3, -1, spec.block or 256)
    steps = steps / uniform.split(packed, grid, 256).scales[:, :, None]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert steps.max() - steps.min() <= 2 ** (spec.bits + 1)
    for block in steps.reshape(-1, spec.block or 256):
        assert np.ptp(block) <= 2**spec.bits - 1 + 1e-4


@pytest.mark.parametrize("grid", ["u4_32", "s4_32", "i4_32", "u2_16", "i8_row", "s8_64"])
def test_the_search_beats_the_whole_range(grid: str) -> None:
    """Against rounding to nearest over the whole range, with the same levels and storage."""
    spec = uniform.NAMES[grid]
    values, cost = weights(16, 256, seed=3), np.random.default_rng(1).random(256).astype(np.float32) + 0.01
    found = uniform.unpack(uniform.pack(values, grid, cost), grid, 256)
    blocks = values.reshape(16, -1, spec.block or 256)
    if spec.zero_points:
        low, high = blocks.min(-1, keepdims=True).clip(max=0), blocks.max(-1, keepdims=True).clip(min=0)
        scale = (high - low) / (2**spec.bits - 1)
        zero = np.rint(-low / scale)
        plain = (np.rint(blocks / scale) + zero).clip(0, 2**spec.bits - 1) - zero
    else:
        most = 2 ** (spec.bits - 1) - 1
        scale = np.abs(blocks).max(-1, keepdims=True) / most
        plain = np.rint(blocks / scale).clip(-most, most)
    nearest = (plain * scale).reshape(16, 256)
    assert (cost * (found - values) ** 2).sum() <= 1.0001 * (cost * (nearest - values) ** 2).sum()


def test_importance_moves_the_error_to_where_it_costs_little() -> None:
    values = weights(64, 64, seed=5)
    cost = np.where(np.arange(64) % 2, 100.0, 0.01).astype(np.float32)
    even = uniform.unpack(uniform.pack(values, "s2_64"), "s2_64", 64) - values
    weighted = uniform.unpack(uniform.pack(values, "s2_64", cost), "s2_64", 64) - values
    assert (weighted[:, 1::2] ** 2).sum() < (even[:, 1::2] ** 2).sum()


def test_nibbles_are_low_first_and_blocks_start_on_bytes() -> None:
    """The layout that MatMulNBits reads: (rows, blocks, bytes), scales, zero points two to a byte."""
    values = np.concatenate([np.arange(16), np.zeros(16), np.arange(16) * 2]).astype(np.float32)[None]
    parts = uniform.split(uniform.pack(values, "u4_16"), "u4_16", 48)
    assert parts.packed.shape == (1, 3, 8) and parts.scales.shape == (1, 3)
    assert parts.zeros is not None and parts.zeros.shape == (1, 2)
    codes = np.stack([parts.packed[0] & 15, parts.packed[0] >> 4], axis=-1).reshape(3, 16)
    zeros = np.array([parts.zeros[0, 0] & 15, parts.zeros[0, 0] >> 4, parts.zeros[0, 1] & 15])
    rebuilt = (codes.astype(float) - zeros[:, None]) * parts.scales[0][:, None]
    np.testing.assert_allclose(rebuilt.reshape(-1), values[0], atol=1e-5)


def test_a_short_last_block_is_padded_with_zeros() -> None:
    values = weights(4, 40)
    parts = uniform.split(uniform.pack(values, "u4_32"), "u4_32", 40)
    assert parts.packed.shape == (4, 2, 16)
    assert np.abs(uniform.unpack(uniform.pack(values, "u4_32"), "u4_32", 40) - values).max() < 0.3
    padding = np.stack([parts.packed[:, 1] & 15, parts.packed[:, 1] >> 4], axis=-1).reshape(4, 32)[:, 8:]
    assert parts.zeros is not None
    assert (padding == (parts.zeros[:, 0] >> 4)[:, None]).all(), "padding stands for 0"


def test_signed_codes_leave_the_lowest_level_out() -> None:
    for grid, most in (("i8_row", 127), ("i4_row", 7), ("i4_32", 7)):
        packed = uniform.pack(weights(6, 64), grid)
        codes = uniform.signed_codes(packed, grid, 64)
        assert codes.dtype == np.int8 and codes.min() >= -most and codes.max() <= most
        scales = uniform.split(packed, grid, 64).scales
        rebuilt = codes.reshape(6, scales.shape[1], -1) * scales[:, :, None]
        np.testing.assert_array_equal(rebuilt.reshape(6, 64), uniform.unpack(packed, grid, 64))


@pytest.mark.parametrize("grid", NAMES)
def test_zeros_stay_zeros(grid: str) -> None:
    assert (uniform.unpack(uniform.pack(np.zeros((2, 128), np.float32), grid), grid, 128) == 0).all()


def test_rows_are_packed_one_by_one() -> None:
    """A trimmed vocabulary's table is a selection of the whole table's packed rows."""
    values = weights(10, 96)
    packed = uniform.pack(values, "u4_32")
    np.testing.assert_array_equal(packed[[1, 4]], uniform.pack(values[[1, 4]], "u4_32"))


def test_many_rows_take_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = uniform.pack(weights(7, 64), "s4_32")
    monkeypatch.setattr(uniform, "_CHUNK_VALUES", 128)
    np.testing.assert_array_equal(uniform.pack(weights(7, 64), "s4_32"), whole)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ConfigError, match="blocks of 32"):
        uniform.pack(weights(1, 48), "i4_32")
    with pytest.raises(UnsupportedError, match="NaN"):
        uniform.pack(np.full((1, 32), np.nan, np.float32), "u4_32")
    with pytest.raises(UnsupportedError, match="16 bits"):
        uniform.pack(np.full((1, 32), 1e7, np.float32), "i4_32")


def test_every_name_belongs_to_one_family() -> None:
    names = [name for family in (grids.floats, grids.uniform) for name in family.NAMES]
    assert len(names) == len(set(names))
    assert grids.family_of("q4_k") is grids.ggml and grids.family_of("f16") is grids.floats
    with pytest.raises(ConfigError, match="'q9'"):
        grids.pack(weights(1, 32), "q9")
