"""The part of the monitor that asks: one tick twice a second asks what is due and draws what changed.

Questions go to the `Asker`'s thread; answers come back as messages. A source that fails is a line at the top with the
time since when, the values under it are dimmed, and it is asked again, at first after a second, later every ten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from textual.app import App
from textual.message import Message

from edgegen.errors import EdgegenError
from edgegen.monitor import acting
from edgegen.monitor.asker import ACT, Answer, Asker
from edgegen.monitor.heading import foot_lines, top_lines
from edgegen.monitor.ink import Ink, Line
from edgegen.monitor.keymap import load_keymap
from edgegen.monitor.screens import VIEWS
from edgegen.monitor.screens.confirm import ConfirmScreen
from edgegen.monitor.screens.view import View
from edgegen.monitor.sight import Failure, Sight
from edgegen.monitor.source import Source
from edgegen.monitor.themes import DEFAULT_THEME, PLAIN_THEME, THEMES
from edgegen.monitor.widgets.bars import Bar
from edgegen.records.base import Record
from edgegen.records.monitor import Ask, FleetView, State

TICK_S = 0.5
FLEET = "fleet"
_SAID_S = 6.0
_SLOWER = 5
"""The fleet's counts are asked for this much less often while another screen is shown."""


class AskingApp(App[int]):
    """Screens on a source, without the keys."""

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
        self.renew_ink()
        self.theme_changed_signal.subscribe(self, lambda theme: self.renew_ink())
        for name, view in VIEWS.items():
            self.install_screen(view(), name)
        self.go(FLEET)
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
        return (self.sight.failures.get(view.NAME) if view else None) or self.sight.failures.get(FLEET)

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
        if view.NAME != FLEET:
            self._ask_when_due(self._fleet_view, now_s, self.sight.interval_s * _SLOWER)
        self._draw(view)

    @staticmethod
    def _draw(view: View) -> None:
        view.tick()
        for bar in (view.query_one("#top", Bar), view.query_one("#foot", Bar)):
            bar.tick()

    @property
    def _fleet_view(self) -> View:
        found = self.get_screen(FLEET)
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

    def on_asking_app_answered(self, message: Answered) -> None:
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

    def hush(self) -> None:
        """What was said was about another screen."""
        self._said = (0.0, "", "")

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

    def go(self, name: str, **what: str) -> None:
        """Show a screen."""
        raise NotImplementedError

    def renew_ink(self) -> None:
        """The theme changed: draw everything in its colours."""
        self.ink = Ink(self.theme_variables)
        for screen in self.screen_stack:
            screen.refresh(layout=True)
            for widget in screen.query("Painted"):
                widget.notify_style_update()
                widget.refresh()
