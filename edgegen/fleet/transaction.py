"""What every part of the fleet's server writes to: a database between begin and commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Row = dict[str, Any]
"""Column → value."""
Value = str | int | float | bytes | None


class Transaction(Protocol):
    """A database between begin and commit."""

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`, for the few statements that they do not share."""

    def rows(self, sql: str, *arguments: Value) -> list[Row]:
        """Run a statement and fetch what it gives: a row is column → value."""

    def run(self, sql: str, *arguments: Value) -> int:
        """Run a statement; the number of rows that it changed."""

    def many(self, sql: str, rows: Sequence[Sequence[Value]]) -> int:
        """Run a statement once for each row of arguments, which hold no enumerations; the number of rows changed."""
