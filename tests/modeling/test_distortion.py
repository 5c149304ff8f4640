"""What rounding cost beside Shannon's bound, held against the formulas written out and a code that reaches it."""

from __future__ import annotations

import numpy as np
import pytest

from edgegen.modeling.compensation import factored
from edgegen.modeling.distortion import Distortion, distortion_of, in_other_bytes, rounding_of
from edgegen.records.compressed import Rounding

ROWS, COLUMNS = 200, 48


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)


@pytest.fixture
def hessian() -> np.ndarray:
    inputs = np.random.default_rng(1).standard_normal((500, COLUMNS)) * np.geomspace(0.1, 3, COLUMNS)
    return np.asarray(inputs.T @ inputs / 500, dtype=np.float32)


def gap(found: Distortion) -> Rounding:
    rounding = rounding_of([found])
    assert rounding is not None
    return rounding


def test_without_inputs_it_is_the_relative_error_at_so_many_bits(weights: np.ndarray) -> None:
    rounded = np.round(weights * 4) / 4
    found = gap(distortion_of(weights, rounded, ROWS * COLUMNS // 2, None, None))
    share = np.square(rounded - weights).sum() / np.square(weights).sum()
    assert found.bits_per_weight == 4 and found.error_fraction == pytest.approx(share, rel=1e-5)
    assert found.gap_db == pytest.approx(10 * np.log10(share * 4.0**4), abs=1e-3)


def test_with_inputs_it_is_the_outputs_that_count(weights: np.ndarray, hessian: np.ndarray) -> None:
    factors = factored(hessian)
    damped = factors.hessian.numpy()
    rounded = np.round(weights * 4) / 4
    found = distortion_of(weights, rounded, 1200, factors, None)
    change = (rounded - weights).astype(np.float64)
    assert found.error == pytest.approx(sum(row @ damped @ row for row in change), rel=1e-9)
    assert found.signal == pytest.approx(sum(row @ damped @ row for row in weights.astype(np.float64)), rel=1e-6)
    mean_eigenvalue = np.exp(np.log(np.linalg.eigvalsh(damped)).mean())
    assert found.least == pytest.approx(np.square(weights.astype(np.float64)).sum() * mean_eigenvalue, rel=1e-6)


@pytest.mark.parametrize("bits", [3.0, 4.5])
def test_a_code_that_reaches_the_bound_has_no_gap(weights: np.ndarray, hessian: np.ndarray, bits: float) -> None:
    """Errors as strong in every direction of H, as reverse water-filling has them."""
    factors = factored(hessian)
    values, vectors = np.linalg.eigh(factors.hessian.numpy())
    power = np.exp(np.log(values).mean()) * 4.0**-bits
    noise = np.random.default_rng(2).standard_normal((ROWS, COLUMNS))
    errors = np.sqrt(power) * (noise / np.sqrt(values)) @ vectors.T
    size = int(ROWS * COLUMNS * bits / 8)
    found = gap(distortion_of(weights, (weights + errors).astype(np.float32), size, factors, None))
    assert found.gap_db == pytest.approx(0, abs=0.2)
    white = (weights + np.sqrt(4.0**-bits) * noise).astype(np.float32)
    found = gap(distortion_of(weights, white, size, factors, None))
    means = values.mean() / np.exp(np.log(values).mean())
    assert found.gap_db == pytest.approx(10 * np.log10(means), abs=0.5), "a code for weights that knows no inputs"


def test_inputs_that_are_known_by_their_power_only(weights: np.ndarray) -> None:
    power = np.geomspace(0.1, 10, COLUMNS).astype(np.float32)
    rounded = np.round(weights * 4) / 4
    one = distortion_of(weights, rounded, 1200, factored(np.diag(power), damping=1e-9), None)
    other = distortion_of(weights, rounded, 1200, None, power)
    assert gap(other).gap_db == pytest.approx(gap(one).gap_db, abs=1e-3)
    assert gap(other).error_fraction == pytest.approx(gap(one).error_fraction, rel=1e-4)


def test_matrices_count_by_their_weights_and_lossless_ones_not_at_all(weights: np.ndarray) -> None:
    small = distortion_of(weights[:50], np.round(weights[:50] * 8) / 8, 50 * COLUMNS, None, None)
    large = distortion_of(weights[50:], np.round(weights[50:] * 2) / 2, 150 * COLUMNS // 2, None, None)
    same = distortion_of(weights, weights, 2 * ROWS * COLUMNS, None, None)
    found = rounding_of([small, large, same])
    assert found is not None
    assert found.gap_db == pytest.approx((gap(small).gap_db + 3 * gap(large).gap_db) / 4)
    assert found.bits_per_weight == pytest.approx((8 + 3 * 4) / 4)
    assert rounding_of([same]) is None and rounding_of([]) is None


def test_other_bytes_are_other_bits(weights: np.ndarray) -> None:
    rounded = np.round(weights * 4) / 4
    four, five = (gap(distortion_of(weights, rounded, ROWS * COLUMNS * bits // 8, None, None)) for bits in (4, 5))
    found = in_other_bytes(four, 5 / 4)
    assert found.bits_per_weight == five.bits_per_weight and found.error_fraction == five.error_fraction
    assert found.gap_db == pytest.approx(five.gap_db)
