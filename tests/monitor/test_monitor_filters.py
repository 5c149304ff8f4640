"""`/` and times as people type them."""

import time

import pytest

from edgegen.errors import ConfigError
from edgegen.monitor.filters import Searchable, parse_filter
from edgegen.monitor.sight import Sight
from edgegen.monitor.times import parse_length, parse_moment

LABELS = ("group", "state")
HUB = Searchable("hub-0001 kitchen Online", {"group": "kitchen", "state": "online"})
GW = Searchable("gw-0002 factory offline", {"group": "factory", "state": "offline"})


@pytest.mark.parametrize(
    ("words", "hub", "gateway"),
    [
        ("hub", True, False),
        ("HUB", False, False),
        ("Online", True, False),
        ("online", True, False),
        ("^gw-.*line$", False, True),
        ("!hub", False, True),
        ("!", False, False),
        ("-l group=kitchen", True, False),
        ("-l group=kit", True, False),
        ("-l group!=kitchen", False, True),
        ("-l group=factory state=off", False, True),
        ("-l group=factory,state=on", False, False),
        ("-f hb1", True, False),
        ("-f 1hb", False, False),
        ("-f", True, True),
    ],
)
def test_filters(words: str, hub: bool, gateway: bool) -> None:
    wanted = parse_filter(words, LABELS)
    assert wanted is not None
    assert (wanted(HUB), wanted(GW)) == (hub, gateway)


def test_nothing_is_no_filter() -> None:
    assert parse_filter("") is None
    assert parse_filter("   ") is None


@pytest.mark.parametrize("words", ["(", "!(", "*", "-l colour=red", "-l group", "a{99999999999}"])
def test_what_is_no_filter_is_said_in_one_line(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_filter(words, LABELS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400), ("7d", 604800), (" 2W ", 1209600)]
)
def test_lengths(words: str, seconds: float) -> None:
    assert parse_length(words) == seconds


@pytest.mark.parametrize("words", ["", "5", "m", "-5m", "0m", "1e9d", "999999999w", "5 minutes"])
def test_no_lengths(words: str) -> None:
    with pytest.raises(ConfigError):
        parse_length(words)


def test_moments() -> None:
    now_s = time.mktime((2026, 8, 1, 12, 0, 0, 0, 0, -1))
    at = lambda *parts: time.mktime((*parts, 0, 0, 0, -1)[:9])  # noqa: E731
    assert parse_moment("now", now_s) is None
    assert parse_moment("-2h", now_s) == now_s - 7200
    assert parse_moment("11:30", now_s) == at(2026, 8, 1, 11, 30)
    assert parse_moment("23:30", now_s) == at(2026, 8, 1, 23, 30) - 86400, "the last one"
    assert parse_moment("2026-07-31 10:00", now_s) == at(2026, 7, 31, 10, 0)


@pytest.mark.parametrize("words", ["2030-01-01", "0001-01-01", "yesterday", "25:00", "-x", "2026-13-01"])
def test_no_moments(words: str) -> None:
    with pytest.raises(ConfigError):
        parse_moment(words, time.mktime((2026, 8, 1, 12, 0, 0, 0, 0, -1)))


def test_steps_and_windows() -> None:
    sight = Sight(window_s=300.0)
    assert sight.next_window() == 3600
    assert Sight(window_s=604800.0).next_window() == 300
    assert sight.stepped(-1, 1000.0) == 975.0
    assert Sight(window_s=300.0, until_s=980.0).stepped(1, 1000.0) is None, "now is reached"
    assert sight.interval(1) == 5.0 and sight.interval(-1) == 1.0
