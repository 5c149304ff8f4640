"""A window of answers against a reference, and the window before it → a verdict for each metric.

The metrics of one release in one group are one family: their p-values are adjusted (Benjamini and Hochberg 1995) before
they are compared with `ALPHA`. So without a shift at most one window in a hundred shows anything beyond, in whichever
metric; that is a WATCH. A DRIFT needs the same metric beyond in the window before as well. The two are independent but
for the reference that they share, so its alarms are rarer than one in a hundred windows, and for large references
about one in ten thousand over the number of metrics; the floors make both rarer still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgegen.fleet.drift.measures import benjamini_hochberg, jensen_shannon, psi, wasserstein
from edgegen.fleet.drift.thresholds import ALPHA, LEAST_N, LEAST_REFERENCE, chance_threshold, permutation_p
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
    """Adjusted over the family."""

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
    always_p: bool = True,
) -> dict[str, Finding]:
    """Each metric of one window: OK, WATCH or n too small.

    Args:
        edges: of the metrics that are judged.
        reference: counts over the same edges; a metric that it lacks is left out.
        current: of the window; one that it lacks has no answers.
        always_p: work out p-values even where no metric is beyond its threshold, which they cannot change.
    """
    found: dict[str, Finding] = {}
    for metric, bounds in edges.items():
        before = reference.get(metric)
        if before is None:
            continue
        now = current.get(metric, (0,) * len(before))
        n = sum(now)
        if n < LEAST_N or sum(before) < least_reference:
            found[metric] = Finding(metric, n, Verdict.TOO_FEW)
            continue
        found[metric] = Finding(
            *(metric, n, Verdict.OK),
            psi=psi(before, now),
            js=jensen_shannon(before, now),
            wasserstein=wasserstein(before, now, bounds),
            threshold=chance_threshold(before, n),
        )
    judged = [finding for finding in found.values() if finding.verdict is not Verdict.TOO_FEW]
    if not always_p and not any(_above(finding) for finding in judged):
        return found
    p = [permutation_p(reference[finding.metric], current[finding.metric]) for finding in judged]
    for finding, adjusted in zip(judged, benjamini_hochberg(p), strict=True):
        beyond = _above(finding) and adjusted <= ALPHA
        found[finding.metric] = replace(finding, verdict=Verdict.WATCH if beyond else Verdict.OK, p=adjusted)
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
    earlier = judge_window(edges, reference, previous, least_reference=least_reference, always_p=False)
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
