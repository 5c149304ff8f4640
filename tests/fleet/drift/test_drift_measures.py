"""Distances between histograms and rates, against closed forms and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from edgegen.fleet.drift.measures import (
    SMOOTHING,
    benjamini_hochberg,
    bin_middles,
    jensen_shannon,
    psi,
    psi_rows,
    two_proportions,
    wasserstein,
)

EDGES = (1.0, 2.0, 4.0, 8.0)
COUNTS = st.lists(st.integers(0, 500), min_size=5, max_size=5)


def test_the_index_of_two_bins_in_closed_form() -> None:
    p, q = (10 + SMOOTHING) / (40 + 2 * SMOOTHING), (30 + SMOOTHING) / (40 + 2 * SMOOTHING)
    assert psi((10, 30), (30, 10)) == pytest.approx((q - p) * math.log(q / p) * 2)


@given(COUNTS, COUNTS)
def test_the_index_is_the_symmetric_relative_entropy_of_smoothed_shares(a: list[int], b: list[int]) -> None:
    p, q = np.array(a) + SMOOTHING, np.array(b) + SMOOTHING
    assert psi(a, b) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), abs=1e-12)
    assert psi(a, b) == pytest.approx(psi(b, a))
    assert psi_rows(np.array([a, b]), np.array([b]))[1] == pytest.approx(0)


def test_edge_cases_of_histograms() -> None:
    assert psi((0, 0, 0), (0, 0, 0)) == 0 and psi((5,), (7,)) == 0
    assert math.isfinite(psi((0, 100), (100, 0)))
    assert jensen_shannon((0, 0), (1, 0)) is None and wasserstein((0, 0), (1, 0), (0.5,)) is None
    assert jensen_shannon((3, 0), (0, 9)) == 1 and jensen_shannon((3,), (9,)) == 0
    assert wasserstein((4,), (4,), ()) == 0
    # All in one bin: half the narrowest width is the unit.
    assert wasserstein((0, 9, 0), (0, 0, 9), (1.0, 2.0)) == pytest.approx(1 / 0.5)


@given(COUNTS, COUNTS)
def test_jensen_shannon_is_scipys(a: list[int], b: list[int]) -> None:
    if sum(a) and sum(b):
        assert jensen_shannon(a, b) == pytest.approx(float(jensenshannon(a, b, base=2)), abs=1e-7)


@given(COUNTS, COUNTS)
def test_wasserstein_is_scipys_over_the_deviation(a: list[int], b: list[int]) -> None:
    if not sum(a) or not sum(b):
        return
    points = bin_middles(EDGES)
    assert points.tolist() == [0.5, 1.5, 3, 6, 10]
    spread = math.sqrt(np.average((points - np.average(points, weights=a)) ** 2, weights=a))
    expected = stats.wasserstein_distance(points, points, a, b) / max(spread, 0.5)
    assert wasserstein(a, b, EDGES) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 900), st.integers(1, 900))
def test_rates_are_compared_as_scipy_does(hits_a: int, n_a: int, hits_b: int, n_b: int) -> None:
    hits_a, hits_b = min(hits_a, n_a), min(hits_b, n_b)
    z, p = two_proportions(hits_a, n_a, hits_b, n_b)
    table = np.array([[hits_a, n_a - hits_a], [hits_b, n_b - hits_b]])
    if not table.sum(axis=0).all():
        assert (z, p) == (0, 1)
        return
    chi2, normal, _, expected = stats.chi2_contingency(table, correction=False)
    assert z**2 == pytest.approx(chi2) and (z >= 0) == (hits_b / n_b >= hits_a / n_a)
    assert p == pytest.approx(stats.fisher_exact(table)[1] if expected.min() < 5 else normal, rel=1e-6)


def test_without_trials_nothing_is_known() -> None:
    assert two_proportions(0, 0, 5, 10) == (0, 1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusted_p_values_are_scipys(p: list[float]) -> None:
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p).tolist())


def test_no_p_values_are_adjusted_to_none() -> None:
    assert benjamini_hochberg([]) == []
