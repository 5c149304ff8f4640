"""Which words are a server's URL."""

import pytest

from edgegen.common.urls import is_url, require_url
from edgegen.errors import ConfigError


@pytest.mark.parametrize("text", ["http://127.0.0.1:8420", "https://fleet.example", "https://fleet.example/home/"])
def test_a_url(text: str) -> None:
    assert is_url(text)
    require_url(text)


@pytest.mark.parametrize("text", ["", "nonsense", "ftp://x", "http://", "http://a b", "http://[::1", "http://x:99999"])
def test_none(text: str) -> None:
    assert not is_url(text)
    with pytest.raises(ConfigError, match="--url"):
        require_url(text, what="--url")
