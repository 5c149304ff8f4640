"""What every part of the fleet's server writes to: a database between begin and commit."""

from __future__ import annotations

from typing import Any, Protocol

Row = dict[str, Any]
"""Column → value."""
Value = str | int | float | bytes | None


class Transaction(Protocol):
    """A database between begin and commit."""

    def rows(self, sql: str, *arguments: Value) -> list[Row]:
        """Run a statement and fetch what it gives: a row is column → value."""

    def run(self, sql: str, *arguments: Value) -> int:
        """Run a statement; the number of rows that it changed."""
