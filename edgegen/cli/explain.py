"""`edgegen explain MODEL --prompt TEXT --against COMPRESSED`: which words make the answer, and which change it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import training_progress, write_json
from edgegen.errors import ConfigError
from edgegen.records.explanation import Explained


def explain(
    model: Annotated[str, typer.Argument(help="A checkpoint, or what `edgegen compress` wrote.", show_default=False)],
    prompt: Annotated[str, typer.Option("--prompt", help="What the model is asked.", show_default=False)],
    against: Annotated[
        str | None, typer.Option("--against", help="Another to put beside it, like the compressed one.")
    ] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="What to explain; else the model's answer.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="occlusion, ablation, integrated-gradients; may be repeated."),
    ] = None,
    replace: Annotated[
        list[str] | None, typer.Option("--replace", help="WORD=OTHER: also try this; may be repeated.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 64,
    out: options.Out = "explanation",
    target: Annotated[str, typer.Option("--target", "-t", help="Which of several compared targets.")] = "",
    runtime: options.Runtime = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say how much each word of a prompt speaks for the answer, and which words change it when dropped or replaced.

    An artifact is asked in its own runtime, by occlusion; with --against both are explained on the same answer.
    """
    pairs = {}
    for item in replace or ():
        word, equals, put = item.partition("=")
        if not (word and equals and put):
            raise ConfigError(f"--replace {item!r} is not WORD=OTHER", hint="Like kitchen=garage.")
        pairs[word] = put
    with training_progress(quiet, "Explaining") as told:
        from edgegen.sdk import explaining

        found = explaining.explain(
            model,
            prompt=prompt,
            against=against,
            answer=answer,
            methods=tuple(method or ()),
            replacements=pairs,
            max_tokens=max_tokens,
            out=out,
            target=target,
            runtime=runtime,
            told=told,
        )
    if json:
        write_json(found)
        return
    sys.stdout.write(f"answer  {found.answer!r}\n")
    for side in (found.model, found.against):
        if side is not None:
            sys.stdout.write("\n".join(_lines(side, found.words)) + "\n")
    if found.agreement is not None:
        sys.stdout.write(f"\nboth rank the words alike to {found.agreement:+.2f} (Spearman; 1: the same order)\n")
    for note in found.notes:
        sys.stdout.write(f"! {note}\n")
    sys.stdout.write(f"\nexplanation  {out}/explanation.json   picture  {out}/explanation.png\n")


def _lines(side: Explained, words: tuple[str, ...]) -> list[str]:
    """A word a line: its scores, and what happens without it."""
    width = min(24, max(map(len, words))) + 2
    methods = [attribution.method for attribution in side.attributions]
    lines = ["", f"{side.judged.source} in {side.judged.runtime}, {side.log_prob:.2f} nats for the answer"]
    lines.append("".join([" " * width, *(f"{name:>22}" for name in methods), "  without it"]))
    dropped = {edit.word: edit for edit in side.edits if not edit.put}
    for place, word in enumerate(words):
        edit = dropped[place]
        says = "another call" if edit.call_changed else "another answer" if edit.changed else "the same"
        scores = "".join(f"{attribution.scores[place]:>+22.3f}" for attribution in side.attributions)
        lines.append(f"{word[:24]:{width}}{scores}  {says}")
    for edit in side.edits:
        if edit.put:
            says = "another call" if edit.call_changed else "another answer" if edit.changed else "the same answer"
            lines.append(f"{edit.removed} → {edit.put}: {says}: {edit.answer!r}")
    return lines
