"""`edgegen data build raw/*.jsonl --out data/`: from raw files to a data set that can be trusted."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from edgegen.cli import options
from edgegen.cli.render import training_progress, write_json

app = typer.Typer(no_args_is_help=True, help="Build data sets, and see what is in them.")


@app.command()
def build(
    sources: Annotated[list[str] | None, typer.Argument(help="Files, folders or hub ids.", show_default=False)] = None,
    out: options.Out = "data",
    recipe: Annotated[str | None, typer.Option("--recipe", help="A TOML file with every setting.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the data set.")] = None,
    language: Annotated[
        list[str] | None, typer.Option("--language", help="Keep only these, like en; may be given again.")
    ] = None,
    near: Annotated[
        float | None, typer.Option("--near", help="Similarity from which rows are the same; 1: equal ones only.")
    ] = None,
    max_characters: Annotated[int | None, typer.Option("--max-characters", help="Of a row.")] = None,
    redact: Annotated[bool, typer.Option("--redact/--no-redact", help="Blot out personal data.")] = True,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="An evaluation set that may not be learnt.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="A labelling function, like labels.py:is_question.")
    ] = None,
    balance: Annotated[str | None, typer.Option("--balance", help="none, label, topic or group.")] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="Repeat and drop rows to balance, instead of weighting.")
    ] = False,
    validation: Annotated[
        float | None, typer.Option("--validation", help="Share of rows to judge on while learning.")
    ] = None,
    test: Annotated[float | None, typer.Option("--test", help="Share of rows that nothing learns from.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Clean, de-duplicate, redact, label, balance and split; with a card, a picture and where each row comes from."""
    with training_progress(quiet, "Building") as told:
        from edgegen.common.codec import convert
        from edgegen.records.recipe import Recipe
        from edgegen.sdk.data import build_data, load_recipe

        tree = recipe_tree(load_recipe(recipe))
        for part, key, value in (
            ("", "name", name),
            ("clean", "languages", language or None),
            ("clean", "max_characters", max_characters),
            ("duplicates", "near", near),
            ("redact", "enabled", redact if not redact else None),
            ("decontaminate", "against", against or None),
            ("label", "functions", label or None),
            ("balance", "by", balance),
            ("balance", "how", "resample" if resample else None),
            ("split", "validation", validation),
            ("split", "test", test),
        ):
            if value is not None:
                (tree[part] if part else tree)[key] = value
        built = build_data(
            sources or (),
            out=out,
            recipe=convert(tree, Recipe, where="the options"),
            told=lambda step, done, steps: told(done, steps, step),
        )
    if json:
        write_json(built)
        return
    from edgegen.prepare.show import built_lines

    sys.stdout.write("\n".join(built_lines(built)) + "\n")
    sys.stdout.write(f"\ndata  {out}   card  {out}/card.md\n")
    sys.stdout.write(f"next  edgegen finetune MODEL --data {out}    edgegen compress MODEL --profile … --data {out}\n")


@app.command()
def show(folder: Annotated[str, typer.Argument(help="A built data set.")], json: options.Json = False) -> None:
    """What a data set holds and what was done to it."""
    from pathlib import Path

    from edgegen.common.codec import load_json
    from edgegen.prepare.build import Built
    from edgegen.prepare.built import open_dataset
    from edgegen.prepare.show import built_lines

    open_dataset(folder)
    built = load_json(Path(folder).expanduser() / "report.json", Built)
    if json:
        write_json(built)
    else:
        sys.stdout.write("\n".join(built_lines(built)) + "\n")


@app.command()
def where(
    folder: Annotated[str, typer.Argument(help="A built data set.")],
    row: Annotated[str, typer.Argument(help="A row's id, or a piece of its text.")],
    json: options.Json = False,
) -> None:
    """Where a row comes from: its source, what changed it, who labelled it."""
    from edgegen.prepare.show import row_lines
    from edgegen.sdk.data import find_row

    found = find_row(folder, row)
    if json:
        write_json(found)
    else:
        sys.stdout.write("\n".join(row_lines(found)) + "\n")


def recipe_tree(recipe: object) -> dict[str, Any]:
    """A recipe as plain values that options can override."""
    import msgspec

    tree: dict[str, Any] = msgspec.to_builtins(recipe)
    return tree
