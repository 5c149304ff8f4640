"""Predicted against measured speed, before and after learning, as a picture. matplotlib draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgegen.common.files import replacing
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.receipt.plots import available
from edgegen.records.learning import Learning

SUFFIXES = (".svg", ".png", ".pdf")


def require_picture(path: Path) -> None:
    """Refuse early what `save_picture` cannot write.

    Raises:
        ConfigError: a suffix that is none of `SUFFIXES`.
        UnsupportedError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: no picture is written like this", hint="It ends in " + ", ".join(SUFFIXES) + ".")
    if not available():
        raise UnsupportedError("pictures need matplotlib", hint="pip install 'edgegen[compress]'")


def save_picture(path: Path, found: Learning) -> None:
    """Draw a learning's points: on the diagonal, prediction and measurement agree.

    Raises:
        ConfigError, UnsupportedError: as `require_picture`; or there is nothing to draw.
    """
    require_picture(path)
    if not found.points:
        raise ConfigError("no decode speeds were reported, so there is nothing to draw")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "edgegen-learned", "font.size": 9.0}):
        figure = Figure(figsize=(5.4, 4.8), layout="constrained")
        _draw(figure.add_subplot(), found)
        # Neither a date nor a program's name: equal reports give equal bytes.
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=150, metadata=metadata or None)


def _draw(axes: Any, found: Learning) -> None:
    measured = [point.measured for point in found.points]
    both = [*measured, *(p.before for p in found.points), *(p.after for p in found.points)]
    low, high = min(both) / 1.3, max(both) * 1.3
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.fill_between([low, high], [low / 1.15, high / 1.15], [low * 1.15, high * 1.15], color="0.92", linewidth=0)
    axes.plot([low, high], [low, high], color="0.5", linewidth=1)
    for name, values, marker, filled, error in (
        ("before", [p.before for p in found.points], "o", False, found.speed.before),
        ("after", [p.after for p in found.points], "D", True, found.speed.after),
    ):
        axes.plot(
            measured, values, marker=marker, linestyle="none", markersize=6, color="#1f4e79" if filled else "#c05a00",
            markerfacecolor=None if filled else "none", label=f"{name}: error {100 * error:.0f} %",
        )  # fmt: skip
    axes.set_xlabel("measured, tokens a second")
    axes.set_ylabel("predicted, tokens a second")
    axes.set_title(
        f"{found.profile.name}: {found.reports:,} reports of {found.devices} devices (grey: within 15 %)", fontsize=9
    )
    axes.legend(frameon=False)
