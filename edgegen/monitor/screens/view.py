"""What the seven screens share: bars around them, one question to the source, and standing still while paused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget

from edgegen.monitor.filters import parse_filter
from edgegen.monitor.ink import Line
from edgegen.monitor.table import Table
from edgegen.monitor.widgets.bars import Bar
from edgegen.monitor.widgets.prompt import Prompt

if TYPE_CHECKING:
    from edgegen.monitor.monitor_app import MonitorApp

Question = Callable[[], Any]


class View(Screen[None]):
    """A screen of the monitor.

    A subclass gives `body`, `question` and `accept`. `question` is called on the app's thread and returns what the
    asking thread runs: it takes everything that it needs with it and touches no widget.
    """

    NAME: ClassVar[str] = ""
    TITLE_WORDS: ClassVar[str] = ""
    LABELS: ClassVar[tuple[str, ...]] = ()
    """Names that `/-l` knows here; none: there is no filter."""

    AUTO_FOCUS = "#main"

    def __init__(self) -> None:
        super().__init__(name=self.NAME)
        self.filter_words = ""
        self.is_ready = False
        """Whether its widgets are there: a message may come before."""
        self.is_asked_again = True
        """What is looked at changed: ask without waiting for the interval."""
        self._held: Any = None
        self._has_held = False

    @property
    def monitor(self) -> MonitorApp:
        found: MonitorApp = self.app  # type: ignore[assignment]
        return found

    def compose(self) -> ComposeResult:
        yield Bar(self.monitor.top_lines, least=2, id="top")
        yield from self.body()
        yield Prompt(self.monitor.histories)
        yield Bar(self.monitor.foot_lines, least=1, id="foot")

    # ---- of the subclass

    def body(self) -> Iterable[Widget]:
        """The widgets between the bars; the first to be focused has the id `main`."""
        raise NotImplementedError

    def question(self) -> Question | None:
        """What to ask; None: nothing as yet."""
        raise NotImplementedError

    def accept(self, value: Any) -> None:
        """Show an answer."""
        raise NotImplementedError

    def enter(self, **what: str) -> None:
        """Is shown, with what was asked for: a device, a rollout, a flag."""

    def leave(self) -> bool:
        """Escape was pressed: whether there was something inside the screen to go back from."""
        return False

    def tick(self) -> None:
        """Draw anew what depends on the time; twice a second."""
        if (table := self.table) is not None:
            table.now_s = self.monitor.now_s
            table.is_dim = self.monitor.is_failing
            table.repaint()

    def forget(self) -> None:
        """The window or the moment changed: what is shown is of another time."""

    def count_held(self) -> int:
        """How many rows have changed since the picture stands still."""
        if not self._has_held or self.table is None:
            return 0
        return self.table.differing(self.rows_of(self._held))

    def rows_of(self, value: Any) -> Sequence[Any]:
        """The rows in an answer."""
        return tuple(value)

    def crumb(self) -> str:
        """What of the screen is shown, such as a device's name."""
        return ""

    def current(self) -> Any:
        """What `y` copies."""
        return self.table.row if self.table is not None else None

    def exported(self) -> Sequence[Any]:
        """What `e` writes."""
        return self.table.rows if self.table is not None else ()

    @property
    def table(self) -> Table[Any] | None:
        """The one that filters, sorting and marks are about."""
        return None

    def status(self) -> list[str]:
        """Words for the second line."""
        return []

    def side_lines(self, width: int) -> Sequence[Line]:
        """Lines under the bar, such as alerts."""
        return ()

    # ---- for all

    def receive(self, value: Any) -> None:
        """An answer came."""
        if self.monitor.sight.is_paused and self.has_shown:
            self.hold(value)
        else:
            self.accept(value)
            self.has_shown = True

    has_shown = False

    def hold(self, value: Any) -> None:
        """Keep an answer until the picture goes on."""
        self._held, self._has_held = value, True

    def release(self) -> None:
        """The picture goes on."""
        if self._has_held:
            held, self._held, self._has_held = self._held, None, False
            self.accept(held)

    def drop_held(self) -> None:
        self._held, self._has_held = None, False

    def set_filter(self, words: str) -> None:
        """
        Raises:
            ConfigError: it cannot be understood; the former one stays.
        """
        if self.table is None:
            return
        self.table.set_filter(parse_filter(words, self.LABELS))
        self.filter_words = words.strip()

    def on_mount(self) -> None:
        self.is_ready = True
        if self.filter_words:
            self.set_filter(self.filter_words)

    def on_screen_resume(self) -> None:
        if self.is_ready:
            self.tick()
