"""`edgegen prompt try MODEL --prompts prompts.toml --data few.jsonl`: the best prompt before any data is collected."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import training_progress, write_json

app = typer.Typer(no_args_is_help=True, help="Compare prompts on a few examples, and ship the best.")
Prompts = Annotated[str, typer.Option("--prompts", help="A TOML file with a table [prompts.NAME] for each.")]
Asked = Annotated[str, typer.Argument(help="A checkpoint, or what `edgegen compress` wrote.", show_default=False)]


@app.command("try")
def try_prompts(
    model: Asked,
    data: Annotated[str, typer.Option("--data", "-d", help="A few rows with their right answers.")],
    prompts: Prompts = "prompts.toml",
    limit: Annotated[int | None, typer.Option("--limit", help="Most rows.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 96,
    target: Annotated[str, typer.Option("--target", "-t", help="Which of several compared targets.")] = "",
    runtime: options.Runtime = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Score prompts on the same rows, say which differ by more than chance, and keep the result beside the file."""
    with training_progress(quiet, "Trying") as told:
        from edgegen.sdk import prompting

        trial = prompting.try_prompts(
            model,
            prompts=prompts,
            data=data,
            limit=limit,
            max_tokens=max_tokens,
            target=target,
            runtime=runtime,
            told=told,
        )
    if json:
        write_json(trial)
        return
    from pathlib import Path

    for score in sorted(trial.scores, key=lambda score: (score.name != trial.best, not score.as_good, score.name)):
        mark = "best" if score.name == trial.best else "as good" if score.as_good else ""
        sys.stdout.write(f"{score.name}  {score.version}  {mark}".rstrip() + "\n")
        for metric in score.metrics:
            if metric.model is None:
                continue
            at, gap = metric.model, metric.difference
            line = f"  {metric.name:16} {at.value:.3g} [{at.low:.3g}, {at.high:.3g}]"
            if gap is not None:
                line += f"   to the best {gap.value:+.3g} [{gap.low:+.3g}, {gap.high:+.3g}]"
            sys.stdout.write(line + "\n")
    sys.stdout.write(f"\njudged by {trial.judged_by} on {trial.rows} rows; best: {trial.best}\n")
    for note in trial.notes:
        sys.stdout.write(f"! {note}\n")
    sys.stdout.write(f"history  {prompting.history_file(Path(prompts))}\n")
    sys.stdout.write(f"next     edgegen prompt use {trial.best} --prompts {prompts} --model {model}\n")


@app.command()
def use(
    name: Annotated[str, typer.Argument(help="Of the prompt.", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="Whose chat template it becomes.")],
    prompts: Prompts = "prompts.toml",
    data: Annotated[str, typer.Option("--data", "-d", help="Where its examples come from, if it shows any.")] = "",
    out: Annotated[str, typer.Option("--out", "-o", help="File for the chat template.")] = "chat_template.jinja",
    json: options.Json = False,
) -> None:
    """Write a prompt as a chat template, which bundles and light releases carry."""
    from edgegen.sdk import prompting

    used = prompting.use_prompt(name, prompts=prompts, model=model, out=out, data=data)
    if json:
        write_json(used)
        return
    sys.stdout.write(f"{used.name}  {used.version}  →  {used.template}\n")
    sys.stdout.write(f"next  edgegen pack BUNDLE --replace chat_template.jinja={used.template}\n")


@app.command()
def history(prompts: Prompts = "prompts.toml", json: options.Json = False) -> None:
    """What was tried and used."""
    from edgegen.records.prompts import PromptTrial
    from edgegen.sdk import prompting

    found = prompting.read_history(prompts)
    if json:
        write_json(found)
        return
    if not found:
        sys.stdout.write("nothing was tried or used yet\n")
    for entry in found:
        if isinstance(entry, PromptTrial):
            said = ", ".join(f"{score.name} {score.version}" for score in entry.scores)
            sys.stdout.write(f"{entry.created}  tried {said} on {entry.rows} rows: best {entry.best}\n")
        else:
            sys.stdout.write(f"{entry.created}  used {entry.name} {entry.version} as {entry.template}\n")
