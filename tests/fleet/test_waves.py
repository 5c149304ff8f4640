"""Shares of a group, and who goes first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegen.errors import ConfigError
from edgegen.fleet.waves import assign, parse_waves


def test_shares_are_read() -> None:
    assert parse_waves("5%,25%,100%") == (0.05, 0.25, 1.0)
    assert parse_waves(" 100% ") == (1.0,)


@pytest.mark.parametrize("text", ["", "5,100%", "25%,5%,100%", "5%,50%", "0%,100%", "101%", "a%,100%", "nan%,100%"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--waves"):
        parse_waves(text)


@given(count=st.integers(1, 300), rollout=st.integers(1, 50))
def test_each_device_is_in_one_wave_and_waves_have_their_shares(count: int, rollout: int) -> None:
    fractions = (0.05, 0.25, 1.0)
    names = [f"d{number}" for number in range(count)]
    found = assign(rollout, [(name, True) for name in names], fractions)
    assert set(found) == set(names)
    for wave, fraction in enumerate(fractions, start=1):
        assert sum(place <= wave for place in found.values()) == math.ceil(round(fraction * count, 9))


def test_the_order_is_stable_differs_between_rollouts_and_puts_absent_devices_last() -> None:
    names = [f"d{number}" for number in range(100)]
    first = assign(1, [(name, True) for name in names], (0.1, 1.0))
    assert first == assign(1, [(name, True) for name in reversed(names)], (0.1, 1.0))
    assert first != assign(2, [(name, True) for name in names], (0.1, 1.0))
    early = {name for name, wave in first.items() if wave == 1}
    absent = assign(1, [(name, name not in early) for name in names], (0.1, 1.0))
    assert all(absent[name] == 2 for name in early)
