"""Distances in closed form, and intervals that cover."""

import math

import numpy as np
import pytest

from edgegen.records.reference import Reference, ReferenceWindow
from edgegen.records.report import Quality
from edgegen.verify.quality import (
    add_window,
    compare_parity,
    counted_positions,
    empty_scores,
    log_softmax,
    ratio_interval,
    summarize_quality,
)

RNG = np.random.default_rng(0)


def quality(pairs: list[tuple[np.ndarray, np.ndarray, list[int]]], *, trimmed: bool = False) -> Quality:
    """From (original log-probabilities, artifact logits, targets) of each window; every position counts."""
    scores, windows = empty_scores(), []
    for original, logits, targets in pairs:
        window = ReferenceWindow(ids=(0, *targets), counts=((0, len(targets)),), bytes=2 * len(targets))
        windows.append(window)
        # The last position's logits are there but predict nothing that is known.
        add_window(scores, window, original, np.vstack([logits, np.zeros_like(logits[:1])]).astype(np.float32))
    reference = Reference(
        greedy=(),
        schema=1,
        vocab_size=pairs[0][0].shape[1],
        windows=tuple(windows),
        parity_windows=0,
        prompts=(),
        original_bits_per_byte=1.5,
        trimmed=trimmed,
    )
    return summarize_quality(scores, reference)


def test_identical_distributions() -> None:
    logits = RNG.normal(size=(50, 30))
    found = quality([(log_softmax(logits), logits + 7.0, list(range(30)) + list(range(20)))])
    assert found.kl.value == pytest.approx(0, abs=1e-9)
    assert found.kl_p999 == pytest.approx(0, abs=1e-6)
    assert found.ln_ppl_ratio.value == pytest.approx(0, abs=1e-6)
    assert found.top1_fraction.value == 1
    assert (found.tokens, found.windows) == (50, 1)


def test_two_tokens_by_hand() -> None:
    p, q = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    found = quality([(np.log(p)[None], np.log(q)[None], [0])])
    assert found.kl.value == pytest.approx(0.5 * math.log(3))
    assert found.top1_fraction.value == 0
    assert found.ln_ppl_ratio.value == pytest.approx(math.log(0.75 / 0.25))
    assert found.bits_per_byte.value == pytest.approx(2 / 2)  # -log2(1/4) over two bytes
    assert found.original_bits_per_byte == 1.5 and found.lost_mass_nats == 0


def test_mass_on_dropped_tokens() -> None:
    """The original gives a fifth to dropped tokens; on the kept ones the two agree."""
    kept = np.array([0.6, 0.2])
    found = quality([(np.log(kept)[None], np.log(kept / 0.8)[None], [1])], trimmed=True)
    assert found.kl.value == pytest.approx(0, abs=1e-7)
    assert found.lost_mass_nats == pytest.approx(-math.log(0.8))
    assert found.ln_ppl_ratio.value == pytest.approx(math.log(0.8)), "the artifact's share of the token is larger"
    assert found.renormalised


def test_rounding_noise_of_the_stored_mass_is_no_loss() -> None:
    found = quality([(np.log([[0.5, 0.5002]]), np.zeros((1, 2)), [0])], trimmed=True)
    assert found.lost_mass_nats == 0


def test_quantiles_and_means_over_tokens_not_windows() -> None:
    same = np.log([[0.5, 0.5]])
    other = np.log([[0.75, 0.25]])
    pairs = [(same, same, [0])] * 1 + [(np.repeat(other, 3, 0), np.repeat(-other, 3, 0), [0, 0, 1])]
    found = quality(pairs)
    each = float((np.exp(other) * (other - log_softmax(-other))).sum())
    assert found.kl.value == pytest.approx(each * 3 / 4)
    assert found.kl_median == pytest.approx(each)
    assert found.kl_p99 == pytest.approx(each, rel=0.05)


def test_counted_positions() -> None:
    window = ReferenceWindow(ids=tuple(range(9)), counts=((1, 3), (5, 6)), bytes=1)
    assert counted_positions(window).tolist() == [1, 2, 5]


def test_log_softmax_survives_large_logits() -> None:
    found = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    assert found[0].tolist() == [0.0, -1e4]
    assert found[1].tolist() == pytest.approx([math.log(0.5)] * 2)


def test_interval_of_one_window_has_no_width() -> None:
    found = ratio_interval(np.array([3.0]), np.array([6.0]))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_interval_weighs_by_size_and_repeats_itself() -> None:
    totals, sizes = np.array([1.0, 30.0]), np.array([1.0, 10.0])
    found = ratio_interval(totals, sizes)
    assert found.value == pytest.approx(31 / 11)
    assert (found.low, found.high) == (1.0, 3.0)
    assert found == ratio_interval(totals, sizes)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        found = ratio_interval(rng.exponential(1.0, size=60), np.ones(60))
        hits += found.low <= 1.0 <= found.high
    assert 0.87 <= hits / 200 <= 0.99


def test_parity_of_equal_logits_up_to_a_constant() -> None:
    logits = RNG.normal(size=(7, 11)).astype(np.float32)
    found = compare_parity(iter([(logits, logits + 3), (logits[:2], logits[:2])]))
    assert found.tokens == 9 and found.top1_fraction == 1
    assert found.max_abs_logit_difference < 1e-5 and found.kl < 1e-9


def test_parity_by_hand() -> None:
    expected = np.log(np.array([[0.75, 0.25]], dtype=np.float32))
    found = compare_parity(iter([(expected, expected[:, ::-1])]))
    assert found.kl == pytest.approx(0.5 * math.log(3), rel=1e-5)
    assert found.top1_fraction == 0
    assert found.max_abs_logit_difference == pytest.approx(math.log(3), rel=1e-5)


def test_parity_of_nothing() -> None:
    assert compare_parity(iter([])).tokens == 0
