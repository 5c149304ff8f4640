"""What `:` understands: words that lead to a screen or change what is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgegen.common.codec import did_you_mean
from edgegen.errors import ConfigError
from edgegen.monitor.times import parse_length, parse_moment

if TYPE_CHECKING:
    from edgegen.monitor.monitor_app import MonitorApp

Run = Callable[["MonitorApp", list[str]], None]
Words = Callable[["MonitorApp"], list[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        names: the first is its own, the others are short for it.
        usage: its arguments.
        completes: what its last argument may become.
    """

    names: tuple[str, ...]
    usage: str
    does: str
    run: Run
    completes: Words | None = None


def run_command(app: MonitorApp, line: str) -> None:
    """Do what was typed.

    Raises:
        ConfigError: no such command, or wrong arguments.
    """
    words = line.split()
    if not words:
        return
    command = _BY_NAME.get(words[0])
    if command is None and words[0].isdigit():
        raise ConfigError(f":{words[0]}: a command is a word", hint="A rollout is opened with `:roll 12`.")
    if command is None:
        raise ConfigError(f"there is no command {words[0][:30]!r}", hint=did_you_mean(words[0], sorted(_BY_NAME)))
    command.run(app, words[1:])


def complete(app: MonitorApp, line: str) -> list[str]:
    """Whole lines that a beginning may become."""
    head, space, last = line.rpartition(" ")
    if not space:
        return [command.names[0] for command in COMMANDS if command.names[0].startswith(line)]
    command = _BY_NAME.get(head.split()[0]) if head.split() else None
    if command is None or command.completes is None:
        return []
    return [f"{head} {word}" for word in command.completes(app) if word.startswith(last)][:50]


def pairs(words: list[str], known: tuple[str, ...]) -> dict[str, str]:
    """`name=value` words.

    Raises:
        ConfigError: an unknown name, or no `=`.
    """
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or name not in known:
            raise ConfigError(f"{word[:40]!r}: write it like name=value", hint="Known: " + ", ".join(known) + ".")
        found[name] = value
    return found


def _one(words: list[str], what: str) -> str:
    if len(words) != 1:
        raise ConfigError(f"name one {what}")
    return words[0]


def _device(app: MonitorApp, words: list[str]) -> None:
    app.go("device", device=_one(words, "device"))


def _fleet(app: MonitorApp, words: list[str]) -> None:
    app.go("fleet")
    if words:
        app.filter(f"-l group={_one(words, 'group')}")


def _rollout(app: MonitorApp, words: list[str]) -> None:
    if words and not words[0].isdecimal():
        raise ConfigError(f"{words[0][:30]!r} is no rollout's number")
    app.go("rollouts", rollout=_one(words, "rollout") if words else "")


def _window(app: MonitorApp, words: list[str]) -> None:
    app.set_window(parse_length(_one(words, "length of time, such as 1h")))


def _at(app: MonitorApp, words: list[str]) -> None:
    app.travel(parse_moment(" ".join(words), app.now_s))


def _theme(app: MonitorApp, words: list[str]) -> None:
    app.use_theme(_one(words, "theme"))


def _every(app: MonitorApp, words: list[str]) -> None:
    length = _one(words, "length of time, such as 5s")
    app.set_interval_s(parse_length(length if not length.isdecimal() else length + "s"))


def _to(name: str, known: tuple[str, ...] = ()) -> Run:
    def run(app: MonitorApp, words: list[str]) -> None:
        app.go(name, **pairs(words, known))

    return run


def _flags(app: MonitorApp) -> list[str]:
    names = ("REFUSE", "REPEAT", "LENGTH", "LEAK", "EMPTY", "ERROR", "LOW", "BADJSON")
    return [*(f"flag={name}" for name in names), *_groups(app, "group="), *(f"device={name}" for name in app.devices())]


def _groups(app: MonitorApp, before: str = "") -> list[str]:
    return [before + group for group in app.groups()]


COMMANDS: tuple[Command, ...] = (
    Command(("fleet", "f"), "[GROUP]", "All devices, or those of a group", _fleet, _groups),
    Command(("device", "dev", "d"), "NAME", "One device", _device, lambda app: app.devices()),
    Command(
        ("outputs", "out", "o"),
        "[device= group= release= flag=]",
        "What devices answer",
        _to("outputs", ("device", "group", "release", "flag")),
        _flags,
    ),
    Command(("rollouts", "roll", "r"), "[NUMBER]", "Releases on their way", _rollout),
    Command(
        ("drift",),
        "[group=]",
        "What changed against the packed release",
        _to("drift", ("group",)),
        lambda app: _groups(app, "group="),
    ),
    Command(
        ("events", "ev", "e"),
        "[device= group= level=]",
        "What happened",
        _to("events", ("device", "group", "level")),
        lambda app: [*_groups(app, "group="), "level=warning", "level=error"],
    ),
    Command(("bundles", "b"), "", "Signed releases", _to("bundles")),
    Command(("help", "h"), "", "Keys and commands", lambda app, words: app.action_help()),
    Command(("filter",), "[WORDS]", "As `/`", lambda app, words: app.filter(" ".join(words))),
    Command(
        ("sort",),
        "[COLUMN]",
        "Sort by a column",
        lambda app, words: app.sort(" ".join(words)),
        lambda app: app.sort_columns(),
    ),
    Command(
        ("window", "win"), "5m|1h|24h|7d", "How far back figures go", _window, lambda app: ["5m", "1h", "24h", "7d"]
    ),
    Command(("at",), "-2h|14:30|DATE TIME", "The fleet as it was then", _at, lambda app: ["now", "-1h", "-24h"]),
    Command(("now", "live"), "", "Back to now", lambda app, words: app.travel(None)),
    Command(("every",), "2s", "Time between questions", _every, lambda app: ["1s", "2s", "5s", "30s"]),
    Command(("pause",), "", "Let the picture stand still, or go on", lambda app, words: app.action_pause()),
    Command(("theme",), "NAME", "Colours", _theme, lambda app: sorted(app.available_themes)),
    Command(("export",), "[FILE]", "Write the rows as lines of JSON", lambda app, words: app.export(" ".join(words))),
    Command(("quit", "q"), "", "Leave", lambda app, words: app.exit(0)),
)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}
