"""`edgegen verify BUILD`: measure a finished output again, here."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.compress import show_comparison, show_result
from edgegen.cli.render import progress


def verify(
    build: Annotated[str, typer.Argument(help="A folder that `edgegen compress` wrote.", show_default=False)],
    emulate: Annotated[
        bool,
        typer.Option("--emulate", help="Run it on the device's own processor core too; see edgegen emulate."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Verify an artifact on its runtime in a fresh process; writes report.json and report.html.

    Exit codes: 0 every limit kept, 5 a limit missed (the report is kept).
    """
    command = shlex.join(["edgegen", *sys.argv[1:]])
    with progress(quiet) as notify:
        from edgegen.sdk import comparison, output

        folder = Path(build)
        several = bool(comparison.compared_targets(folder))
        if several:
            found = comparison.verify_all(folder, emulate=emulate, command=command, notify=notify)
        else:
            result = output.verify(folder, emulate=emulate, command=command, notify=notify)
    if several:
        show_comparison(found, out=build, json=json)
    else:
        show_result(result.report, result.plan, out=build, json=json)
