"""The map of number grids: one cell a tensor, blocks down, roles across.

Where a tensor stands is read from its name: what follows the block's number
(`model.layers.3.self_attn.q_proj.weight` → `self_attn.q_proj`) is its column, so that it works for any
family without a list of families. Vectors (norms, biases) weigh next to nothing and would fill the map;
they stand in the full table.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from edgegen.receipt.shown import show
from edgegen.records.plan import FrontPoint, Plan, TensorChoice


@dataclass(frozen=True, slots=True)
class Cell:
    """One tensor on the map."""

    path: str
    """`plan.tensors.12`."""
    choice: TensorChoice
    shade: int
    """Percent of the accent colour, by bits per weight."""
    tip: str


@dataclass(frozen=True, slots=True)
class GridUse:
    """One grid and what is stored in it."""

    name: str
    tensors: int
    bytes: int
    bits_per_weight: float
    shade: int


@dataclass(frozen=True, slots=True)
class GridMap:
    """Rows are blocks, columns are tensor names; a missing tensor is None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    outside: tuple[Cell, ...]
    """Embedding, head and position tables."""
    uses: tuple[GridUse, ...]
    """Every grid of the plan, most bits first."""
    vectors: int
    """Tensors of role `vector`, which the map leaves out."""


def grid_map(plan: Plan) -> GridMap:
    """Arrange a plan's tensors."""
    distance = "1 - cosine" if plan.summary.task == "encoder" else "KL"
    cells = [
        Cell(f"plan.tensors.{index}", choice, _shade(_bits(choice)), _tip(choice, distance))
        for index, choice in enumerate(plan.tensors)
    ]
    drawn = [cell for cell in cells if cell.choice.role != "vector"]
    inside: dict[int, dict[str, Cell]] = {}
    for cell in drawn:
        if cell.choice.layer >= 0:
            inside.setdefault(cell.choice.layer, {})[_place(cell.choice)] = cell
    places = list(dict.fromkeys(place for row in inside.values() for place in row))
    return GridMap(
        columns=tuple(_short_names(places)),
        rows=tuple((layer, tuple(inside[layer].get(place) for place in places)) for layer in sorted(inside)),
        outside=tuple(cell for cell in drawn if cell.choice.layer < 0),
        uses=_uses(plan),
        vectors=len(cells) - len(drawn),
    )


def shown_front(plan: Plan, most: int = 12) -> list[tuple[int, FrontPoint, bool]]:
    """Points for the table under the plot: (index in `plan.front`, point, whether chosen), smallest first.

    A long front is thinned evenly to about `most`; its ends and the chosen plan always stay.
    """
    front = sorted(enumerate(plan.front), key=lambda item: item[1].bytes)
    step = max(1.0, (len(front) - 1) / (most - 1))
    kept = {round(step * place) for place in range(most)}
    chosen = [_is_chosen(point, plan) for _, point in front]
    return [
        (index, point, chosen[place]) for place, (index, point) in enumerate(front) if place in kept or chosen[place]
    ]


def _is_chosen(point: FrontPoint, plan: Plan) -> bool:
    return point.bytes == plan.prediction.bytes and abs(point.kl - plan.prediction.kl) <= 1e-9


def _bits(choice: TensorChoice) -> float:
    """Bits per weight; 0 for an empty tensor."""
    return 8 * choice.bytes / max(1, choice.rows * choice.columns)


def _shade(bits: float) -> int:
    """2 bits → 4 %, 8 bits → 58 %, 16 and more → 66 %: the page's ink keeps 4.5:1 against all of them."""
    if bits <= 8:
        return round(4 + 9 * max(0.0, bits - 2))
    return round(58 + min(1.0, (bits - 8) / 8) * 8)


def _tip(choice: TensorChoice, distance: str) -> str:
    how = " with error compensation" if choice.compensated else ""
    return (
        f"{choice.name} ({choice.rows} × {choice.columns}): {choice.grid}{how}, {show(_bits(choice))} bits per "
        f"weight, {show(choice.bytes, 'bytes')}, {distance} {show(choice.kl)}. {choice.why}"
    )


def _place(choice: TensorChoice) -> str:
    """A tensor's name inside its block, without `.weight`."""
    after = re.split(rf"(?:^|\.){choice.layer}\.", choice.name, maxsplit=1)[-1]
    return after.removesuffix(".weight")


def _short_names(places: list[str]) -> list[str]:
    """The last part of each name, with as many before it as keep the columns apart."""
    last = Counter(place.rsplit(".", 1)[-1] for place in places)
    return [short if last[short := place.rsplit(".", 1)[-1]] == 1 else place for place in places]


def _uses(plan: Plan) -> tuple[GridUse, ...]:
    found: dict[str, list[TensorChoice]] = {}
    for choice in plan.tensors:
        found.setdefault(choice.grid, []).append(choice)
    uses = []
    for name, choices in found.items():
        size = sum(choice.bytes for choice in choices)
        bits = 8 * size / max(1, sum(choice.rows * choice.columns for choice in choices))
        uses.append(GridUse(name, len(choices), size, bits, _shade(bits)))
    return tuple(sorted(uses, key=lambda use: (-use.bits_per_weight, use.name)))
