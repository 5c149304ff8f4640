"""`edgegen compress MODEL --profile NAME`: the whole chain, ending with a receipt."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from edgegen.cli import options
from edgegen.cli.render import EVENTS_VARIABLE, progress, say_learned, write_json
from edgegen.errors import UnsupportedError
from edgegen.records.bakeoff import BakeOff


def compress(
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
    rounding: options.Rounding = "auto",
    litertlm: options.LiteRtLm = False,
    common_grid: options.CommonGrid = False,
    gates: options.Gates = None,
    tui: options.Tui = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Plan, compress, export and verify a model for a device.

    With --gates the artifact is evaluated against MODEL on the held-out rows, and each gate is a check of the report.

    Exit codes: 0 every limit kept, 4 no plan fits, 5 the artifact misses a limit or gate (it and its report are kept).
    """
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
    arguments |= {"litertlm": litertlm, "gates": gates, "common_grid": common_grid}
    targets = options.targets_of(target)
    if tui:
        from edgegen.sdk.stage_words import stages_of
        from edgegen.sdk.wishes import times_of

        times = times_of(budget, arguments["techniques"], "quality")  # what is preferred moves no stage
        chain = stages_of(searched=times.structures > 0, refined=times.refinement > 0, judged=gates is not None)
        if (code := _on_screens(Path(out), targets, chain)) is not None:
            raise typer.Exit(code)
    say_learned(profile, quiet)
    if len(targets) > 1:
        with progress(quiet) as notify:
            from edgegen.sdk import bakeoff

            found = bakeoff.bake_off(model, targets=targets, **arguments, notify=notify)
        show_comparison(found, out=out, json=json)
        return
    with progress(quiet) as notify:
        from edgegen.sdk import pipeline

        result = pipeline.compress(model, target=targets[0], **arguments, notify=notify)
    show_result(result.report, result.plan, out=out, json=json, made=True)


def _on_screens(out: Path, targets: tuple[str, ...], chain: tuple[str, ...]) -> int | None:
    """Run the same command as a child whose progress is shown.

    Returns:
        Its exit code; None where there can be no screens, which is said: the run then goes on without them.
    """
    from edgegen.monitor.terminal import is_terminal, prepare_terminal

    try:
        if not is_terminal():
            raise UnsupportedError("--tui needs a terminal")
        prepare_terminal()
    except UnsupportedError as error:
        sys.stderr.write(f"edgegen: {error}; going on without screens. {error.hint}".rstrip() + "\n")
        return None
    from edgegen.monitor.compression import show_compression

    command = [word for word in sys.argv[1:] if word != "--tui"]
    return show_compression(command, out, targets, chain, EVENTS_VARIABLE)


def show_comparison(found: BakeOff, *, out: str, json: bool) -> None:
    """Print a comparison of targets and leave with its verdict: the first failure's code if none passed."""
    from edgegen.receipt import comparison_lines

    if json:
        write_json(found)
    else:
        sys.stdout.write("\n".join(comparison_lines(found)) + "\n")
        sys.stdout.write(f"\ncompared  {out}/bakeoff.html\n")
        if found.recommended:
            sys.stdout.write(f"artifact  {out}/{found.recommended}/artifact/\n")
            bench = f"    edgegen bench {out}" if found.task == "causal" else ""
            sys.stdout.write(f'next      edgegen run {out} "…"{bench}\n')
    if not found.recommended:
        raise typer.Exit(next(c.exit_code for c in found.contenders if c.exit_code))


def _spent(out: Path) -> str:
    """What each stage of an output took when it ran, in this command or an earlier one."""
    from edgegen.common.codec import load_json
    from edgegen.common.units import format_seconds
    from edgegen.records.build import Build
    from edgegen.sdk.workspace import BUILD_FILE

    stages = load_json(out / BUILD_FILE, Build).stages
    whole, cpu = sum(stage.seconds for stage in stages), sum(stage.cpu_seconds for stage in stages)
    each = ", ".join(f"{stage.name} {format_seconds(stage.seconds)}" for stage in stages)
    return f"{format_seconds(whole)}, {format_seconds(cpu)} of CPU: {each}"


def show_result(report: object, plan: object, *, out: str, json: bool, made: bool = False) -> None:
    """Print a report and leave with its verdict.

    Args:
        made: whether to say what making the artifact took.
    """
    from edgegen.receipt import summary_lines
    from edgegen.records.plan import Plan
    from edgegen.records.report import GATE_CHECK, Report

    assert isinstance(report, Report)
    assert isinstance(plan, Plan)
    if json:
        write_json(report)
    else:
        sys.stdout.write("\n".join(summary_lines(report, plan)) + "\n")
        for check in report.checks:
            if not check.passed and (check.limit is None or check.name.startswith(GATE_CHECK)):
                sys.stdout.write(f"✗ {check.name}: {check.detail}\n")
        sys.stdout.write(f"\nartifact  {out}/artifact/\nreceipt   {out}/report.html\n")
        if made:
            sys.stdout.write(f"spent     {_spent(Path(out))}\n")
        if any(check.name.startswith(GATE_CHECK) for check in report.checks):
            sys.stdout.write(f"evaluated {out}/evaluation/evaluation.json\n")
        if report.passed:
            sys.stdout.write(f"next      edgegen verify {out}    (on the device, to measure its speed)\n")
    if not report.passed:
        raise typer.Exit(5)
