"""Choosing tokens: each rule against the plainest program for it, and the edges."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegen.errors import ConfigError, DeviceError
from edgegen.runtime import sampling
from edgegen.runtime.sampling import GREEDY, Sampler, Sampling

Logits = NDArray[np.float32]


def row(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


def distribution(logits: Logits, wish: Sampling) -> dict[int, float]:
    """Token → probability, one rule after the other on a sorted list of pairs."""
    ranked = sorted(((float(v), i) for i, v in enumerate(logits)), key=lambda pair: (-pair[0], pair[1]))
    if wish.top_k:
        ranked = ranked[: wish.top_k]
    if wish.top_p < 1:
        total = sum(math.exp(v - ranked[0][0]) for v, _ in ranked)
        kept, mass = [], 0.0
        for value, token in ranked:
            if mass >= wish.top_p * total:
                break
            kept.append((value, token))
            mass += math.exp(value - ranked[0][0])
        ranked = kept
    if wish.min_p:
        ranked = [(v, i) for v, i in ranked if math.exp(v - ranked[0][0]) >= wish.min_p * (1 - 1e-12)]
    weights = {i: math.exp((v - ranked[0][0]) / wish.temperature) for v, i in ranked}
    return {i: weight / sum(weights.values()) for i, weight in weights.items()}


def drawn(logits: Logits, wish: Sampling, count: int) -> dict[int, float]:
    sampler = Sampler(wish)
    tokens, times = np.unique([sampler.choose(logits) for _ in range(count)], return_counts=True)
    return {int(token): times[i] / count for i, token in enumerate(tokens)}


WISHES = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=3)
    for temperature, top_k, top_p, min_p in itertools.product((0.5, 1.7), (0, 4), (1.0, 0.7), (0.0, 0.2))
]


@pytest.mark.parametrize("wish", WISHES, ids=lambda w: f"t{w.temperature}-k{w.top_k}-p{w.top_p}-m{w.min_p}")
def test_draws_follow_the_plain_rules(wish: Sampling) -> None:
    logits = (np.random.default_rng(1).standard_normal(12) * 1.5).astype(np.float32)
    expected = distribution(logits, wish)
    found = drawn(logits, wish, 4000)
    assert set(found) <= set(expected)
    for token, probability in expected.items():
        # Five standard deviations of a share that is counted over 4,000 draws.
        room = 5 * math.sqrt(probability * (1 - probability) / 4000) + 1e-3
        assert found.get(token, 0.0) == pytest.approx(probability, abs=room)


@given(
    values=st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 0.5, 2.0]), min_size=1, max_size=9),
    top_k=st.integers(0, 10),
    top_p=st.sampled_from([0.05, 0.4, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
def test_what_may_be_drawn_is_what_the_plain_rules_keep(
    values: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    """At a temperature so high that all that are kept are alike, ties at every limit included."""
    wish = Sampling(temperature=1e6, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)
    logits = row(*values)
    assert set(drawn(logits, wish, 200)) == set(distribution(logits, wish))


def test_top_p_looks_further_than_its_first_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(5).standard_normal(300).astype(np.float32)
    for top_p in (0.01, 0.3, 0.95, 0.9999):
        wish = Sampling(temperature=1.0, top_p=top_p, seed=4)
        few = []
        for guess in (512, 8):
            monkeypatch.setattr(sampling, "_NUCLEUS", guess)
            sampler = Sampler(wish)
            few.append([sampler.choose(logits) for _ in range(50)])
        assert few[0] == few[1]
        assert set(few[0]) <= set(distribution(logits, wish))


@pytest.mark.parametrize(("top_k", "kept"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 4})])
def test_ties_keep_lower_ids(top_k: int, kept: set[int]) -> None:
    logits = row(1, 7, 7, 0, 7, 7)
    assert set(drawn(logits, Sampling(temperature=1.0, top_k=top_k, seed=0), 100)) == kept
    assert Sampler(GREEDY).choose(logits) == 1


def test_a_tiny_top_p_and_a_min_p_of_one_are_greedy_but_for_ties() -> None:
    logits = row(0, 3, 1, 3)
    assert set(drawn(logits, Sampling(temperature=5.0, top_p=1e-9, seed=0), 50)) == {1}
    assert set(drawn(logits, Sampling(temperature=5.0, min_p=1.0, seed=0), 50)) == {1, 3}


def test_a_cold_draw_is_greedy() -> None:
    logits = np.random.default_rng(2).standard_normal(50).astype(np.float32)
    assert set(drawn(logits, Sampling(temperature=1e-6, seed=0), 30)) == {int(logits.argmax())}


def test_a_seed_repeats_and_none_does_not() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def twenty(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(logits) for _ in range(20)]

    assert twenty(7) == twenty(7) != twenty(8)
    assert twenty(None) != twenty(None)


def test_runtimes_whose_logits_differ_in_the_last_digit_draw_alike() -> None:
    """Two tokens of nearly equal likeliness change places; what a seed draws does not."""
    one, other = row(2.0, 2.000001, 0, -1), row(2.000001, 2.0, 0, -1)
    for wish in (Sampling(temperature=1.0, seed=5), Sampling(temperature=1.0, top_k=3, top_p=0.98, seed=5)):
        first, second = Sampler(wish), Sampler(wish)
        assert [first.choose(one) for _ in range(200)] == [second.choose(other) for _ in range(200)]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    wish = Sampling(repetition_penalty=2.0)
    assert Sampler(wish, [0]).choose(row(3, 2, 1)) == 1  # 3 / 2 < 2
    assert Sampler(wish, [0]).choose(row(-1, -1.5, -9)) == 1  # -1 * 2 < -1.5
    assert Sampler(wish, [0]).choose(row(5, 2, 1)) == 0


def test_repetition_penalty_counts_a_token_once_and_the_answers_own_tokens() -> None:
    wish = Sampling(repetition_penalty=1.5)
    logits = row(3, 2.1, 0)
    assert Sampler(wish, [0, 0, 0]).choose(row(3, 1.9, 0)) == 0  # 3 / 1.5 = 2, not 3 / 1.5³
    sampler = Sampler(wish)
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 0]  # 3; 2 < 2.1; 2 > 1.4


def test_a_penalty_below_one_rewards() -> None:
    assert Sampler(Sampling(repetition_penalty=0.5), [1]).choose(row(3, 2, 0)) == 1


def test_logits_are_not_changed() -> None:
    logits = row(1, 2, 3)
    before = logits.copy()
    for wish in (GREEDY, Sampling(temperature=1.0, top_k=2, top_p=0.9, min_p=0.1, repetition_penalty=1.3, seed=0)):
        Sampler(wish, [0, 2]).choose(logits)
    np.testing.assert_array_equal(logits, before)


def test_one_token_and_impossible_ones() -> None:
    everything = Sampling(temperature=1.0, top_k=5, top_p=0.5, min_p=0.5, seed=0)
    assert Sampler(everything).choose(row(-4)) == 0
    minus = float("-inf")
    assert set(drawn(row(minus, 1, minus, 1), Sampling(temperature=2.0, seed=0), 100)) == {1, 3}
    assert set(drawn(row(minus, 1, minus, 1), Sampling(temperature=2.0, top_k=3, top_p=0.999, seed=0), 100)) == {1, 3}


@pytest.mark.parametrize("wish", [GREEDY, Sampling(temperature=1.0, top_k=2, seed=0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(wish: Sampling, bad: float) -> None:
    with pytest.raises(DeviceError, match="computes"):
        Sampler(wish).choose(row(1, bad, 3))
    with pytest.raises(DeviceError, match="computes"):
        Sampler(wish).choose(row(-math.inf, -math.inf))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("seed", -1),
    ],
)
def test_numbers_outside_their_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Sampler(Sampling(**{name: value}))  # type: ignore[arg-type]
