"""`edgegen repo`: the static files that devices read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json

app = typer.Typer(help="A repository of releases: static files for any web server.", no_args_is_help=True)

Site = Annotated[str, typer.Argument(help="The repository's folder.", show_default=False)]
Keys = Annotated[str, typer.Option("--keys", "-k", help="Folder of keys.", show_default=False)]


@app.command()
def init(site: Site, keys: Keys) -> None:
    """Start a repository that trusts a folder of keys."""
    from edgegen.bundle.repository import init_repository

    init_repository(Path(site), Path(keys))
    sys.stdout.write(f"{site}: serve this folder; devices are set up with {keys}/root.json\n")


@app.command()
def add(
    site: Site,
    bundle: Annotated[str, typer.Argument(help="A signed bundle.", show_default=False)],
    keys: Annotated[
        str | None, typer.Option("--keys", "-k", help="Where the server renewed its timestamp: folder with its key.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Verify a signed bundle as a device would, and publish it."""
    from edgegen.bundle.repository import publish
    from edgegen.common.units import format_bytes

    done = publish(Path(site), Path(bundle), keys=Path(keys) if keys else None)
    if json:
        write_json(done)
        return
    sys.stdout.write(
        f"published {done.target}\n{done.digest}\n"
        f"{format_bytes(done.bytes_copied)} added, {format_bytes(done.bytes_shared)} were there\n"
    )


@app.command("list")
def list_releases(site: Site, json: options.Json = False) -> None:
    """List the releases that the keys vouch for, and how fresh the metadata is."""
    import time

    from edgegen.bundle.repository import check
    from edgegen.bundle.roles import trusted_root
    from edgegen.common.units import format_bytes

    fresh, found = check(Path(site), trusted_root(Path(site)), absent_ok=True)
    if json:
        write_json({"expires": fresh.expires, "versions": fresh.versions, "releases": found})
        return
    lines = []
    for item in found:
        told = f"{item.kind:<8} epoch {item.epoch}  {format_bytes(item.bytes):>10}"
        lines.append(
            f"{item.name} {item.version:<12} {told if item.kind else 'signed, not published here'}  {item.digest}"
        )
    sys.stdout.write("\n".join(lines or ["no releases"]) + "\n")
    days = ", ".join(f"{role} {(ends - time.time()) / 86400:.1f}" for role, ends in fresh.expires.items())
    sys.stderr.write(f"expires in days: {days}\n")


@app.command()
def check(
    site: Site,
    root: Annotated[
        str | None, typer.Option("--root", help="The root.json that devices have; else the repository's own.")
    ] = None,
) -> None:
    """Read a repository as a new device would, every file of every release. Exit code 6 if it is refused."""
    from edgegen.bundle.repository import check_whole
    from edgegen.bundle.roles import trusted_root
    from edgegen.common.codec import read_bytes

    anchor = read_bytes(Path(root)) if root else trusted_root(Path(site))
    count, total = check_whole(Path(site), anchor)
    sys.stdout.write(f"{count} releases, {total:,} bytes of blobs: all as signed\n")


@app.command()
def refresh(site: Site, keys: Keys) -> None:
    """Sign the timestamp anew (every day), and the snapshot if its key is there."""
    from edgegen.bundle.repository import refresh as renew

    sys.stdout.write(f"signed: {', '.join(renew(Path(site), Path(keys)))}\n")


@app.command()
def withdraw(
    site: Site,
    target: Annotated[str, typer.Argument(help="As `edgegen repo list --json` names it.", show_default=False)],
    keys: Keys,
) -> None:
    """Vouch for a release no longer: devices that do not have it yet refuse it."""
    from edgegen.bundle.repository import withdraw as take_back

    waiting = take_back(Path(site), Path(keys), target)
    sys.stdout.write("withdrawn\n" if not waiting else f"{waiting}: waiting for more signatures\n")
