"""Read a rendered receipt back: its numbers with their paths, its text, and whether its tags balance."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

_VOID = {"br", "link", "meta", "img", "input", "hr"}
_FACTORS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "%": 0.01}


@dataclass
class Shown:
    """One marked number: where it says it comes from, its full precision, what a reader sees."""

    path: str
    derived: str
    value: str
    text: str = ""


@dataclass
class Page:
    numbers: list[Shown] = field(default_factory=list)
    text: str = ""
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    unbalanced: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.open: list[tuple[str, Shown | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.page.tags.append((tag, values))
        number = None
        if "data-value" in values:
            number = Shown(values.get("data-path") or "", values.get("data-derived") or "", values["data-value"] or "")
            self.page.numbers.append(number)
        if tag not in _VOID:
            self.open.append((tag, number))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1][0] != tag:
            self.page.unbalanced.append(tag)
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if any(tag == "style" for tag, _ in self.open):
            return
        self.page.text += data
        for _, number in self.open:
            if number is not None:
                number.text += data


def read_page(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.page.unbalanced += [tag for tag, _ in reader.open]
    return reader.page


def value_at(tree: dict[str, Any], path: str) -> Any:
    """The JSON value at a dotted path; None once something on the way is null."""
    steps = path.split(".")
    here: Any = tree
    for place, step in enumerate(steps):
        if here is None:
            return None
        if isinstance(here, list):
            here = here[int(step)]
        elif step in here:
            here = here[step]
        else:
            return here[".".join(steps[place:])]
    return here


def formula_value(tree: dict[str, Any], formula: str) -> float | None:
    """`8 * a.b / c.d` or `exp(a.b)` from the JSON alone; None where a part is null or divides by 0."""
    if power := re.fullmatch(r"exp\((.*)\)", formula):
        exponent = value_at(tree, power[1])
        return None if exponent is None else math.exp(exponent)
    times = 1.0
    if product := re.fullmatch(r"(\d+) \* (.*)", formula):
        times, formula = float(product[1]), product[2]
    parts = [value_at(tree, path) for path in formula.split(" / ")]
    if any(part is None for part in parts) or not all(parts[1:]):
        return None
    return times * float(parts[0]) / float(math.prod(parts[1:]))


def shown_number(text: str) -> float:
    """What a reader takes from `5.27 MB`, `91.3 %`, `8.2e-05 nats/token` or `2 min 05 s`."""
    if minutes := re.fullmatch(r"(\d+) min (\d+) s", text):
        return 60.0 * int(minutes[1]) + int(minutes[2])
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * _FACTORS.get(unit.split(" ")[0], 1.0)


def numeric_leaves(tree: Any, prefix: str = "") -> dict[str, float]:
    """Every number in a JSON tree by its dotted path."""
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list):
        pairs = ((str(place), item) for place, item in enumerate(tree))  # type: ignore[assignment]
    else:
        number = isinstance(tree, int | float) and not isinstance(tree, bool)
        return {prefix: tree} if number else {}
    leaves: dict[str, float] = {}
    for key, item in pairs:
        leaves |= numeric_leaves(item, f"{prefix}.{key}" if prefix else key)
    return leaves
