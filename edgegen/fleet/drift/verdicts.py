"""A window of answers against a reference, and the window before it → a verdict for each metric.

The metrics of one release in one group are one family: their p-values are adjusted (Benjamini and Hochberg 1995) before
they are compared with `ALPHA`; a metric below its threshold counts as 1 there. So without a shift at most one window
in a hundred, on average over releases, shows anything beyond in whichever metric; that is a WATCH. A DRIFT needs the
same metric beyond in the window before as well.

The two windows share a reference that was drawn once. Where it is large, or windows are small, a false DRIFT is about
as rare as two WATCHes of one metric in a row by chance. Where it is small, chance is mostly the reference's: of
releases with 60 answers in theirs a few in a hundred were simulated to alarm falsely, on and off for as long as they
live, and the others never (`tools/drift_simulation.py`). A larger reference is the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgegen.fleet.drift.measures import benjamini_hochberg, jensen_shannon, psi, wasserstein
from edgegen.fleet.drift.thresholds import ALPHA, LEAST_N, LEAST_REFERENCE, chance_threshold, floor_of, permutation_p
from edgegen.records.monitor import Verdict

Counts = Mapping[str, tuple[int, ...]]
"""Metric → counts of its bins."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One metric of one window. The numbers are None where there are too few answers for them."""

    metric: str
    n: int
    verdict: Verdict
    psi: float | None = None
    js: float | None = None
    wasserstein: float | None = None
    threshold: float | None = None
    p: float | None = None
    """Of this metric by itself; the verdict compares it after adjustment over the family."""

    @property
    def beyond(self) -> bool:
        """Beyond in this window, whatever the one before was."""
        return self.verdict in (Verdict.WATCH, Verdict.DRIFT)


def judge_window(
    edges: Mapping[str, tuple[float, ...]],
    reference: Counts,
    current: Counts,
    *,
    least_reference: int = LEAST_REFERENCE,
    brief: bool = False,
) -> dict[str, Finding]:
    """Each metric of one window: OK, WATCH or n too small.

    Args:
        edges: of the metrics that are judged.
        reference: counts over the same edges; a metric that it lacks is left out.
        current: of the window; one that it lacks has no answers.
        brief: verdicts only: leave out the numbers that change none.
    """
    found: dict[str, Finding] = {}
    for metric in edges:
        before = reference.get(metric)
        if before is None:
            continue
        now = current.get(metric, (0,) * len(before))
        n = sum(now)
        if n < LEAST_N or sum(before) < least_reference:
            found[metric] = Finding(metric, n, Verdict.TOO_FEW)
            continue
        found[metric] = Finding(metric, n, Verdict.OK, psi=psi(before, now))
    judged = [finding for finding in found.values() if finding.verdict is not Verdict.TOO_FEW]
    for finding in judged:
        before, now = reference[finding.metric], current[finding.metric]
        assert finding.psi is not None
        if brief and finding.psi <= floor_of(before):
            continue
        p = permutation_p(before, now)
        if brief and p > ALPHA:  # adjustment makes it no smaller, nor does it let another be
            continue
        found[finding.metric] = replace(
            finding,
            js=None if brief else jensen_shannon(before, now),
            wasserstein=None if brief else wasserstein(before, now, edges[finding.metric]),
            threshold=chance_threshold(before, finding.n),
            p=p,
        )
    judged = [found[finding.metric] for finding in judged]
    adjusted = benjamini_hochberg([item.p if item.p is not None and _above(item) else 1.0 for item in judged])
    for finding, value in zip(judged, adjusted, strict=True):
        if _above(finding) and value <= ALPHA:
            found[finding.metric] = replace(finding, verdict=Verdict.WATCH)
    return found


def judge_windows(
    edges: Mapping[str, tuple[float, ...]],
    reference: Counts,
    current: Counts,
    previous: Counts,
    *,
    least_reference: int = LEAST_REFERENCE,
) -> dict[str, Finding]:
    """Each metric of a window after another: a second one beyond makes a WATCH a DRIFT."""
    now = judge_window(edges, reference, current, least_reference=least_reference)
    suspects = {metric for metric, finding in now.items() if finding.beyond}
    if not suspects:
        return now
    earlier = judge_window(edges, reference, previous, least_reference=least_reference, brief=True)
    return {
        metric: confirm(finding) if metric in suspects and earlier[metric].beyond else finding
        for metric, finding in now.items()
    }


def confirm(finding: Finding) -> Finding:
    """The finding of a window whose metric was beyond in the window before, too."""
    return replace(finding, verdict=Verdict.DRIFT)


def _above(finding: Finding) -> bool:
    return finding.psi is not None and finding.threshold is not None and finding.psi > finding.threshold


_WORST = (Verdict.TOO_FEW, Verdict.OK, Verdict.WATCH, Verdict.DRIFT)


def worst(verdicts: list[Verdict]) -> Verdict | None:
    """The worst of some verdicts; None of none."""
    return max(verdicts, key=_WORST.index, default=None)
