"""`edgegen verify BUILD`: measure a finished output again, here."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.compress import show_result
from edgegen.cli.render import progress


def verify(
    build: Annotated[str, typer.Argument(help="A folder that `edgegen compress` wrote.", show_default=False)],
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Verify an artifact on its runtime in a fresh process; writes report.json and report.html.

    Exit codes: 0 every limit kept, 5 a limit missed (the report is kept).
    """
    with progress(quiet) as notify:
        from edgegen.sdk import output

        result = output.verify(build, command=shlex.join(["edgegen", *sys.argv[1:]]), notify=notify)
    show_result(result.report, result.plan, out=build, json=json)
