"""Where the screens' data comes from: a fleet's store or server, or a simulated fleet.

Every method is one operation of the fleet's server and may take long or fail; the app calls them on its own thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from edgegen.fleet.operate import Fleet, open_fleet
from edgegen.fleet.operations import WhichRollout, WhichRollouts
from edgegen.fleet.site import open_site
from edgegen.records.base import Record
from edgegen.records.deployment import ActionView, Rollout
from edgegen.records.monitor import (
    Ask,
    AskComparison,
    AskEvents,
    AskOutputs,
    BundleRow,
    CanaryRow,
    DeviceDetail,
    DriftCell,
    EventRow,
    FleetView,
    OutputRow,
)

ACTS = ("pause", "resume", "abort", "rollback", "begin", "canary")
"""Operations that screens carry out when they may act."""


class Source(Protocol):
    """A fleet to look at.

    Every method raises `EdgegenError`, or what its store raises; asking again later is always allowed.
    """

    @property
    def name(self) -> str:
        """Where it is, for people."""

    def fleet(self, ask: Ask) -> FleetView: ...

    def device(self, ask: Ask) -> DeviceDetail: ...

    def outputs(self, ask: AskOutputs) -> tuple[OutputRow, ...]: ...

    def events(self, ask: AskEvents) -> tuple[EventRow, ...]: ...

    def compare(self, ask: AskComparison) -> tuple[CanaryRow, ...]:
        """Golden prompts' answers of both releases."""

    def bundles(self, ask: Ask) -> tuple[BundleRow, ...]: ...

    def drift(self, ask: Ask) -> tuple[DriftCell, ...]: ...

    def rollouts(self) -> tuple[Rollout, ...]: ...

    def actions(self, rollout: int) -> tuple[ActionView, ...]: ...

    def act(self, name: str, asked: Record) -> Any:
        """Carry out one of `ACTS`."""


class OperationSource:
    """A fleet behind the operations of its server, or of its database.

    A fleet whose database was broken or locked is opened anew with each question, so that one that comes back is seen.
    """

    def __init__(self, where: str, store: str | None = None) -> None:
        """
        Raises:
            ConfigError: no such site, or no token for the URL: what no waiting can mend.
        """
        self._where, self._store = where, store
        self._fleet: Fleet | None = None
        if "://" in where:
            self._fleet = open_fleet(where, store)
        else:
            open_site(Path(where), store)

    @property
    def name(self) -> str:
        return self._where

    def fleet(self, ask: Ask) -> FleetView:
        found: FleetView = self._do("monitor-fleet", ask)
        return found

    def device(self, ask: Ask) -> DeviceDetail:
        found: DeviceDetail = self._do("monitor-device", ask)
        return found

    def outputs(self, ask: AskOutputs) -> tuple[OutputRow, ...]:
        return tuple(self._do("monitor-outputs", ask))

    def events(self, ask: AskEvents) -> tuple[EventRow, ...]:
        return tuple(self._do("monitor-events", ask))

    def compare(self, ask: AskComparison) -> tuple[CanaryRow, ...]:
        return tuple(self._do("monitor-compare", ask))

    def bundles(self, ask: Ask) -> tuple[BundleRow, ...]:
        return tuple(self._do("monitor-bundles", ask))

    def drift(self, ask: Ask) -> tuple[DriftCell, ...]:
        return tuple(self._do("monitor-drift", ask))

    def rollouts(self) -> tuple[Rollout, ...]:
        return tuple(self._do("rollouts", WhichRollouts()))

    def actions(self, rollout: int) -> tuple[ActionView, ...]:
        return tuple(self._do("actions", WhichRollout(rollout)))

    def act(self, name: str, asked: Record) -> Any:
        return self._do(name, asked)

    def _do(self, name: str, asked: Record) -> Any:
        if self._fleet is None:
            self._fleet = open_fleet(self._where, self._store)
        try:
            return self._fleet.do(name, asked)
        except Exception:
            if not self._where.startswith(("http://", "https://")):
                self._fleet = None
            raise


def open_source(where: str, store: str | None = None) -> Source:
    """The fleet at a site's folder or a server's URL.

    Raises:
        ConfigError: no such site, or no token for the URL.
    """
    return OperationSource(where, store)


def mock_source(n: int, seed: int = 0) -> Source:
    """A simulated fleet of `n` devices; the same seed gives the same fleet.

    Raises:
        ConfigError: fewer than one device or more than 100,000.
    """
    from edgegen.monitor.mock import MockSource

    return MockSource(n, seed)
