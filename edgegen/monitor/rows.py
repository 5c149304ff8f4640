"""The rows of a table in order: a dictionary of rows and a list of their keys, sorted and filtered.

Knows nothing of a terminal. Made for ten thousand rows of which some hundred change at a time: rows that did not change
cost a comparison, an order that is nearly right costs nearly nothing to sort.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from edgegen.monitor.filters import Filter, Searchable

R = TypeVar("R")
SortKey = Callable[[R], Any]
"""None is unknown and comes last, whichever way the order goes."""


class Rows(Generic[R]):
    """Rows by key.

    Attributes:
        rows: all of them.
        order: keys of those that the filter lets through.
    """

    def __init__(self, key: Callable[[R], Hashable], search: Callable[[R], Searchable] | None = None) -> None:
        """
        Args:
            key: tells rows apart.
            search: a row as filters see it.
        """
        self.rows: dict[Hashable, R] = {}
        self.order: list[Hashable] = []
        self.is_reversed = False
        self.faults_only = False
        self._key, self._search = key, search
        self._sort: SortKey[R] | None = None
        self._filter: Filter | None = None
        self._given: Sequence[R] = ()
        self._sort_keys: dict[Hashable, Any] = {}
        self._some_unknown = False
        self._kept: dict[Hashable, bool] = {}

    @property
    def is_filtered(self) -> bool:
        return self._filter is not None or self.faults_only

    def differing(self, rows: Iterable[R]) -> int:
        """How many rows are new, changed or gone against those that stand here."""
        names = {self._key(row): row for row in rows}
        changed = sum(1 for name, row in names.items() if name not in self.rows or self.rows[name] != row)
        return changed + sum(1 for name in self.rows if name not in names)

    def update(self, rows: Iterable[R]) -> bool:
        """Replace the rows.

        Returns:
            Whether the order may be another.
        """
        given = rows if isinstance(rows, tuple) else tuple(rows)
        before, self._given = self._given, given
        if len(before) == len(given):
            pairs = [(was, row) for was, row in zip(before, given, strict=True) if was is not row and was != row]
            names = [self._key(row) for _, row in pairs]
            if names == [self._key(was) for was, _ in pairs]:
                self.rows.update(zip(names, (row for _, row in pairs), strict=True))
                moved = self._sorted_anew(names) | self._filtered_anew(names)
                if moved:
                    self._arrange(same_rows=True)
                return moved
        old = self.rows
        self.rows = {self._key(row): row for row in given}
        changed = [name for name, row in self.rows.items() if name not in old or old[name] != row]
        self._sort_keys = {name: value for name, value in self._sort_keys.items() if name in self.rows}
        self._sorted_anew(changed)
        self._filtered_anew(changed)
        self._arrange()
        return True

    def filter(self, wanted: Filter | None, *, faults_only: bool) -> None:
        """Let only rows through that pass.

        Args:
            wanted: None: all.
            faults_only: of those, rows that a person should look at.
        """
        self._filter, self.faults_only = wanted, faults_only
        self._kept = {name: self._passes(row) for name, row in self.rows.items()} if self.is_filtered else {}
        self._arrange()

    @property
    def wanted(self) -> Filter | None:
        """The filter."""
        return self._filter

    def sort(self, by: SortKey[R] | None, *, reverse: bool) -> None:
        """Order the rows.

        Args:
            by: None: as they are given.
        """
        self._sort, self.is_reversed = by, reverse
        self._sort_keys = {}
        self._some_unknown = False
        self._arrange()

    def shows(self, name: Hashable) -> bool:
        """Whether a row is there and passes."""
        return name in self.rows and (not self.is_filtered or bool(self._kept.get(name)))

    def _passes(self, row: R) -> bool:
        if self._search is None:
            return True
        seen = self._search(row)
        return (seen.is_fault or not self.faults_only) and (self._filter is None or self._filter(seen))

    def _sorted_anew(self, changed: list[Hashable]) -> bool:
        """Whether the changed rows may stand elsewhere now."""
        moved = False
        if self._sort is None:
            return moved
        for name in changed:
            value = self._sort(self.rows[name])
            if name not in self._sort_keys or self._sort_keys[name] != value:
                self._sort_keys[name] = value
                moved = True
        return moved

    def _filtered_anew(self, changed: list[Hashable]) -> bool:
        """Whether a changed row passes now and did not, or the other way round."""
        moved = False
        if not self.is_filtered:
            return moved
        for name in changed:
            keeps = self._passes(self.rows[name])
            moved = moved or self._kept.get(name) is not keeps
            self._kept[name] = keeps
        return moved

    def _arrange(self, *, same_rows: bool = False) -> None:
        """Make the order anew.

        Args:
            same_rows: none came or went since the last time.
        """
        if self._sort is None:
            names = list(self.rows)
            if self.is_reversed:
                names.reverse()
        else:
            names = self._sorted(self._sort, same_rows)
        if self.is_filtered:
            kept = self._kept
            names = [name for name in names if kept.get(name)]
        self.order = names

    def _sorted(self, by: SortKey[R], same_rows: bool) -> list[Hashable]:
        """All keys; the former order is nearly right, which makes sorting cheap."""
        keys = self._sort_keys
        if len(keys) != len(self.rows) or not keys.keys() >= self.rows.keys():
            keys = self._sort_keys = {name: by(row) for name, row in self.rows.items()}
        whole = same_rows and not self.is_filtered and len(self.order) == len(self.rows)
        before: Iterable[Hashable] = self.order if whole else self.rows
        if not self._some_unknown:
            try:
                return sorted(before, key=keys.__getitem__, reverse=self.is_reversed)
            except TypeError:  # None among them
                self._some_unknown = True
        known = [name for name in before if keys[name] is not None]
        unknown = [name for name in before if keys[name] is None]
        known.sort(key=keys.__getitem__, reverse=self.is_reversed)
        return known + unknown
