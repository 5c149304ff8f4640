"""An explanation as a picture: words from left to right, a row for each side and method, red for and blue against."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgegen.common.files import replacing
from edgegen.records.explanation import Explained, Explanation

PICTURE = "explanation.png"
_LINE = 14
"""Words in a row of the picture."""


def draw_explanation(explanation: Explanation, path: Path) -> None:
    """Draw it. Each row has its own scale, since methods do; a ring marks words without which the answer changes."""
    import matplotlib
    from matplotlib.figure import Figure

    rows: list[tuple[str, Explained, tuple[float, ...]]] = []
    for side in (explanation.model, explanation.against):
        if side is not None:
            rows += [(f"{side.judged.runtime}: {a.method}", side, a.scores) for a in side.attributions]
    lines = [range(at, min(at + _LINE, len(explanation.words))) for at in range(0, len(explanation.words), _LINE)]
    with matplotlib.rc_context({"font.size": 8.0}):
        figure = Figure(figsize=(11.0, 1.1 + len(lines) * (0.45 * len(rows) + 0.55)), layout="constrained")
        axes = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
        for axis, places in zip(axes, lines, strict=True):
            table = np.full((len(rows), _LINE), np.nan)
            for number, (_, side, scores) in enumerate(rows):
                largest = max(map(abs, scores)) or 1.0
                table[number, : len(places)] = [scores[place] / largest for place in places]
                changing = {
                    edit.word for edit in side.edits if not edit.put and _matters(edit.changed, edit.call_changed)
                }
                for column, place in enumerate(places):
                    mark = "○" if place in changing else ""
                    axis.text(column, number, f"{scores[place]:+.2f}{mark}", ha="center", va="center", fontsize=7)
            axis.imshow(table, cmap="RdBu_r", vmin=-1.6, vmax=1.6, aspect="auto")
            axis.set_xticks(range(len(places)), [_short(explanation.words[place]) for place in places])
            axis.xaxis.tick_top()
            axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
        figure.suptitle(
            f"nats of “{_short(explanation.answer.replace(chr(10), ' '), 90)}”;  "
            "○ without the word the answer (or its call) changes",
            fontsize=9,
            parse_math=False,
        )
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _matters(changed: bool, call_changed: bool | None) -> bool:
    return changed if call_changed is None else call_changed


def _short(text: str, most: int = 14) -> str:
    """Cut, and without what matplotlib would set as a formula."""
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return shown.replace("$", r"\$")
