"""`edgegen deploy BUNDLE`: to one device over ssh, or to a fleet's group in waves."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json
from edgegen.common.units import format_bytes, format_seconds
from edgegen.errors import ConfigError
from edgegen.records.deployment import GateMetric

_ANYWHERE = ("bundle", "to", "fleet", "gates", "json")
"""Parameters of both ways; `--folder` goes with --to, all others with --fleet."""


def deploy(
    context: typer.Context,
    bundle: Annotated[
        str, typer.Argument(help="A bundle's folder; with --fleet also NAME@VERSION.", show_default=False)
    ],
    to: Annotated[str | None, typer.Option("--to", help="One device: ssh://[user@]host[:port].")] = None,
    fleet: Annotated[str | None, typer.Option("--fleet", help="A site's folder, or a server's URL.")] = None,
    gates: Annotated[
        str | None, typer.Option("--gates", help="A TOML file of limits that the bundle's evaluation must keep.")
    ] = None,
    group: Annotated[str | None, typer.Option("--group", "-g", help="Which devices of the fleet.")] = None,
    waves: Annotated[str, typer.Option("--waves", help="Shares of the group, each with those before it.")] = (
        "5%,25%,100%"
    ),
    success: Annotated[float, typer.Option("--success", help="Share of a wave that must confirm, 0 to 1.")] = 0.9,
    abort: Annotated[float, typer.Option("--abort", help="Share of failures at which it stops, 0 to 1.")] = 0.2,
    min_devices: Annotated[int, typer.Option("--min-devices", help="Outcomes before --abort is judged.")] = 5,
    deadline: Annotated[float, typer.Option("--deadline", help="Minutes a device has; later is a failure.")] = 60.0,
    soak: Annotated[float, typer.Option("--soak", help="Minutes between a wave's success and the next.")] = 0.0,
    roll_back: Annotated[bool, typer.Option("--roll-back", help="If it stops, bring devices back.")] = False,
    max_error_rise: Annotated[
        float | None, typer.Option("--max-error-rise", help="Pause when more of the generations fail, 0 to 1.")
    ] = None,
    max_ttft_ratio: Annotated[
        float | None, typer.Option("--max-ttft-ratio", help="Pause above so many times the time to first token.")
    ] = None,
    min_speed_ratio: Annotated[
        float | None, typer.Option("--min-speed-ratio", help="Pause below so many times the tokens a second.")
    ] = None,
    max_thumbs_down_rise: Annotated[
        float | None, typer.Option("--max-thumbs-down-rise", help="Pause when more are rated down, 0 to 1.")
    ] = None,
    max_drift: Annotated[
        float | None, typer.Option("--max-drift", help="Pause above this population stability index.")
    ] = None,
    min_generations: Annotated[
        int, typer.Option("--min-generations", help="With the release and without, before these are judged.")
    ] = 200,
    abort_on: Annotated[
        list[GateMetric] | None, typer.Option("--abort-on", help="Abort for this metric, do not pause; repeatable.")
    ] = None,
    require_telemetry: Annotated[
        bool, typer.Option("--require-telemetry", help="Begin no next wave before these can be judged.")
    ] = False,
    store: Annotated[str | None, typer.Option("--store", help="Another database, like postgresql://….")] = None,
    folder: Annotated[str | None, typer.Option("--folder", help="With --to: where the agent is there.")] = None,
    json: options.Json = False,
) -> None:
    """Bring a bundle to devices.

    The options from --max-error-rise on compare what devices with the release report with what the devices of the
    group report that wait for it.

    With --gates nothing begins unless the evaluation that the bundle carries (from `edgegen compress --gates`) keeps
    every limit.

    Exit codes: 0 the rollout began, or the device confirmed the release; 5 the device rolled it back, or a gate is
    missed.
    """
    if (to is None) == (fleet is None):
        raise ConfigError("name either --to or --fleet", hint="--to ssh://pi@kitchen, or --fleet site/ --group G.")
    _require_fitting(context, to_fleet=to is None)
    if gates is not None:
        from edgegen.sdk.deploying import require_bundle_gates

        require_bundle_gates(bundle, gates)
    if to is not None:
        _push(bundle, to, folder, json)
        return
    if group is None:
        raise ConfigError("--fleet needs --group", hint="See the groups with `edgegen fleet devices`.")
    from edgegen.fleet.waves import parse_waves
    from edgegen.records.deployment import Thresholds
    from edgegen.sdk.deploying import deploy_bundle

    thresholds = Thresholds(
        success_fraction=success,
        abort_fraction=abort,
        min_executed=min_devices,
        deadline_s=deadline * 60,
        soak_s=soak * 60,
        roll_back=roll_back,
        max_error_fraction_rise=max_error_rise,
        max_ttft_ratio=max_ttft_ratio,
        min_tokens_per_s_ratio=min_speed_ratio,
        max_thumbs_down_rise=max_thumbs_down_rise,
        drift=max_drift,
        min_generations=min_generations,
        abort_on=tuple(abort_on or ()),
        require_telemetry=require_telemetry,
    )
    begun = deploy_bundle(bundle, str(fleet), group=group, waves=parse_waves(waves), thresholds=thresholds, store=store)
    if json:
        write_json(begun)
        return
    devices = sum(wave.devices for wave in begun.waves)
    sys.stdout.write(f"rollout {begun.id}: {begun.name} {begun.version} to {devices} devices of {begun.group}\n")
    sys.stdout.write(f"watch it with: edgegen fleet rollout {fleet} {begun.id} --watch\n")


def _require_fitting(context: typer.Context, *, to_fleet: bool) -> None:
    """Whether no option was given that the other way of deploying takes.

    Raises:
        ConfigError: one was.
    """
    for name in context.params:
        source = context.get_parameter_source(name)
        fits = name in _ANYWHERE or (name != "folder") == to_fleet
        if source is not None and source.name == "COMMANDLINE" and not fits:
            goes = "--to" if to_fleet else "--fleet"
            raise ConfigError(f"--{name.replace('_', '-')} goes with {goes} only", hint="Leave it out.")


def _push(bundle: str, to: str, folder: str | None, json: bool) -> None:
    from edgegen.records.deployment import Phase
    from edgegen.sdk.deploying import push

    sys.stderr.write(f"{to}: fetching, trying and watching it there; this takes as long as the release's probation …\n")
    found = push(bundle, to, folder=folder)
    if json:
        write_json(found)
    else:
        why = f": {found.detail or found.reason}" if found.phase != Phase.CONFIRMED else ""
        sys.stdout.write(
            f"{to}: {found.phase}{why}; {format_bytes(found.bytes_fetched)} sent, "
            f"{format_bytes(found.bytes_reused)} were there, {format_seconds(found.seconds)}\n"
        )
    if found.phase != Phase.CONFIRMED:
        sys.exit(5)
