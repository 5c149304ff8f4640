"""4: releases on their way: the list, and of the chosen one its waves, its gate and its devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.widget import Widget

from edgegen.monitor import acting
from edgegen.monitor.columns import Column
from edgegen.monitor.filters import Searchable
from edgegen.monitor.ink import Line, Piece, fit
from edgegen.monitor.keymap import key
from edgegen.monitor.plain import plain
from edgegen.monitor.screens.view import Question, View
from edgegen.monitor.shown import VERDICT_GLYPH, age, clock, number, percent
from edgegen.monitor.table import Table
from edgegen.monitor.widgets.lines import Lines
from edgegen.records.deployment import ActionState, ActionView, Rollout, RolloutState, Wave
from edgegen.records.monitor import DriftCell

_GLYPH = {
    RolloutState.RUNNING: ("▶", "ok"),
    RolloutState.PAUSED: ("‖", "warn"),
    RolloutState.ABORTED: ("✗", "bad"),
    RolloutState.FINISHED: ("✓", "ok"),
    RolloutState.SUPERSEDED: ("»", "dim"),
}
_PARTS = (
    (ActionState.CONFIRMED, "█", "ok", "confirmed"),
    (ActionState.FAILED, "✗", "bad", "failed"),
    (ActionState.TIMED_OUT, "t", "bad", "timed out"),
    (ActionState.RUNNING, "▒", "accent", "running"),
    (ActionState.OFFERED, "░", "accent", "offered"),
    (ActionState.CANCELED, "c", "dim", "canceled"),
    (ActionState.DEFERRED, "d", "dim", "deferred"),
    (ActionState.WAITING, "·", "dim", "waiting"),
)
_GONE_WRONG = (ActionState.FAILED, ActionState.TIMED_OUT)


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything of the screen, asked for in one go."""

    rollouts: tuple[Rollout, ...]
    chosen: int
    actions: tuple[ActionView, ...]
    gate: tuple[DriftCell, ...]


def summed(rollout: Rollout) -> Counter[str]:
    """Devices by state over all waves."""
    whole: Counter[str] = Counter()
    for wave in rollout.waves:
        whole.update(wave.states)
    return whole


def _progress(rollout: Rollout, now_s: float) -> Piece:
    states = summed(rollout)
    whole = sum(states.values())
    return f"{states[ActionState.CONFIRMED]}/{whole}", ""


def _failed(rollout: Rollout, now_s: float) -> Piece:
    states = summed(rollout)
    bad = sum(states[state] for state in _GONE_WRONG)
    return (f"✗{bad}", "bad") if bad else ("0", "dim")


def _state(rollout: Rollout, now_s: float) -> Piece:
    glyph, role = _GLYPH[rollout.state]
    return f"{glyph} {rollout.state}", role


COLUMNS: tuple[Column[Rollout], ...] = (
    Column("number", "#", 4, 1, lambda r, n: (str(r.id), "bold"), lambda r: r.id, True, falls=True),
    Column("state", "STATE", 12, 1, _state, lambda r: str(r.state)),
    Column("release", "RELEASE", 20, 1, lambda r, n: (acting.label(r), "bold"), acting.label, grows=True),
    Column("group", "GROUP", 16, 2, lambda r, n: (r.group, ""), lambda r: r.group),
    Column("kind", "KIND", 8, 6, lambda r, n: (r.kind, "dim"), lambda r: r.kind),
    Column("confirmed", "CONFIRMED", 11, 2, _progress, lambda r: summed(r)[ActionState.CONFIRMED], True, falls=True),
    Column("failed", "FAILED", 6, 3, _failed, lambda r: sum(summed(r)[s] for s in _GONE_WRONG), True, falls=True),
    Column("age", "AGE", 4, 4, lambda r, n: (age(n - r.created_s), ""), lambda r: r.created_s, True, falls=True),
    Column("by", "BY", 16, 7, lambda r, n: (r.created_by, "dim"), lambda r: r.created_by),
    Column("reason", "REASON", 30, 5, lambda r, n: (r.reason, "warn"), lambda r: r.reason or None),
)


def searchable(rollout: Rollout) -> Searchable:
    """A rollout as filters see it."""
    name = acting.label(rollout)
    return Searchable(
        f"{rollout.id} {name} {rollout.group} {rollout.state} {rollout.reason} {rollout.created_by}",
        {"group": rollout.group, "state": rollout.state, "release": name, "kind": rollout.kind},
        rollout.state in (RolloutState.PAUSED, RolloutState.ABORTED),
    )


class RolloutsView(View):
    """All rollouts, and one of them."""

    NAME = "rollouts"
    TITLE_WORDS = "Rollouts: releases on their way"
    LABELS = ("group", "state", "release", "kind")
    CSS = "RolloutsView #detail { height: 2fr; border-top: solid $primary; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        key("rollouts.devices", "d", "devices", "Its devices, or its waves", show="devices"),
        key("rollouts.text", "tab", "other", "To the lower part and back"),
        key("rollouts.pause", "P", "act('pause')", "ACTS: pause it, or let it go on", show="pause"),
        key("rollouts.abort", "A", "act('abort')", "ACTS: abort it"),
        key("rollouts.roll-back", "R", "act('rollback')", "ACTS: roll back the devices that have it"),
        key("rollouts.redeploy", "U", "act('begin')", "ACTS: begin the same release again in its group"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.chosen = 0
        self.picture: Picture | None = None
        self.shows_devices = False

    def body(self) -> Iterable[Widget]:
        yield Table(COLUMNS, lambda row: row.id, search=searchable, empty="no rollout yet", id="main")
        yield Lines(id="detail")

    @property
    def table(self) -> Table[Rollout]:
        found: Table[Rollout] = self.query_one("#main", Table)
        return found

    def enter(self, **what: str) -> None:
        if what.get("rollout", "").isdecimal():
            self.chosen = int(what["rollout"])
            if self.is_ready:
                self.table.select(self.chosen)

    def question(self) -> Question:
        source, until_s, wanted = self.monitor.source, self.monitor.sight.until_s, self.chosen
        ask = self.monitor.ask_of()

        def work() -> Picture:
            known = source.rollouts()
            rollouts = tuple(r for r in known if until_s is None or r.created_s <= until_s)
            found = next((r for r in rollouts if r.id == wanted), rollouts[0] if rollouts else None)
            if found is None:
                return Picture(rollouts, 0, (), ())
            gate = tuple(
                cell
                for cell in source.drift(ask)
                if cell.against == "control" and cell.group == found.group and cell.release == found.digest
            )
            return Picture(rollouts, found.id, source.actions(found.id), gate)

        return work

    def accept(self, value: Picture) -> None:
        self.picture = value
        if not self.is_ready:
            return
        self.table.update_rows(value.rollouts, self.monitor.now_s)
        if not self.chosen or not any(r.id == self.chosen for r in value.rollouts):
            self.chosen = value.chosen
        self.table.select(self.chosen)
        self._show()

    def rows_of(self, value: Picture) -> Sequence[Rollout]:
        return value.rollouts

    def crumb(self) -> str:
        return str(self.chosen) if self.chosen else ""

    def status(self) -> list[str]:
        return ["states are those of now"] if self.monitor.sight.until_s is not None else []

    def exported(self) -> Sequence[object]:
        if self.shows_devices and self.picture:
            return self.picture.actions
        return self.table.rows

    def tick(self) -> None:
        super().tick()
        self._show()

    def on_resize(self, event: events.Resize) -> None:
        self._show()

    def on_table_moved(self, event: Table.Moved) -> None:
        row = event.table.row
        if row is not None and row.id != self.chosen:
            self.chosen = row.id
            self.is_asked_again = True
            self.monitor.tick()

    def on_table_opened(self, event: Table.Opened) -> None:
        self.action_devices()

    def _show(self) -> None:
        if not self.is_ready:
            return
        detail = self.query_one("#detail", Lines)
        picture = self.picture
        rollout = next((r for r in picture.rollouts if r.id == self.chosen), None) if picture else None
        if picture is None or rollout is None:
            detail.show([])
        elif picture.chosen != self.chosen:
            detail.show([[("  asking …", "dim")]])
        elif self.shows_devices:
            detail.show(action_lines(picture.actions))
        else:
            detail.show(rollout_lines(rollout, picture.gate, max(40, detail.size.width - 2), self.monitor.now_s))

    def action_devices(self) -> None:
        self.shows_devices = not self.shows_devices
        self._show()

    def action_other(self) -> None:
        self.query_one("#detail" if self.table.has_focus else "#main").focus()

    def action_act(self, operation: str) -> None:
        rollout = self.table.row
        if rollout is None or not self.monitor.may_act():
            return
        if operation == "begin":
            deed = acting.of_release(rollout.digest, acting.label(rollout), rollout.group, self.monitor.fleet)
        else:
            if operation == "pause" and rollout.state is RolloutState.PAUSED:
                operation = "resume"
            if operation != "rollback" and rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
                self.monitor.say(f"rollout {rollout.id} is {rollout.state}: there is nothing to {operation}", "warn")
                return
            deed = acting.of_rollout(operation, rollout, self.monitor.fleet)
        self.monitor.act(deed)


def rollout_lines(rollout: Rollout, gate: Sequence[DriftCell], width: int, now_s: float) -> list[Line]:
    """The waves as a ladder, when it stops by itself, and the new release against the control group."""
    states = summed(rollout)
    limits = rollout.thresholds
    bad = sum(states[state] for state in _GONE_WRONG)
    ended = bad + states[ActionState.CONFIRMED]
    share = bad / ended if ended else None
    over = share is not None and ended >= limits.min_executed and share > limits.abort_fraction
    lines: list[Line] = [
        [
            (f" {acting.label(rollout)}", "bold"),
            (f" to {rollout.group}", ""),
            (f"  begun {clock(rollout.created_s)} by {rollout.created_by}", "dim"),
            (f"  {rollout.reason}" if rollout.reason else "", "warn"),
        ],
        [
            ("   failed ", "dim"),
            (f"{'▲ ' if over else ''}{percent(share)}", "bad" if over else ""),
            (f" of {ended} with an outcome; stops above {percent(limits.abort_fraction)}", "dim"),
            (f" from {limits.min_executed} on; next wave at {percent(limits.success_fraction)} confirmed", "dim"),
        ],
        [],
    ]
    for wave in rollout.waves:
        lines.append(_wave(wave, limits.success_fraction, width))
        lines.append(_counts(wave))
    lines += [[], [(" Gate: new release against the control group", "head")]]
    if not gate:
        lines.append([("  no figures for both", "dim")])
    for cell in gate:
        glyph, role = VERDICT_GLYPH[cell.verdict]
        lines.append(
            [
                (f"  {glyph} ", role),
                (fit(plain(cell.metric), 18), ""),
                (fit(str(cell.verdict), 12), role),
                (f"n={cell.n:<7,} PSI {number(cell.psi)} limit {number(cell.threshold)}", ""),
                (f"  p={cell.p:.2g}" if cell.p is not None else "", "dim"),
            ]
        )
    return lines


def _wave(wave: Wave, success: float, width: int) -> Line:
    whole = max(1, wave.devices)
    room = max(10, width - 34)
    pieces: list[Piece] = [(f"  wave {wave.number} ", "bold"), (f"{percent(wave.fraction):>5} ", "dim"), ("▕", "dim")]
    left = room
    for state, glyph, role, _ in _PARTS:
        count = wave.states.get(state, 0)
        if count:
            cells = min(left, max(1, round(count / whole * room)))
            pieces.append((glyph * cells, role))
            left -= cells
    pieces.append((" " * left + "▏", "dim"))
    done = wave.states.get(ActionState.CONFIRMED, 0) / whole
    when = "✓" if wave.succeeded_s is not None else "▶" if wave.begun_s is not None else "not begun"
    return [*pieces, (f" {percent(done)}", "ok" if done >= success else ""), (f" {when}", "dim")]


def _counts(wave: Wave) -> Line:
    words = [f"{wave.states[state]} {name}" for state, _, _, name in _PARTS if wave.states.get(state)]
    known = {str(state) for state, _, _, _ in _PARTS}
    words += [f"{count} {state}" for state, count in wave.states.items() if state not in known]
    return [(" " * 16 + ", ".join(words), "dim")]


def action_lines(actions: Sequence[ActionView]) -> list[Line]:
    """Each device, those that went wrong first."""
    order = {state: place for place, state in enumerate((*_GONE_WRONG, ActionState.RUNNING, ActionState.OFFERED))}
    looks = {state: (glyph, role) for state, glyph, role, _ in _PARTS}
    lines: list[Line] = [[(f"   {'DEVICE':<24} WAVE {'STATE':<10} {'PHASE':<12} REASON", "head")]]
    for one in sorted(actions, key=lambda a: (order.get(a.state, 9), a.wave, a.device)):
        glyph, role = looks.get(one.state, ("·", "dim"))
        lines.append(
            [
                (f" {glyph} ", role),
                (fit(plain(one.device), 24), "bold"),
                (f" {one.wave:>4} ", ""),
                (f"{one.state:<10} ", role),
                (fit(plain(one.phase), 12), ""),
                (" " + one.reason, "warn"),
            ]
        )
    return lines
