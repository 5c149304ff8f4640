"""Where drift verdicts come from.

Working them out reads many answers, so those of a window are kept for a minute with their connection. The first screen
and the alerts take these; the screen of drift asks for its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

from edgegen.fleet.drift.cells import device_fault, drift_cells
from edgegen.fleet.drift.faults import Evidence, whose_fault
from edgegen.fleet.transaction import Transaction
from edgegen.records.monitor import Ask, DriftCell, Verdict
from edgegen.records.telemetry import Canary

_KEPT_S = 60.0
_ORDER = (Verdict.TOO_FEW, Verdict.OK, Verdict.WATCH, Verdict.DRIFT)
_kept: weakref.WeakKeyDictionary[Transaction, dict[float, tuple[float, tuple[DriftCell, ...]]]] = (
    weakref.WeakKeyDictionary()
)


def read_drift(tx: Transaction, now_s: float, ask: Ask) -> tuple[DriftCell, ...]:
    """Cells of drift, as asked for."""
    return drift_cells(tx, ask, now_s)


def recent_drift(tx: Transaction, now_s: float, window_s: float) -> tuple[DriftCell, ...]:
    """The whole fleet's cells now, at most a minute old."""
    kept = _kept.setdefault(tx, {})
    at_s, cells = kept.get(window_s, (0.0, ()))
    if not 0 <= now_s - at_s < _KEPT_S:
        cells = read_drift(tx, now_s, Ask(window_s=window_s))
        if len(kept) > 4:
            kept.clear()
        kept[window_s] = (now_s, cells)
    return cells


def worst_verdicts(cells: tuple[DriftCell, ...]) -> dict[tuple[str, str], Verdict]:
    """(group, release) → the worst of its metrics."""
    found: dict[tuple[str, str], Verdict] = {}
    for cell in cells:
        key = (cell.group, cell.release)
        found[key] = max(cell.verdict, found.get(key, cell.verdict), key=_ORDER.index)
    return found


def read_fault(tx: Transaction, now_s: float, device: str, ask: Ask) -> str:
    """Whose fault a device's change is (`DeviceDetail.fault`)."""
    return device_fault(tx, device, ask, now_s)


def canary_fault(runs: Mapping[int, Sequence[Canary]]) -> str:
    """What golden answers alone say of a device, in words; empty: nothing.

    Args:
        runs: golden prompt → its first and its last run on the device with one release.
    """
    return whose_fault(Evidence(canaries=runs))
