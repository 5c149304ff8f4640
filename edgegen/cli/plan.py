"""`edgegen plan MODEL --profile NAME`: what would be done, without doing it."""

from __future__ import annotations

import sys

from edgegen.cli import options
from edgegen.cli.render import progress, say_learned, write_json
from edgegen.common.units import format_bytes, format_seconds
from edgegen.errors import ConfigError, InfeasibleError
from edgegen.records.plan import Infeasible, Plan


def plan(
    model: options.Model,
    profile: options.ProfileName,
    data: options.Data = None,
    out: options.Out = "build",
    target: options.Target = "gguf",
    max_bytes: options.MaxBytes = None,
    max_rss: options.MaxRss = None,
    min_tok_s: options.MinSpeed = None,
    max_ttft: options.MaxTtft = None,
    max_kl: options.MaxKl = None,
    min_cosine: options.MinCosine = None,
    prefer: options.Prefer = "auto",
    grids: options.Grids = None,
    kv_type: options.KvType = None,
    vocab: options.Vocab = "auto",
    keep_tokens: options.KeepTokens = None,
    memory: options.Memory = None,
    budget: options.Budget = None,
    techniques: options.Techniques = None,
    explain: options.Explain = False,
    rounding: options.Rounding = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure sensitivities and choose grids; prints the plan and why. Exit code 4: no plan fits."""
    arguments = options.arguments(
        profile=profile,
        data=data,
        out=out,
        max_bytes=max_bytes,
        max_rss=max_rss,
        min_tok_s=min_tok_s,
        max_ttft=max_ttft,
        max_kl=max_kl,
        min_cosine=min_cosine,
        prefer=prefer,
        grids=grids,
        kv_type=kv_type,
        vocab=vocab,
        keep_tokens=keep_tokens,
        memory=memory,
        budget=budget,
        techniques=techniques,
        rounding=rounding,
    )
    one, *more = options.targets_of(target)
    if more:
        raise ConfigError("plan looks at one target at a time", hint=f"Write --target {one}.")
    say_learned(profile, quiet)
    with progress(quiet) as notify:
        from edgegen.sdk import pipeline

        found = pipeline.plan(model, target=one, **arguments, notify=notify)
    if json:
        write_json(found)
    if isinstance(found, Infeasible):
        raise InfeasibleError(found.message, hint=pipeline.nearest(found))
    if not json:
        _show(found)
        if explain or budget:
            _explain(found)
        sys.stdout.write(f"\nnext      edgegen compress {model} with the same options\n")


def _show(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    distance, unit = ("1 - cosine", "1 - cosine") if plan.summary.task == "encoder" else ("KL", "nats")
    table = Table(title=f"{plan.model.source} for {plan.profile.title} ({plan.target})", title_justify="left", box=None)
    for name in ("tensor", "rows", "columns", "grid", "size", unit, "why"):
        table.add_column(
            name, justify="right" if name in ("rows", "columns", "size", unit) else "left", overflow="fold"
        )
    for choice in plan.tensors:
        if choice.role != "vector":
            table.add_row(
                choice.name,
                str(choice.rows),
                str(choice.columns),
                choice.grid,
                format_bytes(choice.bytes),
                f"{choice.kl:.2g}",
                choice.why,
            )
    console.print(table)
    table = Table(title="trade-off", title_justify="left", box=None)
    for name in ("bytes", distance if unit == distance else "KL nats/token", "tokens kept", "bits/weight", ""):
        table.add_column(name, justify="right")
    for point in plan.front:
        chosen = "← chosen" if point.bytes == plan.prediction.bytes else ""
        table.add_row(
            format_bytes(point.bytes),
            f"{point.kl:.3g}",
            f"{point.vocab_size:,}",
            f"{point.bits_per_weight:.2f}",
            chosen,
        )
    console.print(table)
    expected = plan.prediction
    console.print(
        f"predicted: {format_bytes(expected.bytes)} ({plan.baseline.bytes / expected.bytes:.2f}× below 16 bits), "
        f"{distance} {expected.kl + plan.vocabulary.kl:.3g}, {format_bytes(expected.rss_bytes)} resident, "
        f"{expected.decode_tokens_per_s:.3g} tok/s ({expected.decode_bound}-bound); binding budget: {plan.binding}",
        highlight=False,
    )
    compensated = sum(choice.compensated for choice in plan.tensors)
    if compensated:
        console.print(f"rounding: {compensated} matrices with error compensation", highlight=False)
    if expected.load_s is not None:
        console.print(f"opens in {format_seconds(expected.load_s)}, as devices load now", highlight=False)
    console.print(f"vocabulary: {plan.vocabulary.why}", highlight=False)
    for change in plan.structure:
        console.print(f"structure: {change.words}", highlight=False)
    for note in plan.notes:
        console.print(f"! {note}", highlight=False)


def _explain(plan: Plan) -> None:
    """What became of each technique, and what more time would buy."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="techniques", title_justify="left", box=None)
    for name in ("technique", "", "why"):
        table.add_column(name, overflow="fold")
    smaller = plan.vocabulary.size < plan.vocabulary.original_size
    grids = sorted({choice.grid for choice in plan.tensors if choice.role != "vector"})
    table.add_row("vocabulary", "taken" if smaller else "", plan.vocabulary.why)
    table.add_row("quantization", "taken", f"{', '.join(grids)}; each tensor's reason stands above")
    for one in plan.considered:
        table.add_row(one.technique, "taken" if one.taken else "", f"{one.title}: {one.why}")
    console.print(table)
    if plan.more_time:
        console.print(plan.more_time, highlight=False)
