"""`?`: the keys that do something now, with their names for the file of keys, and the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import ModalScreen, Screen

from edgegen.monitor.commands import COMMANDS
from edgegen.monitor.ink import Line, Piece, fit
from edgegen.monitor.keymap import key, shown_key
from edgegen.monitor.widgets.lines import Lines

if TYPE_CHECKING:
    from edgegen.monitor.monitor_app import MonitorApp

_WORDS = {"app": "Everywhere", "table": "In tables", "lines": "In texts", "prompt": "While typing"}


def live_keys(screen: Screen[object]) -> dict[str, tuple[list[str], str]]:
    """Name → keys and description of every binding that works on a screen now."""
    found: dict[str, tuple[list[str], str]] = {}
    for keys, active in screen.active_bindings.items():
        name = active.binding.id
        if name and active.enabled:
            found.setdefault(name, ([], active.binding.description))[0].append(keys)
    return found


def foot_keys(screen: Screen[object]) -> list[tuple[str, str]]:
    """Key and word of what stands in the bottom line; of several keys the shortest, the screen's own ones first."""
    found: dict[str, tuple[str, str]] = {}
    for keys, active in screen.active_bindings.items():
        binding = active.binding
        if binding.show and binding.id and active.enabled:
            shown = shown_key(keys)
            if binding.id not in found or len(shown) < len(found[binding.id][0]):
                found[binding.id] = (shown, binding.tooltip)
    order = {"table": 1, "app": 2}
    return [found[name] for name in sorted(found, key=lambda name: order.get(name.partition(".")[0], 0))]


class HelpScreen(ModalScreen[None]):
    """Lists what the screen under it can do."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen Lines { width: 90%; max-width: 100; height: 90%; border: round $primary; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("help.close", "escape,question_mark,q", "dismiss", "Close the help"),
    ]

    def __init__(self, under: Screen[object], *, commands: bool = True) -> None:
        """
        Args:
            under: whose keys are listed.
            commands: whether filters and `:` commands are listed too.
        """
        super().__init__()
        self._has_commands = commands
        self.keys = live_keys(under)

    def compose(self) -> ComposeResult:
        yield Lines(id="help")

    def on_mount(self) -> None:
        app: MonitorApp = self.app  # type: ignore[assignment]
        lines: list[Line] = [[("Keys", "head"), ("   esc closes; names are for ", "dim"), ("monitor-keys.toml", "dim")]]
        places: dict[str, list[str]] = {}
        for name in self.keys:
            places.setdefault(name.partition(".")[0], []).append(name)
        order = sorted(places, key=lambda place: (place == "app", place in ("table", "lines")))
        for place in order:
            lines += [[], [(_WORDS.get(place, place.capitalize()), "bold")]]
            for name in places[place]:
                keys, words = self.keys[name]
                shown = " ".join(dict.fromkeys(shown_key(one) for one in keys))
                line: list[Piece] = [("  " + fit(shown, 14), "accent"), (fit(words, 48), ""), (name, "dim")]
                lines.append(line)
        if self._has_commands:
            lines += _commands(app)
        self.query_one(Lines).show(lines)
        self.query_one(Lines).focus()


def _commands(app: MonitorApp) -> list[Line]:
    lines: list[Line] = [[], [("Filters", "bold")]]
    for usage, words in (
        ("/text", "a regular expression; capitals tell letters apart"),
        ("/!text", "rows without it"),
        ("/-l k=v", "by label, k!=v without: group type state release phase …"),
        ("/-f abc", "these letters in this order"),
    ):
        lines.append([("  " + fit(usage, 14), "accent"), (words, "")])
    lines += [[], [("Commands", "bold"), ("   tab completes, ↑ ↓ are earlier ones", "dim")]]
    for command in COMMANDS:
        usage = f":{command.names[0]} {command.usage}"
        short = " ".join(":" + name for name in command.names[1:])
        lines.append([("  " + fit(usage, 42), "accent"), (fit(command.does, 40), ""), (short, "dim")])
    acting = "acting keys are on" if app.may_write else "read-only: acting keys need --write"
    lines += [[], [(acting, "warn" if app.may_write else "dim")]]
    return lines
