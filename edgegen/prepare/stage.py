"""What every step of building a data set takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgegen.records.dataset import Row


class Stage(msgspec.Struct, frozen=True):
    """The rows after a step, and what it did."""

    rows: Sequence[Row]
    changed: int = 0
    dropped: dict[str, int] = {}
    """Reason → rows."""
    note: str = ""


def text_of(row: Row) -> str:
    """All that a row says."""
    return row.text or "\n".join(content for _, content in row.messages)


def with_text(row: Row, change: Callable[[str], str]) -> Row:
    """A row whose texts are changed; the same row if they stay."""
    if row.messages:
        messages = tuple((role, change(content)) for role, content in row.messages)
        return row if messages == row.messages else msgspec.structs.replace(row, messages=messages)
    text = change(row.text)
    return row if text == row.text else msgspec.structs.replace(row, text=text)
