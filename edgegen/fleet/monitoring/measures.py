"""A rule's metric: its value in a window, and of how many it was taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import floor

from edgegen.fleet.monitoring.presence import Life, read_life
from edgegen.fleet.monitoring.rollups import EIGHTH_HOUR, GROUP
from edgegen.fleet.monitoring.sketches import quantile
from edgegen.fleet.monitoring.window import Span, read_cells, span_of
from edgegen.fleet.transaction import Row, Transaction
from edgegen.records.monitor import Verdict

Measure = tuple[float | None, int]
"""Value and n. None: it cannot be told."""
_DAY_S = 86400.0
_FRACTIONS = {
    "error_fraction": "errors",
    "refusal_fraction": "refused",
    "repetition_fraction": "repeated",
    "leak_fraction": "leaked",
    "empty_fraction": "empty",
    "low_confidence_fraction": "low",
    "bad_json_fraction": "bad_json",
    "throttled_fraction": "throttled",
}


@dataclass(slots=True)
class Measures:
    """The store at one moment; what several rules need is read once."""

    tx: Transaction
    now_s: float
    _cells: dict[Span, dict[str, list[Row]]] = field(default_factory=dict)
    _devices: list[Row] | None = None
    _life: Life | None = None

    def groups(self) -> list[str]:
        """Names of all groups that have devices."""
        return sorted({row["grp"] for row in self._all_devices()})

    def take(self, metric: str, group: str, window_s: float) -> Measure:
        """A metric of a group, or of the whole fleet if none is named."""
        if metric in _FRACTIONS:
            cells = self._of(group, span_of(self.now_s, self.now_s, window_s))
            n = sum(cell["answers"] for cell in cells)
            return (sum(cell[_FRACTIONS[metric]] for cell in cells) / n if n else None), n
        return _OTHERS[metric](self, group, window_s)

    def _offline(self, group: str, window_s: float) -> Measure:
        life = self._life = self._life or read_life(self.tx)
        heard = [
            max(at_s for at_s in (row["seen_s"], row["heard_s"]) if at_s is not None)
            for row in self._all_devices()
            if group in ("", row["grp"])
            and not row["revoked"]
            and (row["seen_s"] is not None or row["heard_s"] is not None)
        ]
        silent = sum(life.silence_s(at_s, self.now_s) > life.patience_s(live=True) for at_s in heard)
        return (silent / len(heard) if heard else None), len(heard)

    def _ttft(self, group: str, window_s: float) -> Measure:
        return self._quantile("ttft", 0.95, self._of(group, span_of(self.now_s, self.now_s, window_s)))

    def _speed(self, group: str, window_s: float) -> Measure:
        return self._quantile("speed", 0.5, self._of(group, span_of(self.now_s, self.now_s, window_s)))

    def _speed_drop(self, group: str, window_s: float) -> Measure:
        """Cells of an eighth of an hour, so that the day before ends where the window begins."""
        begun_s = floor((self.now_s - window_s) / EIGHTH_HOUR) * EIGHTH_HOUR
        now, n = self._quantile("speed", 0.5, self._of(group, Span(EIGHTH_HOUR, begun_s, self.now_s)))
        before, _ = self._quantile(
            "speed", 0.5, self._of(group, Span(EIGHTH_HOUR, floor(begun_s - _DAY_S), float(begun_s)))
        )
        return (None if now is None or not before else 1 - now / before), n

    def _thumbs_down(self, group: str, window_s: float) -> Measure:
        rows = self.tx.rows(
            "SELECT rating, COUNT(*) AS n FROM feedback AS f JOIN devices ON devices.device = f.device "
            "WHERE at_s > ? AND rating <> 0 AND (? = '' OR grp = ?) AND NOT EXISTS (SELECT 1 FROM feedback AS g "
            "WHERE g.device = f.device AND g.generation = f.generation AND g.cursor > f.cursor) GROUP BY rating",
            *(self.now_s - window_s, group, group),
        )
        n = sum(row["n"] for row in rows)
        return (sum(row["n"] for row in rows if row["rating"] < 0) / n if n else None), n

    def _drifted(self, group: str, window_s: float) -> Measure:
        rows = self.tx.rows(
            "SELECT drifted, n FROM verdicts WHERE until_s IS NULL AND verdict <> ? AND (? = '' OR grp = ?)",
            *(Verdict.TOO_FEW, group, group),
        )
        n = max((row["n"] for row in rows), default=0)
        return (float(sum(row["drifted"] for row in rows)) if rows else None), n

    def _faults(self, group: str, window_s: float) -> Measure:
        return self._counted(
            "SELECT COUNT(*) AS n FROM faults JOIN devices ON devices.device = faults.device "
            "WHERE until_s IS NULL AND revoked = 0 AND (? = '' OR grp = ?)",
            group,
        )

    def _dropped(self, group: str, window_s: float) -> Measure:
        return self._counted(
            "SELECT SUM(count) AS n FROM dropped JOIN devices ON devices.device = dropped.device "
            f"WHERE at_s > {self.now_s - window_s!r} AND (? = '' OR grp = ?)",
            group,
        )

    def _counted(self, sql: str, group: str) -> Measure:
        devices = sum(group in ("", row["grp"]) for row in self._all_devices())
        return float(self.tx.rows(sql, group, group)[0]["n"] or 0), devices

    def _quantile(self, sketch: str, fraction: float, cells: list[Row]) -> Measure:
        n = sum(cell["answers"] - cell["errors"] for cell in cells if cell[sketch] is not None)
        return quantile((cell[sketch] for cell in cells), fraction), n

    def _of(self, group: str, span: Span) -> list[Row]:
        if span not in self._cells:
            by_group = defaultdict(list)
            for row in read_cells(self.tx, span, groups=True):
                by_group[row["subject"].removeprefix(GROUP)].append(row)
            self._cells[span] = by_group
        found = self._cells[span]
        return found.get(group, []) if group else [row for rows in found.values() for row in rows]

    def _all_devices(self) -> list[Row]:
        if self._devices is None:
            self._devices = self.tx.rows(
                "SELECT grp, revoked, seen_s, heard_s FROM devices "
                "LEFT JOIN device_state ON device_state.device = devices.device"
            )
        return self._devices


_OTHERS: dict[str, Callable[[Measures, str, float], Measure]] = {
    "offline_fraction": Measures._offline,
    "ttft_p95_s": Measures._ttft,
    "tokens_per_s": Measures._speed,
    "tokens_per_s_drop": Measures._speed_drop,
    "thumbs_down_fraction": Measures._thumbs_down,
    "drifted_metrics": Measures._drifted,
    "device_faults": Measures._faults,
    "dropped_reports": Measures._dropped,
}
