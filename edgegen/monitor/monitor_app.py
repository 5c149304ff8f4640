"""The monitor's keys: which screen is shown, what is looked at, what is taken along."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual.app import SystemCommand
from textual.binding import BindingType
from textual.screen import Screen

from edgegen.common.codec import did_you_mean
from edgegen.errors import ConfigError
from edgegen.monitor import export
from edgegen.monitor.asking import FLEET, TICK_S, AskingApp
from edgegen.monitor.commands import COMMANDS, complete, run_command
from edgegen.monitor.keymap import key
from edgegen.monitor.screens import VIEWS
from edgegen.monitor.screens.help import HelpScreen
from edgegen.monitor.screens.view import View
from edgegen.monitor.shown import moment, window
from edgegen.monitor.table import Table
from edgegen.monitor.times import parse_moment
from edgegen.monitor.widgets.bars import Bar
from edgegen.monitor.widgets.prompt import Prompt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A device's, as enrolment allows it; the palette shows no other."""


class MonitorApp(AskingApp):
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
        if before is not view:
            self.hush()
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
        elif view.NAME != FLEET:
            self.go(FLEET)

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
