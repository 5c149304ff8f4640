"""`edgegen emulate`: what runs artifacts on a device's own processor core, and setting it up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json
from edgegen.common.units import format_bytes
from edgegen.errors import ConfigError

if TYPE_CHECKING:
    from edgegen.emulate.setup import Intent
    from edgegen.records.emulation import Emulation

app = typer.Typer(help="Run artifacts on a device's own processor core.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def emulate(context: typer.Context, json: options.Json = False) -> None:
    """Say what is set up. `edgegen verify BUILD --emulate` uses it."""
    if context.invoked_subcommand is not None:
        return
    from edgegen.emulate import emulation_folder, read_setup

    found = read_setup()
    if json:
        write_json(found)
    elif found is None:
        typer.echo("emulation is not set up: edgegen emulate setup")
    else:
        _show(found, str(emulation_folder()))


@app.command()
def setup(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Fetch without asking.")] = False,
    with_llama: Annotated[
        bool,
        typer.Option("--with-llama", help="Build llama.cpp for ARM too: minutes, needs a cross compiler."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch the emulator, the device's system and the runtimes' packages, once; says how much first.

    Run again after an interruption, or when another runtime or version was installed: only what is missing is fetched.
    Exit codes: 3 something needed is not on this machine, 8 the network does not answer.
    """
    from edgegen.emulate.setup import intent, set_up

    wanted = intent(with_llama=with_llama)
    if wanted.missing:
        _ask(wanted, yes=yes)
    made = set_up(wanted, progress=None if quiet else _tell)
    if json:
        write_json(made)
    else:
        _show(made, wanted.folder)


def _ask(wanted: Intent, *, yes: bool) -> None:
    size = f"{format_bytes(wanted.download_bytes)} to fetch, {format_bytes(wanted.disk_bytes)} on the disk"
    typer.echo(f"About {size}, in {wanted.folder}:", err=True)
    for part in wanted.missing:
        typer.echo(f"  {part.words}, {format_bytes(part.download_bytes)}", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to agree to this", hint="Agree beforehand with --yes.")
    if not typer.confirm("Fetch it?", default=True, err=True):
        raise typer.Exit(1)


def _tell(words: str, done: int, total: int) -> None:
    share = f"{100 * done // total:3d} %  " if total else ""
    sys.stderr.write(f"{share}{words}\n")


def _show(found: Emulation, folder: str) -> None:
    lines = [
        f"set up in {folder}, {format_bytes(found.bytes)}",
        f"emulator  QEMU {found.emulator}: {', '.join(found.processors)}",
        f"system    {found.system}, Python {found.python}",
        f"packages  {', '.join(f'{name} {version}' for name, version in found.packages.items())}",
        *(f"! {note}" for note in found.notes),
    ]
    typer.echo("\n".join(lines))
