"""Bytes against KL: other tools' files and edgegen's, a panel for each model and runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgegen.common.units import format_bytes
from peers.points import OURS, Point, front


def draw(points: Sequence[Point], out: Path) -> None:
    """Write an SVG that is the same for the same points; nothing where nothing was scored."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    scored = [point for point in points if point.quality]
    panels = list(dict.fromkeys((point.model, point.target) for point in scored))
    if not panels:
        return
    models = list(dict.fromkeys(model for model, _ in panels))
    targets = list(dict.fromkeys(target for _, target in panels))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgegen-peers", "font.size": 9.0}):
        figure = Figure(figsize=(4.0 * len(targets), 3.3 * len(models)), layout="constrained")
        grid = figure.subplots(len(models), len(targets), squeeze=False)
        for row, model in enumerate(models):
            for column, target in enumerate(targets):
                axes = grid[row][column]
                here = [p for p in scored if (p.model, p.target) == (model, target)]
                for tool in sorted({p.tool for p in here}, key=lambda name: (name == OURS, name)):
                    mine = [p for p in here if p.tool == tool]
                    colour = (
                        "C3"
                        if tool == OURS
                        else f"C{('llama.cpp', 'AutoRound').index(tool) if target == 'gguf' else 0}"
                    )
                    axes.plot(
                        [p.bytes for p in mine], [p.kl for p in mine], "o", color=colour, markersize=3.5, alpha=0.6
                    )
                    best = front(mine)
                    axes.plot([p.bytes for p in best], [p.kl for p in best], color=colour, linewidth=1.3, label=tool)
                axes.set(xscale="log", yscale="log", title=f"{model}, {target}")
                axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: format_bytes(size)))
                axes.xaxis.set_minor_formatter(NullFormatter())
                if here:
                    low, high = min(p.bytes for p in here), max(p.bytes for p in here)
                    axes.set_xticks([low, (low * high) ** 0.5, high])
                axes.set_xlabel("model files")
                axes.set_ylabel("KL, nats per token")
                axes.grid(linewidth=0.4, alpha=0.5)
                if here:
                    axes.legend(frameon=False)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
