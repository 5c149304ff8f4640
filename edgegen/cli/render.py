"""What commands share: errors, progress bars, results.

Progress and talk go to stderr, so that stdout can be piped. Bars appear only where somebody can see them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from edgegen.errors import ConfigError, EdgegenError
from edgegen.sdk.stage_words import stage_words

EVENTS_VARIABLE = "EDGEGEN_EVENTS_FD"
"""Number of an open file that takes progress as lines of JSON, `[stage, state, done, total]`; `--tui` sets it."""


def fail(error: EdgegenError, exit_code: int | None = None) -> NoReturn:
    """One line that says what is wrong, one that says what to do, and the exit code."""
    sys.stderr.write(f"edgegen: {error}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")
    sys.exit(error.exit_code if exit_code is None else exit_code)


@contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """A `notify` for the pipeline: a bar a stage on a terminal, a line a stage elsewhere, nothing when quiet.

    Where a screen started this process (`EVENTS_VARIABLE`), it gets the events instead.
    """
    if descriptor := os.environ.pop(EVENTS_VARIABLE, ""):
        yield lambda *event: _send(descriptor, event)
        return
    if quiet:
        yield lambda *event: None
        return
    if not sys.stderr.isatty():
        yield _lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, Any] = {}

    def notify(stage: str, state: str, done: int, total: int) -> None:
        words = stage_words(stage)
        if stage not in tasks:
            tasks[stage] = bars.add_task(words, total=None)
        if state == "running":
            bars.update(tasks[stage], completed=done, total=total)
        elif state in ("finished", "skipped"):
            suffix = " (done before)" if state == "skipped" else ""
            bars.update(tasks[stage], completed=1, total=1, description=words + suffix)

    with bars:
        yield notify


def _send(descriptor: str, event: tuple[str, str, int, int]) -> None:
    """One event to the screen. If that is gone the run stops as by Ctrl-C: nobody watches, and it can go on later."""
    try:
        os.write(int(descriptor), json.dumps(event).encode() + b"\n")
    except BrokenPipeError as error:
        raise KeyboardInterrupt from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{EVENTS_VARIABLE}={descriptor[:20]} is no open file", hint="Only --tui sets it.") from error


def _lines(stage: str, state: str, done: int, total: int) -> None:
    if state in ("started", "skipped"):
        words = stage_words(stage)
        sys.stderr.write(f"{words}{' (done before)' if state == 'skipped' else ' …'}\n")


def write_json(record: Any) -> None:
    """A record as JSON on stdout."""
    from edgegen.common.codec import encode_json

    sys.stdout.write(encode_json(record).decode())
