"""The lines at the top and at the bottom: tabs, the fleet in numbers, what is wrong, keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgegen.monitor.ink import Line, Piece
from edgegen.monitor.screens.help import foot_keys
from edgegen.monitor.screens.view import View
from edgegen.monitor.shown import STATE_GLYPH, age, clock, moment, number, percent, window
from edgegen.monitor.widgets.bars import joined
from edgegen.records.monitor import State

if TYPE_CHECKING:
    from edgegen.monitor.asking import AskingApp

_TABS = ("fleet", "device", "outputs", "rollouts", "drift", "events", "bundles")


def top_lines(app: AskingApp, width: int) -> Sequence[Line]:
    """Tabs; the fleet; then only where there is something: filter and marks, a failing source, the screen's own."""
    view = app.view
    if view is None:
        return ()
    lines: list[Line] = [_tabs(app, view, width), _fleet(app, width)]
    if status := _status(app, view):
        lines.append(status)
    if failure := app.failure:
        since = app.live_s - app.sight.offset_s - failure.since_s
        again = max(0.0, failure.next_s - (app.live_s - app.sight.offset_s))
        lines.append(
            [
                (" ▲ ", "bad"),
                (f"no answer since {clock(failure.since_s)} ({age(since)})", "bad bold"),
                (f", again in {again:.0f} s: ", "bad"),
                (failure.words, ""),
            ]
        )
    return [*lines, *view.side_lines(width)]


def _tabs(app: AskingApp, view: View, width: int) -> Line:
    line: list[Piece] = []
    long = width >= 76
    for place, name in enumerate(_TABS, 1):
        here = name == view.NAME
        words = name.capitalize() if long or here else name.capitalize()[:3]
        line.append((f" {place}", "dim" if not here else "bar"))
        line.append((words + " ", "bar" if here else ""))
    crumb = view.crumb()
    if crumb:
        line += [(" › ", "dim"), (crumb, "bold")]
    return line


def _fleet(app: AskingApp, width: int) -> Line:
    fleet = app.fleet
    mode: list[Piece] = [("RW", "warn bold")] if app.may_write else [("RO", "dim")]
    sight = app.sight
    when: list[Piece] = [("live", "ok")] if sight.until_s is None else [("⏴ " + moment(sight.until_s), "warn bold")]
    when += [(f" {window(sight.window_s)} every {sight.interval_s:g}s", "dim")]
    if sight.is_paused:
        when = [("‖ paused", "warn bold"), (f" +{app.view.count_held() if app.view else 0} buffered", "warn")]
    if fleet is None:
        return joined([(1, [(" asking …" if app.failure is None else " nothing known yet", "dim")]), (2, when)], width)
    parts: list[tuple[int, list[Piece]]] = [(1, _states(app.states)), (2, when)]
    parts.append((5, [(number(fleet.tokens_per_s), "bold"), (" tok/s", "dim")]))
    parts.append((4, [("err ", "dim"), (percent(fleet.error_fraction), "bold")]))
    parts.append((3, mode))
    if fleet.privacy:
        parts.append((6, [("privacy ", "dim"), (fleet.privacy.upper(), "bold")]))
    if fleet.skewed:
        parts.append((7, [("! ", "warn"), (f"{fleet.skewed} clocks wrong", "warn")]))
    firing = sum(alert.state == "firing" for alert in fleet.alerts)
    if firing:
        parts.append((2, [("▲ ", "bad"), (f"{firing} alerts" if firing > 1 else "1 alert", "bad bold")]))
    if fleet.rollout:
        parts.append((8, [("⇪ ", "accent"), (fleet.rollout, "")]))
    return joined(parts, width)


def _states(counts: dict[State, int]) -> list[Piece]:
    line: list[Piece] = [(" ", "")]
    for state in (State.ONLINE, State.DEGRADED, State.OFFLINE):
        glyph, role = STATE_GLYPH[state]
        line += [(glyph + " ", role), (f"{counts[state]:,} ", "bold")]
    others = counts[State.NEVER] + counts[State.REVOKED]
    if others:
        line += [("· ", "dim"), (f"{others:,} ", "")]
    return line


def _status(app: AskingApp, view: View) -> Line:
    table = view.table
    words = list(view.status())
    if view.filter_words and table is not None:
        words.append(f"/{view.filter_words}  {len(table.rows):,} of {table.total:,}")
    if table is not None and table.marks:
        words.append(f"* {len(table.marks)} marked")
    return [(" " + "   ".join(words), "accent")] if words else []


def foot_lines(app: AskingApp, width: int) -> Sequence[Line]:
    """What was said, or the keys that matter here."""
    words, role = app.said
    if words:
        return [[(" " + words, role)]]
    line: list[Piece] = [(" ", "")]
    for keys, does in foot_keys(app.screen):
        line += [(keys, "accent bold"), (f" {does}  ", "dim")]
    return [line]
