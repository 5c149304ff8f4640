"""Where statistics of drift come from."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from edgegen.fleet.transaction import Transaction
from edgegen.records.monitor import Ask, DriftCell
from edgegen.records.telemetry import Canary


def read_drift(tx: Transaction, now_s: float, ask: Ask) -> tuple[DriftCell, ...]:
    """Cells of drift, as asked for."""
    found = _package()
    return tuple(found.drift_cells(tx, ask, now_s)) if found else ()


def read_fault(tx: Transaction, now_s: float, device: str, ask: Ask) -> str:
    """Whose fault a device's change is (`DeviceDetail.fault`)."""
    found = _package()
    return str(found.device_fault(tx, device, ask, now_s)) if found else ""


def canary_fault(runs: Mapping[int, Sequence[Canary]]) -> str:
    """What golden answers alone say of a device, in words; empty: nothing.

    Args:
        runs: golden prompt → its first and its last run on the device with one release.
    """
    found = _package("faults")
    return str(found.whose_fault(found.Evidence(canaries=runs))) if found else ""


def _package(module: str = "cells") -> Any:
    name = "edgegen.fleet.drift"
    return importlib.import_module(f"{name}.{module}") if importlib.util.find_spec(name) else None
