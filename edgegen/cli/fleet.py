"""`edgegen fleet …`: run the server, let devices in, watch and steer rollouts."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json, write_table
from edgegen.common.units import format_seconds
from edgegen.errors import ConfigError

if TYPE_CHECKING:
    from edgegen.records.deployment import DeviceView, Rollout

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_LOOK_S = 1.0

Where = Annotated[
    str,
    typer.Argument(
        help="The site's folder, or a server's URL with an operator's token in EDGEGEN_FLEET_TOKEN.",
        show_default=False,
    ),
]
Store = Annotated[str | None, typer.Option("--store", help="Another database, like postgresql://user@host/name.")]
Number = Annotated[int, typer.Argument(help="The rollout's number.", show_default=False)]
Device = Annotated[str, typer.Argument(help="The device's name.", show_default=False)]


@app.command("init")
def init(
    site: Annotated[str, typer.Argument(help="Folder for the site.", show_default=False)],
    keys: Annotated[str, typer.Option("--keys", "-k", help="The folder of signing keys.")] = "keys",
    store: Store = None,
) -> None:
    """Start a site: an empty repository and the keys that renew it; those that sign releases stay where they are."""
    from pathlib import Path

    from edgegen.fleet.site import make_site

    if not site:
        raise ConfigError("no folder is named", hint="Name one for the site, like site.")
    made = make_site(Path(site), Path(keys), store)
    named = " --store …" if store else ""
    sys.stdout.write(f"{made.folder}: ready; start it with: edgegen fleet serve {site}{named}\n")


@app.command("serve")
def serve(
    site: Annotated[str, typer.Argument(help="The site's folder.", show_default=False)],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8420,
    store: Store = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="Something in front ends TLS.")] = False,
    public_url: Annotated[str | None, typer.Option("--public-url", help="What devices call this server.")] = None,
    poll: Annotated[float, typer.Option("--poll", help="Seconds between a device's polls.")] = 60.0,
    mqtt: Annotated[str | None, typer.Option("--mqtt", help="Also take reports from a broker, mqtt://host.")] = None,
    otlp: Annotated[
        str | None, typer.Option("--otlp", help="Pass reports on to a collector, http://collector:4318.")
    ] = None,
) -> None:
    """Serve the repository, the devices and the operators, until stopped. It may be killed and started at any time."""
    from pathlib import Path

    from edgegen.fleet.server import serve as run
    from edgegen.fleet.site import open_site

    def ready(url: str) -> None:
        sys.stderr.write(f"serving {site} at {url}\n")
        sys.stderr.flush()

    run(
        open_site(Path(site), store, new_store=True),
        host=host,
        port=port,
        certificate=tls_cert,
        key=tls_key,
        behind_proxy=behind_proxy,
        public_url=public_url,
        poll_s=poll,
        mqtt=mqtt,
        otlp=otlp,
        ready=ready,
    )


@app.command("token")
def token(
    where: Where,
    group: Annotated[str, typer.Option("--group", "-g", help="Group that the devices join.", show_default=False)],
    uses: Annotated[int, typer.Option("--uses", help="How many devices may use it.")] = 1,
    hours: Annotated[float, typer.Option("--hours", help="How long it is valid.")] = 24.0,
    label: Annotated[str, typer.Option("--label", help="A note for the audit log.")] = "",
    store: Store = None,
) -> None:
    """Make an enrolment token, which lets devices join; it is shown once, on stdout."""
    from edgegen.fleet.operations import Admit

    made = _do(where, store, "enrolment-token", Admit(group, label, uses, hours * 3600))
    sys.stdout.write(f"{made}\n")


@app.command("close")
def close(
    where: Where,
    group: Annotated[str, typer.Argument(help="The group that they let into.", show_default=False)],
    store: Store = None,
) -> None:
    """End a group's enrolment tokens, as after one got about; devices that have joined stay."""
    from edgegen.fleet.operations import Close

    sys.stdout.write(f"{group}: {_do(where, store, 'close-enrolment', Close(group))} tokens ended\n")


@app.command("operator")
def operator(
    site: Where,
    name: Annotated[str, typer.Argument(help="Who it is for; an older token of that name ends.", show_default=False)],
    dismiss: Annotated[bool, typer.Option("--dismiss", help="End the operator's token instead.")] = False,
    store: Store = None,
) -> None:
    """Make an operator's token, which commands the fleet over HTTP; it is shown once, on stdout."""
    from edgegen.fleet.operations import Appoint

    if "://" in site:
        raise ConfigError("operators are made on the site itself", hint="Name the site's folder, on the server.")
    if dismiss:
        _do(site, store, "dismiss", Appoint(name))
        sys.stdout.write(f"{name}: dismissed\n")
        return
    sys.stdout.write(f"{_do(site, store, 'operator', Appoint(name))}\n")


@app.command("devices")
def devices(
    where: Where,
    group: Annotated[str, typer.Option("--group", "-g", help="Only this group.")] = "",
    device: Annotated[str, typer.Option("--device", help="Only this one.")] = "",
    store: Store = None,
    json: options.Json = False,
) -> None:
    """List devices: what each runs, when it was seen, where its update is."""
    from edgegen.fleet.operations import WhichDevices

    found: tuple[DeviceView, ...] = _do(where, store, "devices", WhichDevices(group, device))
    if not found and (group or device):
        what = f"device {device!r}{f' in group {group!r}' if group else ''}" if device else f"device in group {group!r}"
        raise ConfigError(f"there is no {what}", hint="Without these options all are listed.")
    if json:
        write_json(found)
        return
    if not found:
        sys.stderr.write(f"no device has enrolled yet; let them in with: edgegen fleet token {where} --group GROUP\n")
    rows: list[tuple[str, ...]] = [("device", "group", "seen", "runs", "update")]
    for view in found:
        seen = f"{format_seconds(max(0.0, time.time() - view.seen_s))} ago" if view.seen_s else "never"
        update = "–"
        if view.action is not None:
            reason = f" ({view.action.reason})" if view.action.reason not in ("", view.action.state) else ""
            update = f"rollout {view.action.rollout}: {view.action.state}{reason}"
            if view.action.state == "running" and view.action.phase:
                update += f", {view.action.phase}"
        rows.append((view.device, view.group, "revoked" if view.revoked else seen, _running(view), update))
    write_table(rows)


@app.command("rollouts")
def rollouts(
    where: Where,
    group: Annotated[str, typer.Option("--group", "-g", help="Only this group.")] = "",
    store: Store = None,
    json: options.Json = False,
) -> None:
    """List the latest rollouts, newest first."""
    from edgegen.fleet.operations import WhichRollouts

    found: tuple[Rollout, ...] = _do(where, store, "rollouts", WhichRollouts(group))
    if group and not found:
        raise ConfigError(f"there is no rollout to a group {group!r}", hint="Without --group all are listed.")
    if json:
        write_json(found)
        return
    rows: list[tuple[str, ...]] = [("number", "release", "group", "state", "confirmed", "why")]
    for one in found:
        total = sum(wave.devices for wave in one.waves)
        confirmed = sum(wave.states.get("confirmed", 0) for wave in one.waves)
        state = one.state if one.kind == "update" else f"{one.state} (rollback)"
        rows.append((str(one.id), f"{one.name} {one.version}", one.group, state, f"{confirmed}/{total}", one.reason))
    write_table(rows)


@app.command("rollout")
def rollout(
    where: Where,
    number: Number,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it until it has come to its end.")] = False,
    store: Store = None,
    json: options.Json = False,
) -> None:
    """Show one rollout wave by wave."""
    from edgegen.fleet.operations import WhichRollout

    found = _do(where, store, "rollout", WhichRollout(number))
    while watch and found.state in ("running", "paused"):
        sys.stderr.write(f"{found.state}: {_progress(found)}\n")
        known = found
        while found == known:
            time.sleep(_LOOK_S)
            found = _do(where, store, "rollout", WhichRollout(number))
    _show_rollout(found, json)


@app.command("pause")
def pause(where: Where, number: Number, store: Store = None, json: options.Json = False) -> None:
    """Offer the release to no further device; those at it go on."""
    _steer("pause", where, number, store, json)


@app.command("resume")
def resume(where: Where, number: Number, store: Store = None, json: options.Json = False) -> None:
    """Go on with a paused rollout; a wave that fell short counts as accepted."""
    _steer("resume", where, number, store, json)


@app.command("abort")
def abort(where: Where, number: Number, store: Store = None, json: options.Json = False) -> None:
    """Stop a rollout for good; devices at it are asked to drop it."""
    _steer("abort", where, number, store, json)


@app.command("rollback")
def rollback(where: Where, number: Number, store: Store = None, json: options.Json = False) -> None:
    """Send the devices that confirmed a release back to what they ran before.

    Refused where that has a lower epoch than the release: devices would not take it.
    """
    from edgegen.fleet.operations import WhichRollout

    found = _do(where, store, "rollback", WhichRollout(number))
    if json:
        write_json(found)
        return
    if not found:
        sys.stdout.write(
            f"rollout {number}: stopped; no device runs its release that is known to have run another one before\n"
        )
    for one in found:
        _show_rollout(one, False)


@app.command("move")
def move(
    where: Where,
    device: Device,
    group: Annotated[str, typer.Argument(help="The group to join.", show_default=False)],
    store: Store = None,
) -> None:
    """Put a device into another group."""
    from edgegen.fleet.operations import Move

    _do(where, store, "move", Move(device, group))
    sys.stdout.write(f"{device}: in {group}\n")


@app.command("revoke")
def revoke(where: Where, device: Device, store: Store = None) -> None:
    """Refuse a device's credential from now on, as after a theft."""
    from edgegen.fleet.operations import WhichDevice

    _do(where, store, "revoke", WhichDevice(device))
    sys.stdout.write(f"{device}: revoked; undo it with `edgegen fleet allow`, or free its name with `… forget`\n")


@app.command("canary")
def canary(where: Where, device: Device, store: Store = None) -> None:
    """Let a device answer its golden prompts again now: has it changed, or have its users?"""
    from edgegen.fleet.operations import WhichDevice

    _do(where, store, "canary", WhichDevice(device))
    sys.stdout.write(f"{device}: asked with its next poll; `edgegen monitor {where}` shows what comes\n")


@app.command("allow")
def allow(where: Where, device: Device, store: Store = None) -> None:
    """Take a revoked device's credential again."""
    from edgegen.fleet.operations import WhichDevice

    _do(where, store, "allow", WhichDevice(device))
    sys.stdout.write(f"{device}: allowed\n")


@app.command("forget")
def forget(where: Where, device: Device, store: Store = None) -> None:
    """Remove a device and its credential, so that its name can enrol again; what it did stays in the records.

    For a device that was set up anew, replaced or retired. Who enrols under the name needs an enrolment token.
    """
    from edgegen.fleet.operations import WhichDevice

    _do(where, store, "forget", WhichDevice(device))
    sys.stdout.write(f"{device}: forgotten; it enrols again with a token of `edgegen fleet token`\n")


@app.command("audit")
def audit(
    where: Where,
    subject: Annotated[str, typer.Option("--subject", help="Only of this, like rollout:3 or device:pi-1.")] = "",
    limit: Annotated[int, typer.Option("--limit", help="How many.")] = 100,
    store: Store = None,
    json: options.Json = False,
) -> None:
    """Show who did what, oldest first."""
    from edgegen.fleet.operations import WhichEntries

    found = _do(where, store, "audit", WhichEntries(subject, limit))
    if subject and not found:
        raise ConfigError(
            f"nothing was done to {subject!r}", hint="Write it like rollout:3, device:pi-1 or group:home."
        )
    if json:
        write_json(found)
        return
    rows: list[tuple[str, ...]] = [("when", "who", "what", "of", "detail")]
    for entry in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.at_s))
        rows.append((when, entry.who, entry.what, entry.subject, entry.detail))
    write_table(rows)


@app.command("pull")
def pull(
    where: Where,
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write, like hard.jsonl.", show_default=False)],
    why: Annotated[str, typer.Option("--why", help="Only these: low confidence, thumbs down, error or drifted.")] = "",
    window: Annotated[str, typer.Option("--window", help="How far back, like 24h or 7d.")] = "7d",
    group: Annotated[str, typer.Option("--group", "-g", help="Only this group.")] = "",
    device: Annotated[str, typer.Option("--device", help="Only this one.")] = "",
    release: Annotated[str, typer.Option("--release", help="Only this one's, by its digest.")] = "",
    limit: Annotated[int, typer.Option("--limit", help="At most so many, the latest.")] = 1000,
    store: Store = None,
    json: options.Json = False,
) -> None:
    """Pull prompts that the model found hard as a data set for `edgegen compress --data` and training.

    Only texts that devices' privacy lets out; how many were withheld is said.
    """
    from edgegen.common.units import parse_seconds
    from edgegen.sdk.monitoring import pull_hard_prompts

    pulled = pull_hard_prompts(
        *(where, out),
        why=why,
        window_s=parse_seconds(window, what="--window"),
        group=group,
        device=device,
        release=release,
        limit=limit,
        store=store,
    )
    if json:
        write_json(pulled)
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(pulled.why.items()))
    withheld = sum(pulled.withheld.values())
    sys.stdout.write(f"{pulled.path}: {pulled.rows} prompts ({reasons}); {withheld} withheld by devices' privacy\n")


@app.command("trace")
def trace(
    where: Where,
    what: Annotated[
        str,
        typer.Argument(help="A lineage id, NAME@VERSION, a digest, a device or an answer's id.", show_default=False),
    ],
    store: Store = None,
    json: options.Json = False,
) -> None:
    """Show where something comes from: model, data, plan, release, and who runs it."""
    from edgegen.records.learning import AskTrace

    found = _do(where, store, "trace", AskTrace(what))
    if json:
        write_json(found)
        return
    for one in found:
        devices = ", ".join(one.devices) or "none"
        rows: list[tuple[str, ...]] = [
            ("lineage", one.lineage or "–", ""),
            ("model", one.model or "–", one.model_digest),
            ("data", "", one.data_digest),
            ("plan", f"for {one.profile}" if one.profile else "", one.plan_digest),
            ("release", one.label, one.release),
            ("follows", "", one.parent or "–"),
            ("runs on", devices, ""),
            ("answers", f"{one.answers:,} reported", ""),
        ]
        write_table(rows)


def _do(where: str, store: str | None, operation: str, asked: Any) -> Any:
    from edgegen.fleet.operate import open_fleet

    return open_fleet(where, store).do(operation, asked)


def _steer(operation: str, where: str, number: int, store: str | None, json: bool) -> None:
    from edgegen.fleet.operations import WhichRollout

    _show_rollout(_do(where, store, operation, WhichRollout(number)), json)


def _progress(found: Rollout) -> str:
    """The wave that is under way and how its devices are."""
    wave = next((wave for wave in found.waves if wave.succeeded_s is None), found.waves[-1])
    states = ", ".join(f"{count} {state}" for state, count in sorted(wave.states.items()))
    return f"wave {wave.number} of {len(found.waves)}: {states or 'not begun'}"


def _show_rollout(found: Rollout, json: bool) -> None:
    from edgegen.fleet.judge import describe_limits

    if json:
        write_json(found)
        return
    why = f": {found.reason}" if found.reason else ""
    sys.stdout.write(f"rollout {found.id}, {found.name} {found.version} to {found.group}: {found.state}{why}\n")
    gate = describe_limits(found.thresholds)
    if gate:
        sys.stdout.write(f"with the release, against without: {gate}\n")
    rows: list[tuple[str, ...]] = [("wave", "share", "devices", "state")]
    for wave in found.waves:
        states = ", ".join(f"{count} {state}" for state, count in sorted(wave.states.items()))
        rows.append((str(wave.number), f"{wave.fraction:.0%}", str(wave.devices), states or "–"))
    write_table(rows)


def _running(view: DeviceView) -> str:
    """What a device serves, as it says itself, with the beginning of its digest."""
    digest = view.running.removeprefix("sha256:")[:12]
    return f"{view.attributes.get('model', '')} {digest}".strip() or "–"
