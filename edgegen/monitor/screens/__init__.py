"""The screens, one module each; `VIEWS` in the order of their keys."""

from __future__ import annotations

from edgegen.monitor.screens.bundles import BundlesView
from edgegen.monitor.screens.device import DeviceView
from edgegen.monitor.screens.drift import DriftView
from edgegen.monitor.screens.events import EventsView
from edgegen.monitor.screens.fleet import FleetScreen
from edgegen.monitor.screens.outputs import OutputsView
from edgegen.monitor.screens.rollouts import RolloutsView
from edgegen.monitor.screens.view import View

VIEWS: dict[str, type[View]] = {
    view.NAME: view for view in (FleetScreen, DeviceView, OutputsView, RolloutsView, DriftView, EventsView, BundlesView)
}
