"""Drive the monitor without a terminal: a clock that stands, a source that answers at once, ticks when told."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any

from rich.console import Console
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input

from edgegen.monitor.mock import MockSource
from edgegen.monitor.monitor_app import MonitorApp
from edgegen.monitor.source import Source

BEGUN_S = 1_780_000_000.0


def text_of(app: App[Any]) -> list[str]:
    """The lines that a terminal would show."""
    width, height = app.size
    console = Console(width=width, height=height, file=io.StringIO(), record=True, legacy_windows=False)
    console.print(app.screen._compositor.render_update(full=True))
    return [line.rstrip() for line in console.export_text(styles=False).splitlines()]


class Driven:
    """An app that runs, and what moves it.

    Attributes:
        now: the clock, in a list so that it can be set.
    """

    def __init__(self, app: MonitorApp, pilot: Pilot[Any], source: Any, now: list[float]) -> None:
        self.app, self.pilot, self.source, self.now = app, pilot, source, now

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        """Into the line that has the focus: key by key would take a twentieth of a second each."""
        line = self.app.focused
        assert isinstance(line, Input), f"{line} takes no text"
        line.insert_text_at_cursor(text)
        await self.pilot.pause()

    async def tick(self, seconds: float = 2.0) -> None:
        """Let time pass, and everything be asked, answered and drawn."""
        self.now[0] += seconds
        self.app.tick()
        await self.pilot.pause()
        self.app.tick()
        await self.pilot.pause()

    async def go(self, name: str, **what: str) -> None:
        self.app.go(name, **what)
        await self.pilot.pause()
        await self.tick()

    async def command(self, line: str) -> None:
        await self.press("colon")
        await self.type(line)
        await self.press("enter")
        await self.tick(0.5)

    @property
    def text(self) -> str:
        return "\n".join(text_of(self.app))

    @property
    def said(self) -> str:
        return self.app.said[0]

    @property
    def view(self) -> Any:
        return self.app.view


def drive(
    test: Callable[[Driven], Awaitable[None]],
    *,
    n: int = 60,
    size: tuple[int, int] = (130, 40),
    write: bool = False,
    source: Source | None = None,
    keymap: dict[str, str] | None = None,
    inline: bool = True,
    no_color: bool = False,
) -> None:
    """Run a test inside an app that shows a fleet."""
    now = [BEGUN_S]

    async def run() -> None:
        shown = source if source is not None else MockSource(n, 1, clock=lambda: now[0])
        app = MonitorApp(
            shown,
            write=write,
            clock=lambda: now[0],
            inline=inline,
            ticks=False,
            keymap=keymap or {},
            no_color=no_color,
        )
        async with app.run_test(size=size) as pilot:
            driven = Driven(app, pilot, shown, now)
            await driven.tick()
            await test(driven)

    asyncio.run(run())
