"""1, home: every device in a line, with what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import ClassVar

from textual.binding import BindingType
from textual.widget import Widget

from edgegen.monitor.columns import Column
from edgegen.monitor.filters import Searchable
from edgegen.monitor.ink import Line, Piece
from edgegen.monitor.keymap import key
from edgegen.monitor.screens.view import Question, View
from edgegen.monitor.shown import (
    STALE_S,
    STATE_GLYPH,
    UNKNOWN,
    VERDICT_GLYPH,
    age,
    number,
    percent,
    seconds,
    size,
)
from edgegen.monitor.table import Table
from edgegen.monitor.widgets.spark import spark
from edgegen.records.monitor import SPARK_CELLS, Alert, DeviceRow, FleetView, State, Verdict

_ORDER = {
    state: place
    for place, state in enumerate((State.DEGRADED, State.OFFLINE, State.REVOKED, State.NEVER, State.ONLINE))
}
_HOT_C = 80.0
_MUCH = 0.9
"""Share of the memory that is worth a look."""
_MOST_ALERTS = 2


def is_fault(row: DeviceRow) -> bool:
    """Whether a person should look at a device."""
    return row.state is not State.ONLINE or row.drift is Verdict.DRIFT


def _state(row: DeviceRow, now_s: float) -> Piece:
    return STATE_GLYPH[row.state]


def _phase(row: DeviceRow, now_s: float) -> Piece:
    if row.phase:
        return "⇪" + row.phase, "accent"
    return (row.why or ("" if row.state is State.ONLINE else str(row.state))), "warn" if row.why else "dim"


def _memory(row: DeviceRow) -> float | None:
    return row.rss_bytes / row.ram_bytes if row.rss_bytes is not None and row.ram_bytes else None


def _rss(row: DeviceRow, now_s: float) -> Piece:
    share = _memory(row)
    return percent(share), "warn" if share is not None and share > _MUCH else ""


def _temperature(row: DeviceRow, now_s: float) -> Piece:
    text = UNKNOWN if row.temperature_c is None else f"{row.temperature_c:.0f}°"
    if row.throttled:
        return text + "!", "bad"
    return text, "warn" if row.temperature_c is not None and row.temperature_c >= _HOT_C else ""


def _errors(row: DeviceRow, now_s: float) -> Piece:
    share = row.error_fraction
    return percent(share), "bad" if share is not None and share > 0.05 else "warn" if share and share > 0.01 else ""


def _thumbs(row: DeviceRow, now_s: float) -> Piece:
    if not row.thumbs_up and not row.thumbs_down:
        return UNKNOWN, "dim"
    return f"+{row.thumbs_up}-{row.thumbs_down}", "warn" if row.thumbs_down > row.thumbs_up else ""


def _drift(row: DeviceRow, now_s: float) -> Piece:
    if row.drift is None:
        return UNKNOWN, "dim"
    glyph, role = VERDICT_GLYPH[row.drift]
    return f"{glyph} {'few' if row.drift is Verdict.TOO_FEW else row.drift}", role


def _seen(row: DeviceRow, now_s: float) -> Piece:
    return age(None if row.seen_s is None else now_s - row.seen_s), ""


def _late(row: DeviceRow, now_s: float) -> bool:
    return row.seen_s is None or now_s - row.seen_s > STALE_S


COLUMNS: tuple[Column[DeviceRow], ...] = (
    Column("state", "", 1, 1, _state, lambda r: _ORDER[r.state]),
    # Here because Textual sends a line from its left end to the last cell that differs, and this one always does.
    Column("seen", "SEEN", 4, 2, _seen, lambda r: r.seen_s, True, falls=True),
    Column("device", "DEVICE", 14, 1, lambda r, n: (r.device, "bold"), lambda r: r.device, grows=True),
    Column("group", "GROUP", 14, 4, lambda r, n: (r.group, ""), lambda r: r.group),
    Column("type", "TYPE", 18, 9, lambda r, n: (r.kind or UNKNOWN, "dim"), lambda r: r.kind or None),
    Column("release", "RELEASE", 20, 6, lambda r, n: (r.label or UNKNOWN, ""), lambda r: r.label or None),
    Column("phase", "PHASE", 11, 4, _phase, lambda r: r.phase or r.why or None),
    Column(
        "speed", "TOK/S", 5, 2, lambda r, n: (number(r.tokens_per_s), ""), lambda r: r.tokens_per_s, True, falls=True
    ),
    Column("spark", "", SPARK_CELLS, 5, lambda r, n: (spark(r.spark), "accent")),
    Column("ttft", "TTFT95", 6, 5, lambda r, n: (seconds(r.ttft_p95_s), ""), lambda r: r.ttft_p95_s, True, falls=True),
    Column("errors", "ERR", 4, 3, _errors, lambda r: r.error_fraction, True, falls=True),
    Column("rss", "RSS", 4, 7, _rss, _memory, True, falls=True),
    Column("temperature", "TEMP", 4, 6, _temperature, lambda r: r.temperature_c, True, falls=True),
    Column("thumbs", "±", 6, 8, _thumbs, lambda r: r.thumbs_down or None, True, falls=True),
    Column("drift", "DRIFT", 7, 3, _drift, lambda r: None if r.drift is None else str(r.drift)),
    Column("free", "FREE", 7, 10, lambda r, n: (size(r.free_bytes), ""), lambda r: r.free_bytes, True),
)


def searchable(row: DeviceRow) -> Searchable:
    """A device as filters see it."""
    drift = "" if row.drift is None else str(row.drift)
    return Searchable(
        f"{row.device} {row.group} {row.kind} {row.label} {row.phase} {row.why} {row.state}",
        {
            "group": row.group,
            "type": row.kind,
            "state": row.state,
            "release": row.label,
            "phase": row.phase,
            "why": row.why,
            "privacy": row.privacy,
            "drift": drift,
        },
        is_fault(row),
    )


class FleetScreen(View):
    """All devices."""

    NAME = "fleet"
    TITLE_WORDS = "Fleet: all devices"
    LABELS = ("group", "type", "state", "release", "phase", "why", "privacy", "drift")
    BINDINGS: ClassVar[list[BindingType]] = [
        key("fleet.faults", "F", "faults", "Faults only, or all", show="faults"),
        key("fleet.outputs", "o", "outputs", "Outputs of the device", show="outputs"),
        key("fleet.events", "v", "events", "Events of the device"),
        key("fleet.compare", "a", "compare", "Old against new release on the device"),
    ]

    def body(self) -> Iterable[Widget]:
        yield Table(
            COLUMNS,
            attrgetter("device"),
            search=searchable,
            stale=_late,
            sort="state",
            frozen=3,
            empty="no device has enrolled yet: `edgegen fleet token` lets one in",
            id="main",
        )

    @property
    def table(self) -> Table[DeviceRow]:
        found: Table[DeviceRow] = self.query_one("#main", Table)
        return found

    def question(self) -> Question:
        source, ask = self.monitor.source, self.monitor.ask_of()
        return lambda: source.fleet(ask)

    def accept(self, value: FleetView) -> None:
        if self.is_ready:
            self.table.update_rows(value.devices, self.monitor.now_s)

    def rows_of(self, value: FleetView) -> Sequence[DeviceRow]:
        return value.devices

    def status(self) -> list[str]:
        return ["faults only"] if self.table.faults_only else []

    def side_lines(self, width: int) -> Sequence[Line]:
        """Alerts that fire, then those that are about to."""
        fleet = self.monitor.fleet
        alerts = sorted(fleet.alerts, key=lambda one: one.state != "firing") if fleet else []
        lines = [_alert(one, self.monitor.now_s) for one in alerts[:_MOST_ALERTS]]
        if len(alerts) > _MOST_ALERTS:
            lines.append([(f"   and {len(alerts) - _MOST_ALERTS} more, see events", "dim")])
        return lines

    def action_faults(self) -> None:
        self.table.show_faults(not self.table.faults_only)
        self.monitor.tick()

    def action_outputs(self) -> None:
        if (row := self.table.row) is not None:
            self.monitor.go("outputs", device=row.device)

    def action_events(self) -> None:
        if (row := self.table.row) is not None:
            self.monitor.go("events", device=row.device)

    def action_compare(self) -> None:
        if (row := self.table.row) is not None:
            self.monitor.go("outputs", device=row.device, compare="yes")

    def on_table_opened(self, event: Table.Opened) -> None:
        self.monitor.go("device", device=event.row.device)


def _value(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _alert(alert: Alert, now_s: float) -> Line:
    glyph, role = (
        ("▲", "bad") if alert.state == "firing" else ("!", "warn") if alert.state == "pending" else ("?", "dim")
    )
    since = f" for {age(now_s - alert.since_s)}" if alert.since_s is not None else ""
    return [
        (f" {glyph} ", role),
        (f"{alert.rule}", "bold"),
        (
            f" in {alert.group or 'all groups'}: {alert.metric} {_value(alert.value)}, limit {_value(alert.threshold)}",
            "",
        ),
        (f", {alert.state}{since}, n={alert.n}", "dim"),
    ]
