"""The line in which filters, commands, times and names are typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.binding import BindingType
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input

from edgegen.monitor.keymap import key

Complete = Callable[[str], list[str]]
"""What was typed → whole lines that it may become, the likeliest first."""


class _Likeliest(Suggester):
    def __init__(self, complete: Complete) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._complete = complete

    async def get_suggestion(self, value: str) -> str | None:
        return next((line for line in self._complete(value) if line != value and line.startswith(value)), None)


class Prompt(Input):
    """One input line with history; hidden while nobody types."""

    DEFAULT_CSS = """
    Prompt { display: none; height: 1; border: none; padding: 0 1; background: $panel; }
    Prompt:focus { border: none; }
    Prompt.open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("prompt.close", "escape", "close", "Leave the line"),
        key("prompt.earlier", "up", "history(-1)", "Earlier line"),
        key("prompt.later", "down", "history(1)", "Later line"),
        key("prompt.complete", "tab", "complete", "Complete", priority=True),
    ]

    class Typed(Message):
        """A line is being typed, was entered, or was left."""

        def __init__(self, purpose: str, line: str, how: str) -> None:
            super().__init__()
            self.purpose, self.line = purpose, line
            self.how = how
            """`typing`, `entered` or `left`."""

    def __init__(self, histories: dict[str, list[str]]) -> None:
        """
        Args:
            histories: purpose → lines that were entered, oldest first; shared by all screens.
        """
        super().__init__(id="prompt", compact=True, select_on_focus=False)
        self.cursor_blink = False
        self.purpose = ""
        self._histories = histories
        self._place = 0
        self._completions: list[str] = []
        self._complete: Complete | None = None

    @property
    def is_open(self) -> bool:
        return self.has_class("open")

    def open(self, purpose: str, line: str = "", *, placeholder: str = "", complete: Complete | None = None) -> None:
        """Let a line be typed."""
        self.purpose = purpose
        self._complete = complete
        self.suggester = _Likeliest(complete) if complete else None
        self._place = len(self._histories.setdefault(purpose, []))
        self._completions = []
        self.placeholder = placeholder
        self.add_class("open")
        with self.prevent(Input.Changed):
            self.value = line
        self.cursor_position = len(line)
        self.focus()

    def shut(self) -> None:
        self.remove_class("open")

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.is_open:
            self.post_message(self.Typed(self.purpose, self.value, "typing"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        history = self._histories.setdefault(self.purpose, [])
        if self.value and (not history or history[-1] != self.value):
            history.append(self.value)
            del history[:-200]
        self.shut()
        self.post_message(self.Typed(self.purpose, self.value, "entered"))

    def action_close(self) -> None:
        self.shut()
        self.post_message(self.Typed(self.purpose, self.value, "left"))

    def action_history(self, by: int) -> None:
        history = self._histories.get(self.purpose, [])
        self._place = min(max(self._place + by, 0), len(history))
        self.value = history[self._place] if self._place < len(history) else ""
        self.cursor_position = len(self.value)

    def action_complete(self) -> None:
        """Take the likeliest completion; pressed again, the next one."""
        if self._complete is None:
            return
        if self.value in self._completions:
            place = (self._completions.index(self.value) + 1) % len(self._completions)
        else:
            self._completions = self._complete(self.value)
            place = 0
        if self._completions:
            self.value = self._completions[place]
            self.cursor_position = len(self.value)
