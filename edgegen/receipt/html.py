"""Write the receipt: one HTML file with its styles and drawings inside.

The page holds text that a model wrote, so it is treated as hostile three times over: the template escapes
everything, `shown.visible` spells out characters that act, and a content security policy in the page
forbids scripts and every request even if both should fail.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgegen.common.files import write_text
from edgegen.receipt import gridmap, plots, view
from edgegen.receipt.fields import Fields
from edgegen.receipt.shown import show, show_date, visible
from edgegen.records.plan import Plan
from edgegen.records.report import Report


def render_receipt(report: Report, plan: Plan | None) -> str:
    """The receipt as one self-contained HTML document.

    Pure: equal records give equal text. The plot needs matplotlib; where it is not installed the page says
    so in its place, and the table under it still holds the numbers.

    Args:
        report: what was measured.
        plan: what was decided and predicted; without it the page says which parts are missing.
    """
    fields = Fields(report, plan)
    budgets, others = view.check_rows(report)
    return (
        environment()
        .get_template("receipt.html.j2")
        .render(
            report=report,
            plan=plan,
            n=fields.number,
            quotient=fields.quotient,
            exponential=fields.exponential,
            budgets=budgets,
            others=others,
            verdict_line=view.verdict_line(report),
            metrics=view.VECTOR_METRICS if report.model_task == "encoder" else view.METRICS,
            words=view.WORDS[report.model_task],
            notes=view.all_notes(report, plan),
            date=show_date(report.created),
            drawings=_drawings(report, plan),
            front=gridmap.shown_front(plan) if plan else [],
            map=gridmap.grid_map(plan) if plan else None,
        )
    )


def write_receipt(path: Path, report: Report, plan: Plan | None) -> None:
    """Write the receipt to `path`, whole or not at all.

    Raises:
        DeviceError: the disk cannot take it.
        ConfigError: no permission to write there.
    """
    write_text(path, render_receipt(report, plan))


def _drawings(report: Report, plan: Plan | None) -> list[Markup]:
    """The front, wide and narrow: one drawing shrunk to a phone would have unreadable labels."""
    if plan is None or not plan.front or not plots.available():
        return []
    return [Markup(plots.front_svg(report, plan, narrow=narrow)) for narrow in (False, True)]


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Autoescape for every template, whatever its suffix; a misspelt name is an error, not an empty place."""
    environment = Environment(
        loader=PackageLoader("edgegen.receipt", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.globals["show"] = show
    return environment


def _harmless(value: Any) -> Any:
    """Spell out acting characters in every string that a template prints, unless it is finished markup."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
