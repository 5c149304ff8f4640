"""2: one device: what it is, what it runs, how it does, what happened to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.binding import BindingType
from textual.widget import Widget

from edgegen.monitor import acting
from edgegen.monitor.ink import Line, Piece, fit
from edgegen.monitor.keymap import key
from edgegen.monitor.plain import plain
from edgegen.monitor.screens.view import Question, View
from edgegen.monitor.shown import (
    LEVEL_GLYPH,
    STATE_GLYPH,
    UNKNOWN,
    VERDICT_GLYPH,
    age,
    clock,
    digest,
    number,
    percent,
    seconds,
    size,
)
from edgegen.monitor.widgets.braille import curve
from edgegen.monitor.widgets.lines import Lines
from edgegen.monitor.widgets.spark import bar
from edgegen.records.monitor import CanaryRow, DeviceDetail, DeviceRow, Series

_PLOT_ROWS = 4
_LEAST_PLOT = 36
"""Cells; narrower screens have fewer plots beside each other."""


class DeviceView(View):
    """One device."""

    NAME = "device"
    TITLE_WORDS = "Device: one of them"
    BINDINGS: ClassVar[list[BindingType]] = [
        key("device.outputs", "o", "outputs", "Its outputs", show="outputs"),
        key("device.events", "v", "events", "Its events", show="events"),
        key("device.compare", "a", "compare", "Old against new release", show="old/new"),
        key("device.describe", "d", "describe", "All that it says of itself, or the figures", show="describe"),
        key("device.canary", "C", "canary", "ACTS: ask its golden prompts again now"),
        key("device.next", "n", "beside(1)", "Next device of the fleet's list"),
        key("device.previous", "N", "beside(-1)", "Device before"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.device = ""
        self.detail: DeviceDetail | None = None
        self.is_raw = False

    def body(self) -> Iterable[Widget]:
        yield Lines(id="main")

    def enter(self, **what: str) -> None:
        device = what.get("device", "") or self.device or self._first()
        if device != self.device:
            self.device, self.detail, self.has_shown = device, None, False
            self.drop_held()
            self.monitor.sight.failures.pop(self.NAME, None)

    def _first(self) -> str:
        """The one under the fleet's cursor."""
        fleet = self.monitor.get_screen("fleet")
        row = fleet.table.row if isinstance(fleet, View) and fleet.is_ready and fleet.table else None
        return row.device if row is not None else ""

    def question(self) -> Question | None:
        if not self.device:
            return None
        source, ask = self.monitor.source, self.monitor.ask_of(device=self.device)
        return lambda: source.device(ask)

    def accept(self, value: DeviceDetail) -> None:
        if value.row.device == self.device:
            self.detail = value
            self._show()

    def forget(self) -> None:
        self.detail = None

    def crumb(self) -> str:
        return self.device

    def current(self) -> DeviceDetail | None:
        return self.detail

    def exported(self) -> Sequence[DeviceDetail]:
        return (self.detail,) if self.detail else ()

    def count_held(self) -> int:
        return int(self._has_held)

    def tick(self) -> None:
        self._show()

    def on_resize(self, event: events.Resize) -> None:
        self._show()

    def _show(self) -> None:
        if not self.is_ready:
            return
        text = self.query_one("#main", Lines)
        width = max(20, text.size.width or self.app.size.width)
        if self.detail is None:
            words = "asking …" if self.device else "no device chosen: enter on one in Fleet, or `:device NAME`"
            text.show([[], [("  " + words, "dim")]])
        elif self.is_raw:
            text.show(_raw(self.detail))
        else:
            text.show(_lines(self.detail, width, self.monitor.now_s))

    def action_describe(self) -> None:
        self.is_raw = not self.is_raw
        self._show()

    def action_outputs(self) -> None:
        self.monitor.go("outputs", device=self.device)

    def action_events(self) -> None:
        self.monitor.go("events", device=self.device)

    def action_compare(self) -> None:
        self.monitor.go("outputs", device=self.device, compare="yes")

    def action_canary(self) -> None:
        if self.detail is not None and self.monitor.may_act():
            self.monitor.act(acting.of_canaries(self.detail.row))

    def action_beside(self, by: int) -> None:
        fleet = self.monitor.get_screen("fleet")
        rows = fleet.table.rows if isinstance(fleet, View) and fleet.table else []
        names = [row.device for row in rows]
        if names:
            place = names.index(self.device) + by if self.device in names else 0
            self.monitor.go("device", device=names[place % len(names)])


def _raw(detail: DeviceDetail) -> list[Line]:
    lines: list[Line] = [[], [(" All that it says of itself", "head")], []]
    width = max((len(name) for name in detail.attributes), default=0)
    for name, value in sorted(detail.attributes.items()):
        lines.append([("  " + fit(plain(name), min(width, 30)), "dim"), ("  " + value, "")])
    return lines or [[("  nothing", "dim")]]


def _lines(detail: DeviceDetail, width: int, now_s: float) -> list[Line]:
    row = detail.row
    lines: list[Line] = [*_identity(detail, width, now_s), []]
    lines += _plots(detail.series, width)
    if detail.canaries:
        lines += [[], [(" Golden prompts", "head"), ("  asked again on the device", "dim")]]
        lines += [_canary(one, now_s) for one in detail.canaries]
    lines += [[], [(" Last events", "head")]]
    if not detail.events:
        lines.append([("  none", "dim")])
    for event in reversed(detail.events):
        glyph, role = LEVEL_GLYPH.get(event.level, ("·", ""))
        lines.append(
            [
                (f"  {clock(event.at_s)} ", "dim"),
                (glyph + " ", role),
                (fit(plain(event.what), 20), "bold"),
                (" " + event.detail, ""),
            ]
        )
    lines += [[], [(" Spool ", "head"), *_spool(row)]]
    return lines


def _spool(row: DeviceRow) -> list[Piece]:
    waiting = UNKNOWN if row.spool_reports is None else f"{row.spool_reports:,}"
    pieces: list[Piece] = [(f"{waiting} reports wait", "")]
    if row.dropped:
        pieces.append((f"  ! {row.dropped:,} dropped", "warn"))
    return [*pieces, (f"  free {size(row.free_bytes)}", "dim")]


def _identity(detail: DeviceDetail, width: int, now_s: float) -> list[Line]:
    row = detail.row
    glyph, role = STATE_GLYPH[row.state]
    seen = UNKNOWN if row.seen_s is None else age(now_s - row.seen_s) + " ago"
    mark, judged = VERDICT_GLYPH[row.drift] if row.drift is not None else (UNKNOWN, "dim")
    known = detail.attributes
    lines: list[Line] = [
        [
            (f" {glyph} ", role),
            (row.device, "bold"),
            (f"  {row.state}", role),
            (f" ({row.why})" if row.why else "", "warn"),
            ("  group ", "dim"),
            (row.group, ""),
            ("  seen ", "dim"),
            (seen, ""),
        ]
    ]
    lines += _flowed(
        [
            ("", row.kind or UNKNOWN, ""),
            ("arch ", known.get("arch", UNKNOWN), ""),
            ("runtime ", known.get("runtimes", UNKNOWN), ""),
            ("agent ", known.get("agent", UNKNOWN), ""),
        ],
        width,
    )
    lines += _flowed(
        [
            ("runs ", row.label or UNKNOWN, "bold"),
            ("", digest(row.release), "dim"),
            ("before ", detail.previous_label or UNKNOWN, ""),
            ("update ", row.phase or "none", "accent" if row.phase else ""),
        ],
        width,
    )
    lines += _flowed(
        [
            ("answers ", f"{row.generations:,}", ""),
            ("errors ", percent(row.error_fraction), ""),
            ("first token p95 ", seconds(row.ttft_p95_s), ""),
            ("good/bad ", f"+{row.thumbs_up} -{row.thumbs_down}", ""),
            ("drift ", f"{mark} {row.drift or ''}".rstrip(), judged),
            ("privacy ", row.privacy.upper() or UNKNOWN, ""),
        ],
        width,
    )
    if row.clock_skew_s is not None and abs(row.clock_skew_s) > 60:
        way = "behind" if row.clock_skew_s < 0 else "ahead"
        lines.append([("   ! ", "warn"), (f"its clock is {seconds(abs(row.clock_skew_s))} {way}", "warn")])
    if detail.fault:
        lines.append([("   ▲ ", "bad"), (f"fault: {detail.fault}", "bad")])
    return lines


def _flowed(facts: Sequence[tuple[str, str, str]], width: int) -> list[Line]:
    """Names, values and roles in as many lines as they need."""
    lines: list[list[Piece]] = [[("   ", "")]]
    used = 3
    for name, value, role in facts:
        cells = cell_len(plain(name)) + cell_len(plain(value)) + 2
        if used > 3 and used + cells > width:
            lines.append([("   ", "")])
            used = 3
        lines[-1] += [(name, "dim"), (value, role), ("  ", "")]
        used += cells
    return list(lines)


def _canary(one: CanaryRow, now_s: float) -> Line:
    good = one.agreed >= one.expected
    files = "files intact" if one.intact else "FILES ALTERED" if one.intact is False else "files not looked at"
    return [
        ("  ✓ " if good else "  ▲ ", "ok" if good else "bad"),
        (f"#{one.prompt} ", "bold"),
        (bar(one.agreed / one.expected if one.expected else None, 8), "ok" if good else "warn"),
        (f" {one.agreed}/{one.expected} tokens", ""),
        (f"  -{one.log_prob_drop:.2f} nats", "dim" if one.log_prob_drop < 0.1 else "warn"),
        (f"  {files}", "bad" if one.intact is False else "dim"),
        (f"  {age(now_s - one.at_s)} ago", "dim"),
    ]


def _plots(series: Sequence[Series], width: int) -> list[Line]:
    """Curves, as many beside each other as there is room for."""
    if not series:
        return [[("  no figures in this window", "dim")]]
    across = max(1, min(3, width // _LEAST_PLOT))
    room = width // across - 2
    lines: list[Line] = []
    for first in range(0, len(series), across):
        block = [_plot(one, room) for one in series[first : first + across]]
        lines += [[piece for plot in block for piece in (*plot[y], ("  ", ""))] for y in range(_PLOT_ROWS + 1)]
    return lines


def _plot(one: Series, room: int) -> list[list[Piece]]:
    known = [value for value in one.values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    if known and low >= 0 and high > 0 and low > 0.3 * high:
        low, high = low * 0.95, high * 1.05
    elif known:
        low = min(0.0, low)
    last = next((value for value in reversed(one.values) if value is not None), None)
    axis = max(len(number(low)), len(number(high)), 4)
    title: list[Piece] = [
        (fit(f" {plain(one.metric)} ", max(0, room - 16)), "bold"),
        (fit(f"{number(last)} {plain(one.unit)}", min(16, room), right=True), "" if last is not None else "dim"),
    ]
    if not known:
        return [
            title,
            *([[(fit("  no value in this window" if y == 1 else "", room), "dim")] for y in range(_PLOT_ROWS)]),
        ]
    rows = curve(one.values, max(4, room - axis - 1), _PLOT_ROWS, low, high)
    edge = {0: number(high), _PLOT_ROWS - 1: number(low)}
    return [title, *([(edge.get(y, "").rjust(axis) + " ", "dim"), (row, "accent")] for y, row in enumerate(rows))]
