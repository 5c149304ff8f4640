"""`edgegen learn SITE --profile NAME`: what devices measured corrects the profile that the next plan is made for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json
from edgegen.common.urls import require_url
from edgegen.errors import ConfigError

if TYPE_CHECKING:
    from edgegen.records.learning import Coefficient, Errors, Learning

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def learn(
    where: Annotated[
        str | None,
        typer.Argument(
            help="The site's folder, or a server's URL with an operator's token in EDGEGEN_FLEET_TOKEN.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="The server's URL, in the folder's place.")] = None,
    profile: Annotated[str, typer.Option("--profile", "-p", help="Which profile.", show_default=False)] = "",
    group: Annotated[str, typer.Option("--group", "-g", help="Only this group's devices.")] = "",
    days: Annotated[float, typer.Option("--days", help="How far back.")] = 90.0,
    min_reports: Annotated[int, typer.Option("--min-reports", help="Fewest answers to learn from.")] = 20,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Take back what was learned about the profile.")] = False,
    picture: Annotated[
        str | None, typer.Option("--picture", help="Draw predicted against measured speed: .svg, .png or .pdf.")
    ] = None,
    vocabulary: Annotated[
        bool, typer.Option("--vocabulary", help="Say instead which trimmed tokens users miss.")
    ] = False,
    release: Annotated[str, typer.Option("--release", help="With --vocabulary: NAME@VERSION, not the commonest.")] = "",
    model: Annotated[str, typer.Option("--model", help="With --vocabulary: the original, if it was moved.")] = "",
    out: Annotated[
        str, typer.Option("--out", "-o", help="With --vocabulary: file for --keep-tokens.")
    ] = "restore.json",
    store: Annotated[str | None, typer.Option("--store", help="Another database, like postgresql://….")] = None,
    json: options.Json = False,
) -> None:
    """Correct a profile's coefficients by what devices measured; later plans for the profile use them and say so."""
    if (where is None) == (url is None) and not reset:
        raise ConfigError("name either a site's folder or --url", hint="Like edgegen learn site/ --profile NAME.")
    if url is not None:
        require_url(url, what="--url")
    if vocabulary and reset:
        raise ConfigError("--reset takes back what was learned of a profile, --vocabulary learns", hint="Name one.")
    place = where or url or ""
    if vocabulary:
        _restore(place, release, group, days, model, out, store, json)
        return
    if not profile:
        raise ConfigError("--profile says what to learn about", hint="See edgegen profiles.")
    if reset:
        from edgegen.catalog import forget_learned

        sys.stderr.write(f"{profile}: what was learned is taken back ({forget_learned(profile)})\n")
        return
    from edgegen.receipt.learned import require_picture, save_picture
    from edgegen.sdk import learning

    if picture:
        require_picture(Path(picture))
    found = learning.learn(
        place, profile=profile, group=group, days=days, min_reports=min_reports, store=store, save=not dry_run
    )
    if picture:
        save_picture(Path(picture), found)
    if json:
        write_json(found)
    else:
        sys.stdout.write("\n".join(_lines(found)) + "\n")
    if found.profile.learned is None:
        sys.stderr.write("nothing was learned; the profile stays as it is\n")
    elif dry_run:
        sys.stderr.write("nothing was written (--dry-run)\n")
    else:
        sys.stderr.write(f"saved; the next edgegen plan --profile {found.profile.name} uses it\n")


def _restore(
    place: str, release: str, group: str, days: float, model: str, out: str, store: str | None, json: bool
) -> None:
    from edgegen.common.codec import save_json
    from edgegen.receipt.shown import visible
    from edgegen.sdk import learning

    found = learning.restore_vocabulary(place, release=release, group=group, days=days, model=model, store=store)
    if found.tokens:
        save_json(Path(out), found)
    if json:
        write_json(found)
        return
    share = "" if found.byte_fraction is None else f"; {100 * found.byte_fraction:.2g} % of prompts' tokens are bytes"
    sys.stdout.write(f"{found.release}: {len(found.characters)} characters are written byte by byte{share}\n")
    for character, count in sorted(found.characters.items(), key=lambda item: -item[1])[:20]:
        sys.stdout.write(f"  {visible(character)}  {count:,} times\n")
    if found.tokens:
        sys.stdout.write(
            f"{len(found.tokens)} tokens would help: edgegen compress {found.model} --keep-tokens {out} …\n"
        )
    else:
        sys.stdout.write("The original has no tokens for them either.\n")


def _lines(found: Learning) -> list[str]:
    """What changed, what stays, how well it fits."""
    from edgegen.receipt.shown import visible

    head = f"{found.profile.name} from {found.reports:,} reports of {_count(found.devices, 'device')}"
    lines = [f"{head} with {_count(found.releases, 'release')}"]
    if found.throttled:
        lines.append(f"  left out: {found.throttled:,} answers of throttled devices")
    lines += [f"  left out: {count:,} answers {visible(why)}" for why, count in found.left_out.items()]
    rows = [("coefficient", "was", "is", "from")]
    rows += [_row(c) for c in found.coefficients if c.basis != "carried over"]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines += ["", *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
    carried = [c for c in found.coefficients if c.basis == "carried over"]
    if carried:
        lines.append(f"carried over to {_count(len(carried), 'grid')} that no release has: {_grids(carried)}")
    lines.append("")
    for name, errors in (
        ("tok/s", found.speed if found.speed.n else None),
        ("time to first token", found.first_token),
        ("memory", found.memory),
    ):
        if errors is not None:
            lines.append(f"{name} error {_change(errors)}")
    return lines + [f"! {visible(note)}" for note in found.notes]


def _row(one: Coefficient) -> tuple[str, str, str, str]:
    was = (
        "–"
        if one.was_value is None
        else f"{_number(one.was_value, one.unit)}" + (f" ({one.was.source})" if one.was else "")
    )
    if one.now is None:
        return one.title, was, "stays", one.why
    return one.title, was, _number(one.now.value, one.unit), f"{one.reports:,} reports, {_count(one.devices, 'device')}"


def _grids(carried: list[Coefficient]) -> str:
    names = list(dict.fromkeys(one.key.rpartition(".")[2] for one in carried))
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")


def _number(value: float, unit: str) -> str:
    if unit == "ns/weight":
        return f"{value:.3g} {unit}"
    size, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), (1.0, ""))
    return f"{value / size:.3g} {prefix}{ {'bytes/s': 'B/s', 'bytes': 'B'}.get(unit, unit) }"


def _change(errors: Errors) -> str:
    return f"{100 * errors.before:.0f} % → {100 * errors.after:.0f} %"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
