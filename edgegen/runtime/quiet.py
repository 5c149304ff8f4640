"""Keep native libraries from printing, and keep what they print for error messages."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def native_stderr() -> Iterator[Callable[[], str]]:
    """Inside the block, file descriptor 2 goes to a file of its own; the given function reads it.

    Python's own `sys.stderr` is flushed first. Other threads' messages go there too, so keep the block short.
    """
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as after:
        sys.stderr.flush()
        try:
            before = os.dup(2)
        except OSError:  # a process without stderr
            yield lambda: ""
            return
        after.callback(os.close, before)
        after.callback(os.dup2, before, 2)
        os.dup2(held.fileno(), 2)

        def said() -> str:
            held.seek(0)
            return held.read().decode("utf-8", "replace")

        yield said


@functools.cache
def quiet_exit() -> None:
    """Let nothing be printed once Python has ended: libraries log their own destruction."""
    atexit.register(_close_stderr)


def _close_stderr() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
