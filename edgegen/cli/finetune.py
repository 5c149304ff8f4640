"""`edgegen finetune BASE --data data/ --out teacher/`: teach a model a task."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import training_progress, write_json
from edgegen.records.training import Training

if TYPE_CHECKING:
    from edgegen.sdk.tuning import Course

Epochs = Annotated[float, typer.Option("--epochs", help="How often each example is shown.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Batches to learn from, instead of --epochs.")]
Batch = Annotated[int, typer.Option("--batch", help="Examples a step, all processes together.")]
MicroBatch = Annotated[int, typer.Option("--micro-batch", help="Of them in memory at once; 0: all.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Highest learning rate; else one that suits the method.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Longest sequence; else at most 512.")]
Packed = Annotated[bool, typer.Option("--packed", help="Short examples share a sequence, unseen by each other.")]
Patience = Annotated[int, typer.Option("--patience", help="Stop after so many looks without a better held-out loss.")]
Seed = Annotated[int, typer.Option("--seed", help="Of order and adapters.")]
MaxMinutes = Annotated[float, typer.Option("--max-minutes", help="Stop after this time with the best so far.")]


def finetune(
    model: options.Model,
    data: Annotated[str, typer.Option("--data", "-d", help="A built data set, or a file of examples.")],
    out: options.Out = "teacher",
    method: Annotated[
        str, typer.Option("--method", help="lora, rslora, dora, qlora (CUDA), full or prompt-tuning.")
    ] = "lora",
    rank: Annotated[int, typer.Option("--rank", help="Of the adapters.")] = 16,
    alpha: Annotated[float, typer.Option("--alpha", help="Adapters are scaled by alpha / rank.")] = 32.0,
    dropout: Annotated[float, typer.Option("--dropout", help="Of the adapters' inputs.")] = 0.0,
    virtual_tokens: Annotated[int, typer.Option("--virtual-tokens", help="Of prompt tuning.")] = 16,
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
    """Fine-tune a model on examples. The same command goes on where a killed one was.

    Only answers are learnt where examples have them. The weights with the best held-out loss are kept; adapters are
    merged into them, and kept in OUT/adapter. Several processes: `accelerate launch -m edgegen finetune …`.
    """
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
    with training_progress(quiet, "Fine-tuning") as told:
        from edgegen.sdk import tuning
        from edgegen.tune.adapters import Adapter

        training = tuning.finetune(
            model,
            data=data,
            out=out,
            method=method,
            adapter=Adapter(rank=rank, alpha=alpha, dropout=dropout, virtual_tokens=virtual_tokens),
            told=told,
            **course,
        )
    show_training(training, out=out, json=json)


def course_of(
    *,
    epochs: float,
    steps: int | None,
    batch: int,
    micro_batch: int,
    rate: float | None,
    max_tokens: int | None,
    packed: bool,
    patience: int,
    seed: int,
    max_minutes: float,
) -> Course:
    """The command line's words as the SDK's arguments."""
    return {
        "epochs": epochs,
        "steps": steps,
        "batch": batch,
        "micro_batch": micro_batch,
        "rate": rate,
        "max_tokens": max_tokens,
        "packed": packed,
        "patience": patience,
        "seed": seed,
        "max_seconds": 60 * max_minutes,
    }


def show_training(training: Training, *, out: str, json: bool) -> None:
    """Print what a run gave."""
    if json:
        write_json(training)
        return
    before, after = training.heldout_before, training.heldout_after
    if before is not None and after is not None:
        sys.stdout.write(f"held-out loss   {before:.4f} → {after:.4f} nats per token (step {training.best_step})\n")
        if after >= before:
            sys.stdout.write("it did not improve: the weights are the base model's\n")
    share = training.trained_parameters / training.parameters
    sys.stdout.write(f"trained         {training.trained_parameters:,} of {training.parameters:,} ({share:.1%})\n")
    sys.stdout.write(
        f"learnt from     {training.tokens:,} tokens in {training.steps} steps, {training.tokens_per_s:,.0f} tokens/s"
        + (f" ({training.stopped})" if training.stopped else "")
        + (f", taken up {training.resumed} times" if training.resumed else "")
        + "\n"
    )
    for note in training.notes:
        sys.stdout.write(f"note            {note}\n")
    sys.stdout.write(f"\nmodel  {out}\n")
    if training.method != "prompt-tuning":
        sys.stdout.write(f"next   edgegen compress {out} --profile … --data {training.data}\n")
