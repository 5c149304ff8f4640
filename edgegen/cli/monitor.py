"""`edgegen monitor`: look at a fleet, once as a table or JSON, or live on screens."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json, write_table
from edgegen.common.units import format_bytes, format_seconds, parse_seconds
from edgegen.common.urls import require_url
from edgegen.errors import ALERT_EXIT_CODE, ConfigError, UnsupportedError

if TYPE_CHECKING:
    from edgegen.records.monitor import Alert, DeviceRow, FleetView

_MOST_LINES = 50
_ORDER = ("degraded", "offline", "never", "online", "revoked")
"""What is wrong first."""


def monitor(
    where: Annotated[
        str,
        typer.Argument(help="The site's folder, or a server's URL, as with --url.", show_default=False),
    ] = "",
    url: Annotated[
        str, typer.Option("--url", help="A server's URL, with an operator's token in EDGEGEN_FLEET_TOKEN.")
    ] = "",
    mock: Annotated[
        int | None, typer.Option("--mock", help="A simulated fleet of so many devices instead.", show_default=False)
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Let keys act: pause, abort, roll back, deploy.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print a table and end; exit code 9 if an alert fires.")] = False,
    window: Annotated[str, typer.Option("--window", help="With --once: what figures are of, like 5m or 1h.")] = "1h",
    group: Annotated[str, typer.Option("--group", "-g", help="With --once: only this group.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="With --once: every device's line.")] = False,
    store: Annotated[
        str | None, typer.Option("--store", help="Another database, like postgresql://user@host/name.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Watch what devices answer, how fast and how well: screens in the terminal, or with --once a table."""
    if sum((bool(where), bool(url), mock is not None)) != 1:
        raise ConfigError(
            "name one fleet",
            hint="A site's folder, or --url URL, or --mock N for a simulated one: edgegen monitor site",
        )
    if mock is not None and mock < 1:
        raise ConfigError(f"--mock must be at least 1, not {mock}")
    if url:
        require_url(url, what="--url")
    if write and once:
        raise ConfigError("--write is for the screens, not for --once")
    if json and not once:
        raise ConfigError("--json needs --once")
    if once:
        _print_once(where or url, mock, store, parse_seconds(window, what="--window"), group, json, everything)
        return
    _require_screens()
    sources = importlib.import_module("edgegen.monitor.source")
    source = sources.mock_source(mock) if mock else sources.open_source(where or url, store)
    code = importlib.import_module("edgegen.monitor.app").run(source, write=write)
    if code:
        sys.exit(code)


def _require_screens() -> None:
    """
    Raises:
        UnsupportedError: Textual is not installed.
    """
    if importlib.util.find_spec("textual") is None:
        raise UnsupportedError(
            "the screens need textual, which is not installed",
            hint="pip install 'edgegen[monitor]', or use --once.",
        )


def _print_once(
    where: str, mock: int | None, store: str | None, window_s: float, group: str, json: bool, everything: bool
) -> None:
    from edgegen.records.monitor import Ask

    ask = Ask(window_s=window_s, group=group)
    view: FleetView
    if mock:
        view = importlib.import_module("edgegen.monitor.source").mock_source(mock).fleet(ask)
    else:
        from edgegen.sdk.monitoring import monitor_fleet

        view = monitor_fleet(where, window_s=window_s, group=group, store=store)
    if json:
        write_json(view)
    else:
        _write(view, everything)
    if any(alert.state == "firing" for alert in view.alerts):
        sys.stdout.flush()
        sys.exit(ALERT_EXIT_CODE)


def _write(view: FleetView, everything: bool) -> None:
    counts = {state: sum(row.state == state for row in view.devices) for state in _ORDER}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    parts = [
        f"{len(view.devices)} devices: {states or 'none'}",
        f"{_number(view.tokens_per_s)} tokens/s",
        f"{_share(view.error_fraction)} errors",
    ]
    if view.privacy:
        parts.append(f"privacy {view.privacy}")
    if view.skewed:
        parts.append(f"{view.skewed} clocks wrong")
    sys.stdout.write(f"last {_length(view.window_s)}: {'; '.join(parts)}\n")
    if view.rollout:
        sys.stdout.write(f"{_plain(view.rollout)}\n")
    _write_alerts(view.alerts, view.at_s)
    if not view.devices:
        return
    rows = sorted(view.devices, key=lambda row: (_ORDER.index(row.state), -(row.error_fraction or 0), row.device))
    wrong = sum(row.state in ("degraded", "offline") for row in rows)
    shown = rows if everything else rows[: max(_MOST_LINES, min(wrong, 4 * _MOST_LINES))]
    sys.stdout.write("\n")
    table: list[tuple[str, ...]] = [
        ("state", "device", "group", "type", "runs", "tok/s", "ttft p95", "errors", "memory", "temp", "seen", "why")
    ]
    table += [_line(row, view.at_s) for row in shown]
    write_table(table)
    if len(shown) < len(rows):
        sys.stdout.write(f"… and {len(rows) - len(shown)} more; --all shows them\n")


def _write_alerts(alerts: tuple[Alert, ...], now_s: float) -> None:
    quiet = sum(alert.state == "no data" for alert in alerts)
    for alert in alerts:
        if alert.state == "no data":
            continue
        since = "" if alert.since_s is None else f" for {format_seconds(max(0.0, now_s - alert.since_s))}"
        value = "unknown" if alert.value is None else f"{alert.value:.4g}"
        place = alert.group or "the whole fleet"
        line = (
            f"{alert.state.upper()}{since}: {alert.rule} in {place}: {alert.metric} is {value} (n = {alert.n}), "
            f"limit {alert.threshold:g}"
        )
        sys.stdout.write(_plain(line) + "\n")
    if quiet:
        sys.stdout.write(f"{quiet} rules have too little data to tell\n")


def _line(row: DeviceRow, now_s: float) -> tuple[str, ...]:
    seen = "never" if row.seen_s is None else f"{format_seconds(max(0.0, now_s - row.seen_s))} ago"
    hot = " throttled" if row.throttled else ""
    return (
        row.state,
        row.device,
        row.group,
        row.kind or "–",
        row.label or "–",
        _number(row.tokens_per_s),
        "–" if row.ttft_p95_s is None else format_seconds(row.ttft_p95_s),
        _share(row.error_fraction),
        "–" if row.rss_bytes is None else format_bytes(row.rss_bytes),
        "–" if row.temperature_c is None else f"{row.temperature_c:.0f} °C{hot}",
        seen,
        row.why + (f" [{row.phase}]" if row.phase else ""),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _length(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _plain(words: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in words)
