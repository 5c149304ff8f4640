"""The table holds its cursor and marks, sorts, filters and draws only what changed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from edgegen.monitor.columns import Column
from edgegen.monitor.filters import Searchable, parse_filter
from edgegen.monitor.ink import Ink
from edgegen.monitor.table import Table
from edgegen.monitor.widgets.lines import changed_cells
from tests.monitor.driving import text_of


@dataclass(frozen=True)
class Row:
    name: str
    value: float | None
    words: str = ""


COLUMNS: tuple[Column[Row], ...] = (
    Column("name", "NAME", 8, 1, lambda r, n: (r.name, ""), lambda r: r.name),
    Column("value", "VALUE", 6, 2, lambda r, n: (str(r.value), ""), lambda r: r.value, True, falls=True),
    Column("words", "WORDS", 10, 3, lambda r, n: (r.words, ""), None, grows=True),
)


class Holder(App[None]):
    CSS = "Table { height: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        self.ink = Ink({})
        self.opened: list[str] = []

    def compose(self) -> ComposeResult:
        yield Table[Row](COLUMNS, lambda row: row.name, search=lambda row: Searchable(row.name, {}, row.value is None))

    def on_table_opened(self, event: Table.Opened) -> None:
        self.opened.append(event.row.name)

    @property
    def table(self) -> Table[Row]:
        return self.query_one(Table)


def hold(test: Callable[[Holder, Pilot[Any]], Awaitable[None]], size: tuple[int, int] = (60, 12)) -> None:
    async def run() -> None:
        app = Holder()
        async with app.run_test(size=size) as pilot:
            await test(app, pilot)

    asyncio.run(run())


def rows(count: int) -> list[Row]:
    return [Row(f"r{number:04d}", float(number * 7 % count)) for number in range(count)]


def test_cursor_and_marks_belong_to_rows() -> None:
    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        table = app.table
        table.update_rows(rows(100), 0)
        assert table.select("r0050")
        await pilot.press("space")
        assert table.marks == {"r0050"} and table.row == rows(100)[51]
        table.sort_by("value")
        assert table.row is not None and table.row.name == "r0051", "sorting takes the cursor along"
        assert [row.value for row in table.rows[:3]] == [99, 98, 97], "this column begins with the largest"
        table.update_rows([row for row in rows(100) if row.name != "r0050"], 0)
        assert table.marks == set() and table.row.name == "r0051"
        table.update_rows([], 0)
        assert table.row is None and table.marked == []
        table.action_bottom()
        table.action_mark()
        table.action_mark_range()

    hold(test)


def test_unknown_comes_last_either_way() -> None:
    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        table = app.table
        table.update_rows([Row("a", None), Row("b", 1.0), Row("c", 2.0)], 0)
        table.sort_by("value")
        assert [row.name for row in table.rows] == ["c", "b", "a"]
        await pilot.press("S")
        assert [row.name for row in table.rows] == ["b", "c", "a"]
        table.update_rows([Row("a", 3.0), Row("b", None), Row("c", 2.0)], 0)
        assert [row.name for row in table.rows] == ["c", "a", "b"]

    hold(test)


@pytest.mark.parametrize("sort", ["", "name", "value"])
def test_updates_end_where_a_new_table_would(sort: str) -> None:
    """The quick paths against sorting everything anew."""
    import random

    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        dice = random.Random(3)
        table = app.table
        table.sort_by(sort)
        table.set_filter(parse_filter("!7$"))
        now = rows(40)
        for step in range(60):
            if step % 5 == 4:
                dice.shuffle(now)
            if step % 7 == 6:
                now = [*now[: dice.randrange(10, len(now))], Row(f"n{step:03d}", dice.random())]
            now = [
                replace(row, value=dice.choice([None, dice.random() * 50])) if dice.random() < 0.3 else row
                for row in now
            ]
            table.update_rows(list(now), 0)
            wanted = [row for row in now if not row.name.endswith("7")]
            assert {row.name: row for row in table.rows} == {row.name: row for row in wanted}
            if sort == "name":
                assert [r.name for r in table.rows] == sorted(r.name for r in wanted)
            elif sort == "value":
                known = [r.value for r in table.rows if r.value is not None]
                assert known == sorted(known, reverse=True)
                assert all(r.value is None for r in table.rows[len(known) :])
            else:
                assert table.rows == wanted

    hold(test)


def test_filter_faults_and_what_is_empty() -> None:
    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        table = app.table
        table.repaint()
        await pilot.pause()
        assert "nothing here" in text_of(app)[1]
        table.update_rows([*rows(20), Row("sick", None)], 0)
        table.set_filter(parse_filter("^nothing$"))
        await pilot.pause()
        assert table.rows == [] and "none of 21 rows" in "\n".join(text_of(app))
        table.set_filter(None)
        table.show_faults(True)
        assert [row.name for row in table.rows] == ["sick"]

    hold(test)


def test_scrolls_and_draws_the_right_rows() -> None:
    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        table = app.table
        table.update_rows(rows(5000), 0)
        table.repaint()
        await pilot.press("G")
        await pilot.pause()
        lines = text_of(app)
        assert lines[0].startswith("  NAME") and "▸ r4999" in lines[-1], "the heading stays"
        await pilot.press("g", "pagedown", "j")
        await pilot.pause()
        assert any(line.startswith("▸ r0011") for line in text_of(app))
        await pilot.resize_terminal(30, 6)
        await pilot.pause()
        assert any(line.startswith("▸ r0011") for line in text_of(app)), "still in sight"

    hold(test)


def test_columns_go_by_priority() -> None:
    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        table = app.table
        table.update_rows([Row("a", 1.0, "x" * 90)], 0)
        table.repaint()
        for width, heading in ((60, "  NAME      VALUE WORDS"), (20, "  NAME      VALUE"), (12, "  NAME")):
            await pilot.resize_terminal(width, 8)
            await pilot.pause()
            assert text_of(app)[0] == heading
        await pilot.press("w", "l")
        await pilot.pause()
        assert text_of(app)[0].startswith("  NAME"), "the first column stays where the others move"
        assert "VALUE" not in text_of(app)[0]

    hold(test)


def test_only_changed_lines_are_drawn_again() -> None:
    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        table = app.table
        given = rows(1000)
        table.update_rows(given, 0)
        table.repaint()
        await pilot.pause()
        sent: list[Any] = []
        table.refresh = lambda *regions, **more: sent.extend(regions)  # type: ignore[method-assign,assignment]
        table.repaint()
        assert sent == [], "nothing changed"
        given[500] = replace(given[500], value=-1.0)
        table.update_rows(given, 0)
        table.repaint()
        assert sent == [], "what changed is not in sight"
        given[3] = replace(given[3], value=-1.0)
        table.update_rows(given, 0)
        table.repaint()
        assert [(region.y, region.x) for region in sent] == [(4, 11)], "from the cell that changed"

    hold(test)


def test_changed_cells() -> None:
    ink = Ink({})
    from rich.style import Style

    old = ink.strip([("a", ""), ("bb", ""), ("c", "")], 6, Style())
    new = ink.strip([("a", ""), ("xx", ""), ("c", "")], 6, Style())
    assert changed_cells(old, new) == (1, 2)
    assert changed_cells(old, ink.strip([("whole", "")], 6, Style())) == (0, 6)


def test_a_double_click_opens() -> None:
    async def test(app: Holder, pilot: Pilot[Any]) -> None:
        app.table.update_rows(rows(5), 0)
        app.table.repaint()
        await pilot.click(Table, offset=(3, 3))
        await pilot.pause()
        assert app.table.cursor == 2
        await pilot.click(Table, offset=(3, 3), times=2)
        await pilot.pause()
        assert app.opened == ["r0002"]

    hold(test)
