"""A pipeline on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edgegen.cli.render import write_json
from edgegen.sdk.chain import Told

_WORDS = {
    "data": "Building the data set",
    "teacher": "Fine-tuning the teacher",
    "student": "Distilling the student",
    "build": "Compressing and verifying",
    "bundle": "Packing",
}


def run_pipeline(path: str, *, dry_run: bool, json: bool, quiet: bool) -> None:
    """Run the steps of a pipeline that are not done, or show them."""
    from edgegen.sdk.chain import dry_run as look
    from edgegen.sdk.chain import load_chain, run_chain

    chain = load_chain(path)
    if dry_run:
        steps = look(chain)
        if json:
            write_json(steps)
            return
        for step in steps:
            sys.stdout.write(f"{'✓' if step.done else '·'} {step.name:8} {step.why:44} {step.out}\n")
        return
    with _progress(quiet) as told:
        state = run_chain(chain, told=told)
    if json:
        write_json(state)
        return
    for done in state.steps:
        sys.stdout.write(f"✓ {done.name:8} {done.summary:60} {done.out}\n")
    sys.stdout.write(f"\nlineage  {state.lineage}\n")
    if state.steps and state.steps[-1].name == "build":
        sys.stdout.write(f'next     edgegen run {state.steps[-1].out} "…"\n')
    if state.steps and state.steps[-1].name == "bundle":
        sys.stdout.write(f"next     edgegen deploy {state.steps[-1].out} --to ssh://USER@HOST\n")


@contextmanager
def _progress(quiet: bool) -> Iterator[Told]:
    """A bar for each step on a terminal, else a line when one begins and ends."""
    if quiet:
        yield lambda step, done, of, words: None
        return
    if not sys.stderr.isatty():
        last: dict[str, str] = {}

        def told(step: str, done: int, of: int, words: str) -> None:
            # A line for each tenth of a step, and for each thing that is done in it.
            if words.endswith("running"):
                return
            mark = words if of <= 10 else f"{10 * done // max(1, of)}"
            if last.get(step) != mark:
                last[step] = mark
                sys.stderr.write(f"{_WORDS.get(step, step)}: {words}\n")

        yield told
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.fields[title]:26}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def drawn(step: str, done: int, of: int, words: str) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task("", total=None, title=_WORDS.get(step, step))
            bars.update(tasks[step], completed=done, total=of, description=words)  # type: ignore[arg-type]

        yield drawn
