"""Two answers to the same prompt beside each other, or under each other where it is narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from edgegen.monitor.ink import Line, Piece, fit
from edgegen.monitor.plain import plain
from edgegen.monitor.shown import digest, moment
from edgegen.monitor.widgets.worddiff import diff_lines
from edgegen.records.monitor import CanaryRow

_BESIDE = 84
"""Cells from which on there are two columns."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What is compared."""

    old_title: str
    new_title: str
    old: str
    new: str
    prompt: str = ""


def pairs_of(rows: Sequence[CanaryRow]) -> list[Pair]:
    """The last run of each golden prompt with the older release against that with the newer one.

    The newer release is the one that ran last.
    """
    last: dict[str, float] = {}
    for row in rows:
        last[row.release] = max(row.at_s, last.get(row.release, row.at_s))
    releases = sorted(last, key=lambda release: last[release])[-2:]
    if len(releases) < 2:
        return []
    old, new = (
        {row.prompt: row for row in sorted(rows, key=lambda r: r.at_s) if row.release == release}
        for release in releases
    )
    return [
        Pair(_title(old[prompt]), _title(new[prompt]), old[prompt].text, new[prompt].text, f"golden prompt #{prompt}")
        for prompt in sorted(old.keys() & new.keys())
    ]


def _title(row: CanaryRow) -> str:
    return f"{digest(row.release)} {moment(row.at_s)}, {row.agreed}/{row.expected} as expected"


def comparison_lines(pairs: Sequence[Pair], width: int, *, masked: bool) -> list[Line]:
    """Lines for all pairs."""
    if masked:
        return [[(" texts are hidden (m shows them)", "dim")]]
    lines: list[Line] = []
    for pair in pairs:
        same = pair.old == pair.new
        lines.append(
            [
                (" = " if same else " ≠ ", "ok" if same else "warn"),
                (pair.prompt, "bold"),
                ("  same" if same else "", "dim"),
            ]
        )
        if width >= _BESIDE:
            lines += _beside(pair, width)
        else:
            lines += _under(pair, width)
        lines.append([])
    return lines or [[(" nothing to compare", "dim")]]


def _beside(pair: Pair, width: int) -> list[Line]:
    room = (width - 5) // 2
    old, new = diff_lines(pair.old, pair.new, room)
    lines: list[Line] = [
        [
            (" " + fit(plain("old " + pair.old_title), room), "dim"),
            (" │ ", "dim"),
            (fit(plain("new " + pair.new_title), room), "dim"),
        ]
    ]
    nothing: list[Piece] = []
    for left, right in zip_longest(old, new, fillvalue=nothing):
        lines.append([(" ", ""), *_padded(left, room), (" │ ", "dim"), *right])
    return lines


def _under(pair: Pair, width: int) -> list[Line]:
    old, new = diff_lines(pair.old, pair.new, width - 3)
    lines: list[Line] = [[(" old " + pair.old_title, "dim")]]
    lines += [[("  ", ""), *line] for line in old]
    lines.append([(" new " + pair.new_title, "dim")])
    return [*lines, *([("  ", ""), *line] for line in new)]


def _padded(line: Sequence[Piece], width: int) -> list[Piece]:
    from rich.cells import cell_len

    used = sum(cell_len(plain(text)) for text, _ in line)
    return [*line, (" " * max(0, width - used), "")]
