"""An evaluation as a picture: a bar with its interval for each metric, model against teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgegen.common.files import replacing
from edgegen.records.evaluation import Evaluation, Metric

PICTURE = "evaluation.png"
_MOST = 40
_COLORS = {"model": "#4878a8", "teacher": "#b0b0b0"}


def draw_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Draw it; metrics in [0, 1] share an axis, as do those in [-1, 1]; each other one has its own."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [metric for metric in evaluation.metrics if metric.model is not None][:_MOST]
    shares = [metric for metric in shown if _is_within(metric, 0)]
    signed = [metric for metric in shown if metric not in shares and _is_within(metric, -1)]
    others = [metric for metric in shown if metric not in shares and metric not in signed]
    parts = [part for part in (shares, signed, *([metric] for metric in others)) if part]
    if not parts:
        parts = [[]]
    heights = [0.42 * len(part) + 0.35 for part in parts]
    with matplotlib.rc_context({"font.size": 9.0}):
        figure = Figure(figsize=(8.0, max(2.0, sum(heights) + 0.6)), layout="constrained")
        axes = figure.subplots(len(parts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axis, part in zip(axes, parts, strict=True):
            _draw(axis, part, evaluation)
            if part is shares or part is signed:
                axis.set_xlim(0.0 if part is shares else -1.0, 1.0)
        who = evaluation.model.source + (f" against {evaluation.teacher.source}" if evaluation.teacher else "")
        figure.suptitle(who if len(who) < 90 else "…" + who[-90:], fontsize=10)
        if evaluation.teacher:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", fontsize=8, ncols=2)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _draw(axis: Any, part: list[Metric], evaluation: Evaluation) -> None:
    sides = ["model", *(["teacher"] if evaluation.teacher else [])]
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        found = [getattr(metric, side) for metric in part]
        kept = [(place, at) for place, at in enumerate(found) if at is not None and math.isfinite(at.value)]
        places = [place - 0.4 + width * (number + 0.5) for place, _ in kept]
        values = [at.value for _, at in kept]
        low = [max(0.0, at.value - at.low) for _, at in kept]
        high = [max(0.0, at.high - at.value) for _, at in kept]
        axis.barh(places, values, height=width, color=_COLORS[side], label=side)
        axis.errorbar(values, places, xerr=[low, high], fmt="none", ecolor="#303030", elinewidth=1, capsize=2)
    axis.set_yticks(range(len(part)), [_label(metric) for metric in part])
    axis.set_ylim(len(part) - 0.5, -0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _label(metric: Metric) -> str:
    apart = metric.difference is not None and not metric.difference.low <= 0 <= metric.difference.high
    return metric.name + (" *" if apart else "")


def _is_within(metric: Metric, low: float) -> bool:
    """Whether all that is drawn lies in [low, 1]."""
    sides = [side for side in (metric.model, metric.teacher) if side is not None]
    return all(side.low >= low - 1e-9 and side.high <= 1 + 1e-9 for side in sides)
