"""`edgegen device setup ssh://…`: make a machine a device."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Set devices up over ssh."""


@app.command("setup")
def setup(
    address: Annotated[str, typer.Argument(help="Like ssh://pi@kitchen.", show_default=False)],
    runtime: Annotated[str, typer.Option("--runtime", help="gguf, onnx or litert; empty: none.")] = "gguf",
    wheel: Annotated[str | None, typer.Option("--wheel", help="edgegen's wheel; else from the device's index.")] = None,
    wheelhouse: Annotated[str | None, typer.Option("--wheelhouse", help="Folder of wheels; no index is asked.")] = None,
    root: Annotated[str | None, typer.Option("--root", help="The repository's root.json, which it will trust.")] = None,
    fleet: Annotated[
        str,
        typer.Option("--fleet", help="The fleet server's URL; the enrolment token is taken from EDGEGEN_ENROL_TOKEN."),
    ] = "",
    repository: Annotated[str, typer.Option("--repository", help="The repository's URL, without a fleet server.")] = "",
    name: Annotated[str, typer.Option("--name", help="The device's name; else its host name.")] = "",
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="Its profile, which its reports correct; else its release's.")
    ] = "",
    port: Annotated[
        int | None, typer.Option("--port", help="Port of the device's local API; 8080 at first.", show_default=False)
    ] = None,
    folder: Annotated[str | None, typer.Option("--folder", help="Where on the device; /opt/edgegen for root.")] = None,
    service: Annotated[bool, typer.Option("--service/--no-service", help="Write and start a systemd unit.")] = True,
) -> None:
    """Install the agent with a runtime, its configuration and a systemd unit.

    Again, it changes only what differs, and keeps the settings that no option names.
    """
    from edgegen import __version__
    from edgegen.catalog import load_profile
    from edgegen.push.setup import Setup, set_up_device

    wanted = Setup(
        runtime=runtime,
        wheel=Path(wheel) if wheel else None,
        wheelhouse=Path(wheelhouse) if wheelhouse else None,
        root=Path(root) if root else None,
        fleet=fleet,
        token=os.environ.get("EDGEGEN_ENROL_TOKEN", ""),
        repository=repository,
        device=name,
        profile=load_profile(profile).name if profile else "",
        serve_port=port,
        service=service,
    )

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    done = set_up_device(address, wanted, folder=folder, version=__version__, say=say)
    for note in done.notes:
        sys.stderr.write(f"{note}\n")
    sys.stdout.write(f"{address}: {'set up' if done.changed else 'nothing to change'} in {done.places.folder}\n")
