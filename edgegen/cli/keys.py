"""`edgegen keys`: who may sign what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json

if TYPE_CHECKING:
    from edgegen.bundle.roles import RoleState

app = typer.Typer(help="Signing keys: make, show, renew, rotate, sign.", no_args_is_help=True)

Folder = Annotated[str, typer.Argument(help="Folder of keys.", show_default=False)]
Role = Annotated[str, typer.Argument(help="root, targets, release, dev, snapshot or timestamp.", show_default=False)]
Key = Annotated[list[str] | None, typer.Option("--key", help="A private key that lies elsewhere; may be repeated.")]


@app.command()
def init(
    folder: Folder,
    root_keys: Annotated[int, typer.Option("--root-keys", help="Keys of the root.")] = 3,
    root_threshold: Annotated[int, typer.Option("--root-threshold", help="Of which so many must sign.")] = 2,
    release_keys: Annotated[int, typer.Option("--release-keys", help="Keys that sign releases.")] = 1,
    release_threshold: Annotated[int, typer.Option("--release-threshold", help="Of which so many must sign.")] = 1,
    offline: Annotated[
        bool, typer.Option("--offline", help="Timestamps last a year, not a week: for devices reached by hand.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make keys for all roles, and root.json, which devices are set up with."""
    from edgegen.bundle.ledger import create_keys

    states = create_keys(
        Path(folder),
        root_keys=root_keys,
        root_threshold=root_threshold,
        release_keys=release_keys,
        release_threshold=release_threshold,
        offline=offline,
    )
    _show(states, json=json)
    root, private = Path(folder, "root.json"), Path(folder, "private", "root-*.pem")
    sys.stderr.write(
        f"Devices are set up with {root}. Move {private} to places apart: they are needed only to change keys.\n"
    )


@app.command()
def show(folder: Folder, json: options.Json = False) -> None:
    """Show each role: its version, when it expires, how many of its keys are here."""
    from edgegen.bundle.ledger import open_keys

    _show(open_keys(Path(folder)).states(), json=json)


@app.command()
def renew(
    folder: Folder,
    roles: Annotated[
        list[str] | None, typer.Argument(help="Roles; without: timestamp and snapshot.", show_default=False)
    ] = None,
    key: Key = None,
) -> None:
    """Sign roles anew before they expire."""
    from edgegen.bundle.ledger import open_keys, require_role

    chosen = roles or ["snapshot", "timestamp"]
    for role in chosen:
        require_role(role)
    _tell(open_keys(Path(folder), more=_paths(key)).renew(chosen), folder)


@app.command()
def rotate(
    folder: Folder,
    role: Role,
    new: Annotated[int | None, typer.Option("--new", help="How many new keys; else as many as go.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="Id of a present key that stays; may be repeated.")
    ] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", help="Signatures from now on; else as before.")
    ] = None,
    key: Key = None,
) -> None:
    """Give a role new keys: at once for lost or stolen ones. Devices follow by themselves."""
    from edgegen.bundle.ledger import rotate_keys

    waiting = rotate_keys(Path(folder), role, new=new, threshold=threshold, keep=tuple(keep or ()), more=_paths(key))
    _tell(waiting, folder)


@app.command()
def sign(
    folder: Folder,
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="A bundle that is to be vouched for.", show_default=False)
    ] = None,
    key: Key = None,
) -> None:
    """Add the signatures of the keys that are here to what waits for them."""
    if bundle is not None:
        from edgegen.bundle.sign import sign_bundle

        about = sign_bundle(Path(bundle), Path(folder), more=_paths(key))
        _tell([] if about.signed else [about.role], folder)
        return
    from edgegen.bundle.ledger import open_keys

    _tell(open_keys(Path(folder), more=_paths(key)).sign(), folder)


@app.command()
def online(
    folder: Folder, out: Annotated[str, typer.Argument(help="Folder for the copies.", show_default=False)]
) -> None:
    """Copy the two keys that a server needs to renew its timestamp by itself, and no other."""
    from edgegen.bundle.ledger import online_keys

    online_keys(Path(folder), Path(out))
    sys.stderr.write(f"{out}: the keys of snapshot and timestamp\n")


def _paths(key: list[str] | None) -> tuple[Path, ...]:
    return tuple(Path(path) for path in key or ())


def _tell(waiting: list[str], folder: str) -> None:
    if waiting:
        sys.stdout.write(f"{', '.join(waiting)}: waiting for more signatures\n")
        sys.stderr.write(f"  Where the other keys are: edgegen keys sign {folder} --key FILE\n")
    else:
        sys.stdout.write("signed\n")


def _show(states: tuple[RoleState, ...], *, json: bool) -> None:
    if json:
        write_json(states)
        return
    lines = [f"{'role':<11}{'version':>11}  {'expires in':>11}  {'keys':<20}ids"]
    for state in states:
        days = f"{state.days_left:.1f} days" if state.days_left > 0 else "EXPIRED"
        keys = f"{state.threshold} of {len(state.keyids)}, {len(state.here)} here"
        ids = " ".join(keyid[:12] for keyid in state.keyids)
        lines.append(f"{state.role:<11}{state.version:>11}  {days:>11}  {keys:<20}{ids}")
        if state.pending:
            lines.append(
                f"{'':<11}version {state.pending} waits: {state.pending_signatures} of {state.threshold} signatures"
            )
    sys.stdout.write("\n".join(lines) + "\n")
