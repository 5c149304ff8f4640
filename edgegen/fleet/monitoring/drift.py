"""Where statistics of drift come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgegen.fleet.drift.cells import device_fault, drift_cells
from edgegen.fleet.drift.faults import Evidence, whose_fault
from edgegen.fleet.transaction import Transaction
from edgegen.records.monitor import Ask, DriftCell
from edgegen.records.telemetry import Canary


def read_drift(tx: Transaction, now_s: float, ask: Ask) -> tuple[DriftCell, ...]:
    """Cells of drift, as asked for."""
    return drift_cells(tx, ask, now_s)


def read_fault(tx: Transaction, now_s: float, device: str, ask: Ask) -> str:
    """Whose fault a device's change is (`DeviceDetail.fault`)."""
    return device_fault(tx, device, ask, now_s)


def canary_fault(runs: Mapping[int, Sequence[Canary]]) -> str:
    """What golden answers alone say of a device, in words; empty: nothing.

    Args:
        runs: golden prompt → its first and its last run on the device with one release.
    """
    return whose_fault(Evidence(canaries=runs))
