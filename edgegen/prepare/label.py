"""Programmatic labels: small functions that each know something, and how far they agree.

A function sees a row's text and says a label or nothing. The label with the most votes wins; where two have as many
the row stays without one. Where people have labelled rows too, each function is judged against them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgegen.errors import ConfigError
from edgegen.prepare.stage import Stage, text_of
from edgegen.records.base import Record
from edgegen.records.dataset import Label, Row
from edgegen.records.recipe import Labels

Function = Callable[[str], str | None]


class FunctionReport(Record, frozen=True):
    """How one labelling function did."""

    name: str
    coverage: float
    """Share of rows that it labels."""
    overlaps: float
    """Share of rows that it and another label."""
    conflicts: float
    """Share of rows where another says otherwise."""
    accuracy: float | None = None
    """On rows that a person labelled; None without any."""
    judged: int = 0


class Agreement(Record, frozen=True):
    """How two functions agree where both speak."""

    one: str
    other: str
    rows: int
    kappa: float | None
    """Cohen's (1960); None where one answer is all there is."""


class LabelReport(Record, frozen=True):
    """Of all functions."""

    labelled: int
    tied: int
    unlabelled: int
    functions: tuple[FunctionReport, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    counts: dict[str, int] = {}


def load_functions(wanted: Labels) -> dict[str, Function]:
    """Name → function.

    Raises:
        ConfigError: a pattern that is none, a function that cannot be found, a name twice.
    """
    found: dict[str, Function] = {}
    for rule in wanted.rules:
        try:
            pattern = re.compile(rule.pattern, re.IGNORECASE)
        except re.error as error:
            raise ConfigError(f"label rule {rule.name!r}: {error}") from error
        _add(found, rule.name, functools.partial(_by_pattern, pattern, rule.label))
    for reference in wanted.functions:
        _add(found, reference.rpartition(":")[2], _load(reference))
    return found


def _by_pattern(pattern: re.Pattern[str], label: str, text: str) -> str | None:
    return label if pattern.search(text) else None


def _add(found: dict[str, Function], name: str, function: Function) -> None:
    if name in found:
        raise ConfigError(f"two labelling functions are called {name!r}")
    found[name] = function


def _load(reference: str) -> Function:
    place, _, name = reference.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        function = getattr(module, name)
    except Exception as error:  # the user's own code raises what it likes
        raise ConfigError(
            f"labelling function {reference!r} cannot be loaded: {error}", hint="Write it like labels.py:is_greeting."
        ) from error
    if not callable(function):
        raise ConfigError(f"labelling function {reference!r} is no function")
    loaded: Function = function
    return loaded


def label_rows(rows: Sequence[Row], wanted: Labels) -> tuple[Stage, LabelReport]:
    """Label rows by vote; a person's label stays.

    Raises:
        ConfigError: a function that fails, or says something else than text.
    """
    functions = load_functions(wanted)
    votes = [_votes(functions, row) for row in rows]
    kept, tied, changed = [], 0, 0
    for row, said in zip(rows, votes, strict=True):
        ranked = Counter(said.values()).most_common(2)
        if wanted.key in row.labels or not ranked:
            kept.append(row)
            continue
        if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
            tied += 1
            kept.append(row)
            continue
        value, count = ranked[0]
        by = ", ".join(name for name, label in said.items() if label == value)
        label = Label(value=value, by=by, confidence=count / len(said))
        changed += 1
        kept.append(
            msgspec.structs.replace(row, labels={**row.labels, wanted.key: label}, touched=(*row.touched, "label"))
        )
    counts = Counter(row.labels[wanted.key].value for row in kept if wanted.key in row.labels)
    report = LabelReport(
        labelled=sum(counts.values()),
        tied=tied,
        unlabelled=len(rows) - sum(counts.values()),
        functions=tuple(_judged(name, rows, votes, wanted.key) for name in functions),
        agreements=tuple(
            _agreement(one, other, votes) for i, one in enumerate(functions) for other in list(functions)[i + 1 :]
        ),
        counts=dict(counts.most_common()),
    )
    return Stage(kept, changed=changed), report


def _votes(functions: dict[str, Function], row: Row) -> dict[str, str]:
    said: dict[str, str] = {}
    text = row.messages[0][1] if row.completion else text_of(row)  # of a request, not of its answer
    for name, function in functions.items():
        try:
            value = function(text)
        except Exception as error:
            raise ConfigError(f"labelling function {name!r} failed on row {row.source}: {error}") from error
        if value is not None:
            if not isinstance(value, str):
                raise ConfigError(f"labelling function {name!r} gives {type(value).__name__}, not text or None")
            said[name] = value
    return said


def _judged(name: str, rows: Sequence[Row], votes: Sequence[dict[str, str]], key: str) -> FunctionReport:
    mine = [said for said in votes if name in said]
    beside = [said for said in mine if len(said) > 1]
    against = [said for said in beside if any(value != said[name] for value in said.values())]
    human = [(said[name], row.labels[key].value) for row, said in zip(rows, votes, strict=True)
             if name in said and key in row.labels]  # fmt: skip
    total = max(1, len(rows))
    return FunctionReport(
        name=name,
        coverage=len(mine) / total,
        overlaps=len(beside) / total,
        conflicts=len(against) / total,
        accuracy=sum(a == b for a, b in human) / len(human) if human else None,
        judged=len(human),
    )


def _agreement(one: str, other: str, votes: Sequence[dict[str, str]]) -> Agreement:
    both = [(said[one], said[other]) for said in votes if one in said and other in said]
    return Agreement(one=one, other=other, rows=len(both), kappa=kappa(both))


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa: (agreement - agreement by chance) / (1 - agreement by chance); None where chance is all."""
    if not pairs:
        return None
    observed = sum(a == b for a, b in pairs) / len(pairs)
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(left[label] * right[label] for label in left) / len(pairs) ** 2
    return (observed - chance) / (1 - chance) if chance < 1 else None
