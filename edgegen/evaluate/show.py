"""An evaluation in lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterator

from edgegen.records.evaluation import Evaluation
from edgegen.records.report import Interval


def evaluation_lines(evaluation: Evaluation) -> Iterator[str]:
    """A table of the metrics, the gates, and notes."""
    width = max([len(metric.name) for metric in evaluation.metrics] + [12]) + 2
    against = evaluation.teacher is not None
    head = f"{'':{width}}{'model':28}" + (f"{'teacher':28}difference" if against else "")
    suite = ""
    for metric in evaluation.metrics:
        if metric.suite != suite:
            suite = metric.suite
            yield f"{suite:{width}}{head[width:]}".rstrip()
        line = f"{metric.name:{width}}{_shown(metric.model):28}"
        if against:
            line += f"{_shown(metric.teacher):28}{_shown(metric.difference, sign=True)}"
            if metric.difference is not None and not metric.difference.low <= 0 <= metric.difference.high:
                line += " *"
        yield line.rstrip()
    if against:
        yield "* the 95 % interval of the difference does not hold 0"
    for gate in evaluation.gates:
        yield f"{'✓' if gate.passed else '✗'} {gate.name} {gate.limit:g}: {gate.metric} {gate.detail}"
    for note in dict.fromkeys(evaluation.notes):
        yield f"! {note}"


def _shown(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return "–"
    form = "+.3g" if sign else ".3g"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
