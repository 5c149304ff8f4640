"""The drift of a fleet: each metric of each release in each group, now and in the window before, in words if asked.

A release is compared with its reference profile, and while a rollout runs its new release also with the one that it
replaces (`compare`). Metrics that no answer had, now or when the release was packed, make no cell.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from edgegen.bundle.profile import INPUTS
from edgegen.fleet.drift.compare import compare_releases, running_rollouts
from edgegen.fleet.drift.embeddings import compare_embeddings
from edgegen.fleet.drift.faults import Evidence, canary_change, whose_fault
from edgegen.fleet.drift.read import (
    Answers,
    Where,
    answering,
    read_answers,
    read_canaries,
    read_embeddings,
    read_reference,
)
from edgegen.fleet.drift.streams import Change, find_change
from edgegen.fleet.drift.verdicts import Finding, judge_windows, worst
from edgegen.fleet.transaction import Transaction
from edgegen.records.bundle import ReferenceProfile
from edgegen.records.monitor import Ask, DriftCell, Verdict

STREAMS = ("mean_log_prob", "ttft_s", "tokens_per_s")


def drift_cells(tx: Transaction, ask: Ask, now_s: float | None = None) -> tuple[DriftCell, ...]:
    """The drift that a person asks for, by group, release and metric; that of a rollout's new release last.

    Args:
        ask: its window, and the one before it of the same length; of a group or a device.
        now_s: the window's end where the question names none; None: the clock's.
    """
    until_s = _until(ask, now_s)
    found: list[DriftCell] = []
    pairs = answering(tx, until_s - 2 * ask.window_s, until_s, group=ask.group, device=ask.device)
    for pair in pairs:
        label, reference, _ = read_reference(tx, pair["release"])
        where = Where(pair["release"], until_s - ask.window_s, until_s, pair["grp"], ask.device)
        found += _cells(tx, where, label, reference)
    if not ask.device:
        for rollout in running_rollouts(tx, ask.group):
            found += compare_releases(tx, rollout, until_s, ask.window_s)
    return tuple(found)


def group_verdict(cells: tuple[DriftCell, ...]) -> Verdict | None:
    """The worst of some cells; None without any."""
    return worst([cell.verdict for cell in cells])


def device_fault(tx: Transaction, device: str, ask: Ask, now_s: float | None = None) -> str:
    """Whose fault a device's change is, as `DeviceDetail.fault`: `device: …`, `data: …`, `release: …` or empty.

    Looks at what the device answered last in the window, against the other devices of its group with that release.
    """
    until_s = _until(ask, now_s)
    rows = tx.rows(
        "SELECT devices.grp AS grp, served.release AS release FROM generations "
        "JOIN devices ON devices.device = generations.device JOIN served ON served.id = generations.served "
        "WHERE generations.device = ? AND generations.at_s <= ? ORDER BY generations.at_s DESC LIMIT 1",
        *(device, until_s),
    ) or tx.rows(
        "SELECT devices.grp AS grp, canaries.release AS release FROM canaries "
        "JOIN devices ON devices.device = canaries.device WHERE canaries.device = ? AND canaries.at_s <= ? "
        "ORDER BY canaries.cursor DESC LIMIT 1",
        *(device, until_s),
    )
    if not rows:
        return ""
    group, release = rows[0]["grp"], rows[0]["release"]
    _, reference, _ = read_reference(tx, release)
    canaries = read_canaries(tx, release, until_s, group=group)
    own = canaries.pop(device, {})
    compared = [runs for runs in canaries.values() if any(len(each) > 1 for each in runs.values())]
    where = Where(release, until_s - ask.window_s, until_s, group)
    here = _beyond(tx, _only(where, device=device), reference)
    outputs = tuple(metric for metric in here or () if metric not in INPUTS)
    elsewhere = _beyond(tx, _only(where, other_than=device), reference) if outputs else None
    return whose_fault(
        Evidence(
            canaries=own,
            others=len(compared),
            others_changed=sum(any(canary_change(each) for each in runs.values()) for runs in compared),
            inputs=tuple(metric for metric in here or () if metric in INPUTS),
            outputs=outputs,
            elsewhere=elsewhere,
        )
    )


def device_changes(tx: Transaction, device: str, ask: Ask, now_s: float | None = None) -> dict[str, Change]:
    """Metric → the first change in the device's stream of answers, for those of `STREAMS` that changed.

    The stream is what the device's latest release answered in the window; its first answers are the baseline.
    """
    until_s = _until(ask, now_s)
    pairs = answering(tx, until_s - ask.window_s, until_s, device=device)
    found: dict[str, Change] = {}
    for pair in pairs[-1:]:
        answers = read_answers(tx, Where(pair["release"], until_s - ask.window_s, until_s, device=device))
        for metric in STREAMS:
            values = answers.values[metric][::-1]  # oldest first
            change = find_change([float(value) for value in values if value == value])
            if change is not None:
                found[metric] = change
    return found


def moved_embeddings(tx: Transaction, where: Where, what: str) -> Finding | None:
    """Hashed features of a window against those of the four windows before it; None where nobody reports them."""
    length_s = where.until_s - where.since_s
    now = read_embeddings(tx, where, what)
    before = Where(where.release, where.since_s - 4 * length_s, where.since_s, where.group, where.device)
    if not now:
        return None
    moved = compare_embeddings(read_embeddings(tx, before, what), now)
    return Finding(f"embedding_{what}", moved.n, moved.verdict, threshold=moved.threshold, p=moved.p)


def _cells(tx: Transaction, where: Where, label: str, reference: ReferenceProfile) -> list[DriftCell]:
    now, before = read_answers(tx, where), read_answers(tx, _window_before(where))
    current = _histograms(now, reference)
    findings = judge_windows(reference.edges, reference.counts, current, _histograms(before, reference))
    cells = [
        cell_of(
            *(findings[metric], where.group, where.release, label),
            edges=edges,
            reference=reference.counts[metric],
            current=current[metric],
        )
        for metric, edges in reference.edges.items()
        if sum(reference.counts[metric]) and sum(current[metric])
    ]
    for what in ("prompts", "answers"):
        moved = moved_embeddings(tx, where, what)
        if moved is not None:
            cells.append(cell_of(moved, where.group, where.release, label, against="before"))
    return cells


def cell_of(
    finding: Finding,
    group: str,
    release: str,
    label: str,
    *,
    edges: tuple[float, ...] = (),
    reference: tuple[int, ...] = (),
    current: tuple[int, ...] = (),
    against: str = "reference",
) -> DriftCell:
    """A finding as it is shown."""
    return DriftCell(
        metric=finding.metric,
        group=group,
        release=release,
        label=label,
        n=finding.n,
        psi=finding.psi,
        js=finding.js,
        wasserstein=finding.wasserstein,
        threshold=finding.threshold,
        verdict=finding.verdict,
        edges=edges,
        reference=reference,
        current=current,
        against=against,
        p=finding.p,
    )


def _beyond(tx: Transaction, where: Where, reference: ReferenceProfile) -> tuple[str, ...] | None:
    """Metrics that drifted; None if no metric has answers enough."""
    now, before = read_answers(tx, where), read_answers(tx, _window_before(where))
    findings = judge_windows(
        reference.edges, reference.counts, _histograms(now, reference), _histograms(before, reference)
    )
    if all(finding.verdict is Verdict.TOO_FEW for finding in findings.values()):
        return None
    return tuple(metric for metric, finding in findings.items() if finding.verdict is Verdict.DRIFT)


def _histograms(answers: Answers, reference: ReferenceProfile) -> Mapping[str, tuple[int, ...]]:
    return {metric: answers.histogram(metric, edges) for metric, edges in reference.edges.items()}


def _window_before(where: Where) -> Where:
    length_s = where.until_s - where.since_s
    return Where(*(where.release, where.since_s - length_s, where.since_s, where.group, where.device, where.other_than))


def _only(where: Where, *, device: str = "", other_than: str = "") -> Where:
    return Where(where.release, where.since_s, where.until_s, where.group, device, other_than)


def _until(ask: Ask, now_s: float | None) -> float:
    if ask.until_s is not None:
        return ask.until_s
    return time.time() if now_s is None else now_s
