"""What devices report, from Python: the same questions as the screens ask.

    view = edgegen.monitor_fleet("site", window_s=3600)
    worst = [row for row in view.devices if row.state == "degraded"]

`where` is a site's folder, or a server's URL with an operator's token in EDGEGEN_FLEET_TOKEN. All may raise
ConfigError (no such site, device or token), UnsupportedError (the extra `server` is not installed) and NetworkError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec

from edgegen.common.files import write_bytes
from edgegen.errors import ConfigError
from edgegen.fleet.operate import open_fleet
from edgegen.records.monitor import (
    Ask,
    AskComparison,
    AskEvents,
    AskHard,
    AskOutputs,
    BundleRow,
    CanaryRow,
    DeviceDetail,
    DriftCell,
    EventRow,
    FleetView,
    OutputRow,
    Text,
)


class Pulled(msgspec.Struct, frozen=True):
    """A data set of hard prompts."""

    path: str
    rows: int
    why: dict[str, int]
    """Reason → rows."""
    withheld: dict[str, int]
    """Reason → answers whose text the devices' privacy did not let out, or that were erased."""


def monitor_fleet(
    where: str,
    *,
    window_s: float = 3600.0,
    until_s: float | None = None,
    group: str = "",
    store: str | None = None,
) -> FleetView:
    """Every device with its figures, and the alerts.

    Args:
        window_s: what figures are taken of.
        until_s: the window's end, seconds since 1970; None: now. An earlier one shows the fleet as it was.
        store: another database than the site's own file.
    """
    return cast(FleetView, _ask(where, store, "monitor-fleet", Ask(window_s, until_s, group)))


def monitor_device(
    where: str,
    device: str,
    *,
    window_s: float = 3600.0,
    until_s: float | None = None,
    store: str | None = None,
) -> DeviceDetail:
    """One device: its hardware, series, events and golden answers, and whose fault a change is."""
    return cast(DeviceDetail, _ask(where, store, "monitor-device", Ask(window_s, until_s, device=device)))


def monitor_outputs(
    where: str,
    *,
    after: int = 0,
    limit: int = 200,
    until_s: float | None = None,
    group: str = "",
    device: str = "",
    release: str = "",
    flag: str = "",
    store: str | None = None,
) -> tuple[OutputRow, ...]:
    """Answers, oldest first: the latest, or with `after` (the last row's cursor) those that came since."""
    asked = AskOutputs(after, limit, until_s, group, device, release, flag)
    return cast(tuple[OutputRow, ...], _ask(where, store, "monitor-outputs", asked))


def monitor_events(
    where: str,
    *,
    after: int = 0,
    limit: int = 200,
    until_s: float | None = None,
    group: str = "",
    device: str = "",
    level: str = "",
    store: str | None = None,
) -> tuple[EventRow, ...]:
    """What happened, oldest first: acts, devices' words, alerts; `after` as in `monitor_outputs`."""
    asked = AskEvents(after, limit, until_s, group, device, level)
    return cast(tuple[EventRow, ...], _ask(where, store, "monitor-events", asked))


def monitor_drift(
    where: str,
    *,
    window_s: float = 3600.0,
    until_s: float | None = None,
    group: str = "",
    device: str = "",
    store: str | None = None,
) -> tuple[DriftCell, ...]:
    """Each metric of each release in each group against what it was when the release was packed."""
    return cast(tuple[DriftCell, ...], _ask(where, store, "monitor-drift", Ask(window_s, until_s, group, device)))


def monitor_compare(
    where: str, device: str, *, old: str = "", new: str = "", store: str | None = None
) -> tuple[CanaryRow, ...]:
    """A device's answers to the golden prompts of two releases, by prompt; digests, or what it had and has."""
    return cast(tuple[CanaryRow, ...], _ask(where, store, "monitor-compare", AskComparison(device, old, new)))


def monitor_bundles(where: str, *, group: str = "", store: str | None = None) -> tuple[BundleRow, ...]:
    """Releases, the latest first."""
    return cast(tuple[BundleRow, ...], _ask(where, store, "monitor-bundles", Ask(group=group)))


def hard_prompts(
    where: str,
    *,
    why: str = "",
    window_s: float = 7 * 86400.0,
    group: str = "",
    device: str = "",
    release: str = "",
    limit: int = 1000,
    store: str | None = None,
) -> tuple[Text, ...]:
    """Answers worth learning from, the latest first, as far as the devices' privacy lets their texts out.

    Args:
        why: `low confidence`, `thumbs down`, `error` or `drifted`; empty: any.
        release: digest.
    """
    asked = AskHard(window_s, None, group, device, release, why, limit)
    return cast(tuple[Text, ...], _ask(where, store, "monitor-hard", asked))


def pull_hard_prompts(
    where: str,
    out: str | Path,
    *,
    why: str = "",
    window_s: float = 7 * 86400.0,
    group: str = "",
    device: str = "",
    release: str = "",
    limit: int = 1000,
    store: str | None = None,
) -> Pulled:
    """Write hard prompts as JSON Lines that `edgegen compress --data` and training read.

    A row's `messages` hold the user's turn only: what the device answered is doubtful, so it is kept beside, as
    `device_answer`, and is nothing to imitate. `lineage`, `release`, `device` and `generation` say where it comes from.

    Raises:
        ConfigError: also where no text may be told, and then the file is not written.
    """
    asked = AskHard(window_s, None, group, device, release, why, limit)
    texts: tuple[Text, ...] = _ask(where, store, "monitor-hard", asked)
    withheld: dict[str, int] = _ask(where, store, "monitor-withheld", asked)
    if not texts:
        kept = sum(withheld.values())
        raise ConfigError(
            f"no hard prompts: {kept} answers' texts are withheld by the devices' privacy"
            if kept
            else "no hard prompts in this window",
            hint="Devices let texts out from privacy level p2 on." if kept else "Ask for a longer window.",
        )
    path = Path(out)
    counts: dict[str, int] = {}
    lines = []
    for text in texts:
        counts[text.why] = counts.get(text.why, 0) + 1
        row = {
            "messages": [{"role": "user", "content": text.prompt}],
            "device_answer": text.answer,
            "why": text.why,
            "lineage": text.lineage,
            "release": text.release,
            "device": text.device,
            "generation": text.generation,
            "level": text.level,
        }
        lines.append(msgspec.json.encode(row) + b"\n")
    write_bytes(path, b"".join(lines))
    return Pulled(str(path), len(texts), counts, withheld)


def _ask(where: str, store: str | None, name: str, asked: Any) -> Any:
    return open_fleet(where, store).do(name, asked)
