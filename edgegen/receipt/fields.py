"""Numbers with their origin: each shown value carries the path of the JSON number that it rounds.

The template never formats a record's number itself. It names a path (`quality.kl.value` in `report.json`,
`plan.prediction.bytes` in `plan.json`); the value is looked up by that same path and written with it, so
what is shown and where it claims to come from cannot drift apart.
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from edgegen.receipt.shown import NOT_MEASURED, Kind, show, visible
from edgegen.records.plan import Plan
from edgegen.records.report import Report


class Fields:
    """Looks values up in a report and its plan and marks up what it shows."""

    def __init__(self, report: Report, plan: Plan | None) -> None:
        self._report = report
        self._plan = plan

    def value(self, path: str) -> Any:
        """The record's value at a dotted path; None as soon as something on the way is None.

        Raises:
            AttributeError, KeyError, IndexError: the records have no such field (an error in the template).
        """
        steps = path.split(".")
        here: Any = self._report
        if steps[0] == "plan":
            here, steps = self._plan, steps[1:]
        for place, step in enumerate(steps):
            if here is None:
                return None
            if isinstance(here, dict):  # of numbers; a key may hold dots
                return here[".".join(steps[place:])]
            here = here[int(step)] if isinstance(here, tuple) else getattr(here, step)
        return here

    def number(self, path: str, kind: Kind = "number", suffix: str = "", missing: str = NOT_MEASURED) -> Markup:
        """The value at `path`, rounded, with `data-path` and the full-precision `data-value`.

        `data-value` is empty where there is no finite number (JSON has null there).
        """
        value = self.value(path)
        exact = f"{value:,} bytes" if kind == "bytes" and isinstance(value, int) else ""
        return _mark("data-path", path, value, show(value, kind, suffix, missing), exact)

    def quotient(self, over: str, *under: str, times: int = 1, kind: Kind = "number", suffix: str = "") -> Markup:
        """`times` x the value at `over`, divided by the values at `under`; `data-derived` holds the formula.

        "not measured" when a value is missing or a divisor is 0.
        """
        formula = " / ".join([over if times == 1 else f"{times} * {over}", *under])
        parts = [self.value(path) for path in (over, *under)]
        value = None
        if all(part is not None for part in parts) and all(parts[1:]):
            value = times * parts[0]
            for part in parts[1:]:
                value /= part
        return _mark("data-derived", formula, value, show(value, kind, suffix), "")

    def exponential(self, path: str) -> Markup:
        """e to the value at `path`: a log ratio as a ratio."""
        value = self.value(path)
        power = None if value is None else math.exp(min(value, 700.0))  # beyond, exp overflows a double
        return _mark("data-derived", f"exp({path})", power, show(power), "")


def _mark(attribute: str, path: str, value: float | None, text: str, exact: str) -> Markup:
    finite = value is not None and math.isfinite(value)
    title = Markup(' title="{}"').format(exact) if exact else Markup("")
    exactly = repr(value) if finite else ""
    return Markup('<span class="{}" {}="{}" data-value="{}"{}>{}</span>').format(
        "num" if finite else "none", Markup(attribute), visible(path), exactly, title, visible(text)
    )
