"""Every key that the help lists is pressed, with all its alternatives, and does what the help says.

A new binding without a check here fails `test_each_key_has_a_check`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input

from edgegen.errors import ConfigError
from edgegen.monitor.keymap import known_keys, load_keymap, shown_key
from edgegen.monitor.monitor_app import MonitorApp
from edgegen.monitor.screens.confirm import ConfirmScreen
from edgegen.monitor.screens.help import HelpScreen, live_keys
from edgegen.monitor.screens.view import View
from edgegen.records.deployment import RolloutState
from tests.monitor.driving import Driven, drive

Check = Callable[[Driven, str], Awaitable[None]]
CHECKS: dict[str, tuple[str, Check]] = {}
OTHER_APP = ("run.", "stop.")
"""Keys of the compression's screens, tested with them."""


def check(name: str, *, on: str) -> Callable[[Check], Check]:
    """Register the check of a key on a screen; it is given the key to press."""

    def register(function: Check) -> Check:
        CHECKS[name] = (on, function)
        return function

    return register


def changes(name: str, on: str, value: Callable[[Driven], Any], before: Any = ..., after: Any = ...) -> None:
    """Register a check that a value is another one after the key, or these two."""

    async def run(it: Driven, key: str) -> None:
        was = value(it)
        assert before is ... or was == before, was
        await it.press(key)
        await it.tick(0.5)
        now = value(it)
        assert now != was if after is ... else now == after, (was, now)

    CHECKS[name] = (on, run)


def table(it: Driven) -> Any:
    return it.view.table


for name in ("fleet", "device", "outputs", "rollouts", "drift", "events", "bundles"):
    changes(f"app.{name}", "events" if name == "fleet" else "fleet", lambda it: it.view.NAME, after=name)
changes("app.pause", "fleet", lambda it: it.app.sight.is_paused, False, True)
changes("app.slower", "fleet", lambda it: it.app.sight.interval_s, 2.0, 5.0)
changes("app.faster", "fleet", lambda it: it.app.sight.interval_s, 2.0, 1.0)
changes("app.window", "fleet", lambda it: it.app.sight.window_s, 3600.0, 86400.0)
changes("app.earlier", "fleet", lambda it: it.app.sight.until_s is None, True, False)
changes("app.theme", "fleet", lambda it: it.app.theme)
changes("fleet.faults", "fleet", lambda it: table(it).faults_only, False, True)
changes("fleet.outputs", "fleet", lambda it: it.view.NAME, "fleet", "outputs")
changes("fleet.events", "fleet", lambda it: it.view.NAME, "fleet", "events")
changes("fleet.compare", "fleet", lambda it: getattr(it.view, "compares", ""), "", "releases")
changes("table.down", "fleet", lambda it: table(it).cursor, 0, 1)
changes("table.bottom", "fleet", lambda it: table(it).cursor, 0, 59)
changes("table.page-down", "fleet", lambda it: table(it).cursor > 5, False, True)
changes("table.open", "fleet", lambda it: it.view.NAME, "fleet", "device")
changes("table.mark", "fleet", lambda it: len(table(it).marks), 0, 1)
changes("table.sort", "fleet", lambda it: table(it).sort_column, "state", "seen")
changes("table.reverse", "fleet", lambda it: table(it).reversed, False, True)
changes("table.wide", "fleet", lambda it: table(it).is_wide, False, True)
changes("device.outputs", "device", lambda it: it.view.NAME, "device", "outputs")
changes("device.events", "device", lambda it: it.view.NAME, "device", "events")
changes("device.compare", "device", lambda it: getattr(it.view, "compares", ""), "", "releases")
changes("device.describe", "device", lambda it: it.view.is_raw, False, True)
changes("device.next", "device", lambda it: it.view.device)
changes("device.previous", "device", lambda it: it.view.device)
changes("lines.down", "device", lambda it: it.view.query_one("#main").scroll_offset.y, 0, 1)
changes("lines.bottom", "device", lambda it: it.view.query_one("#main").scroll_offset.y > 3, False, True)
changes("lines.page-down", "device", lambda it: it.view.query_one("#main").scroll_offset.y > 3, False, True)
changes("outputs.follow", "outputs", lambda it: it.view.follows, True, False)
changes("outputs.previous", "outputs", lambda it: table(it).cursor)
changes("outputs.compare", "outputs", lambda it: it.view.compares, "", "releases")
changes("outputs.mask", "outputs", lambda it: it.view.is_masked, False, True)
changes("outputs.faults", "outputs", lambda it: table(it).faults_only, False, True)
changes("outputs.device", "outputs", lambda it: it.view.NAME, "outputs", "device")
changes("outputs.text", "outputs", lambda it: it.app.focused.id, "main", "detail")
changes("rollouts.devices", "rollouts", lambda it: it.view.shows_devices, False, True)
changes("rollouts.text", "rollouts", lambda it: it.app.focused.id, "main", "detail")
changes("drift.down", "drift", lambda it: it.view.heat.place[0])
changes("drift.up", "drift", lambda it: it.view.heat.place[0])
changes("drift.left", "drift", lambda it: it.view.heat.place[1])
changes("drift.right", "drift", lambda it: it.view.heat.place[1])
changes("drift.text", "drift", lambda it: it.app.focused.id, "main", "detail")
changes("drift.group", "drift", lambda it: it.view.group, "", "field-tablet")
changes("events.faults", "events", lambda it: table(it).faults_only, False, True)
changes("events.follow", "events", lambda it: it.view.follows, True, False)
changes("events.previous", "events", lambda it: table(it).cursor)


@check("app.help", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    assert isinstance(it.app.screen, HelpScreen) and "Keys" in it.text


@check("help.close", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("question_mark", key)
    assert isinstance(it.app.screen, View)


@check("app.filter", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    assert isinstance(it.app.focused, Input) and it.view.query_one("#prompt").purpose == "filter"


@check("app.command", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    assert it.view.query_one("#prompt").purpose == "command"


@check("app.travel", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    await it.type("-1h")
    await it.press("enter")
    assert it.app.sight.until_s is not None


@check("app.later", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("comma", key)
    assert it.app.sight.until_s is None


@check("app.palette", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    await it.pilot.pause(0.2)
    assert not isinstance(it.app.screen, View)
    await it.press("escape")
    await it.pilot.pause(0.2)


@check("app.up", on="events")
async def _(it: Driven, key: str) -> None:
    it.app.filter("polled")
    await it.press(key)
    assert it.view.filter_words == "" and it.view.NAME == "events"
    await it.press(key)
    assert it.view.NAME == "fleet"


@check("app.back", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.go("drift")
    await it.press(key)
    assert it.view.NAME == "fleet"


@check("app.forward", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.go("drift")
    await it.press("left_square_bracket", key)
    assert it.view.NAME == "drift"


@check("app.reload", on="fleet")
async def _(it: Driven, key: str) -> None:
    before = it.app.fleet
    it.now[0] += 0.1
    await it.press(key)
    assert it.app.fleet is not before, "asked although it was not due"


@check("app.copy", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    assert table(it).row.device in it.app.clipboard


@check("app.export", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    assert "wrote 60 rows" in it.said
    for path in Path().glob("edgegen-*.jsonl"):
        path.unlink()


@check("table.up", on="fleet")
async def _(it: Driven, key: str) -> None:
    table(it).action_move(5)
    await it.press(key)
    assert table(it).cursor == 4


@check("table.page-up", on="fleet")
async def _(it: Driven, key: str) -> None:
    table(it).action_bottom()
    await it.press(key)
    assert table(it).cursor < 55


@check("table.top", on="fleet")
async def _(it: Driven, key: str) -> None:
    table(it).action_bottom()
    await it.press(key)
    assert table(it).cursor == 0


@check("table.right", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("w", key)
    assert table(it).scroll_offset.x == 8


@check("table.left", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("w", "l", "l", key)
    assert table(it).scroll_offset.x == 8


@check("table.mark-range", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("space", "j", "j", key)
    assert len(table(it).marks) == 4


@check("table.unmark", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("space", "space", key)
    assert table(it).marks == set()


@check("lines.up", on="device")
async def _(it: Driven, key: str) -> None:
    await it.press("j", "j", key)
    assert it.view.query_one("#main").scroll_offset.y == 1


@check("lines.page-up", on="device")
async def _(it: Driven, key: str) -> None:
    await it.press("G", key)
    text = it.view.query_one("#main")
    assert text.scroll_offset.y < text.max_scroll_y


@check("lines.top", on="device")
async def _(it: Driven, key: str) -> None:
    await it.press("G", key)
    assert it.view.query_one("#main").scroll_offset.y == 0


@check("outputs.next", on="outputs")
async def _(it: Driven, key: str) -> None:
    table(it).action_top()
    await it.press(key)
    row = table(it).row
    assert (row.flags or row.rating < 0) and table(it).cursor > 0 and not it.view.follows


@check("events.next", on="events")
async def _(it: Driven, key: str) -> None:
    table(it).action_top()
    await it.press(key)
    assert table(it).row.level == "error"


@check("drift.worst", on="drift")
async def _(it: Driven, key: str) -> None:
    first = it.view.heat.place
    await it.press(key)
    assert it.view.heat.place != first and it.view.heat.chosen.verdict == "drift"


@check("drift.devices", on="drift")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    assert it.view.NAME == "fleet" and {row.group for row in table(it).rows} == {"field-tablet"}


@check("bundles.devices", on="bundles")
async def _(it: Driven, key: str) -> None:
    label = table(it).row.label
    await it.press(key)
    assert it.view.NAME == "fleet" and {row.label for row in table(it).rows} <= {label}


@check("bundles.deploy", on="bundles")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    await it.type("kitchen-hub")
    await it.press("enter")
    assert isinstance(it.app.screen, ConfirmScreen)


@check("device.canary", on="device")
async def _(it: Driven, key: str) -> None:
    await it.press(key)
    assert isinstance(it.app.screen, ConfirmScreen)
    await it.type(it.view.device)
    await it.press("enter")
    await it.tick(0.5)
    assert "done:" in it.said, it.said


def acts(name: str, operation: str) -> None:
    async def run(it: Driven, key: str) -> None:
        await it.press(key)
        assert isinstance(it.app.screen, ConfirmScreen)
        await it.type("kitchen-hub" if operation == "begin" else "smart-home@1.6.0-rc1")
        await it.press("enter")
        await it.tick(0.5)
        assert "done:" in it.said, it.said
        newest = it.source.rollouts()[0]
        if operation == "begin":
            assert newest.id == 5
        else:
            assert newest.state is (RolloutState.PAUSED if operation == "pause" else RolloutState.ABORTED)

    CHECKS[name] = ("rollouts", run)


acts("rollouts.pause", "pause")
acts("rollouts.abort", "abort")
acts("rollouts.roll-back", "rollback")
acts("rollouts.redeploy", "begin")


@check("confirm.cancel", on="rollouts")
async def _(it: Driven, key: str) -> None:
    await it.press("A", key)
    assert isinstance(it.app.screen, View) and it.source.rollouts()[0].state is RolloutState.RUNNING


@check("prompt.close", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("colon", key)
    assert not it.view.query_one("#prompt").is_open and it.app.focused is table(it)


@check("prompt.earlier", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.command("window 1h")
    await it.press("colon", key)
    assert it.view.query_one("#prompt").value == "window 1h"


@check("prompt.later", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.command("window 1h")
    await it.press("colon", "up", key)
    assert it.view.query_one("#prompt").value == ""


@check("prompt.complete", on="fleet")
async def _(it: Driven, key: str) -> None:
    await it.press("colon")
    await it.type("ro")
    await it.press(key)
    assert it.view.query_one("#prompt").value == "rollouts"


@check("app.quit", on="fleet")
async def _(it: Driven, key: str) -> None:
    left: list[int] = []
    it.app.exit = lambda code=0, *more, **others: left.append(code)  # type: ignore[method-assign]
    try:
        await it.press(key)
        await it.press("ctrl+c")
    finally:
        del it.app.exit
    assert len(left) == 2


def test_each_key_has_a_check() -> None:
    ours = {name for name in known_keys() if not name.startswith(OTHER_APP)}
    assert ours == CHECKS.keys()


# A few at a time: an app's start is half a second, and a test that fails should name its key.
SCREENS = sorted({name.partition(".")[0] for name in CHECKS})


@pytest.mark.slow
@pytest.mark.parametrize("place", SCREENS)
def test_every_key_does_what_it_says(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = known_keys()
    for name in (name for name in CHECKS if name.partition(".")[0] == place):
        screen, function = CHECKS[name]
        for key in keys[name].split(","):

            async def test(it: Driven, key: str = key, name: str = name, screen: str = screen) -> None:
                if screen != "fleet":
                    await it.go(screen)
                if not name.startswith(("help.", "confirm.", "prompt.")):
                    listed = live_keys(it.app.screen)
                    assert name in listed and listed[name][1], "the help lists it"
                await function(it, key)  # noqa: B023 - runs before the loop goes on

            try:
                drive(test, write=True, size=(120, 30))
            except AssertionError as error:
                raise AssertionError(f"{name} by {key!r}: {error}") from error


def test_keys_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "monitor-keys.toml"
    path.write_text('[keys]\n"fleet.outputs" = "O"\n"app.pause" = "f5,?"\n"app.help" = "f1"\n')
    changed = load_keymap(path)

    async def test(it: Driven) -> None:
        await it.press("f5")
        assert it.app.sight.is_paused
        await it.press("question_mark")
        assert not it.app.sight.is_paused, "its new meaning"
        await it.press("o")
        assert it.view.NAME == "fleet", "no longer"
        listed = live_keys(it.app.screen)
        assert listed["fleet.outputs"][0] == ["O"] and listed["app.help"][0] == ["f1"]
        await it.press("O")
        assert it.view.NAME == "outputs"

    drive(test, keymap=changed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[keys]\n"fleet.output" = "O"', "no key named"),
        ('[keys]\n"fleet.outputs" = "hello"', "is no key"),
        ('[keys]\n"fleet.outputs" = ""', "is no key"),
        ('[keys]\n"fleet.outputs" = "q"', "both fleet.outputs and app.quit"),
        ('[keys]\n"fleet.outputs" = "v"', "both fleet.outputs and fleet.events"),
        ("[key]\n", "unknown key"),
        ('[keys]\n"fleet.outputs" = 3', "Expected `str`"),
        ("[", "not valid TOML"),
    ],
)
def test_wrong_files_of_keys_are_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_keymap(path)
    assert words in str(caught.value) and "keys.toml" in str(caught.value)


def test_shipped_keys_are_said_apart() -> None:
    for place in {name.partition(".")[0] for name in known_keys()}:
        seen: dict[str, str] = {}
        for name, keys in known_keys().items():
            if name.startswith(place + "."):
                for key in keys.split(","):
                    assert key not in seen, f"{key}: {name} and {seen[key]}"
                    seen[key] = name
    assert shown_key("ctrl+r") == "^r" and shown_key("slash") == "/" and shown_key("x") == "x"
    assert MonitorApp.ENABLE_COMMAND_PALETTE
