"""Compensated rounding keeps a layer's outputs better than plain rounding, at the same bytes, on every grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgegen import grids
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.grids import ggml_codes
from edgegen.modeling.compensation import can_compensate, factored, pack_compensated, remaining_share

Floats = NDArray[np.float32]
COLUMNS = 256
GRIDS = [*ggml_codes.LAYOUTS, "u4_32", "s4_32", "u2_64", "s8_128", "i4_row", "i8_row", "i4_32"]


def inputs(columns: int = COLUMNS, seed: int = 0) -> Floats:
    """Tokens whose inputs are correlated and of different sizes, as a model's are."""
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((2000, columns // 4)) @ draw.standard_normal((columns // 4, columns)) / 8
    return ((mixed + 0.3 * draw.standard_normal((2000, columns))) * draw.uniform(0.2, 3, columns)).astype(np.float32)


def hessian(columns: int = COLUMNS, seed: int = 0) -> Floats:
    x = inputs(columns, seed)
    return np.asarray(x.T @ x / len(x), dtype=np.float32)


def weights(rows: int = 12, columns: int = COLUMNS) -> Floats:
    return np.random.default_rng(5).standard_normal((rows, columns)).astype(np.float32)


def output_error(original: Floats, packed: NDArray[np.uint8], grid: str, h: Floats) -> float:
    change = (grids.unpack(packed, grid, original.shape[1]) - original).astype(np.float64)
    return float(((change @ h) * change).sum())


@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_change_less_than_by_plain_rounding(grid: str) -> None:
    h = hessian()
    plain = grids.pack(weights(), grid, np.ascontiguousarray(h.diagonal()))
    ours = pack_compensated(weights(), grid, factored(h))
    assert ours.shape == plain.shape and ours.dtype == np.uint8
    assert output_error(weights(), ours, grid, h) < 0.6 * output_error(weights(), plain, grid, h)


@pytest.mark.parametrize("grid", ["q4_0", "q4_k", "iq4_nl", "u4_32", "i4_row"])
def test_rows_do_not_meet(grid: str) -> None:
    factors = factored(hessian())
    whole = pack_compensated(weights(), grid, factors)
    order = np.array([7, 2, 11])
    assert np.array_equal(pack_compensated(weights()[order], grid, factors), whole[order])


def test_equal_inputs_give_equal_bytes_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack_compensated(weights(), "q5_1", factored(hessian()))
    monkeypatch.setattr("edgegen.modeling.compensation._CHUNK_VALUES", 3 * COLUMNS)
    assert np.array_equal(pack_compensated(weights(), "q5_1", factored(hessian())), whole)


def test_inputs_that_do_not_correlate_leave_little_to_compensate() -> None:
    h = np.diag(np.random.default_rng(3).uniform(0.5, 2, COLUMNS)).astype(np.float32)
    assert remaining_share(factored(h)) == pytest.approx(1)
    plain = grids.pack(weights(), "q4_0", np.ascontiguousarray(h.diagonal()))
    ours = pack_compensated(weights(), "q4_0", factored(h))
    assert output_error(weights(), ours, "q4_0", h) <= 1.001 * output_error(weights(), plain, "q4_0", h)


def test_the_expected_share_is_near_the_measured_one() -> None:
    h = hessian()
    plain = grids.pack(weights(), "q4_0", np.ascontiguousarray(h.diagonal()))
    ours = pack_compensated(weights(), "q4_0", factored(h))
    measured = output_error(weights(), ours, "q4_0", h) / output_error(weights(), plain, "q4_0", h)
    assert 0.4 * measured < remaining_share(factored(h)) < 2.5 * measured


@pytest.mark.parametrize("grid", ["q4_0", "q8_0", "q4_1", "q6_k", "i4_row"])
def test_padding_and_dead_inputs(grid: str) -> None:
    h, original = hessian(), weights()
    h[200:], h[:, 200:], original[:, 200:] = 0, 0, 0  # as zero channels are padded
    h[10], h[:, 10] = 0, 0  # an input that calibration never saw
    found = grids.unpack(pack_compensated(original, grid, factored(h)), grid, COLUMNS)
    assert np.isfinite(found).all()
    assert not found[:, 224:].any() or grid == "i4_row"
    assert np.abs(found[:, 200:]).max() <= np.abs(found).max() / 16
    assert np.abs(found[:, 10] - original[:, 10]).max() < 0.6, "its weights stay near what they were"


@pytest.mark.parametrize("grid", ["q4_0", "q4_k", "u4_32", "i8_row"])
def test_edges(grid: str) -> None:
    factors = factored(hessian())
    assert pack_compensated(weights(0), grid, factors).shape == (0, grids.row_bytes(grid, COLUMNS))
    zeros = pack_compensated(np.zeros((2, COLUMNS), np.float32), grid, factors)
    assert not grids.unpack(zeros, grid, COLUMNS).any()
    huge = weights() * np.float32(1e4)
    assert np.isfinite(grids.unpack(pack_compensated(huge, grid, factors), grid, COLUMNS)).all()
    nothing = factored(np.zeros((COLUMNS, COLUMNS), np.float32))
    assert np.isfinite(grids.unpack(pack_compensated(weights(), grid, nothing), grid, COLUMNS)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    original = weights()
    original[3, 100] = value
    for grid in ("q4_0", "u4_32"):
        with pytest.raises(UnsupportedError):
            pack_compensated(original, grid, factored(hessian()))


def test_rows_that_no_block_divides_are_refused() -> None:
    with pytest.raises(ConfigError, match="172"):
        pack_compensated(np.ones((2, 172), np.float32), "q4_0", factored(np.eye(172, dtype=np.float32)))


def test_a_hessian_of_few_tokens_is_damped_until_it_can_be_inverted() -> None:
    x = inputs()[:3]
    factors = factored(np.asarray(x.T @ x, dtype=np.float32), damping=1e-12)
    identity = factors.upper.T @ factors.upper @ factors.hessian
    assert torch.allclose(identity, torch.eye(COLUMNS, dtype=torch.float64), atol=1e-3)


def test_code_books_of_several_weights_are_left_to_ggml() -> None:
    assert not any(can_compensate(grid) for grid in ("iq3_xxs", "iq2_s", "f16"))
