"""The first screen: every device in a line, and what is wrong with the fleet as a whole.

Everything but the figures of answers is one scan of a small table, so that 10,000 devices are seconds-fresh. Of the
past, what is told is what reports tell: when each device was last heard, its health then, and what it ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from edgegen.fleet.drift.read import device_kind
from edgegen.fleet.members import require_group
from edgegen.fleet.monitoring.alerts import read_alerts
from edgegen.fleet.monitoring.presence import SKEW_S, Condition, Life, judge, read_life
from edgegen.fleet.monitoring.releases import label_of, read_labels
from edgegen.fleet.monitoring.tick import catch_up, evaluate_if_nobody_did
from edgegen.fleet.monitoring.verdicts import read_verdicts
from edgegen.fleet.monitoring.window import Figures, Span, device_figures, is_live, merge_cells, read_cells, span_of
from edgegen.fleet.transaction import Row, Transaction, Value
from edgegen.fleet.views import read_rollouts
from edgegen.records.deployment import ActionState, Rollout, RolloutState
from edgegen.records.monitor import Ask, DeviceRow, FleetView, State, Verdict

_NOTHING = Figures()


def read_fleet(tx: Transaction, now_s: float, ask: Ask, site: Path | None = None) -> FleetView:
    """Answer what the first screen asks.

    Args:
        site: the site's folder, for its rules of alerts.

    Raises:
        ConfigError: there is no such group; or the site's `alerts.toml` is wrong, and no server has read it.
        UnsupportedError: the sketches' library is not installed.
    """
    if ask.group:
        require_group(tx, ask.group)
    moment = moment_of(tx, now_s, ask)
    if moment.live:
        evaluate_if_nobody_did(tx, now_s, site)
    rows = read_rows(tx, moment, ask)
    answers = sum(moment.figures.get(row.device, _NOTHING).answers for row in rows)
    errors = sum(moment.figures.get(row.device, _NOTHING).errors for row in rows)
    tokens = sum(moment.figures.get(row.device, _NOTHING).answer_tokens for row in rows)
    skews = [row.clock_skew_s for row in rows if row.clock_skew_s is not None]
    return FleetView(
        at_s=moment.at_s,
        window_s=ask.window_s,
        devices=rows,
        tokens_per_s=tokens / moment.span.length_s if answers else None,
        error_fraction=errors / answers if answers else None,
        privacy=max((row.privacy for row in rows), default=""),
        skewed=sum(abs(skew) > SKEW_S for skew in skews),
        rollout=describe_rollout(running_rollout(tx, moment, ask.group)),
        alerts=read_alerts(tx, moment.at_s, live=moment.live, group=ask.group),
    )


@dataclass(slots=True)
class Moment:
    """What a question is about, and what is looked up once for all devices."""

    now_s: float
    at_s: float
    """The window's end."""
    live: bool
    span: Span
    life: Life
    labels: dict[str, str]
    figures: dict[str, Figures] = field(default_factory=dict)
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)


def moment_of(tx: Transaction, now_s: float, ask: Ask) -> Moment:
    """Prepare to answer about a window."""
    live = is_live(now_s, ask.until_s)
    at_s = now_s if live or ask.until_s is None else ask.until_s
    if live:
        catch_up(tx, now_s)  # the server does it each second; without one this does
    span = span_of(now_s, at_s, ask.window_s)
    if ask.device:
        cells = read_cells(tx, span, subjects=(ask.device,))
        figures = {ask.device: merge_cells(cells, span)} if cells else {}
    else:
        figures = device_figures(tx, span, live=live)
    return Moment(
        now_s=now_s,
        at_s=at_s,
        live=live,
        span=span,
        life=read_life(tx),
        labels=read_labels(tx),
        figures=figures,
        verdicts=read_verdicts(tx, at_s),
    )


def read_rows(tx: Transaction, moment: Moment, ask: Ask) -> tuple[DeviceRow, ...]:
    """The lines of the devices that were asked for, by name."""
    ratings = _ratings(tx, moment)
    dropped = _sums(tx, "SELECT device, SUM(count) AS total FROM dropped WHERE at_s > ? AND at_s <= ? GROUP BY device",
                    moment.span.since_s, moment.at_s)  # fmt: skip
    faults = {
        row["device"]: row["words"]
        for row in tx.rows(
            "SELECT device, words FROM faults WHERE since_s <= ? AND (until_s IS NULL OR until_s > ?)",
            *(moment.at_s, moment.at_s),
        )
    }
    actions = _actions(tx, moment)
    found = []
    for row in _devices(tx, moment, ask):
        device = row["device"]
        figures = moment.figures.get(device, _NOTHING)
        heard_s = _heard(row, moment)
        release = row["release"] or (row["running"] if moment.live else "") or ""
        verdict = moment.verdicts.get((row["grp"], release))
        phase, failed = actions.get(device, ("", ""))
        throttled = None if row["throttled"] is None else bool(row["throttled"])
        state, why = judge(
            revoked=bool(row["revoked"]),
            heard_s=heard_s,
            now_s=moment.at_s,
            life=moment.life,
            live=moment.live,
            condition=Condition(
                fault=faults.get(device, ""),
                failed_release=failed,
                answers=figures.answers,
                errors=figures.errors,
                leaked=figures.leaked,
                throttled=throttled,
                drifted=verdict is Verdict.DRIFT,
                dropped=dropped.get(device, 0),
                free_bytes=row["free_bytes"],
            ),
        )
        up, down = ratings.get(device, (0, 0))
        found.append(
            DeviceRow(
                device=device,
                group=row["grp"],
                kind=device_kind(row["attributes"]),
                state=state,
                why=why,
                release=release,
                label=label_of(moment.labels, release),
                phase=phase,
                generations=figures.answers,
                tokens_per_s=figures.speed,
                spark=figures.spark,
                ttft_p95_s=figures.ttft_p95_s,
                error_fraction=figures.error_fraction,
                rss_bytes=row["rss_bytes"],
                ram_bytes=_ram_bytes(row["attributes"]),
                temperature_c=row["temperature_c"],
                throttled=throttled,
                thumbs_up=up,
                thumbs_down=down,
                drift=verdict,
                free_bytes=row["free_bytes"],
                seen_s=heard_s,
                clock_skew_s=row["clock_skew_s"],
                spool_reports=row["spool_reports"],
                dropped=dropped.get(device, 0),
                privacy=row["privacy"] or "",
            )
        )
    return tuple(found)


def running_rollout(tx: Transaction, moment: Moment, group: str = "") -> Rollout | None:
    """The latest rollout that ran at the moment."""
    if moment.live:
        rows = tx.rows(
            "SELECT id FROM rollouts WHERE state IN (?, ?) AND (grp = ? OR ? = '') ORDER BY id DESC LIMIT 1",
            *(RolloutState.RUNNING, RolloutState.PAUSED, group, group),
        )
    else:
        rows = tx.rows(
            "SELECT id FROM rollouts WHERE created_s <= ? AND (finished_s IS NULL OR finished_s > ?) "
            "AND (grp = ? OR ? = '') ORDER BY id DESC LIMIT 1",
            *(moment.at_s, moment.at_s, group, group),
        )
    if not rows:
        return None
    return next((found for found in read_rollouts(tx, limit=500) if found.id == rows[0]["id"]), None)


def describe_rollout(found: Rollout | None) -> str:
    """A rollout in words; empty for none."""
    if found is None:
        return ""
    wave = next((wave for wave in found.waves if wave.succeeded_s is None), found.waves[-1])
    devices = sum(each.devices for each in found.waves)
    confirmed = sum(each.states.get(ActionState.CONFIRMED, 0) for each in found.waves)
    failed = sum(each.states.get(state, 0) for each in found.waves for state in (_FAILED))
    words = (
        f"rollout {found.id}, {found.name}@{found.version} to {found.group}: {found.state}, "
        f"wave {wave.number} of {len(found.waves)}, {confirmed} of {devices} confirmed"
    )
    words += f", {failed} failed" if failed else ""
    return words + (f" ({found.reason})" if found.reason else "")


_FAILED = (ActionState.FAILED, ActionState.TIMED_OUT)
_STATE = ("release", "rss_bytes", "temperature_c", "throttled", "free_bytes", "spool_reports", "privacy")


def _devices(tx: Transaction, moment: Moment, ask: Ask) -> list[Row]:
    """Devices with their last health, as it was at the moment."""
    words, asked = "", list[Value]()
    for column, value in (("devices.grp", ask.group), ("devices.device", ask.device)):
        if value:
            words += f" AND {column} = ?"
            asked.append(value)
    named = "devices.device AS device, grp, attributes, running, enrolled_s, seen_s, "
    health = ", ".join(f"s.{name} AS {name}" for name in _STATE)
    if moment.live:
        return tx.rows(
            f"SELECT {named} revoked, heard_s, clock_skew_s, {health} FROM devices "
            f"LEFT JOIN device_state AS s ON s.device = devices.device WHERE 1 = 1{words} ORDER BY devices.device",
            *asked,
        )
    at_s = moment.at_s
    last = "SELECT MAX(at_s) FROM {} AS r WHERE r.device = devices.device AND r.at_s <= ?"
    return tx.rows(
        f"SELECT {named} CASE WHEN gone.subject IS NULL THEN 0 ELSE 1 END AS revoked, generation_s, health_s, "
        f"NULL AS clock_skew_s, NULL AS heard_s, {health} FROM (SELECT devices.*, ({last.format('generations')}) "
        f"AS generation_s, ({last.format('health')}) AS health_s FROM devices) AS devices LEFT JOIN health AS s "
        "ON s.device = devices.device AND s.at_s = devices.health_s LEFT JOIN (SELECT DISTINCT subject FROM audit "
        "WHERE what = 'revoked' AND at_s <= ?) AS gone ON gone.subject = 'device:' || devices.device "
        f"WHERE enrolled_s <= ?{words} ORDER BY devices.device",
        *(at_s, at_s, at_s, at_s, *asked),
    )


def _heard(row: Row, moment: Moment) -> float | None:
    """When a device was last heard, by poll or report."""
    known = [row["seen_s"], row["heard_s"]]
    if not moment.live:
        known = [row["seen_s"], row["generation_s"], row["health_s"]]
    # A device's own clock may have run ahead; nobody was heard in the future.
    before = [at_s for at_s in known if at_s is not None and (moment.live or at_s <= moment.at_s)]
    return min(max(before), moment.at_s) if before else None


def _ratings(tx: Transaction, moment: Moment) -> dict[str, tuple[int, int]]:
    """Device → thumbs up and down, an answer's last counts."""
    rows = tx.rows(
        "SELECT device, SUM(CASE WHEN rating > 0 THEN 1 ELSE 0 END) AS up, "
        "SUM(CASE WHEN rating < 0 THEN 1 ELSE 0 END) AS down FROM feedback AS f WHERE at_s > ? AND at_s <= ? "
        "AND NOT EXISTS (SELECT 1 FROM feedback AS g WHERE g.device = f.device AND g.generation = f.generation "
        "AND g.cursor > f.cursor AND g.at_s <= ?) GROUP BY device",
        *(moment.span.since_s, moment.at_s, moment.at_s),
    )
    return {row["device"]: (int(row["up"]), int(row["down"])) for row in rows}


def _actions(tx: Transaction, moment: Moment) -> dict[str, tuple[str, str]]:
    """Device → the phase of the update that ran, and how its last one failed, if it did."""
    rows = tx.rows(
        "SELECT actions.device AS device, actions.state AS state, actions.phase AS phase, actions.reason AS reason, "
        "actions.finished_s AS finished_s, rollouts.digest AS digest FROM actions "
        "JOIN (SELECT device AS who, MAX(id) AS top FROM actions WHERE offered_s <= ? GROUP BY device) AS newest "
        "ON newest.top = actions.id JOIN rollouts ON rollouts.id = actions.rollout",
        moment.at_s,
    )
    found = {}
    for row in rows:
        over = row["finished_s"] is not None and row["finished_s"] <= moment.at_s
        phase = failed = ""
        if over and row["state"] in _FAILED:
            why = f": {row['reason']}" if row["reason"] else ""
            failed = f"{label_of(moment.labels, row['digest'])} failed{why}"
        elif not over and moment.live and row["state"] in (ActionState.OFFERED, ActionState.RUNNING):
            phase = row["phase"] or row["state"]
        elif not over and not moment.live:
            phase = "updating"
        if phase or failed:
            found[row["device"]] = (str(phase), failed)
    return found


def _sums(tx: Transaction, sql: str, *arguments: Value) -> dict[str, int]:
    return {row["device"]: int(row["total"]) for row in tx.rows(sql, *arguments)}


@lru_cache(maxsize=50_000)
def _ram_bytes(text: str) -> int | None:
    """Memory in bytes, from what a device says of itself."""
    memory = msgspec.json.decode(text, type=dict[str, str]).get("ram_bytes", "")
    return int(memory) if memory.isascii() and memory.isdigit() and len(memory) < 19 else None


def is_wrong(row: DeviceRow) -> bool:
    """Whether a person should look at a device."""
    return row.state in (State.DEGRADED, State.OFFLINE)
