"""What commands share: errors, progress bars, results.

Progress and talk go to stderr, so that stdout can be piped. Bars appear only where somebody can see them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
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


@contextmanager
def training_progress(quiet: bool, words: str) -> Iterator[Any]:
    """A `told` for training: one bar with the loss on a terminal, a line at each tenth elsewhere."""
    if quiet:
        yield lambda done, steps, text: None
        return
    if not sys.stderr.isatty():

        def told(done: int, steps: int, text: str) -> None:
            if done == steps or done % max(1, steps // 10) == 0:
                sys.stderr.write(f"{words}: {done} of {steps}, {text}\n")

        yield told
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(words), BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, steps, text: bars.update(task, completed=done, total=steps, description=text)


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


def say_learned(profile: str, quiet: bool) -> None:
    """One line on stderr where a profile's coefficients were learned from devices.

    Raises:
        ConfigError: no such profile.
    """
    if quiet:
        return
    from edgegen.catalog import learned_notes, load_profile

    for line in learned_notes(load_profile(profile)):
        sys.stderr.write(f"{line}\n")


def write_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows on stdout, columns as wide as they need to be; what devices say cannot steer the terminal."""
    rows = [tuple("".join(c if c.isprintable() else "�" for c in cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def write_json(record: Any) -> None:
    """A record as JSON on stdout."""
    from edgegen.common.codec import encode_json

    sys.stdout.write(encode_json(record).decode())
