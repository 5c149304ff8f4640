"""`edgegen evaluate MODEL --against TEACHER --data data/`: how good a model is, and what it lost."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import training_progress, write_json


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint, or what `edgegen compress` wrote.", show_default=False)],
    data: Annotated[str | None, typer.Option("--data", "-d", help="A built data set, or a file of examples.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="The teacher or original: a checkpoint or an output.")
    ] = None,
    out: options.Out = "evaluation",
    suite: Annotated[
        str, typer.Option("--suite", help="quality, fairness, safety, tasks; several like quality,safety.")
    ] = "",
    limit: Annotated[int | None, typer.Option("--limit", help="Most rows, pairs or questions of each kind.")] = None,
    fairness: Annotated[
        list[str] | None,
        typer.Option("--fairness", help="Your copy of CrowS-Pairs, BBQ, StereoSet or WinoBias; may be repeated."),
    ] = None,
    toxicity_model: Annotated[
        str, typer.Option("--toxicity-model", help="A text classifier; else a short list of English insults.")
    ] = "",
    unsafe: Annotated[str, typer.Option("--unsafe", help="A file of requests that should be refused.")] = "",
    tasks: Annotated[str, typer.Option("--tasks", help="Of lm-eval, like arc_easy,hellaswag.")] = "",
    task_folder: Annotated[str, typer.Option("--task-folder", help="Your own task files for lm-eval.")] = "",
    shots: Annotated[int | None, typer.Option("--shots", help="Examples before each question of a task.")] = None,
    gates: Annotated[str | None, typer.Option("--gates", help="A TOML file of limits.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.")] = 96,
    samples: Annotated[int, typer.Option("--samples", help="Rows whose answers are drawn, to see variety.")] = 32,
    temperature: Annotated[float, typer.Option("--temperature", help="Of drawn answers.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", help="Of drawn answers.")] = 0,
    target: Annotated[str, typer.Option("--target", "-t", help="Which of several compared targets.")] = "",
    runtime: options.Runtime = "",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Judge a model on held-out rows, bias data sets, safety and lm-eval's tasks, with 95 % intervals.

    An artifact runs in its own runtime. With --against each number is compared on the same rows.
    Exit codes: 0 every gate kept or none asked, 5 a gate missed (the evaluation is kept).
    """
    names = [name.strip() for name in suite.split(",") if name.strip()]
    listed = [name.strip() for name in tasks.split(",") if name.strip()]
    if not suite and (data is not None or not (listed or fairness)):
        names = ["quality"]
    with training_progress(quiet, "Judging") as told:
        from edgegen.evaluate.quality import Wanted
        from edgegen.sdk import judging

        found = judging.evaluate(
            model,
            data=data,
            against=against,
            suites=names,
            out=out,
            limit=limit,
            wanted=Wanted(max_tokens=max_tokens, samples=samples, temperature=temperature, seed=seed),
            fairness_files=fairness or (),
            toxicity_model=toxicity_model,
            unsafe=unsafe,
            tasks=listed,
            task_folder=task_folder,
            shots=shots,
            gates=gates,
            target=target,
            runtime=runtime,
            told=told,
        )
    if json:
        write_json(found)
    else:
        from edgegen.evaluate.show import evaluation_lines

        sys.stdout.write("\n".join(evaluation_lines(found)) + "\n")
        sys.stdout.write(f"\nevaluation  {out}/evaluation.json   picture  {out}/evaluation.png\n")
    if found.passed is False:
        sys.exit(5)
