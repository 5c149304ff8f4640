"""Screens of a running compression: stages with times, the plan tensor by tensor, the trade-off, the log.

Leaving asks first and then stops the run as Ctrl-C does: finished stages are kept and the same command goes on there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from textual import events
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import ContentSwitcher

from edgegen.common.codec import load_json
from edgegen.errors import EdgegenError
from edgegen.monitor.child import ChildRun, Progress
from edgegen.monitor.compression_lines import PLAN_COLUMNS, front_lines, prediction_lines, stage_lines
from edgegen.monitor.ink import Ink, Line
from edgegen.monitor.keymap import key, load_keymap
from edgegen.monitor.screens.help import HelpScreen, foot_keys
from edgegen.monitor.shown import clock, seconds
from edgegen.monitor.table import Table
from edgegen.monitor.themes import DEFAULT_THEME, PLAIN_THEME, THEMES
from edgegen.monitor.widgets.bars import Bar
from edgegen.monitor.widgets.lines import Lines
from edgegen.records.plan import Plan, TensorChoice

TICK_S = 0.5
INTERRUPTED = 130
"""Exit code of a run that was stopped."""
_PLAN_FILE = "plan.json"


class Watched(Protocol):
    """A run that is shown."""

    progress: Progress
    began_s: float
    stopping_s: float | None

    @property
    def code(self) -> int | None: ...

    def stop(self) -> None: ...

    def press(self) -> None: ...


class StopScreen(ModalScreen[bool]):
    """Asks whether to stop."""

    DEFAULT_CSS = """
    StopScreen { align: center middle; }
    StopScreen Lines { width: 90%; max-width: 66; height: 6; border: round $warning; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("stop.yes", "y,enter", "answer(True)", "Stop"),
        key("stop.no", "n,escape,q", "answer(False)", "Go on"),
    ]

    def compose(self) -> ComposeResult:
        text = Lines()
        text.can_focus = False
        yield text

    def on_mount(self) -> None:
        self.query_one(Lines).show(
            [
                [("! ", "warn"), ("Stop this run?", "bold")],
                [("Stages that are done are kept: the same command goes on there.", "")],
                [],
                [("y", "accent bold"), (" stop   ", ""), ("n", "accent bold"), (" go on", "")],
            ]
        )

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class CompressionApp(App[int]):
    """Shows a run until it ends and the user leaves."""

    TITLE = "edgegen compress"
    CSS = """
    Screen { background: $background; }
    ModalScreen { background: $background 60%; }
    ContentSwitcher { height: 1fr; }
    #stages { height: auto; max-height: 60%; }
    #tail { height: 1fr; border-top: solid $primary; }
    #prediction { height: auto; max-height: 9; border-bottom: solid $primary; }
    #tensors { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("run.stages", "1", "show('run')", "Stages and log", show="stages"),
        key("run.plan", "2", "show('plan')", "The plan, tensor by tensor", show="plan"),
        key("run.front", "3", "show('front')", "The trade-off between size and quality", show="trade-off"),
        key("run.log", "4", "show('log')", "Everything that was said", show="log"),
        key("run.target", "n", "target", "Next target's plan, where several are compared"),
        key("run.help", "question_mark", "help", "Keys", show="help"),
        key("run.quit", "q,ctrl+q,ctrl+c", "leave", "Stop, or leave when it is over", show="quit", priority=True),
    ]
    may_write = False

    def __init__(
        self,
        run: Watched,
        read_plan: Callable[[str], Plan | None],
        targets: Sequence[str],
        words: str,
        *,
        clock: Callable[[], float] = time.time,
        ticks: bool = True,
        keymap: dict[str, str] | None = None,
        no_color: bool = False,
    ) -> None:
        """
        Args:
            read_plan: a target's plan, None while there is none.
            words: the command.
        """
        keymap = load_keymap() if keymap is None else keymap
        super().__init__(ansi_color=True if no_color else None)
        self.watched, self.targets, self.words = run, tuple(targets), words
        self.ink = Ink({})
        self.plans: dict[str, Plan] = {}
        self._target = 0
        self._read_plan = read_plan
        self._clock = clock
        self._ticks = ticks
        self._logged = -1
        self._ended_s: float | None = None
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = PLAIN_THEME if no_color else DEFAULT_THEME
        self.set_keymap(keymap)

    def compose(self) -> ComposeResult:
        yield Bar(self._top, least=2, id="top")
        with ContentSwitcher(initial="run"):
            yield Vertical(Lines(id="stages"), Lines(id="tail"), id="run")
            yield Vertical(
                Lines(id="prediction"),
                Table[TensorChoice](PLAN_COLUMNS, lambda row: row.name, empty="no plan yet", id="tensors"),
                id="plan",
            )
            yield Lines(id="front")
            yield Lines(id="log")
        yield Bar(self._foot, id="foot")

    def on_mount(self) -> None:
        self.ink = Ink(self.theme_variables)
        self.query_one("#prediction", Lines).can_focus = False
        self.query_one("#stages", Lines).can_focus = False
        self.query_one("#tail", Lines).focus()
        self.call_after_refresh(self.tick)
        if self._ticks:
            self.set_interval(TICK_S, self.tick)

    @property
    def target(self) -> str:
        """Whose plan is shown; empty where there is only one."""
        return self.targets[self._target] if len(self.targets) > 1 else ""

    @property
    def plan(self) -> Plan | None:
        return self.plans.get(self.target)

    def tick(self) -> None:
        """Draw what the run has told since."""
        if not self.is_running or not self.query("#top"):
            return
        now_s = self._clock()
        self.watched.press()
        if self.watched.code is not None and self._ended_s is None:
            self._ended_s = now_s
            if self.watched.stopping_s is not None:
                self.exit(self.watched.code)
        for target in self.targets if len(self.targets) > 1 else ("",):
            self._look_for_plan(target)
        width = self.size.width
        stages = self.query_one("#stages", Lines)
        lines = stage_lines(self.watched.progress, width, self._ended_s or now_s, ended=self.watched.code is not None)
        stages.styles.height = len(lines)
        stages.show(lines)
        self._show_log()
        plan = self.plan
        self.query_one("#prediction", Lines).show(prediction_lines(plan))
        self.query_one("#prediction", Lines).styles.height = len(prediction_lines(plan)) + 1
        table = self.query_one("#tensors", Table)
        table.update_rows(plan.tensors if plan else (), now_s)
        table.repaint()
        front = self.query_one("#front", Lines)
        front.show(front_lines(plan, front.size.width or width, front.size.height or self.size.height - 3))
        for bar in self.query(Bar):
            bar.tick()

    def _look_for_plan(self, target: str) -> None:
        stage = self.watched.progress.stages.get(f"{target}/plan" if target else "plan")
        if target in self.plans or stage is None or stage.state not in ("finished", "skipped"):
            return
        plan = self._read_plan(target)
        if plan is not None:
            self.plans[target] = plan

    def _show_log(self) -> None:
        progress = self.watched.progress
        if progress.lines == self._logged:
            return
        self._logged = progress.lines
        lines: list[Line] = [[(f" {clock(at_s)} ", "dim"), (words, "")] for at_s, words in list(progress.log)]
        for name in ("#tail", "#log"):
            text = self.query_one(name, Lines)
            follows = text.scroll_offset.y >= text.max_scroll_y - 1
            text.show(lines or [[("  the log is empty", "dim")]])
            if follows:
                text.scroll_end(animate=False)

    def _top(self, width: int) -> Sequence[Line]:
        run, now_s = self.watched, self._clock()
        ran = seconds((self._ended_s or now_s) - run.began_s)
        code = run.code
        state: Line
        if code is None and run.stopping_s is not None:
            state = [(" ‖ stopping …", "warn bold")]
        elif code is None:
            begun = any(stage.began_s is not None for stage in run.progress.stages.values())
            state = [(" ▶ running" if begun else " ▶ loading the model", "ok bold")]
        elif code == 0:
            state = [(" ✓ done: every limit is kept", "ok bold")]
        elif code == 4:
            state = [(" ✗ no plan fits, see the log", "bad bold")]
        elif code == 5:
            state = [(" ✗ the artifact misses a limit; its report is kept", "bad bold")]
        elif code == INTERRUPTED:
            state = [(" ‖ stopped; the same command goes on where this one was", "warn bold")]
        else:
            state = [(f" ✗ ended with exit code {code}, see the log", "bad bold")]
        return [[(" edgegen ", "bar"), (" " + self.words, "")], [*state, (f"   {ran}", "bold"), *self._target_words()]]

    def _target_words(self) -> Line:
        return [("   plan of ", "dim"), (self.target, "bold"), (" (n)", "dim")] if self.target else []

    def _foot(self, width: int) -> Sequence[Line]:
        line: list[tuple[str, str]] = [(" ", "")]
        for keys, words in foot_keys(self.screen):
            line += [(keys, "accent bold"), (f" {words}  ", "dim")]
        return [line]

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.tick)

    def action_show(self, name: str) -> None:
        self.query_one(ContentSwitcher).current = name
        self.query_one({"run": "#tail", "plan": "#tensors", "front": "#front", "log": "#log"}[name]).focus()
        self.call_after_refresh(self.tick)

    def action_target(self) -> None:
        self._target = (self._target + 1) % len(self.targets)
        self.tick()

    def action_help(self) -> None:
        if not isinstance(self.screen, ModalScreen):
            self.push_screen(HelpScreen(self.screen, commands=False))

    def action_leave(self) -> None:
        if isinstance(self.screen, ModalScreen):
            self.screen.dismiss(False)
            return
        if self.watched.code is not None:
            self.exit(self.watched.code)
        elif self.watched.stopping_s is None:
            self.push_screen(StopScreen(), self._stop)

    def _stop(self, yes: bool | None) -> None:
        if yes:
            self.watched.stop()
            self.tick()

    def get_system_commands(self, screen: Any) -> Iterable[Any]:
        return ()

    ENABLE_COMMAND_PALETTE = False


def show_compression(
    command: Sequence[str], out: Path, targets: Sequence[str], chain: Sequence[str], events_variable: str
) -> int:
    """Run `edgegen <command>` as a child and show it until the user leaves.

    Args:
        out: folder of the result, for reading its plan while it is made.
        targets: several are compared, each in a folder of its own.
        chain: stages of one target, in order.
        events_variable: environment variable that hands the child the pipe for its progress.

    Returns:
        The child's exit code. What it wrote on stdout, and its last words on stderr, are written then.
    """
    import os

    prefixes = [f"{target}/" for target in targets] if len(targets) > 1 else [""]
    stages = [prefix + stage for prefix in prefixes for stage in chain]
    if len(targets) > 1:
        stages.append("compare")
    run = ChildRun(command, events_variable, stages)
    try:
        app = CompressionApp(
            run,
            lambda target: plan_in(out, target),
            targets,
            " ".join(command),
            no_color="NO_COLOR" in os.environ,
        )
        app.run()
    finally:
        code = run.end()
    sys.stdout.write(run.out)
    if code not in (0, INTERRUPTED):  # the command line itself says the latter
        words = [line for _, line in run.progress.log][-3:]
        sys.stderr.write("".join(line + "\n" for line in words))
    return code if code >= 0 else 128 - code


def plan_in(out: Path, target: str) -> Plan | None:
    """The plan of a run that is under way or finished, None where it cannot be read."""
    place = out.expanduser().resolve()
    if target:
        place = place / target
    for folder in (place.with_name(place.name + ".partial"), place):
        if (folder / _PLAN_FILE).is_file():
            try:
                return load_json(folder / _PLAN_FILE, Plan)
            except EdgegenError:
                return None
    return None
