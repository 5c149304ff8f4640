"""URLs that people give."""

from __future__ import annotations

from urllib.parse import urlsplit

from edgegen.errors import ConfigError

SCHEMES = ("http://", "https://")


def is_url(text: str) -> bool:
    """Whether it names a server over HTTP."""
    try:
        parts = urlsplit(text)
        good_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return text.startswith(SCHEMES) and bool(parts.hostname) and good_port and text.isprintable() and " " not in text


def require_url(text: str, *, what: str = "") -> None:
    """
    Args:
        what: the option or key that it was given with.

    Raises:
        ConfigError: it is no URL of a server.
    """
    if is_url(text):
        return
    said = f"{what} {text!r}" if what else f"{text!r}"
    why = "is no URL of a server" if text.startswith(SCHEMES) else "is no URL: one begins with http:// or https://"
    raise ConfigError(f"{said} {why}", hint="Like https://fleet.example.")
