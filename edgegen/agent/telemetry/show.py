"""What `edgegen-agent spool` says."""

from __future__ import annotations

import time

from edgegen.agent.config import AgentConfig
from edgegen.agent.telemetry.spool import Depth, Gone, LaneDepth
from edgegen.records.base import Record


class SpoolView(Record, frozen=True):
    """Everything about the spool of one device."""

    enabled: bool
    privacy: str
    """Level at this moment."""
    full_until: str
    """Last day of full text; empty: none is sent."""
    transport: str
    stream: str
    """Empty: nothing was recorded yet."""
    lanes: tuple[LaneDepth, ...]
    reports: int
    file_bytes: int
    quota_bytes: int
    gone: tuple[Gone, ...]
    acked_s: float | None


def spool_view(config: AgentConfig, depth: Depth | None) -> SpoolView:
    """Put together what a spool holds and what the configuration says; None: there is no spool yet."""
    telemetry = config.telemetry
    level = telemetry.level(time.time())
    lanes = depth.lanes if depth else ()
    way = telemetry.transport if config.fleet.url or telemetry.transport == "mqtt" else ""
    return SpoolView(
        enabled=telemetry.is_on(fleet=bool(config.fleet.url)),
        privacy=level.value,
        full_until=str(telemetry.full_until) if level.value == "p3" else "",
        transport=way,
        stream=depth.stream if depth else "",
        lanes=lanes,
        reports=sum(lane.reports for lane in lanes),
        file_bytes=depth.file_bytes if depth else 0,
        quota_bytes=depth.quota_bytes if depth else telemetry.quota_bytes or 0,
        gone=depth.gone if depth else (),
        acked_s=depth.acked_s if depth else None,
    )


def view_lines(view: SpoolView) -> list[str]:
    """The same for people."""
    until = f", full text until {view.full_until}" if view.full_until else ""
    lines = [
        f"telemetry {'on' if view.enabled else 'off'}, privacy {view.privacy}{until}",
        f"goes by   {view.transport or 'no server: reports stay on this device'}",
        f"waiting   {view.reports:,} reports, {view.file_bytes:,} of {view.quota_bytes:,} bytes on the disk",
    ]
    lines += [f"  {lane.name:<8} {lane.reports:>8,} {lane.bytes:>12,} bytes" for lane in view.lanes]
    lines += [f"given up  {gone.count:,} of lane {gone.lane}: {gone.why}" for gone in view.gone if gone.count]
    taken = "never" if view.acked_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.acked_s))
    return [*lines, f"last taken {taken}"]
