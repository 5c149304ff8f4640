"""The trade-off as a drawing: artifact bytes against KL, the chosen plan, the budgets, the 16-bit original.

matplotlib draws it (imported inside functions: the device side has none). The figure is made without
pyplot, so there is no global state; ids come from a fixed salt and no date is written, so equal records
give equal bytes. Colours are placeholders that become the page's CSS variables: one drawing serves light,
dark and print.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from typing import Any

from markupsafe import escape

from edgegen.receipt.shown import show
from edgegen.records.plan import Plan
from edgegen.records.report import Interval, Report

_INK, _MUTED, _LINE, _ACCENT, _PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent", _PAPER: "paper"}
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def front_svg(report: Report, plan: Plan, *, narrow: bool) -> str:
    """The Pareto front as an `<svg>` element with an accessible name.

    Args:
        report: gives the measured point, if quality was measured.
        plan: its front must hold at least one point.
        narrow: draw for a phone's width instead of a desktop's.
    """
    import matplotlib
    from matplotlib.figure import Figure

    name = "narrow" if narrow else "wide"
    style = {"svg.fonttype": "none", "svg.hashsalt": f"edgegen-{name}", "font.size": 9.0}
    # Metadata that matplotlib writes by itself holds a date and its own address; None leaves each out.
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.9, 3.5) if narrow else (8.2, 3.9), layout="constrained")
        _draw(figure.add_subplot(), report, plan, narrow=narrow)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return _embedded(buffer.getvalue(), name, describe_front(report, plan))


def describe_front(report: Report, plan: Plan) -> str:
    """The drawing in words, for who cannot see it."""
    word = _distance_of(plan)
    text = (
        f"Plot of artifact size against {'KL divergence' if word == 'KL' else word}, both logarithmic: "
        f"{len(plan.front)} plans that no other beats. The chosen plan has {show(plan.prediction.bytes, 'bytes')} and "
        f"{word} {show(plan.prediction.kl)}, predicted; at 16 bits it is {show(plan.baseline.bytes, 'bytes')}."
    )
    measured = _measured(report)
    if measured is not None:
        text += f" Measured: {show(report.artifact_bytes, 'bytes')}, {word} {show(measured.value)}."
    if plan.budgets.max_bytes is not None:
        text += f" Size budget: {show(plan.budgets.max_bytes, 'bytes')}."
    limit = _limit(plan)
    if limit is not None:
        text += f" {word} budget: {show(limit)}."
    return text


def _distance_of(plan: Plan) -> str:
    return "1 - cosine" if plan.summary.task == "encoder" else "KL"


def _limit(plan: Plan) -> float | None:
    """The budget on distance to the original."""
    return plan.budgets.max_kl if plan.budgets.min_cosine is None else 1 - plan.budgets.min_cosine


def _measured(report: Report) -> Interval | None:
    """Distance to the original: KL, or 1 - cosine similarity."""
    if report.vectors is not None:
        cosine = report.vectors.cosine
        return Interval(value=1 - cosine.value, low=1 - cosine.high, high=1 - cosine.low)
    return report.quality.kl if report.quality is not None else None


def _draw(axes: Any, report: Report, plan: Plan, *, narrow: bool) -> None:
    front = sorted((point.bytes, point.kl) for point in plan.front if math.isfinite(point.kl))
    chosen = (plan.prediction.bytes, plan.prediction.kl)
    interval, limit = _measured(report), _limit(plan)
    budgets = plan.budgets
    kls = [kl for _, kl in front] + [chosen[1], plan.baseline.kl, limit or 0.0]
    kls += [interval.value, interval.low] if interval is not None else []
    positive = [kl for kl in kls if math.isfinite(kl) and kl > 0] or [1e-3]
    # A logarithmic axis has no zero: what is 0 (or below, as an interval's end may be) stands on the floor.
    floor, ceiling = min(positive) / 2.5, max(positive) * 2

    def lifted(kl: float) -> float:
        return max(kl, floor)

    sizes = [size for size, _ in front] + [chosen[0], report.artifact_bytes, plan.baseline.bytes]
    sizes += [budgets.max_bytes] if budgets.max_bytes is not None else []
    sizes = [size for size in sizes if size > 0] or [1]
    left, right = max(1.0, min(sizes) / 1.15), max(sizes) * 1.25
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(floor, ceiling))

    if budgets.max_bytes is not None:
        axes.axvspan(min(budgets.max_bytes, right), right, color=_MUTED, alpha=0.09, linewidth=0)
        axes.axvline(budgets.max_bytes, color=_MUTED, linestyle="--", linewidth=1.1, label="size budget")
    if limit is not None:
        axes.axhspan(min(limit, ceiling), ceiling, color=_MUTED, alpha=0.09, linewidth=0)
        axes.axhline(limit, color=_MUTED, linestyle=":", linewidth=1.4, label=f"{_distance_of(plan)} budget")
    axes.plot(
        [size for size, _ in front],
        [lifted(kl) for _, kl in front],
        color=_MUTED, marker="o", markersize=3.6, linewidth=1.2, label="best plans",
    )  # fmt: skip
    axes.plot(
        plan.baseline.bytes, lifted(plan.baseline.kl),
        color=_INK, marker="s", markersize=7, linestyle="none", label="16 bits", clip_on=False, zorder=5,
    )  # fmt: skip
    axes.plot(
        chosen[0], lifted(chosen[1]),
        color=_ACCENT, marker="D", markersize=12, linestyle="none", label="chosen, predicted", zorder=6,
    )  # fmt: skip
    if interval is not None and math.isfinite(interval.value):
        value = lifted(interval.value)
        spread = [[max(0.0, value - lifted(interval.low))], [max(0.0, interval.high - value)]]
        axes.errorbar(
            report.artifact_bytes, value, yerr=spread,
            color=_INK, marker="o", markersize=5.5, markerfacecolor=_PAPER, markeredgewidth=1.5,
            linestyle="none", capsize=3, label="measured", zorder=7,
        )  # fmt: skip
    _decorate(axes, _distance_of(plan), narrow=narrow)


def _decorate(axes: Any, distance: str, *, narrow: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    ends = ((axes.xaxis, axes.get_xlim(), 5 if narrow else 9), (axes.yaxis, axes.get_ylim(), 6))
    for axis, (low, high), most in ends:
        axis.set_ticks(_ticks(low, high, most))
        axis.set_minor_locator(NullLocator())
    # Written by our own formatters: matplotlib's would typeset powers, which costs a path a digit.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: re.sub(r"\.0+ ", " ", show(size, "bytes"))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda kl, _: f"{kl:g}"))
    axes.set_xlabel("artifact size", color=_MUTED)
    axes.set_ylabel("KL, nats per token" if distance == "KL" else distance, color=_MUTED)
    axes.grid(color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0, pad=5)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2 if narrow else 6, frameon=False,
        labelcolor=_INK, handlelength=1.6, columnspacing=1.3, handletextpad=0.5,
    )  # fmt: skip


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values between two positive limits, at most `most`: all steps of a decade, or ever fewer."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in (_STEPS, (1.0, 2.0, 4.0), (1.0, 3.0), (1.0,)):
        found = [float(f"{step}e{decade}") for decade in decades for step in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _embedded(svg: str, name: str, description: str) -> str:
    """Make matplotlib's file an element of the page: named, sized by CSS, coloured by it, ids of its own."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="plot {name}" role="img" aria-label="{escape(description)}" {box[0] if box else ""}>'
    return head + svg[svg.index(">") + 1 :]
