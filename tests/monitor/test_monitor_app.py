"""The screens as a person drives them: state first."""

import json
import threading
from pathlib import Path

import msgspec
import pytest

from edgegen.errors import ConfigError, NetworkError
from edgegen.fleet.operations import Begin, WhichRollout
from edgegen.monitor.app import run
from edgegen.monitor.mock import MockSource
from edgegen.monitor.screens import VIEWS
from edgegen.monitor.source import mock_source
from edgegen.records.deployment import RolloutState
from edgegen.records.monitor import Ask, DeviceRow, FleetView, State
from tests.monitor.driving import BEGUN_S, Driven, drive


@pytest.mark.parametrize(
    "size", [(80, 24), pytest.param((200, 50), marks=pytest.mark.slow), pytest.param((40, 10), marks=pytest.mark.slow)]
)
def test_every_screen_at_every_size(size: tuple[int, int]) -> None:
    async def test(it: Driven) -> None:
        for number, name in enumerate(VIEWS, 1):
            await it.press(str(number))
            await it.tick()
            assert name == it.view.NAME
            lines = it.text.splitlines()
            assert len(lines) <= size[1] and all(len(line) <= size[0] for line in lines)
        assert it.app.sight.failures == {}

    drive(test, size=size)


def test_the_fleet_in_numbers() -> None:
    async def test(it: Driven) -> None:
        fleet = it.app.fleet
        assert fleet is not None and it.view.table.total == 60
        online = sum(row.state is State.ONLINE for row in fleet.devices)
        assert f"● {online}" in it.text and "RO" in it.text and "privacy P2" in it.text

    drive(test, size=(160, 40))


def test_unknown_is_a_dash_and_stale_is_dimmed() -> None:
    row = DeviceRow("dark", "g", "", State.OFFLINE)

    class One(MockSource):
        def fleet(self, ask: Ask) -> FleetView:
            seen = msgspec.structs.replace(row, device="late", tokens_per_s=3.0, seen_s=BEGUN_S - 500)
            fresh = msgspec.structs.replace(seen, device="fresh", seen_s=BEGUN_S)
            return FleetView(BEGUN_S, ask.window_s, (row, seen, fresh))

    async def test(it: Driven) -> None:
        lines = it.text.splitlines()
        dark = next(line for line in lines if "dark" in line)
        assert dark.count("–") >= 5 and " 0" not in dark
        table = it.view.table
        for name, dim in (("late", True), ("fresh", False)):
            table.select(name)
            table.action_move(-1)
            place = [r.device for r in table.rows].index(name) + 1
            segments = list(table.draw(place, table.size.width))
            speed = next(segment for segment in segments if segment.text.strip() == "3.00")
            assert bool(speed.style and speed.style.dim) is dim

    drive(test, source=One(1, clock=lambda: BEGUN_S), size=(160, 20))


def test_filters_as_one_types() -> None:
    async def test(it: Driven) -> None:
        await it.press("slash")
        await it.type("hub")
        table = it.view.table
        assert {row.group for row in table.rows} == {"kitchen-hub"}, "while typing"
        await it.press("escape")
        assert len(table.rows) == 60, "left as it was"
        await it.press("slash")
        await it.type("-l group=retail")
        await it.press("enter")
        assert it.view.filter_words == "-l group=retail" and "15 of 60" in it.text
        await it.press("slash")
        await it.type(" (")
        await it.press("enter")
        assert {row.group for row in table.rows} == {"retail-kiosk"}, "the former one stays"
        assert "write it like name=value" in it.said
        await it.press("escape")
        assert len(table.rows) == 60

    drive(test)


@pytest.mark.slow
def test_commands_complete_and_are_remembered() -> None:
    async def test(it: Driven) -> None:
        await it.press("colon")
        await it.type("dev")
        await it.press("tab")
        await it.type(" hub-0002")
        await it.press("tab")
        prompt = it.view.query_one("#prompt")
        assert prompt.value == "device hub-00020"
        await it.press("tab")
        assert prompt.value == "device hub-00024", "the next one"
        await it.press("enter")
        await it.tick()
        assert it.view.NAME == "device" and it.view.detail.row.device == "hub-00024"
        await it.press("colon", "up")
        assert it.view.query_one("#prompt").value == "device hub-00024"
        await it.press("down", "escape")
        for line, words in (
            ("nonsense", "no command"),
            ("12", "a command is a word"),
            ("device", "name one device"),
            ("roll x", "no rollout's number"),
            ("window 5", "no length of time"),
            ("at 2050-01-01", "not in the past"),
            ("outputs colour=red", "name=value"),
            ("theme nope", "no theme"),
            ("sort nope", "there are no rows here"),
            ("every 0s", "no length"),
        ):
            await it.command(line)
            assert words in it.said, (line, it.said)

    drive(test)


@pytest.mark.slow
def test_commands_lead_everywhere() -> None:
    async def test(it: Driven) -> None:
        await it.command("fleet retail-kiosk")
        assert it.view.filter_words == "-l group=retail-kiosk"
        await it.command("out flag=REFUSE")
        assert it.view.NAME == "outputs" and all("REFUSE" in row.flags for row in it.view.ring)
        await it.command("roll 3")
        assert it.view.NAME == "rollouts" and it.view.chosen == 3 and it.view.table.row.id == 3
        await it.command("drift group=field-tablet")
        assert {cell.group for cell in it.view.shown} == {"field-tablet"}
        await it.command("events level=error")
        assert {row.level for row in it.view.ring} == {"error"}
        await it.command("window 24h")
        assert it.app.sight.window_s == 86400
        await it.command("every 5")
        assert it.app.sight.interval_s == 5
        await it.command("theme edgegen-light")
        assert it.app.theme == "edgegen-light"
        await it.command("sort level")
        assert it.view.table.sort_column == "level"
        await it.command("filter crashed")
        assert {row.what for row in it.view.table.rows} == {"crashed"}
        await it.command("bundles")
        assert it.view.NAME == "bundles" and len(it.view.table.rows) == 3

    drive(test)


@pytest.mark.slow
def test_pause_counts_what_comes_and_shows_it_later() -> None:
    async def test(it: Driven) -> None:
        await it.press("3")
        await it.tick()
        before = len(it.view.table.rows)
        await it.press("p")
        await it.tick(20)
        await it.tick(20)
        held = it.view.count_held()
        assert held > 20 and len(it.view.table.rows) == before and f"+{held} buffered" in it.text
        await it.press("1")
        await it.tick(30)
        shown = [row.seen_s for row in it.view.table.rows]
        await it.tick(30)
        assert [row.seen_s for row in it.view.table.rows] == shown and it.view.count_held() > 30
        await it.press("3", "p")
        await it.tick(0)
        assert len(it.view.table.rows) >= before + held and "paused" not in it.text

    drive(test)


@pytest.mark.slow
def test_time_travel_shows_what_was() -> None:
    async def test(it: Driven) -> None:
        await it.press("T")
        await it.type("-3h")
        await it.press("enter")
        await it.tick()
        assert it.app.sight.until_s == pytest.approx(BEGUN_S - 3 * 3600, abs=10)
        assert it.app.fleet is not None and it.app.fleet.at_s == it.app.sight.until_s
        assert "⏴ " in it.text and "live" not in it.text.splitlines()[1]
        await it.press("3")
        await it.tick()
        assert all(row.at_s <= it.app.sight.until_s for row in it.view.ring)
        await it.press("comma")
        await it.tick()
        assert it.app.sight.until_s == pytest.approx(BEGUN_S - 3 * 3600 - 300, abs=10)
        assert all(row.at_s <= it.app.sight.until_s for row in it.view.ring)
        await it.press("4")
        await it.tick()
        assert 4 not in [rollout.id for rollout in it.view.picture.rollouts], "it had not begun"
        assert not it.app.may_act()
        await it.command("now")
        assert it.app.sight.until_s is None and it.app.fleet.at_s > BEGUN_S

    drive(test, write=True)


@pytest.mark.slow
def test_outputs_stay_a_ring() -> None:
    async def test(it: Driven) -> None:
        await it.press("3")
        for _ in range(16):
            await it.tick(300)
        assert len(it.view.ring) == 5000 == it.view.table.total
        cursors = [row.cursor for row in it.view.ring]
        assert cursors == sorted(set(cursors)), "in order, none twice"

    drive(test, n=200)


@pytest.mark.slow
def test_a_source_that_fails_is_a_banner_and_comes_back() -> None:
    async def test(it: Driven) -> None:
        it.source.failure = NetworkError("https://fleet: refused")
        await it.tick(5)
        assert it.app.is_failing and "no answer since" in it.text and "refused" in it.text
        assert it.view.table.total == 60, "what was known stays"
        assert it.view.table.is_dim
        tries = it.app.failure.tries
        await it.tick(0.1)
        assert it.app.failure.tries == tries, "it waits"
        await it.tick(15)
        assert it.app.failure.tries > tries
        for number in "234567":
            await it.press(number)
            await it.tick(15)
            assert it.app.is_failing
        it.source.failure = None
        await it.tick(15)
        await it.press("1")
        await it.tick(15)
        assert not it.app.is_failing and "no answer" not in it.text

    drive(test)


@pytest.mark.parametrize(
    "error", [OSError("disk gone"), ValueError(), RecursionError("deep"), ConfigError("newer schema")]
)
@pytest.mark.slow
def test_no_error_of_a_source_ends_the_app(error: Exception) -> None:
    async def test(it: Driven) -> None:
        it.source.failure = error
        await it.tick(5)
        assert it.app.is_failing and it.app.is_running and it.app.failure.words

    drive(test)


@pytest.mark.slow
def test_a_source_that_fails_from_the_start() -> None:
    source = MockSource(5, 1, clock=lambda: BEGUN_S)
    source.failure = NetworkError("away")

    async def test(it: Driven) -> None:
        assert "no answer since" in it.text and "away" in it.text
        for number in "1234567":
            await it.press(number)
            await it.tick(15)
        source.failure = None
        await it.tick(15)
        await it.press("1")
        await it.tick(15)
        assert it.view.table.total == 5

    drive(test, source=source)


@pytest.mark.slow
def test_a_source_that_hangs_does_not_hold_the_screens() -> None:
    gate = threading.Event()

    class Hanging(MockSource):
        def fleet(self, ask: Ask) -> FleetView:
            gate.wait(60)
            return super().fleet(ask)

    async def test(it: Driven) -> None:
        for number in "234567":
            await it.press(number)
            it.app.tick()
        await it.press("1", "question_mark")
        assert it.app.is_running and not it.app.is_settled
        gate.set()
        for _ in range(500):
            await it.pilot.pause(0.02)
            it.app.tick()
            if it.app.fleet is not None:
                break
        assert it.app.fleet is not None and len(it.app.fleet.devices) == 5

    drive(test, source=Hanging(5, 1, clock=lambda: BEGUN_S), inline=False)


@pytest.mark.slow
def test_acting_needs_write_and_the_name() -> None:
    async def read_only(it: Driven) -> None:
        await it.press("4")
        await it.tick()
        for key in "PARU":
            await it.press(key)
            assert "read-only" in it.said
        await it.press("7")
        await it.tick()
        await it.press("U")
        assert "read-only" in it.said

    drive(read_only)

    async def test(it: Driven) -> None:
        await it.press("4")
        await it.tick()
        await it.press("P")
        assert "15 devices" in it.text and "online" in it.text and "smart-home@1.6.0-rc1" in it.text
        await it.type("yes")
        await it.press("enter")
        assert it.source.rollouts()[0].state is RolloutState.RUNNING, "not the name"
        await it.press("escape")
        assert it.source.rollouts()[0].state is RolloutState.RUNNING and "nothing was changed" in it.said
        for key, state in (("P", RolloutState.PAUSED), ("P", RolloutState.RUNNING), ("A", RolloutState.ABORTED)):
            await it.press(key)
            await it.type("smart-home@1.6.0-rc1")
            await it.press("enter")
            await it.tick()
            assert it.source.rollouts()[0].state is state and "done:" in it.said
        await it.press("P")
        assert "nothing to pause" in it.said

    drive(test, write=True)


@pytest.mark.slow
def test_a_release_is_brought_to_a_group() -> None:
    asked: list[object] = []

    class Recording(MockSource):
        def act(self, name: str, record: object) -> object:  # type: ignore[override]
            asked.append((name, record))
            if isinstance(record, WhichRollout):
                raise ConfigError("too late", hint="Ask earlier.")
            return super().act(name, record)  # type: ignore[arg-type]

    async def test(it: Driven) -> None:
        await it.press("7")
        await it.tick()
        digest = it.view.table.row.digest
        await it.press("U")
        await it.type("nowhere")
        await it.press("enter")
        assert "no device is in the group" in it.said
        await it.press("U")
        await it.type("fac")
        await it.press("tab", "enter")
        assert "15 devices" in it.text
        await it.type("factory-gateway")
        await it.press("enter")
        await it.tick()
        assert asked == [("begin", Begin(release=digest, group="factory-gateway"))]
        await it.press("4")
        await it.tick()
        assert it.view.picture.rollouts[0].group == "factory-gateway"
        await it.press("R")
        await it.type("smart-home@1.6.0-rc1")
        await it.press("enter")
        await it.tick()
        assert "not done: too late" in it.said

    drive(test, source=Recording(60, 1, clock=lambda: BEGUN_S), write=True)


def test_hostile_answers_are_only_text() -> None:
    async def test(it: Driven) -> None:
        await it.command("out group=field-tablet")
        view = it.view
        hostile = [row for row in view.ring if "\x1b" in row.answer or "[/" in row.answer or "\u202e" in row.answer]
        assert hostile, "the simulated fleet has some"
        for row in hostile[:4]:
            view.follows = False
            view.table.select(row.cursor)
            await it.tick(0)
            for segment in it.app.screen._compositor.render_strips():
                assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u200b" for c in segment.text)

    drive(test, n=400)


@pytest.mark.slow
def test_hostile_names_everywhere() -> None:
    evil = "[red]\x1b]0;x\x07\u202e" + "w\u0301" * 30

    class Evil(MockSource):
        def fleet(self, ask: Ask) -> FleetView:
            view = super().fleet(ask)
            rows = tuple(
                msgspec.structs.replace(r, device=f"{r.device}{evil}", group=evil, kind=evil, label=evil, phase=evil)
                for r in view.devices
            )
            return msgspec.structs.replace(view, devices=rows, rollout=evil, privacy=evil)

        def device(self, ask: Ask):  # type: ignore[no-untyped-def]
            detail = super().device(msgspec.structs.replace(ask, device=ask.device.removesuffix(evil)))
            return msgspec.structs.replace(
                detail, row=msgspec.structs.replace(detail.row, device=ask.device, why=evil), attributes={evil: evil}
            )

    async def test(it: Driven) -> None:
        await it.press("enter")
        await it.tick()
        await it.press("d")
        await it.tick()
        assert it.view.NAME == "device" and "␛" in it.text
        for number in "1234567":
            await it.press(number)
            await it.tick()
            for strip in it.app.screen._compositor.render_strips():
                assert "\x1b" not in strip.text and "\u202e" not in strip.text
        await it.press("ctrl+p")
        await it.type("dev")
        await it.pilot.pause(0.3)
        await it.press("escape")

    drive(test, source=Evil(12, 1, clock=lambda: BEGUN_S))


@pytest.mark.slow
def test_export_and_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def test(it: Driven) -> None:
        await it.press("e")
        files = list(tmp_path.glob("edgegen-fleet-*.jsonl"))
        assert len(files) == 1 and "wrote 60 rows" in it.said
        rows = [msgspec.json.decode(line, type=DeviceRow) for line in files[0].read_bytes().splitlines()]
        assert rows == it.view.table.rows
        await it.press("e")
        assert "exists already" in it.said
        await it.command(f"export {tmp_path}/no/such/file")
        assert "No such file" in it.said
        await it.press("y")
        assert json.loads(it.app.clipboard)["device"] == it.view.table.row.device

    drive(test)


@pytest.mark.slow
def test_marks_compare_two_answers() -> None:
    async def test(it: Driven) -> None:
        await it.command("out group=field-tablet")
        it.view.follows = False
        table = it.view.table
        table.marks = {row.cursor for row in it.view.ring if row.answer.startswith("{")} & {
            row.cursor for row in it.view.ring
        }
        table.marks = set(sorted(table.marks)[:2])  # type: ignore[type-var]
        await it.press("a")
        assert it.view.compares == "answers" and len(it.view.pairs) == 1
        await it.press("a")
        assert it.view.compares == ""

    drive(test, n=200)


@pytest.mark.slow
def test_old_and_new_release_beside_each_other() -> None:
    async def test(it: Driven) -> None:
        await it.command("dev hub-00004")
        await it.press("a")
        await it.tick()
        assert it.view.compares == "releases" and len(it.view.pairs) == 6
        assert "[-" in it.text and "{+" in it.text and "│" in it.text
        await it.press("m")
        assert "texts are hidden" in it.text
        await it.press("escape")
        assert it.view.compares == "" and it.view.NAME == "outputs"

    drive(test, size=(120, 40))


@pytest.mark.slow
def test_screens_keep_their_shape_whatever_was_seen_before() -> None:
    """A screen's style rules hold in the whole app unless they name it."""

    async def test(it: Driven) -> None:
        shapes: list[dict[str, list[int]]] = [{}, {}]
        for shape, order in zip(shapes, ("1234567", "7654321"), strict=True):
            for number in order:
                await it.press(number)
                await it.tick()
                shape[number] = [widget.size.height for widget in it.view.query("#main, #detail")]
        assert shapes[0] == shapes[1]

    drive(test)


@pytest.mark.slow
def test_resize_while_drawing() -> None:
    async def test(it: Driven) -> None:
        for number in "1234567":
            await it.press(number)
            for size in ((20, 5), (300, 80), (1, 1), (80, 24)):
                await it.pilot.resize_terminal(*size)
                it.app.tick()
            await it.tick()
        assert it.app.is_running

    drive(test)


def test_no_colour_keeps_every_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def test(it: Driven) -> None:
        for strip in it.app.screen._compositor.render_strips():
            for filter in it.app.get_line_filters():
                strip = strip.apply_filter(filter, it.app.screen.background_colors[1])
            for segment in strip:
                colours = (segment.style.color, segment.style.bgcolor) if segment.style else ()
                assert all(colour is None or colour.is_default for colour in colours)
        assert "▸" in it.text and "◐" in it.text

    drive(test, no_color=True)


def test_the_simulated_fleet() -> None:
    first, second = (MockSource(50, 3, clock=lambda: BEGUN_S) for _ in range(2))
    assert first.fleet(Ask()) == second.fleet(Ask())
    assert first.fleet(Ask(until_s=BEGUN_S - 9e5)) == second.fleet(Ask(until_s=BEGUN_S - 9e5))
    assert MockSource(50, 4, clock=lambda: BEGUN_S).fleet(Ask()) != first.fleet(Ask())
    with pytest.raises(ConfigError):
        mock_source(0)
    with pytest.raises(ConfigError):
        first.device(Ask(device="nobody"))


def test_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from edgegen.errors import DeviceError

    with pytest.raises(DeviceError, match="needs a terminal"):
        run(mock_source(1))


def test_over_ssh_few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from edgegen.monitor.terminal import prepare_terminal

    for name in ("TEXTUAL_FPS", "TEXTUAL_ANIMATIONS", "TEXTUAL_SMOOTH_SCROLL", "SSH_CONNECTION", "SSH_TTY"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    prepare_terminal()
    assert "TEXTUAL_FPS" not in os.environ
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    prepare_terminal()
    assert os.environ["TEXTUAL_FPS"] == "10" and os.environ["TEXTUAL_ANIMATIONS"] == "none"
    for name in ("TEXTUAL_FPS", "TEXTUAL_ANIMATIONS", "TEXTUAL_SMOOTH_SCROLL"):
        monkeypatch.delenv(name)


@pytest.mark.slow
def test_many_rows_stay_quick_to_take() -> None:
    """The gate is tools/bench_monitor.py; this only notices a table that has become quadratic."""
    import time

    async def test(it: Driven) -> None:
        started = time.process_time()
        for _ in range(5):
            await it.tick(2)
        assert time.process_time() - started < 5

    drive(test, n=3000)
