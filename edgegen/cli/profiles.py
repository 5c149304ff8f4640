"""`edgegen profiles`: list devices, show one, measure this one.

Results go to stdout, talk to stderr; `--json` makes the result one JSON document.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from edgegen.catalog.learned import learned_notes
from edgegen.common.units import format_bytes

if TYPE_CHECKING:
    from edgegen.records.profile import Number, Profile

app = typer.Typer(help="Devices and their budgets.", no_args_is_help=False)

AS_JSON = typer.Option(False, "--json", help="Print JSON instead of a table.")


@app.callback(invoke_without_command=True)
def profiles(context: typer.Context, as_json: bool = AS_JSON) -> None:
    """List the devices that edgegen knows, yours included."""
    if context.invoked_subcommand is not None:
        return
    from edgegen.catalog import list_profiles

    found = list_profiles()
    if as_json:
        _print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        caption="largest file and memory, slowest decoding",
        caption_justify="left",
    )
    for heading in ("name", "RAM", "file", "memory", "tok/s", "runs"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("name", "runs") else "right")
    for profile in found:
        limits = profile.budgets
        table.add_row(
            profile.name,
            _gib(profile.device.ram_bytes.value),
            format_bytes(limits.max_bytes) if limits.max_bytes else "-",
            format_bytes(limits.max_rss_bytes) if limits.max_rss_bytes else "-",
            f"{limits.min_tokens_per_s:g}" if limits.min_tokens_per_s else "-",
            " ".join(profile.targets),
        )
    Console().print(table)
    typer.echo(
        "edgegen profiles show NAME tells where each number comes from; this machine: edgegen profiles probe", err=True
    )


@app.command()
def show(
    name: str = typer.Argument(help="A profile's name, or the path of a .toml file."), as_json: bool = AS_JSON
) -> None:
    """Show one device, each number with its source."""
    from edgegen.catalog import load_profile

    profile = load_profile(name)
    if as_json:
        _print_json(profile)
    else:
        typer.echo(describe(profile))


@app.command()
def probe(
    name: str = typer.Option("this-machine", "--name", help="Name of the profile to write."),
    no_save: bool = typer.Option(False, "--no-save", help="Measure and print only."),
    as_json: bool = AS_JSON,
) -> None:
    """Measure this machine: memory bandwidth, kernel speed, dispatch time."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from edgegen.catalog import save_user_profile
    from edgegen.runtime.probe import probe_machine

    talk = Console(stderr=True)
    columns = (TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=talk, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        profile = probe_machine(
            lambda step, fraction: bar.update(task, description=step, completed=fraction), name=name
        )
    if as_json:
        _print_json(profile)
    else:
        typer.echo(describe(profile))
    if not no_save:
        typer.echo(f"Saved as {save_user_profile(profile)}", err=True)


def describe(profile: Profile) -> str:
    """A profile as aligned lines, each number with its unit, source and note."""
    device = profile.device
    lines = [f"{profile.name}: {profile.title}", ""]
    core = f" ({device.cpu_model})" if device.cpu_model else ""
    lines += [f"  {'CPU':<24}{device.cpu}{core}, {device.cores} cores"]
    lines += [f"  {'instruction set':<24}{device.isa} ({device.arch})"]
    lines += [
        _line("clock", f"{device.clock_ghz.value:g} GHz", device.clock_ghz),
        _line("memory", _gib(device.ram_bytes.value), device.ram_bytes),
        _line("storage", f"{device.storage_bytes.value / 1e9:.3g} GB", device.storage_bytes),
        _line(
            "read bandwidth",
            f"{device.bandwidth_bytes_per_s.value / 1e9:.3g} GB/s",
            device.bandwidth_bytes_per_s,
        ),
    ]
    for target, overhead in profile.overhead_s_per_layer_token.items():
        lines.append(_line(f"dispatch ({target})", f"{overhead.value * 1e6:.3g} us per block and token", overhead))
    for target, attention in profile.attention_s_per_cached_number.items():
        lines.append(_line(f"attention ({target})", f"{attention.value * 1e9:.3g} ns per number", attention))
    for target, offset in profile.rss_offset_bytes.items():
        sign = "-" if offset.value < 0 else "+"
        lines.append(_line(f"memory beside ({target})", f"{sign}{format_bytes(abs(offset.value))}", offset))
    for target, loading in profile.load_bytes_per_s.items():
        lines.append(_line(f"loading ({target})", f"{format_bytes(loading.value)}/s", loading))
    lines += ["", "  budgets"]
    lines += [f"    {key:<22}{text}" for key, text in _budget_texts(profile)] or ["    none"]
    work = profile.workload
    lines += [
        "",
        f"  {'workload':<24}prompt of {work.prompt_tokens}, answer of {work.decode_tokens}, context of "
        f"{work.context_tokens} tokens, {work.ubatch_tokens} at once",
        f"  {'targets':<24}{', '.join(profile.targets)}",
    ]
    if profile.kernel_ns_per_weight:
        lines += ["", "  kernels, ns per weight on one core (one token / a prompt)"]
        for grid, number in profile.kernel_ns_per_weight.items():
            batched = profile.prefill_ns_per_weight.get(grid)
            text = f"{number.value:.4f}" + (f" / {batched.value:.4f}" if batched else "")
            lines.append(_line(f"  {grid}", text, number))
    prompts = {g: n for g, n in profile.prefill_ns_per_weight.items() if g not in profile.kernel_ns_per_weight}
    if prompts:
        lines += ["", "  prompt kernels, ns per weight and token on one core"]
        lines += [_line(f"  {grid}", f"{number.value:.4f}", number) for grid, number in prompts.items()]
    lines += [f"\n  {line}" for line in learned_notes(profile)]
    if profile.notes:
        lines += ["", f"  {profile.notes}"]
    return "\n".join(lines)


def _line(label: str, text: str, number: Number) -> str:
    return f"  {label:<24}{text:<17} [{number.source}] {number.note}".rstrip()


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"


def _budget_texts(profile: Profile) -> list[tuple[str, str]]:

    limits = profile.budgets
    texts = {
        "file": limits.max_bytes and f"at most {format_bytes(limits.max_bytes)}",
        "peak memory": limits.max_rss_bytes and f"at most {format_bytes(limits.max_rss_bytes)}",
        "decoding": limits.min_tokens_per_s and f"at least {limits.min_tokens_per_s:g} tokens/s",
        "first token": limits.max_ttft_ms and f"within {limits.max_ttft_ms:g} ms",
        "KL to the original": limits.max_kl and f"at most {limits.max_kl:g} nats/token",
        "cosine similarity to the original": limits.min_cosine and f"at least {limits.min_cosine:g}, of encoders",
    }
    return [(key, str(text)) for key, text in texts.items() if text]


def _print_json(value: object) -> None:
    import msgspec

    typer.echo(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))
