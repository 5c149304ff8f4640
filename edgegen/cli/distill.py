"""`edgegen distill TEACHER --student 0.25x --data data/`: teach a smaller model what a larger one says."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.finetune import (
    Batch,
    Epochs,
    MaxMinutes,
    MaxTokens,
    MicroBatch,
    Packed,
    Patience,
    Rate,
    Seed,
    Steps,
    course_of,
    show_training,
)
from edgegen.cli.render import training_progress
from edgegen.errors import ConfigError
from edgegen.records.task import SyntheticReport

_OF_DISTRIBUTIONS = ("loss", "alpha", "temperature", "labels", "top", "on_policy", "sequence_level")
"""Parameters that --few-shot has no use for: there the teacher's examples are learnt, not its distributions."""
_OWN = "the task's own; none was chosen with edgegen prompt use"


def distill(
    context: typer.Context,
    teacher: Annotated[str, typer.Argument(help="A checkpoint's folder, or a hub id.", show_default=False)],
    student: Annotated[
        str,
        typer.Option(
            "--student", help="A checkpoint; a share like 0.25x, or layers=4,hidden=128: derived from TEACHER."
        ),
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="A built data set, or a file of examples.")],
    out: options.Out = "student",
    loss: Annotated[str, typer.Option("--loss", help="forward, reverse, skew, skew-reverse or js.")] = "skew",
    alpha: Annotated[float, typer.Option("--alpha", help="Skew, or the teacher's share of js.")] = 0.1,
    temperature: Annotated[float, typer.Option("--temperature", help="Of both distributions.")] = 1.0,
    labels: Annotated[float, typer.Option("--labels", help="Share of the data's own answers in the loss.")] = 0.1,
    top: Annotated[
        int, typer.Option("--top", help="Keep so many of the teacher's likeliest tokens on disk; 0: ask it live.")
    ] = 0,
    on_policy: Annotated[float, typer.Option("--on-policy", help="Share of steps on the student's own answers.")] = 0.0,
    sequence_level: Annotated[
        bool, typer.Option("--sequence-level", help="Learn the teacher's answers, not its distributions.")
    ] = False,
    few_shot: Annotated[
        int, typer.Option("--few-shot", help="Learn from so many real examples, and from what TEACHER makes of them.")
    ] = 0,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="With --few-shot: a TOML file that says how TEACHER is asked, or prompts with [task]."
        ),
    ] = None,
    ray: Annotated[
        str,
        typer.Option("--ray", help="With --few-shot: a Ray cluster, like auto or host:6379, that TEACHER writes on."),
    ] = "",
    epochs: Epochs = 3.0,
    steps: Steps = None,
    batch: Batch = 16,
    micro_batch: MicroBatch = 0,
    rate: Rate = None,
    max_tokens: MaxTokens = None,
    packed: Packed = False,
    patience: Patience = 3,
    seed: Seed = 0,
    max_minutes: MaxMinutes = 0.0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Distill a smaller model from a teacher. The same command goes on where a killed one was.

    A derived student keeps the teacher's most active dimensions, heads and channels, and layers at even distances.
    """
    if bool(few_shot) != (task is not None):
        raise ConfigError("--few-shot and --task go together", hint="Like --few-shot 32 --task prompts.toml.")
    if task is not None:
        for name in _OF_DISTRIBUTIONS:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise ConfigError(
                    f"--{name.replace('_', '-')} does not go with --few-shot",
                    hint="Leave it out: the teacher's examples are learnt, not its distributions.",
                )
    if ray and task is None:
        raise ConfigError("--ray goes with --few-shot", hint="Leave it out: training scales by `accelerate launch`.")
    course = course_of(
        epochs=epochs,
        steps=steps,
        batch=batch,
        micro_batch=micro_batch,
        rate=rate,
        max_tokens=max_tokens,
        packed=packed,
        patience=patience,
        seed=seed,
        max_minutes=max_minutes,
    )
    report = None
    with training_progress(quiet, "Distilling") as told:
        from edgegen.sdk import tuning
        from edgegen.tune.distill import Distilling

        if task is not None:
            training, report = tuning.distill_few(
                teacher, student=student, data=data, task=task, few=few_shot, out=out, ray=ray, told=told, **course
            )
        else:
            how = Distilling(
                loss=loss, alpha=alpha, temperature=temperature, labels=labels, top=top, on_policy=on_policy
            )
            training = tuning.distill(
                teacher,
                student=student,
                data=data,
                out=out,
                how=how,
                sequence_level=sequence_level,
                told=told,
                **course,
            )
    if report is not None and not json:
        show_synthetic(report)
    show_training(training, out=out, json=json)


def show_synthetic(report: SyntheticReport) -> None:
    """What a teacher wrote, and what became of it."""
    lines = [
        f"synthetic       {report.kept} of {report.asked} examples kept, from {report.seeds} seeds "
        f"(task {report.version})",
        f"prompt          {report.prompt or _OWN}",
    ]
    lines += [f"                {count} dropped: {why}" for why, count in report.dropped.items()]
    if report.mean_confidence is not None and report.mean_agreement is not None:
        lines.append(
            f"                confidence {report.mean_confidence:.2f} nats per token, "
            f"agreement {report.mean_agreement:.0%}"
        )
    if report.distinct2 is not None:
        lines.append(f"                distinct-2 {report.distinct2:.2f}")
    sys.stdout.write("\n".join(lines) + "\n")
