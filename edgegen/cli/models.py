"""`edgegen models`: what was made here, and from what."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json
from edgegen.errors import ConfigError
from edgegen.records.registry import Entry

app = typer.Typer(invoke_without_command=True, help="List what was made here; show what it was made from.")

Places = Annotated[
    list[str] | None, typer.Option("--in", help="A folder to look in, with all below; may be given again.")
]


@app.callback()
def models(
    context: typer.Context,
    places: Places = None,
    kind: Annotated[str, typer.Option("--kind", help="data, model, plan, artifact, evaluation or release.")] = "",
    track: Annotated[
        str | None, typer.Option("--track", help="Also write runs to this MLflow store, like file:mlruns.")
    ] = None,
    json: options.Json = False,
) -> None:
    """List data sets, models, plans, artifacts, evaluations and releases with their figures."""
    if context.invoked_subcommand is not None:
        return
    from edgegen.records.registry import KINDS
    from edgegen.sdk.registry import list_models

    if kind and kind not in KINDS:
        raise ConfigError(f"--kind {kind!r} is unknown", hint=f"Choose one of: {', '.join(KINDS)}.")
    if track == "":
        raise ConfigError("--track is empty", hint="Name a store, like file:mlruns.")
    found = [entry for entry in list_models(*(places or ())) if not kind or entry.kind == kind]
    if track:
        from edgegen.sdk.tracking import track_entries

        count = track_entries(found, track)
        sys.stderr.write(f"{count} runs written to {track}\n")
    if json:
        write_json(found)
        return
    if not found and kind:
        sys.stdout.write(f"nothing of kind {kind} here\n")
        return
    if not found:
        sys.stdout.write(
            "nothing here yet: edgegen data build, finetune, distill, compress and pack leave their records\n"
        )
        return
    for entry in found:
        figures = _figures(entry) + (f"  {entry.note}" if entry.kind == "evaluation" else "")
        sys.stdout.write(f"{entry.id}  {entry.kind:10} {entry.name:32} {entry.created[:16]:16}  {figures}\n")
    sys.stdout.write("\nnext  edgegen models show ID\n")


@app.command()
def show(
    wish: Annotated[str, typer.Argument(help="An id, the beginning of one, or a path.")],
    places: Places = None,
    json: options.Json = False,
) -> None:
    """Draw what something was made from, how it and that were judged, and what was made from it."""
    from edgegen.sdk.registry import ancestry, descendants, evaluations, find_entry, list_models

    entries = list_models(*(places or ()))
    entry = find_entry(entries, wish)
    above, below = ancestry(entries, entry), descendants(entries, entry)
    if json:
        tree = [
            {"depth": depth, "entry": {"name": one}}
            if isinstance(one, str)
            else {"depth": depth, "entry": one, "evaluations": [e.id for e in evaluations(entries, one)]}
            for depth, one in above
        ]
        judged = evaluations(entries, entry)
        write_json({"entry": entry, "made_from": tree[1:], "made_into": below, "evaluations": judged})
        return
    lines = [f"{entry.kind} {entry.name}", f"  id       {entry.digest}", f"  path     {entry.path}"]
    lines += [f"  made     {entry.created}" + (f" by {entry.by}" if entry.by else "")]
    lines += [f"  lineage  {entry.lineage}"] if entry.lineage else []
    lines += [f"  note     {entry.note}"] if entry.note else []
    lines += [f"  {name:20} {value:,.6g}" for name, value in entry.metrics.items()]
    lines += ["", "made from"]
    drawn: set[str] = {entry.digest}
    for depth, one in above[1:]:
        if isinstance(one, str):
            lines.append("  " * depth + f"└ {one}  (not here)")
            continue
        lines.append("  " * depth + f"└ {one.kind} {one.name}  {one.id}")
        if one.digest not in drawn:
            lines += ["  " * (depth + 1) + _judged(e) for e in evaluations(entries, one) if e != entry]
        drawn.add(one.digest)
    if judged := evaluations(entries, entry):
        lines += ["", "judged", *(f"  {_judged(e)}" for e in judged)]
    if below:
        lines += ["", "made into", *(f"  └ {one.kind} {one.name}  {one.id}" for one in below)]
    sys.stdout.write("\n".join(lines) + "\n")


def _figures(entry: Entry) -> str:
    return "  ".join(f"{name} {value:,.4g}" for name, value in list(entry.metrics.items())[:3])


def _judged(evaluation: Entry) -> str:
    figures = _figures(evaluation)
    return f"· {figures}  {evaluation.note}  {evaluation.created[:10]}  {evaluation.id}"
