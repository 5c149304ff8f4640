"""What Textual reads from the environment, set before it is imported.

Over ssh ten frames a second are plenty and animations are only bytes; Textual reads these variables once, at its
import, so this must come first. What the user set is kept.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from edgegen.errors import UnsupportedError


def prepare_terminal() -> None:
    """Choose frames and animations for the line that the terminal hangs on.

    Raises:
        UnsupportedError: Textual is not installed.
    """
    if any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY")):
        os.environ.setdefault("TEXTUAL_FPS", "10")
        os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
        os.environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")
    if importlib.util.find_spec("textual") is None:
        raise UnsupportedError(
            "the screens need textual, which is not installed", hint="pip install 'edgegen[monitor]'"
        )


def is_terminal() -> bool:
    """Whether a person can see and type."""
    return bool(sys.stdout and sys.stdout.isatty() and sys.stdin and sys.stdin.isatty())
