"""Vectors against vectors: closed forms, brute force, edges."""

import numpy as np
import pytest

from edgegen.catalog import load_target
from edgegen.records.report import Interval, VectorParity
from edgegen.verify.limits import vector_checks
from edgegen.verify.vectors import cosines, rank_correlation, ranks, similarities, vector_parity, vector_quality


def drawn(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def test_cosines_in_closed_form() -> None:
    a = np.array([[1, 0], [1, 1], [0, 0], [2, 0]], dtype=np.float32)
    b = np.array([[0, 3], [2, 2], [1, 0], [-1, 0]], dtype=np.float32)
    assert cosines(a, b) == pytest.approx([0, 1, 0, -1], abs=1e-12)


def test_cosines_are_exact_near_one() -> None:
    a = np.array([[1.0, 0]])
    assert 1 - cosines(a, np.array([[1.0, 1e-7]]))[0] == pytest.approx(5e-15, rel=0.1)


def test_ranks_share_ties() -> None:
    assert ranks(np.array([5.0, 1, 5, 0, 5])).tolist() == [3, 1, 3, 0, 3]


def test_rank_correlation_against_brute_force() -> None:
    a, b = drawn(12, 5), drawn(12, 5) + drawn(12, 5, seed=1)
    upper = np.triu_indices(12, 1)
    x, y = (ranks(similarities(v)[upper]) for v in (a, b))
    found = rank_correlation(a, b)
    assert found.value == pytest.approx(float(np.corrcoef(x, y)[0, 1]), abs=1e-12)
    assert found.low < found.value < found.high


def test_equal_vectors_are_equal_in_every_measure() -> None:
    a = drawn(20, 8)
    found = vector_quality(a, 3 * a)
    assert (found.texts, found.pairs) == (20, 190)
    assert found.cosine == Interval(value=pytest.approx(1), low=pytest.approx(1), high=pytest.approx(1))
    assert found.rank_correlation.value == pytest.approx(1) and found.cosine_min == pytest.approx(1)


def test_more_noise_is_never_better() -> None:
    a, noise = drawn(60, 16), drawn(60, 16, seed=5)
    levels = [vector_quality(a, a + level * noise) for level in (0.02, 0.1, 0.5)]
    for measure in (lambda q: q.cosine.value, lambda q: q.rank_correlation.value, lambda q: q.cosine_min):
        values = [measure(level) for level in levels]
        assert values == sorted(values, reverse=True)
    assert levels[2].cosine_min <= levels[2].cosine_p01 <= levels[2].cosine.value


def test_one_and_two_texts_have_nothing_to_rank() -> None:
    for count in (1, 2):
        assert vector_quality(drawn(count, 4), drawn(count, 4)).rank_correlation.value == 1


def test_constant_vectors_do_not_correlate() -> None:
    assert rank_correlation(np.ones((5, 3)), drawn(5, 3)).value == 0


def test_checks_name_what_is_missing_and_what_is_far() -> None:
    target = load_target("onnx")
    assert not any(check.passed for check in vector_checks(None, None, target))
    a = drawn(40, 8)
    near, far = vector_parity(a, a + 1e-5), vector_parity(a, a + 0.5 * drawn(40, 8, seed=2))
    assert isinstance(near, VectorParity) and near.max_abs_difference == pytest.approx(1e-5, rel=0.1)
    assert [c.passed for c in vector_checks(near, vector_quality(a, a), target)] == [True, True]
    assert not vector_checks(far, vector_quality(a, a), target)[0].passed
    (strict,) = vector_checks(far, None, target, is_strict=True)
    assert strict.name == "strict_distance" and not strict.passed
