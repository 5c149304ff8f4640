"""A rollout's new release against the devices of the same group and hardware that still run another.

The control group answers in the same hours, for the same kind of users, on the same hardware, so that prompts, weather
and load cancel out; the reference profile cannot do that. Each type of hardware is judged by itself. The same
measures as against the reference are used, and two-proportion tests for rates; speed has no edges of its own, so the
control group's deciles are taken.

Answers of one device are alike: one user, one place. Where at least `LEAST_DEVICES` are on each side, the devices are
dealt out anew as well, and a difference that such dealings often reach counts as one between devices, not releases.
With fewer that cannot be told, and a finding says so (`Reading.devices_told`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgegen.bundle.profile import EDGES
from edgegen.fleet.drift.measures import psi_rows
from edgegen.fleet.drift.read import Answers, Where, answering, read_answers, read_kinds, read_reference
from edgegen.fleet.drift.thresholds import LEAST_N
from edgegen.fleet.drift.verdicts import Finding, confirm, judge_window
from edgegen.fleet.transaction import Transaction
from edgegen.fleet.views import read_rollout
from edgegen.records.deployment import Rollout, RolloutState
from edgegen.records.monitor import DriftCell, Verdict

LEAST_DEVICES = 5
"""On each side, to tell differences between releases from those between devices."""
DEVICES_ALPHA = 0.05
GATE_WINDOW_S = 3600.0
OTHER_EDGES: dict[str, tuple[float, ...]] = {"error": (0.5,), "bad_json": (0.5,), "thumbs_down": (0.5,)}
"""What only devices know."""
SPEED = ("ttft_s", "tokens_per_s")
BETTER_LOW = frozenset(("error", "bad_json", "thumbs_down", "empty", "refusal", "leaked", "repetition", "ttft_s"))
"""Of these more is worse; of `BETTER_HIGH` less is worse; of the others any move is only a move."""
BETTER_HIGH = frozenset(("mean_log_prob", "tokens_per_s"))

_DRAWS = 1_999
_SEED = 20_210_707


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric of the new release on one type of hardware against the control group."""

    kind: str
    finding: Finding
    """`n` is the new release's."""
    control_n: int
    new: float | None
    """Mean of the metric, a rate where it is one."""
    control: float | None
    edges: tuple[float, ...]
    control_counts: tuple[int, ...]
    new_counts: tuple[int, ...]
    devices_told: bool
    """Whether there were devices enough to tell releases from devices."""

    @property
    def worse(self) -> bool:
        """Beyond, and in the bad direction where there is one."""
        if not self.finding.beyond or self.new is None or self.control is None:
            return False
        if self.finding.metric in BETTER_LOW:
            return self.new > self.control
        if self.finding.metric in BETTER_HIGH:
            return self.new < self.control
        return True

    @property
    def words(self) -> str:
        """For people: `refusal 5.1 % against 1.0 % (n 800, 2,400)`."""
        rate = self.edges == (0.5,)
        values = [
            "unknown" if value is None else f"{value:.1%}".replace("%", " %") if rate else f"{value:.3g}"
            for value in (self.new, self.control)
        ]
        return f"{self.finding.metric} {values[0]} against {values[1]} (n {self.finding.n:,}, {self.control_n:,})"


def gate(
    tx: Transaction, rollout: Rollout, now_s: float, *, window_s: float = GATE_WINDOW_S, brief: bool = False
) -> tuple[Reading, ...]:
    """Readings of a rollout's release against its control group, over the last window and the one before it.

    Windows are no longer than half the time since the first wave began. Empty: nobody of the group answers with
    another release, or nobody with the new one.

    Args:
        brief: leave out the numbers that change no verdict.
    """
    begun_s = begun(rollout)
    length_s = min(window_s, (now_s - begun_s) / 2)
    kinds = read_kinds(tx, rollout.group)
    now = _compare(tx, rollout, kinds, now_s - length_s, now_s, brief=brief)
    if not any(reading.finding.beyond for reading in now):
        return now
    earlier = _compare(tx, rollout, kinds, now_s - 2 * length_s, now_s - length_s, brief=True)
    before = {(reading.kind, reading.finding.metric) for reading in earlier if reading.finding.beyond}
    return tuple(
        replace(reading, finding=confirm(reading.finding))
        if reading.finding.beyond and (reading.kind, reading.finding.metric) in before
        else reading
        for reading in now
    )


def begun(rollout: Rollout) -> float:
    """When its first wave began, or it was created."""
    return min((wave.begun_s for wave in rollout.waves if wave.begun_s is not None), default=rollout.created_s)


def sides(
    tx: Transaction, rollout: Rollout, kinds: dict[str, str], since_s: float, until_s: float
) -> dict[str, tuple[Answers, Answers]]:
    """Type of hardware → answers with the rollout's release, and those of the group's devices with others."""
    if until_s <= since_s:
        return {}
    releases = {row["release"] for row in answering(tx, since_s, until_s, group=rollout.group)}
    others = sorted(releases - {rollout.digest})
    if not others or rollout.digest not in releases:
        return {}
    new = read_answers(tx, Where(rollout.digest, since_s, until_s, rollout.group))
    control = _together([read_answers(tx, Where(other, since_s, until_s, rollout.group)) for other in others])
    found = {}
    for kind in sorted({kinds.get(device, "unknown") for device in set(new.devices.tolist())}):
        pair = _of_kind(new, kinds, kind), _of_kind(control, kinds, kind)
        if len(pair[0].devices) and len(pair[1].devices):
            found[kind] = pair
    return found


def compare_releases(tx: Transaction, rollout: Rollout, now_s: float, window_s: float) -> list[DriftCell]:
    """`gate` as cells; the group is followed by the type of hardware where there are several."""
    readings = gate(tx, rollout, now_s, window_s=window_s)
    several = len({reading.kind for reading in readings}) > 1
    return [
        DriftCell(
            metric=reading.finding.metric,
            group=f"{rollout.group} ({reading.kind})" if several else rollout.group,
            release=rollout.digest,
            label=f"{rollout.name}@{rollout.version}",
            n=reading.finding.n,
            psi=reading.finding.psi,
            js=reading.finding.js,
            wasserstein=reading.finding.wasserstein,
            threshold=reading.finding.threshold,
            verdict=reading.finding.verdict,
            edges=reading.edges,
            reference=reading.control_counts,
            current=reading.new_counts,
            against="control",
            p=reading.finding.p,
        )
        for reading in readings
    ]


def running_rollouts(tx: Transaction, group: str) -> list[Rollout]:
    """Rollouts that run or are paused; of one group if it is named."""
    words, arguments = (" AND grp = ?", (group,)) if group else ("", ())
    rows = tx.rows(
        f"SELECT id FROM rollouts WHERE state IN (?, ?){words} ORDER BY grp, id",
        *(RolloutState.RUNNING, RolloutState.PAUSED, *arguments),
    )
    return [read_rollout(tx, row["id"]) for row in rows]


def compare_answers(
    new: Answers, control: Answers, edges: dict[str, tuple[float, ...]], *, kind: str, brief: bool = False
) -> list[Reading]:
    """One type of hardware.

    Args:
        edges: of metrics that have fixed ones; speed gets the control group's deciles.
    """
    bounds = {**edges, **OTHER_EDGES, **{metric: _deciles(control.values[metric]) for metric in SPEED}}
    bounds = {metric: found for metric, found in bounds.items() if found}
    old = {metric: control.histogram(metric, found) for metric, found in bounds.items()}
    fresh = {metric: new.histogram(metric, found) for metric, found in bounds.items()}
    bounds = {metric: found for metric, found in bounds.items() if sum(old[metric]) and sum(fresh[metric])}
    findings = judge_window(bounds, old, fresh, least_reference=LEAST_N, brief=brief)
    readings = []
    for metric, finding in findings.items():
        p, told = _between_devices(new, control, metric, bounds[metric]) if finding.beyond else (None, False)
        if p is not None and p > DEVICES_ALPHA:
            finding = replace(finding, verdict=Verdict.OK, p=max(p, finding.p or 0.0))
        readings.append(
            Reading(
                kind=kind,
                finding=finding,
                control_n=sum(old[metric]),
                new=_mean(new.values[metric]),
                control=_mean(control.values[metric]),
                edges=bounds[metric],
                control_counts=old[metric],
                new_counts=fresh[metric],
                devices_told=told,
            )
        )
    return readings


def _compare(
    tx: Transaction, rollout: Rollout, kinds: dict[str, str], since_s: float, until_s: float, *, brief: bool
) -> tuple[Reading, ...]:
    edges = {**EDGES, **read_reference(tx, rollout.digest)[1].edges}
    pairs = sides(tx, rollout, kinds, since_s, until_s)
    return tuple(
        reading
        for kind, (new, control) in pairs.items()
        for reading in compare_answers(new, control, edges, kind=kind, brief=brief)
    )


def _of_kind(answers: Answers, kinds: dict[str, str], kind: str) -> Answers:
    devices = {device for device in set(answers.devices.tolist()) if kinds.get(device, "unknown") == kind}
    chosen = np.isin(answers.devices, sorted(devices)) if devices else np.zeros(len(answers.devices), dtype=bool)
    return Answers({metric: values[chosen] for metric, values in answers.values.items()}, answers.devices[chosen])


def _together(parts: Sequence[Answers]) -> Answers:
    values = {metric: np.concatenate([part.values[metric] for part in parts]) for metric in parts[0].values}
    return Answers(values, np.concatenate([part.devices for part in parts]))


def _between_devices(
    new: Answers, control: Answers, metric: str, edges: tuple[float, ...]
) -> tuple[float | None, bool]:
    """The chance of such an index when whole devices are dealt to the two sides; None, False with too few devices."""
    parts = [_per_device(side, metric, edges) for side in (new, control)]
    if min(len(part) for part in parts) < LEAST_DEVICES:
        return None, False
    counts = np.concatenate(parts)  # (devices, B)
    flags = np.arange(len(counts)) < len(parts[0])
    dice = np.random.default_rng(_SEED)
    dealt = np.array([flags, *(dice.permutation(flags) for _ in range(_DRAWS))], dtype=np.int64)
    seen = psi_rows((1 - dealt) @ counts, dealt @ counts)
    return float(np.count_nonzero(seen >= seen[0] * (1 - 1e-9)) / len(seen)), True


def _per_device(answers: Answers, metric: str, edges: tuple[float, ...]) -> NDArray[np.int64]:
    rows = [answers.histogram(metric, edges, device=device) for device in sorted(set(answers.devices.tolist()))]
    return np.array([row for row in rows if sum(row)], dtype=np.int64).reshape(-1, len(edges) + 1)


def _deciles(values: NDArray[np.float64]) -> tuple[float, ...]:
    known = values[~np.isnan(values)]
    if len(known) < LEAST_N:
        return ()
    return tuple(float(edge) for edge in np.unique(np.quantile(known, np.arange(1, 10) / 10)))


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
