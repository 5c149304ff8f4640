"""What devices report, in Prometheus' text format: sums by group and release, never names of devices.

Times and speeds are histograms, so that Prometheus can give a quantile of any window and any set of groups:
`histogram_quantile(0.95, sum by (le, release) (rate(edgegen_ttft_seconds_bucket[15m])))`. A release that the server
does not know is `other`: a device cannot make up names of series.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from edgegen.fleet.telemetry.ingest import SPEED_EDGES, TTFT_EDGES_S
from edgegen.fleet.transaction import Transaction

_COUNTERS = (
    ("generations", "edgegen_generations_total", "Answers."),
    ("errors", "edgegen_generation_errors_total", "Answers that failed."),
    ("prompt_tokens", "edgegen_prompt_tokens_total", "Tokens of prompts."),
    ("answer_tokens", "edgegen_answer_tokens_total", "Tokens of answers."),
)
_HISTOGRAMS = (
    ("ttft", "ttft_s", "edgegen_ttft_seconds", "Seconds to an answer's first token.", TTFT_EDGES_S),
    ("speed", "speed", "edgegen_tokens_per_second", "Tokens a second of an answer.", SPEED_EDGES),
)
_BY_GROUP: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        *("edgegen_reports_total", "Reports that came: stored, known from before, refused."),
        *("outcome", {"stored": "stored", "known": "known", "refused": "refused"}),
    ),
    ("edgegen_dropped_reports_total", "Reports that devices had to give up.", "", {"dropped": ""}),
    ("edgegen_feedback_total", "Ratings of answers.", "rating", {"thumbs_up": "good", "thumbs_down": "bad"}),
)
_Sums = dict[tuple[str, str], dict[str, float]]
"""(group, release's digest or empty) → name → sum."""


def describe_reports(tx: Transaction) -> str:
    """Every series that has a value."""
    sums: _Sums = defaultdict(dict)
    for row in tx.rows("SELECT grp, release, name, value FROM totals ORDER BY grp, release"):
        sums[row["grp"], row["release"]][row["name"]] = row["value"]
    names = {
        row["digest"]: f"{row['name']}@{row['version']}"
        for row in tx.rows("SELECT digest, name, version FROM releases")
    }

    def labels(group: str, digest: str) -> str:
        return f'group="{_escaped(group)}",release="{_escaped(names.get(digest, "other"))}"'

    lines: list[str] = []
    for key, metric, text in _COUNTERS:
        lines += _family(metric, "counter", text, _counter(metric, key, sums, labels))
    for key, total, metric, text, edges in _HISTOGRAMS:
        lines += _family(metric, "histogram", text, _histogram(metric, (key, total), edges, sums, labels))
    for metric, text, label, keys in _BY_GROUP:
        lines += _family(metric, "counter", text, _of_groups(metric, label, keys, sums))
    return "\n".join(lines) + "\n" if lines else ""


def _family(metric: str, kind: str, text: str, series: Iterator[str]) -> list[str]:
    found = list(series)
    return [f"# HELP {metric} {text}", f"# TYPE {metric} {kind}", *found] if found else []


def _counter(metric: str, key: str, sums: _Sums, labels: Callable[[str, str], str]) -> Iterator[str]:
    for of, values in _summed(sums, labels):
        if "generations" in values:
            yield f"{metric}{{{of}}} {values.get(key, 0):.0f}"


def _histogram(
    metric: str, keys: tuple[str, str], edges: Sequence[float], sums: _Sums, labels: Callable[[str, str], str]
) -> Iterator[str]:
    key, total = keys
    for of, values in _summed(sums, labels):
        if total not in values:
            continue
        below = 0.0
        for number, edge in enumerate((*map(str, edges), "+Inf")):
            below += values.get(f"{key}:{number}", 0)
            yield f'{metric}_bucket{{{of},le="{edge}"}} {below:.0f}'
        yield f"{metric}_sum{{{of}}} {values[total]:.6f}"
        yield f"{metric}_count{{{of}}} {below:.0f}"


def _summed(sums: _Sums, labels: Callable[[str, str], str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Sums by their labels: two digests of one name and version are one series."""
    by_labels: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (group, digest), values in sums.items():
        for name, value in values.items():
            by_labels[labels(group, digest)][name] += value
    yield from by_labels.items()


def _of_groups(metric: str, label: str, keys: dict[str, str], sums: _Sums) -> Iterator[str]:
    for (group, digest), values in sums.items():
        if digest:
            continue
        for key, shown in keys.items():
            if key in values:
                more = f',{label}="{shown}"' if label else ""
                yield f'{metric}{{group="{_escaped(group)}"{more}}} {values[key]:.0f}'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
