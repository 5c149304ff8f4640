"""A running compression on screens: what it tells is shown, leaving asks, and the same command goes on."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.monitor.child import ChildRun, Progress, Stage
from edgegen.monitor.compression import CompressionApp, StopScreen, plan_in
from edgegen.monitor.compression_lines import front_lines, prediction_lines, stage_lines
from edgegen.monitor.keymap import known_keys
from edgegen.monitor.screens.help import HelpScreen, live_keys
from edgegen.records.plan import Plan
from edgegen.sdk.stage_words import CHAIN, stages_of
from tests.flows.command import LOOSE, run_cli
from tests.monitor.driving import text_of

ROOT = Path(__file__).resolve().parents[2]


class FakeRun:
    """A run whose events a test sends."""

    def __init__(self, stages: tuple[str, ...] = CHAIN) -> None:
        self.progress = Progress({name: Stage(name) for name in stages})
        self.began_s = 1000.0
        self.stopping_s: float | None = None
        self.code: int | None = None
        self.pressed = 0

    def stop(self) -> None:
        self.stopping_s = 1010.0

    def press(self) -> None:
        self.pressed += 1


def show(
    test: Callable[[CompressionApp, Pilot[Any], FakeRun], Awaitable[None]],
    *,
    plan: Plan | None = None,
    targets: tuple[str, ...] = ("gguf",),
    size: tuple[int, int] = (100, 30),
) -> None:
    async def run() -> None:
        fake = FakeRun(CHAIN if len(targets) == 1 else tuple(f"{t}/{s}" for t in targets for s in CHAIN))
        app = CompressionApp(
            fake, lambda target: plan, targets, "compress model", clock=lambda: 1010.0, ticks=False, keymap={}
        )
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await test(app, pilot, fake)

    asyncio.run(run())


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Of a real run, as the round trip's tests keep it."""
    from tests.receipt.sample_records import sample_plan

    return sample_plan()


def text(app: CompressionApp) -> str:
    return "\n".join(text_of(app))


def test_stages_are_shown_as_they_come() -> None:
    async def test(app: CompressionApp, pilot: Pilot[Any], run: FakeRun) -> None:
        assert "loading the model" in text(app)
        run.progress.tell("measure", "started", 0, 0, 1000.0)
        run.progress.tell("measure", "running", 5, 20, 1004.0)
        run.progress.say("a library says \x1b[31mso", 1005.0)
        app.tick()
        await pilot.pause()
        assert "▶ running" in text(app) and "5/20" in text(app) and "about 30.0s left" in text(app)
        assert "a library says ␛[31mso" in text(app)
        run.progress.tell("measure", "finished", 1, 1, 1006.0)
        run.progress.tell("plan", "skipped", 1, 1, 1006.0)
        run.code = 5
        app.tick()
        await pilot.pause()
        assert "done before" in text(app) and "misses a limit" in text(app)

    show(test)


def test_plan_and_trade_off(plan: Plan) -> None:
    async def test(app: CompressionApp, pilot: Pilot[Any], run: FakeRun) -> None:
        await pilot.press("2")
        await pilot.pause()
        assert "appears here" in text(app)
        run.progress.tell("plan", "finished", 1, 1, 1006.0)
        app.tick()
        await pilot.pause()
        assert app.plan is plan and plan.tensors[0].grid in text(app) and "bits a weight" in text(app)
        await pilot.press("3")
        await pilot.pause()
        app.tick()
        await pilot.pause()
        assert "◆" in text(app)
        await pilot.press("4")
        await pilot.pause()
        assert "finished" in text(app)
        await pilot.press("1")
        await pilot.pause()
        assert "Rounding weights" in text(app)

    show(test, plan=plan)


@pytest.mark.slow
def test_leaving_asks_while_it_runs() -> None:
    async def test(app: CompressionApp, pilot: Pilot[Any], run: FakeRun) -> None:
        for key in known_keys()["run.quit"].split(","):
            for no in known_keys()["stop.no"].split(","):
                await pilot.press(key)
                await pilot.pause()
                assert isinstance(app.screen, StopScreen) and "same command goes on" in text(app)
                await pilot.press(no)
                await pilot.pause()
                assert run.stopping_s is None and not isinstance(app.screen, StopScreen)
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen) and ":fleet" not in text(app)
        await pilot.press("escape")
        await pilot.press("q", "y")
        await pilot.pause()
        assert run.stopping_s is not None
        app.tick()
        assert run.pressed and "stopping" in "".join(word for word, _ in app._top(80)[1])
        run.code = 130
        app.tick()
        await pilot.pause()
        assert app.return_value == 130, "it leaves by itself"

    show(test)


def test_every_key_of_it_is_listed_and_works() -> None:
    async def test(app: CompressionApp, pilot: Pilot[Any], run: FakeRun) -> None:
        listed = live_keys(app.screen)
        assert {name for name in known_keys() if name.startswith("run.")} <= listed.keys()
        assert app.target == "gguf"
        await pilot.press("n")
        assert app.target == "onnx"
        run.code = 0
        app.tick()
        await pilot.press("q")
        await pilot.pause()
        assert app.return_value == 0, "nothing is asked when it is over"

    show(test, targets=("gguf", "onnx"))


@pytest.mark.parametrize("size", [(80, 24), (20, 6), (200, 60)])
def test_any_size(size: tuple[int, int], plan: Plan) -> None:
    async def test(app: CompressionApp, pilot: Pilot[Any], run: FakeRun) -> None:
        run.progress.tell("plan", "finished", 1, 1, 1006.0)
        for key in "1234":
            await pilot.press(key)
            app.tick()
            await pilot.pause()
        assert len(text(app).splitlines()) <= size[1]

    show(test, plan=plan, size=size)


def test_lines_without_a_plan_or_points(plan: Plan) -> None:
    import msgspec

    assert prediction_lines(None) and front_lines(None, 40, 10)
    bare = msgspec.structs.replace(plan, front=(), prediction=msgspec.structs.replace(plan.prediction, kl=0.0))
    assert "no trade-off" in "".join(word for line in front_lines(bare, 40, 10) for word, _ in line)
    progress = Progress({"measure": Stage("measure")})
    progress.tell("strange/new", "odd", 1, 2, 3.0)
    assert stage_lines(progress, 20, 5.0, ended=True)


@pytest.mark.slow
def test_the_child_tells_through_a_pipe(tmp_path: Path) -> None:
    """What `progress` writes is what `ChildRun` reads: through the real command line, which refuses this model."""
    run = ChildRun(["compress", str(tmp_path / "none"), "--profile", "laptop-x86-16gb"], "EDGEGEN_EVENTS_FD", CHAIN)
    try:
        deadline = time.monotonic() + 60
        while run.code is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert run.code == 2 and run.progress.log[0][1].startswith("edgegen: ")
    finally:
        run.end()


def test_events_reach_the_screen() -> None:
    from edgegen.cli import render

    reading, writing = os.pipe()
    os.environ[render.EVENTS_VARIABLE] = str(writing)
    with render.progress(quiet=True) as notify:
        assert render.EVENTS_VARIABLE not in os.environ, "not for children of the child"
        notify("measure", "running", 3, 7)
        assert json.loads(os.read(reading, 1000)) == ["measure", "running", 3, 7]
        os.close(reading)
        with pytest.raises(KeyboardInterrupt):
            notify("measure", "running", 4, 7)
        os.close(writing)
    for wrong in ("nonsense", "987654"):
        os.environ[render.EVENTS_VARIABLE] = wrong
        with pytest.raises(ConfigError), render.progress(quiet=True) as notify:
            notify("measure", "running", 3, 7)


def test_a_librarys_bar_is_one_line() -> None:
    progress = Progress({})
    for percent in range(100):
        progress.say(f"Loading: {percent}%|███   | {percent}/100", 1.0)
    progress.say("done", 1.0)
    assert len(progress.log) == 2 and progress.lines == 101


# ---- the real thing


class Terminal:
    """`edgegen` in a pseudo terminal of 90 × 24."""

    def __init__(self, *arguments: object) -> None:
        self._ours, theirs = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgegen", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        self.seen = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while select.select([self._ours], [], [], None)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:
                return
            if not data:
                return
            self.seen += re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", data.decode(errors="replace"))

    def wait_for(self, words: str, limit_s: float = 180.0) -> None:
        deadline = time.monotonic() + limit_s
        while words not in self.seen:
            assert time.monotonic() < deadline, self.seen[-2000:]
            assert self.process.poll() is None or words in self.seen, self.seen[-2000:]
            time.sleep(0.05)

    def send(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def end(self) -> int:
        return self.process.wait(120)


@pytest.mark.slow
def test_stop_and_go_on(calm_llama: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("compress", calm_llama, "--data", tiny_data, "--out", out, *LOOSE, "--tui")
    first = Terminal(*command)
    first.wait_for("Planning: finished")
    first.send("\x03")
    first.wait_for("Stop this run?")
    first.send("y")
    first.wait_for("the same command goes on where this one was")
    assert first.end() == 130 and not out.exists()
    marks = json.loads((tmp_path / "out.partial" / "build.json").read_bytes())["stages"]
    assert {"measure", "plan"} <= {mark["name"] for mark in marks}
    assert plan_in(out, "") == load_json(tmp_path / "out.partial" / "plan.json", Plan)

    second = Terminal(*command)
    second.wait_for("done before")
    second.wait_for("every limit is kept")
    second.send("q")
    assert second.end() == 0
    assert "receipt" in second.seen, "the result is printed when the screens are gone"
    report = json.loads((out / "report.json").read_bytes())
    assert report["command"].startswith("edgegen compress") and "--tui" not in report["command"]


@pytest.mark.slow
def test_without_a_terminal_it_goes_on_without_screens(finished_copy: Path, calm_llama: Path, tiny_data: Path) -> None:
    done = run_cli("compress", calm_llama, "--data", tiny_data, "--out", finished_copy, *LOOSE, "--tui")
    assert done.code == 0 and "receipt" in done.out
    assert done.err.splitlines()[0] == "edgegen: --tui needs a terminal; going on without screens."


def test_without_textual(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from edgegen.monitor.terminal import prepare_terminal

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError) as caught:
        prepare_terminal()
    assert "edgegen[monitor]" in caught.value.hint


def test_optional_stages_stand_where_they_run() -> None:
    assert stages_of() == CHAIN
    assert stages_of(searched=True, refined=True, judged=True) == (
        *("measure", "structures", "plan", "refine", "compress", "export", "reference", "verify"),
        "gates",
    )
