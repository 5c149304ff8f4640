"""`edgegen fleet export | retention | forget-text`: what devices reported, as files, for how long, and gone."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgegen.cli import options
from edgegen.cli.fleet import Device, Store, Where
from edgegen.cli.render import write_json
from edgegen.errors import ConfigError

if TYPE_CHECKING:
    from edgegen.fleet.telemetry.retention import Lifetimes

app = typer.Typer(rich_markup_mode=None)
_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_SHOW_EVERY_S = 1.0


@app.command("export")
def export(
    site: Annotated[str, typer.Argument(help="The site's folder.", show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the files.", show_default=False)],
    format: Annotated[str, typer.Option("--format", help="parquet or csv.")] = "parquet",
    since: Annotated[str, typer.Option("--since", help="From when, like 7d, 2026-03-01 or 2026-03-01T12:00.")] = "",
    until: Annotated[str, typer.Option("--until", help="To when, likewise.")] = "",
    kind: Annotated[str, typer.Option("--kind", help="Only these reports, like generations,health.")] = "",
    texts: Annotated[bool, typer.Option("--texts", help="With prompts, answers and comments.")] = False,
    store: Store = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write what devices reported as files for other tools; without texts unless they are asked for."""
    from pathlib import Path

    from edgegen.fleet.site import open_site
    from edgegen.fleet.telemetry import export as exporting
    from edgegen.fleet.telemetry.store import Span

    if "://" in site:
        raise ConfigError("an export reads the site itself", hint="Name the site's folder, on the server.")
    kinds = tuple(dict.fromkeys(name.strip() for name in kind.split(",") if name.strip()))
    if kind and not kinds:
        raise ConfigError("--kind names none", hint="Write it like generations,health, or leave it out for all.")
    shown_s = time.monotonic()

    def progress(name: str, rows: int) -> None:
        nonlocal shown_s
        if not quiet and time.monotonic() - shown_s >= _SHOW_EVERY_S:
            shown_s = time.monotonic()
            sys.stderr.write(f"{name}: {rows:,} rows\n")

    now_s = time.time()
    done = exporting.export(
        open_site(Path(site), store).store,
        Path(out),
        format=format,
        kinds=kinds,
        span=Span(_moment(since, now_s, "--since"), _moment(until, now_s, "--until")),
        texts=texts,
        progress=progress,
    )
    if json:
        write_json(done)
        return
    for name, rows in done.rows.items():
        sys.stdout.write(f"{name}.{format}: {rows:,} rows\n")


@app.command("retention")
def retention(
    where: Where,
    numbers: Annotated[float | None, typer.Option("--numbers", help="Days that numbers stay.")] = None,
    text: Annotated[float | None, typer.Option("--text", help="Days that prompts, answers, comments stay.")] = None,
    events: Annotated[float | None, typer.Option("--events", help="Days that events stay.")] = None,
    store: Store = None,
    json: options.Json = False,
) -> None:
    """Show or set for how many days telemetry is kept."""
    from edgegen.fleet.telemetry.retention import Keep

    found: Lifetimes = _do(where, store, "retention", Keep(numbers, text, events))
    if json:
        write_json(found)
        return
    sys.stdout.write(f"numbers {found.numbers_days:g} d, text {found.text_days:g} d, events {found.events_days:g} d\n")


@app.command("forget-text")
def forget_text(where: Where, device: Device, store: Store = None, json: options.Json = False) -> None:
    """Erase the texts that a device reported: prompts, answers, comments. Its numbers stay."""
    from edgegen.fleet.operations import WhichDevice

    erased = _do(where, store, "forget-text", WhichDevice(device))
    if json:
        write_json(erased)
        return
    sys.stdout.write(
        f"{device}: erased the texts of {erased.samples} samples, {erased.comments} comments "
        f"and {erased.characters} lists of characters\n"
    )


def _do(where: str, store: str | None, operation: str, asked: Any) -> Any:
    from edgegen.fleet.operate import open_fleet

    return open_fleet(where, store).do(operation, asked)


def _moment(text: str, now_s: float, option: str) -> float | None:
    """Seconds since 1970: `7d` ago, or a date and time, UTC unless it says otherwise.

    Raises:
        ConfigError: neither.
    """
    if not text:
        return None
    ago = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([mhdw])", text)
    if ago:
        return now_s - float(ago[1]) * _UNITS_S[ago[2]]
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{option} {text!r} is no time", hint="Like 7d, 2026-03-01 or 2026-03-01T12:00.") from error
