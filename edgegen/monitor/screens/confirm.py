"""Before anything is changed: what it will hit, and a name to type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from edgegen.monitor.ink import Line
from edgegen.monitor.keymap import key
from edgegen.monitor.plain import plain
from edgegen.monitor.widgets.lines import Lines


class ConfirmScreen(ModalScreen[bool]):
    """True if the name was typed."""

    DEFAULT_CSS = """
    ConfirmScreen { align: center middle; }
    ConfirmScreen Vertical { width: 90%; max-width: 72; height: auto; padding: 0 1; }
    ConfirmScreen Vertical { border: round $warning; background: $surface; }
    ConfirmScreen Lines { background: $surface; }
    ConfirmScreen Input { border: none; height: 1; padding: 0; background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [key("confirm.cancel", "escape", "cancel", "Change nothing")]

    def __init__(self, title: str, blast: Sequence[Line], name: str) -> None:
        """
        Args:
            title: what will be done.
            blast: whom it hits.
            name: to be typed.
        """
        super().__init__()
        self._heading, self._blast, self._wanted = title, list(blast), plain(name)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Lines(id="blast")
            field = Input(placeholder="esc changes nothing", compact=True)
            field.cursor_blink = False
            yield field

    def on_mount(self) -> None:
        lines: list[Line] = [
            [("! ", "warn"), (self._heading, "bold")],
            *self._blast,
            [],
            [("To go on, type ", ""), (self._wanted, "accent bold"), (" and press enter:", "")],
        ]
        text = self.query_one(Lines)
        text.can_focus = False
        text.styles.height = len(lines)
        text.show(lines)
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value.strip() == self._wanted.strip():
            self.dismiss(True)
        else:
            event.input.value = ""
            event.input.placeholder = "that is not the name; esc changes nothing"

    def action_cancel(self) -> None:
        self.dismiss(False)
