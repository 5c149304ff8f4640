"""The monitor: one tick twice a second asks what is due and draws what changed.

Questions go to the `Asker`'s thread; answers come back as messages. A source that fails is a line at the top with the
time since when, the values under it are dimmed, and it is asked again, at first after a second, later every ten.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen

from edgegen.common.codec import did_you_mean
from edgegen.errors import ConfigError, EdgegenError
from edgegen.monitor import acting, export
from edgegen.monitor.asker import ACT, Answer, Asker
from edgegen.monitor.commands import COMMANDS, complete, run_command
from edgegen.monitor.heading import foot_lines, top_lines
from edgegen.monitor.ink import Ink, Line
from edgegen.monitor.keymap import key, load_keymap
from edgegen.monitor.screens import VIEWS
from edgegen.monitor.screens.confirm import ConfirmScreen
from edgegen.monitor.screens.help import HelpScreen
from edgegen.monitor.screens.view import View
from edgegen.monitor.shown import moment, window
from edgegen.monitor.sight import Failure, Sight
from edgegen.monitor.source import Source
from edgegen.monitor.table import Table
from edgegen.monitor.themes import DEFAULT_THEME, PLAIN_THEME, THEMES
from edgegen.monitor.times import parse_moment
from edgegen.monitor.widgets.bars import Bar
from edgegen.monitor.widgets.prompt import Prompt
from edgegen.records.base import Record
from edgegen.records.monitor import Ask, FleetView, State

TICK_S = 0.5
_SAID_S = 6.0
_FLEET = "fleet"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A device's, as enrolment allows it; the palette shows no other."""
_SLOWER = 5
"""The fleet's counts are asked for this much less often while another screen is shown."""


class MonitorApp(App[int]):
    """The terminal's screens on a fleet."""

    TITLE = "edgegen monitor"
    CSS = """
    Screen { background: $background; }
    ModalScreen { background: $background 60%; }
    #main { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            key(f"app.{name}", str(number), f"go('{name}')", f"{view.TITLE_WORDS}")
            for number, (name, view) in enumerate(VIEWS.items(), 1)
        ),
        key("app.help", "question_mark", "help", "Keys and commands", show="help"),
        key("app.filter", "slash", "filter", "Filter", show="filter"),
        key("app.command", "colon", "command", "Command", show="command"),
        key("app.palette", "ctrl+p", "command_palette", "Everything by name", priority=True),
        key("app.up", "escape", "up", "Up: clear the filter, or leave the screen"),
        key("app.back", "left_square_bracket", "history(-1)", "Screen before"),
        key("app.forward", "right_square_bracket", "history(1)", "Screen after"),
        key("app.pause", "p", "pause", "Let the picture stand still, or go on", show="pause"),
        key("app.slower", "plus", "interval(1)", "Ask less often"),
        key("app.faster", "minus", "interval(-1)", "Ask more often"),
        key("app.window", "t", "window", "Window: 5m, 1h, 24h, 7d", show="window"),
        key("app.travel", "T", "travel", "Go to a moment in the past"),
        key("app.earlier", "comma", "step(-1)", "A step into the past"),
        key("app.later", "full_stop", "step(1)", "A step towards now"),
        key("app.reload", "ctrl+r", "reload", "Ask again now"),
        key("app.copy", "y", "copy_row", "Copy as JSON"),
        key("app.export", "e", "export", "Write the rows to a file"),
        key("app.theme", "ctrl+t", "next_theme", "Next theme"),
        key("app.quit", "q,ctrl+q", "quit", "Leave"),
    ]

    class Answered(Message):
        """The asking thread has an answer."""

        def __init__(self, answer: Answer) -> None:
            super().__init__()
            self.answer = answer

    def __init__(
        self,
        source: Source,
        *,
        write: bool = False,
        clock: Callable[[], float] = time.time,
        inline: bool = False,
        ticks: bool = True,
        keymap: dict[str, str] | None = None,
        no_color: bool = False,
    ) -> None:
        """
        Args:
            write: whether acting keys act.
            inline: ask the source in this thread: for tests and pictures.
            ticks: tick by itself; otherwise someone calls `tick`.
            keymap: name → keys; None: the user's file.
            no_color: draw without any colour.
        """
        keymap = load_keymap() if keymap is None else keymap
        super().__init__(ansi_color=True if no_color else None)
        self.source = source
        self.may_write = write
        self.sight = Sight()
        self.fleet: FleetView | None = None
        self.states: dict[State, int] = {}
        """How many devices are in each."""
        self.histories: dict[str, list[str]] = {}
        self.ink = Ink({})
        self._clock = clock
        self._ticks = ticks
        self._asker = Asker(lambda answer: self._deliver(answer), inline=inline)
        self._asked_s: dict[str, float] = {}
        self._tickets: dict[str, int] = {}
        self._acts: dict[int, str] = {}
        self._said: tuple[float, str, str] = (0.0, "", "")
        self._places: list[tuple[str, dict[str, str]]] = []
        self._place = -1
        self._filter_before = ""
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = PLAIN_THEME if no_color else DEFAULT_THEME
        self.set_keymap(keymap)

    # ---- life

    def on_mount(self) -> None:
        self._renew_ink()
        self.theme_changed_signal.subscribe(self, lambda theme: self._renew_ink())
        for name, view in VIEWS.items():
            self.install_screen(view(), name)
        self.go(_FLEET)
        if self._ticks:
            self.set_interval(TICK_S, self.tick)

    def on_unmount(self) -> None:
        self._asker.close()

    @property
    def view(self) -> View | None:
        """The screen that is shown, under a dialog too."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, View)), None)

    @property
    def now_s(self) -> float:
        """The moment that is shown, by the server's clock."""
        if self.sight.until_s is not None:
            return self.sight.until_s
        return self._clock() + self.sight.offset_s

    @property
    def live_s(self) -> float:
        """Now, by the server's clock."""
        return self._clock() + self.sight.offset_s

    @property
    def is_failing(self) -> bool:
        """Whether what the screen shows is of the past because its source does not answer."""
        return bool(self.failure)

    @property
    def failure(self) -> Failure | None:
        """Of the screen's own question, or else of the fleet's."""
        view = self.view
        return (self.sight.failures.get(view.NAME) if view else None) or self.sight.failures.get(_FLEET)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is being asked."""
        return self._asker.idle

    def tick(self) -> None:
        """Ask what is due, and draw what changed."""
        view = self.view
        if view is None or not view.is_ready:
            return
        now_s = self._clock()
        if self._ask_when_due(view, now_s, self.sight.interval_s) and view.has_shown and not self.failure:
            return  # the answer draws everything
        if view.NAME != _FLEET:
            self._ask_when_due(self._fleet_view, now_s, self.sight.interval_s * _SLOWER)
        self._draw(view)

    @staticmethod
    def _draw(view: View) -> None:
        view.tick()
        for bar in (view.query_one("#top", Bar), view.query_one("#foot", Bar)):
            bar.tick()

    @property
    def _fleet_view(self) -> View:
        found = self.get_screen(_FLEET)
        assert isinstance(found, View), "the fleet's screen is one of ours"
        return found

    # ---- asking

    def _ask_when_due(self, view: View, now_s: float, every_s: float) -> bool:
        """
        Returns:
            Whether a question was asked.
        """
        name = view.NAME
        failure = self.sight.failures.get(name)
        if failure is not None and not view.is_asked_again:
            due = now_s >= failure.next_s
        elif self.sight.until_s is not None:
            due = view.is_asked_again  # the past does not change
        else:
            due = view.is_asked_again or now_s - self._asked_s.get(name, -1e9) >= every_s - TICK_S / 2
        if not due or (self._asker.busy(name) and not view.is_asked_again):
            return False
        question = view.question()
        view.is_asked_again = False
        if question is None:
            return False
        self._asked_s[name] = now_s
        self._tickets[name] = self._asker.ask(name, question)
        return True

    def ask_again(self) -> None:
        """What is looked at changed: ask at once."""
        for screen in (self.view, self._fleet_view):
            if screen is not None:
                screen.is_asked_again = True
        self.tick()

    def _deliver(self, answer: Answer) -> None:
        """On the asking thread."""
        try:
            self.post_message(self.Answered(answer))
        except RuntimeError:  # the app has just ended
            return

    def on_monitor_app_answered(self, message: Answered) -> None:
        answer = message.answer
        if answer.key == ACT:
            self._acted(answer)
            return
        if self._tickets.get(answer.key) != answer.ticket:
            return  # of a question that was replaced
        view = self.get_screen(answer.key)
        assert isinstance(view, View), "questions are asked by views"
        now_s = self._clock()
        if answer.error is not None:
            self._failed(answer.key, answer.error, now_s)
        else:
            self.sight.failures.pop(answer.key, None)
            if isinstance(answer.value, FleetView):
                self.fleet = answer.value
                states = [row.state for row in answer.value.devices]
                self.states = {state: states.count(state) for state in State}
                if self.sight.until_s is None:
                    self.sight.offset_s = answer.value.at_s - now_s
            view.receive(answer.value)
        if self.view is not None and self.view.is_ready:
            self._draw(self.view)

    def _failed(self, name: str, error: Exception, now_s: float) -> None:
        words = str(error) or type(error).__name__
        if not isinstance(error, EdgegenError):
            words = f"{type(error).__name__}: {words}"
        known = self.sight.failures.get(name)
        if known is None:
            self.sight.failures[name] = Failure(now_s, words, next_s=now_s + 1.0)
        else:
            known.again(now_s, words)

    # ---- acting

    def may_act(self) -> bool:
        """Whether acting keys act; says so where they do not."""
        if self.may_write and self.sight.until_s is None:
            return True
        why = "read-only: start it with --write to act" if not self.may_write else "this is the past; `:now` leads back"
        self.say(why, "warn")
        return False

    def act(self, deed: acting.Deed) -> None:
        """Ask a person, then do it."""
        if not self.may_act():
            return

        def sure(yes: bool | None) -> None:
            if yes:
                self.do(deed.operation, deed.asked, deed.title)
            else:
                self.say("nothing was changed")

        self.push_screen(ConfirmScreen(deed.title, deed.blast, deed.name), sure)

    def do(self, operation: str, asked: Record, words: str) -> None:
        """Carry out an operation."""
        source = self.source
        self._acts[self._asker.ask(ACT, lambda: source.act(operation, asked))] = words

    def _acted(self, answer: Answer) -> None:
        words = self._acts.pop(answer.ticket, "")
        if answer.error is not None:
            hint = getattr(answer.error, "hint", "")
            self.say(f"not done: {answer.error} {hint}".rstrip(), "bad")
        else:
            self.say(f"done: {words}", "ok")
        self.ask_again()

    # ---- words

    def say(self, words: str, role: str = "") -> None:
        """In the bottom line, for a while."""
        self._said = (self._clock() + _SAID_S, words, role)
        if self.view is not None and self.view.is_ready:
            self.view.query_one("#foot", Bar).tick()

    @property
    def said(self) -> tuple[str, str]:
        """What the bottom line says now, and its role."""
        until_s, words, role = self._said
        return (words, role) if words and self._clock() < until_s else ("", "")

    def top_lines(self, width: int) -> Sequence[Line]:
        return top_lines(self, width)

    def foot_lines(self, width: int) -> Sequence[Line]:
        return foot_lines(self, width)

    def devices(self) -> list[str]:
        """Names, for completion."""
        return [row.device for row in self.fleet.devices] if self.fleet else []

    def groups(self) -> list[str]:
        return sorted({row.group for row in self.fleet.devices}) if self.fleet else []

    def ask_of(self, *, device: str = "", group: str = "") -> Ask:
        """The window and the moment as a question."""
        return Ask(window_s=self.sight.window_s, until_s=self.sight.until_s, device=device, group=group)

    # ---- going

    def go(self, name: str, **what: str) -> None:
        """Show a screen, and remember it."""
        del self._places[self._place + 1 :]
        if not self._places or self._places[-1] != (name, what):
            self._places.append((name, what))
        self._place = len(self._places) - 1
        self._show(name, what)

    def _show(self, name: str, what: dict[str, str]) -> None:
        view = self.get_screen(name)
        assert isinstance(view, View), "only our screens are gone to"
        before = self.view
        if before is not None and before.is_ready and before.query_one(Prompt).is_open:
            before.query_one(Prompt).shut()
        view.enter(**what)
        view.is_asked_again = True
        if before is None:
            self.push_screen(view)
        elif before is not view:
            while not isinstance(self.screen, View):
                self.pop_screen()
            self.switch_screen(view)
        self.call_after_refresh(self.tick)

    def action_go(self, name: str) -> None:
        self.go(name)

    def action_history(self, by: int) -> None:
        place = self._place + by
        if 0 <= place < len(self._places):
            self._place = place
            self._show(*self._places[place])
        else:
            self.say("no screen before this one" if by < 0 else "no screen after this one")

    def action_up(self) -> None:
        view = self.view
        if view is None:
            return
        if view.leave():
            return
        if view.filter_words:
            self.filter("")
        elif view.NAME != _FLEET:
            self.go(_FLEET)

    def action_help_quit(self) -> None:
        self.exit(0)  # nothing is lost by leaving

    def action_help(self) -> None:
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.screen))

    # ---- what is seen

    def action_filter(self) -> None:
        view = self.view
        if view is None or view.table is None or not view.LABELS:
            self.say("nothing to filter here")
            return
        self._filter_before = view.filter_words
        labels = [f"-l {label}=" for label in view.LABELS]
        self._prompt(
            "filter",
            view.filter_words,
            "text  !text  -l k=v  -f letters",
            lambda line: [one for one in labels if one.startswith(line)],
        )

    def action_command(self) -> None:
        self._prompt("command", "", "a command; tab completes", lambda line: complete(self, line))

    def action_travel(self) -> None:
        self._prompt("moment", "", "-2h, 14:30, 2026-01-31 14:30 or now", lambda line: [])

    def prompt(self, purpose: str, placeholder: str, words: Iterable[str]) -> None:
        """Let something be typed; the screen gets it as `Prompt.Typed` of this purpose."""
        known = list(words)
        self._prompt(purpose, "", placeholder, lambda line: [one for one in known if one.startswith(line)])

    def _prompt(self, purpose: str, line: str, placeholder: str, completes: Callable[[str], list[str]]) -> None:
        if self.view is not None:
            self.view.query_one(Prompt).open(purpose, line, placeholder=placeholder, complete=completes)

    def on_prompt_typed(self, message: Prompt.Typed) -> None:
        view = self.view
        if view is None or not view.is_ready:
            return
        if message.how != "typing":
            main = view.query("#main")
            if main:
                main.first().focus()
        try:
            if message.purpose == "filter":
                view.set_filter(message.line if message.how != "left" else self._filter_before)
            elif message.how != "entered":
                return
            elif message.purpose == "command":
                run_command(self, message.line)
            elif message.purpose == "moment":
                self.travel(parse_moment(message.line, self.live_s))
        except ConfigError as error:
            self.say(f"{error} {error.hint}".rstrip(), "bad")
        if self.view is view:
            view.query_one("#top", Bar).tick()

    def filter(self, words: str) -> None:
        """Filter the screen's rows, at once or as soon as it has any.

        Raises:
            ConfigError: the words cannot be understood.
        """
        if (view := self.view) is None:
            return
        if view.is_ready:
            view.set_filter(words)
            self.tick()
        else:
            view.filter_words = words

    def sort(self, name: str) -> None:
        """
        Raises:
            ConfigError: no such column.
        """
        table = self._table()
        if name and name not in self.sort_columns():
            raise ConfigError(f"there is no column {name[:30]!r}", hint=did_you_mean(name, self.sort_columns()))
        table.sort_by(name)

    def sort_columns(self) -> list[str]:
        table = self.view.table if self.view else None
        return [column.name for column in table.columns if column.sort is not None] if table else []

    def _table(self) -> Table[Any]:
        table = self.view.table if self.view else None
        if table is None:
            raise ConfigError("there are no rows here")
        return table

    def action_pause(self) -> None:
        self.sight.is_paused = not self.sight.is_paused
        if not self.sight.is_paused:
            for name in VIEWS:
                view = self.get_screen(name)
                if isinstance(view, View):
                    view.release()
        self.tick()

    def action_interval(self, step: int) -> None:
        self.set_interval_s(self.sight.interval(step))

    def set_interval_s(self, interval_s: float) -> None:
        self.sight.interval_s = max(TICK_S, interval_s)
        self.say(f"asks every {self.sight.interval_s:g} s")
        self.tick()

    def action_window(self) -> None:
        self.set_window(self.sight.next_window())

    def set_window(self, window_s: float) -> None:
        self.sight.window_s = window_s
        self.say(f"figures of the last {window(window_s)}")
        self._look_anew()

    def travel(self, until_s: float | None) -> None:
        """Show a moment; None: now."""
        self.sight.until_s = until_s
        self.say("live" if until_s is None else f"as it was at {moment(until_s)}; `:now` leads back")
        self._look_anew()

    def action_step(self, by: int) -> None:
        self.travel(self.sight.stepped(by, self.live_s))

    def _look_anew(self) -> None:
        for name in VIEWS:
            view = self.get_screen(name)
            if isinstance(view, View):
                view.drop_held()
                view.has_shown = False
                view.forget()
                view.is_asked_again = True
        self.ask_again()

    def action_reload(self) -> None:
        for failure in self.sight.failures.values():
            failure.next_s = 0.0
        self.ask_again()

    # ---- taking along

    def action_copy_row(self) -> None:
        record = self.view.current() if self.view else None
        if record is None:
            self.say("nothing to copy")
            return
        text = export.as_json(record)
        self.copy_to_clipboard(text)
        self.say(f"copied {len(text):,} characters of JSON")

    def action_export(self) -> None:
        try:
            self.export("")
        except ConfigError as error:
            self.say(str(error), "bad")

    def export(self, name: str) -> None:
        """Write the screen's rows.

        Args:
            name: the file; empty: one named after the screen and the time, in the current folder.

        Raises:
            ConfigError: nothing to write, the file exists or cannot be written.
        """
        view = self.view
        rows = view.exported() if view else ()
        if view is None or not rows:
            raise ConfigError("there are no rows to write")
        path = export.write_rows(rows, Path(name).expanduser() if name else None, view.NAME, self.now_s)
        self.say(f"wrote {len(rows):,} rows to {path}", "ok")

    # ---- looks

    def use_theme(self, name: str) -> None:
        """
        Raises:
            ConfigError: no such theme.
        """
        if name not in self.available_themes:
            raise ConfigError(
                f"there is no theme {name[:30]!r}", hint=did_you_mean(name, sorted(self.available_themes))
            )
        self.theme = name

    def action_next_theme(self) -> None:
        names = sorted(self.available_themes)
        self.theme = names[(names.index(self.theme) + 1) % len(names)]
        self.say(f"theme {self.theme}")

    def _renew_ink(self) -> None:
        self.ink = Ink(self.theme_variables)
        for screen in self.screen_stack:
            screen.refresh(layout=True)
            for widget in screen.query("Painted"):
                widget.notify_style_update()
                widget.refresh()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """For the palette: everything that a key or a command does."""
        seen = set()
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.id and binding.id not in seen and not binding.id.startswith(("table.", "lines.", "prompt.")):
                seen.add(binding.id)
                action, node = binding.action, active.node
                yield SystemCommand(
                    binding.description,
                    f"key {binding.key}",
                    lambda a=action, n=node: self.call_later(self.run_action, a, n),
                )
        for command in COMMANDS:
            if not command.usage or command.usage.startswith("["):
                yield SystemCommand(f":{command.names[0]}", command.does, lambda c=command: self._run(c.names[0]))
        for theme in sorted(self.available_themes):
            yield SystemCommand(f":theme {theme}", "Colours", lambda t=theme: self._run(f"theme {t}"), False)
        for device in self.devices()[:2000]:
            if _NAME.fullmatch(device):
                yield SystemCommand(f":device {device}", "One device", lambda d=device: self._run(f"device {d}"), False)

    def _run(self, line: str) -> None:
        try:
            run_command(self, line)
        except ConfigError as error:
            self.say(f"{error} {error.hint}".rstrip(), "bad")


def run(source: Source, *, write: bool = False) -> int:
    """Show a fleet until the user leaves.

    Args:
        write: whether acting keys act.

    Returns:
        The exit code.

    Raises:
        ConfigError: the user's file of keys is wrong.
        DeviceError: there is no terminal.
    """
    import os

    from edgegen.errors import DeviceError
    from edgegen.monitor.terminal import is_terminal

    if not is_terminal():
        raise DeviceError(
            "the monitor needs a terminal", hint="For scripts there is `edgegen monitor … --once --json`."
        )
    code = MonitorApp(source, write=write, no_color="NO_COLOR" in os.environ).run()
    return code or 0
